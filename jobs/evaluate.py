"""`python -m jobs evaluate`: bundle + labelled texts -> figures, and the mistakes by kind."""

import json as encoder
from collections.abc import Iterator
from typing import Annotated, Any

import typer

from jobs.console import command, echo, print_json, table
from jobs.prepare import FormatOption, echo_skips


@command
def evaluate(
    bundle: Annotated[str, typer.Argument(help="Bundle of a finished run: a path or URI.")],
    data: Annotated[str, typer.Option(help="Dataset directory, or a labelled file, URI or glob.")],
    split: Annotated[str, typer.Option(help="Split of a dataset directory: train, valid or test.")] = "test",
    format: FormatOption = "auto",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longer texts are left out.")] = 1_000,
    mistakes: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write every mistake there, as a line of JSON.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Measure a tagger: precision, recall and F1 of both heads with 95 % bootstrap intervals, and mistakes by kind."""
    from itertools import compress

    from model import storage
    from model.data.dataset import split_from_examples
    from model.data.examples import Example, examples
    from model.data.labelled_text import SkipCounts
    from model.errors import UserError
    from model.inference.bundle import load_bundle
    from model.inference.error_analysis import by_kind, find_errors
    from model.network.device import resolve_device
    from model.training.evaluation import evaluate as measure
    from model.training.metrics import KEYPHRASE, Column, summarize

    if mistakes is not None and storage.exists(mistakes):
        raise UserError(f"{mistakes}: exists already, and may hold labels; give --mistakes another file, or delete it")
    loaded = load_bundle(bundle)
    train = _trained_on(loaded, data, wanted=mistakes is not None)
    tally = SkipCounts()

    def read(tally: SkipCounts) -> Iterator[Example]:
        return examples(labelled_texts(data, split, format, tally), loaded.tokenizer, tally, max_tokens)

    rows = split_from_examples(read(tally), loaded.tagger.config.uses_word_features)
    echo_skips(tally.counts, tally.places)
    if not len(rows):
        raise UserError(f"{data}: no text is left to measure on; see the reasons above")
    place = resolve_device(device)
    counts = measure(loaded.tagger.to(place), rows, place).counts
    metrics = summarize(counts)
    echo(f"{len(rows):,} texts of {data}")
    echo(table(metrics))
    kinds = None
    if train is not None:
        wrong_rows = counts[:, KEYPHRASE][:, Column.EXACT] == 0
        wrong = compress(read(SkipCounts()), wrong_rows)  # read again, so that not all texts have to be held
        found = find_errors(loaded.tagger, wrong, train, place)
        kinds = by_kind(found)
        echo(_kinds_table(kinds))
        if mistakes is not None:
            lines = "".join(f"{encoder.dumps(each.line(), ensure_ascii=False)}\n" for each in found)
            storage.write(mistakes, lines.encode())
            echo(f"{len(found):,} mistakes are in {mistakes}, by kind, the most informative first")
    if json:
        print_json({"rows": len(rows), **metrics, "mistakes": kinds, "skipped": tally.counts})


def labelled_texts(data: str, split: str, format: str, tally: Any) -> Any:
    """The texts of a dataset directory's split, or of labelled files."""
    from model import storage
    from model.data.dataset import SPLITS, Dataset
    from model.errors import UserError
    from model.prepare.readers import Reader, resolve_inputs

    if storage.file_type(data).name == "Directory":
        if split not in SPLITS:
            raise UserError(f"--split {split}: is unknown; choose one of {', '.join(SPLITS)}")
        return Dataset(data).texts(split)
    return (text for source in resolve_inputs([data], format) for text in Reader(source).read(tally))


def _trained_on(bundle: Any, data: str, wanted: bool) -> Any:
    """The training split of the bundle's dataset; None, and a line that says so, where it is gone and not `wanted`."""
    from model.errors import UserError
    from model.inference.error_analysis import training_split

    try:
        return training_split(bundle, bundle.config.data, data)
    except UserError as error:
        if wanted:
            raise
        echo(f"no mistakes by kind: {error}")
        return None


def _kinds_table(kinds: dict[str, dict[str, float]]) -> str:
    lines = ["mistakes               misses  false positives  share"]
    for kind, of_kind in kinds.items():
        misses, false_positives = f"{of_kind['misses']:,}", f"{of_kind['false_positives']:,}"
        lines.append(f"{kind:<21}  {misses:>6}  {false_positives:>15}  {of_kind['share']:5.1%}")
    return "\n".join(lines)
