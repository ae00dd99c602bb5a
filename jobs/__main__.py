"""`python -m jobs COMMAND`."""

import tomllib
from pathlib import Path
from typing import Annotated

import typer

from jobs.benchmark.command import benchmark
from jobs.console import keep_warnings, open_closed_streams, write_utf8
from jobs.demo import demo
from jobs.distil.command import distil
from jobs.evaluate import evaluate
from jobs.extract import extract
from jobs.label import label
from jobs.prepare import prepare
from jobs.report import report
from jobs.serve.command import serve
from jobs.train import train
from jobs.tune import tune

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(asked: bool) -> None:
    if asked:
        print(tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]["version"])
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Tandem: train, tune and use a keyphrase tagger for short texts, on Ray."""


for job in (prepare, train, tune, evaluate, extract, label, distil, serve, report, benchmark, demo):
    app.command()(job)

if __name__ == "__main__":
    open_closed_streams()
    write_utf8()
    keep_warnings()
    app(prog_name="python -m jobs")
