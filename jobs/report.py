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
    from distributed.train.runs import is_run_or_sweep
    from model import storage as files
    from model.config import RunConfig
    from model.errors import UserError

    named = files.join(storage or RunConfig().storage, folder)
    places = [folder, named] if storage is None else [named, folder]
    found = next((place for place in places if is_run_or_sweep(place)), None)
    if found is None:
        raise UserError(
            f"{' and '.join(places)}: neither a sweep nor a run; give its folder, or --storage and its name"
        )
    location = write_report(found, out)
    print_result(f"report: {location}", {"report": location}, json)
