"""`python -m jobs evaluate`: bundle + labelled texts -> figures."""

from typing import Annotated, Any

import typer

from jobs.console import command, print_json, say, table
from jobs.prepare import tell_skipped


@command
def evaluate(
    bundle: Annotated[str, typer.Argument(help="Bundle of a finished run: a path or URI.")],
    data: Annotated[str, typer.Option(help="Dataset directory, or a labelled file, URI or glob.")],
    split: Annotated[str, typer.Option(help="Split of a dataset directory: train, valid or test.")] = "test",
    format: Annotated[str, typer.Option(help="Format of a labelled file; told by the content otherwise.")] = "auto",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer texts are left out.")] = 1_000,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Measure a tagger: precision, recall and F1 of both heads with 95 % bootstrap intervals."""
    from model.bundle import load_bundle
    from model.corpus import Tally
    from model.dataset import split_of
    from model.errors import UserError
    from model.examples import examples
    from model.loop import evaluate as measure
    from model.metrics import summarise
    from model.tagger import device_of

    loaded = load_bundle(bundle)
    tally = Tally()
    texts = labelled_texts(data, split, format, tally)
    rows = split_of(examples(texts, loaded.tokenizer, tally, max_tokens), loaded.tagger.spelling is not None)
    tell_skipped(tally.counts, tally.places)
    if not len(rows):
        raise UserError(f"{data}: no text is left to measure on; see the reasons above")
    place = device_of(device)
    figures = summarise(measure(loaded.tagger.to(place), rows, place).counts)
    say(f"{len(rows):,} texts of {data}")
    say(table(figures))
    if json:
        print_json({"rows": len(rows), **figures, "skipped": tally.counts})


def labelled_texts(data: str, split: str, format: str, tally: Any) -> Any:
    """The texts of a dataset directory's split, or of labelled files."""
    from model import storage
    from model.corpus import Reader, sources
    from model.dataset import Dataset
    from model.errors import UserError
    from model.parts import SPLITS

    if storage.kind(data).name == "Directory":
        if split not in SPLITS:
            raise UserError(f"--split {split}: is unknown; choose one of {', '.join(SPLITS)}")
        return Dataset(data).texts(split)
    return (text for source in sources([data], format) for text in Reader(source).read(tally))
