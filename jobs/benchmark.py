"""`python -m jobs benchmark`: how fast everything is on this machine, side by side in one run."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.console import command, print_json, say


@command
def benchmark(
    data: Annotated[str | None, typer.Option(help="Dataset directory; the built-in corpus otherwise.")] = None,
    workers: Annotated[int, typer.Option(min=2, help="Processes of a group.")] = 2,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; what is told are medians.")] = 5,
    texts: Annotated[int, typer.Option(min=1000, help="Texts that are prepared in each round.")] = 200_000,
    json: Annotated[bool, typer.Option("--json", help="Print the ratios and the table as one JSON object.")] = False,
) -> None:
    """Measure training against the hand-made loop and against the machine's limit, and everything beside it.

    Takes about ten minutes on 2 cores. Uses a GPU where this machine has one.
    """
    from distributed.benchmark import Request
    from distributed.benchmark import benchmark as measure
    from jobs.demo import prepare_corpus, write_corpus
    from model import storage

    with tempfile.TemporaryDirectory(prefix="tandem-corpus-") as folder:
        place = data or prepare_corpus(write_corpus(Path(folder) / "corpus", 12_000), Path(folder) / "dataset")
        try:
            result = measure(Request(storage.absolute(place), workers, repeats, texts), say)
        finally:
            import ray

            ray.shutdown()
    say(_table(result))
    if json:
        print_json(result)


def _table(result: dict[str, Any]) -> str:
    """The rows, then the ratios."""
    lines = [f"{'':<52}{'median':>12}{'lowest':>12}{'highest':>12}"]
    for row in result["table"]:
        figures = "".join(f"{row[name]:>12,.0f}" for name in ("median", "low", "high"))
        lines.append(f"{row['name']:<52}{figures}  {row['unit']}")
    lines += [f"{f'started, {name}':<52}{seconds:>12.1f}{'':24}  s" for name, seconds in result["started_s"].items()]
    ratios = [(name, value) for name, value in result.items() if isinstance(value, float)]
    return "\n".join([*lines, *(f"{name:<52}{value:>12.3f}" for name, value in ratios)])
