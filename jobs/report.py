"""`python -m jobs report`: a sweep's or a run's folder -> one HTML file."""

from typing import Annotated

import typer

from jobs.console import command, print_result


@command
def report(
    folder: Annotated[str, typer.Argument(metavar="RUN_OR_SWEEP", help="Its folder, a path or URI; or its name.")],
    storage: Annotated[
        str | None, typer.Option(help="Where runs and sweeps are stored, for a name; run.storage otherwise.")
    ] = None,
    out: Annotated[str | None, typer.Option(help="The file; report.html in the folder otherwise.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Show a sweep or a run, finished or not: one file that opens offline."""
    from distributed.report.page import write_report
    from model import storage as files
    from model.config import RunConfig

    named = files.join(storage or RunConfig().storage, folder)
    if (storage is not None or not files.exists(folder)) and files.exists(named):
        folder = named
    location = write_report(folder, out)
    print_result(f"report: {location}", {"report": location}, json)
