"""`python -m jobs label`: bundle + unlabeled texts -> what the bundle says of every word, to train a student with."""

from typing import Annotated

import typer

from jobs.console import command, echo, invocation, print_json, progress_counter


@command
def label(
    teacher: Annotated[str, typer.Argument(help="Bundle of a finished run: a path or URI.")],
    files: Annotated[list[str], typer.Argument(help="Paths, URIs or globs of unlabeled texts, as extract reads them.")],
    out: Annotated[str, typer.Option(help="Folder for the labels; one that was cut off is finished.")],
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on Ray; on a cluster all that it has otherwise.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing labels at --out.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Label texts with a teacher: the probabilities of both heads for every word, as Parquet, for train --teacher.

    Each process uses one thread, so that any number of them gives the same bytes; --workers uses more cores.
    """
    from distributed.cluster.ray_data import parallel_map
    from model.distillation.labeling import LabelConfig
    from model.distillation.labeling import label as label_texts

    config = LabelConfig(teacher, files, out, device, overwrite)
    with progress_counter("texts") as show_progress:
        mapped = parallel_map(out, workers, actors=True, device=device)
        info = label_texts(config, mapped, show_progress, echo)
    size = info["bytes"] / max(info["texts"], 1)
    echo(f"{info['texts']:,} texts, {info['words']:,} words, {size:.0f} bytes a text in {len(info['parts'])} part(s)")
    echo(f"next: {invocation('train', '--preset', 'best', '--teacher', out, '--data')} DATASET")
    if json:
        print_json({"out": out, **info, "parts": len(info["parts"])})
