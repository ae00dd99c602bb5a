"""`python -m jobs evaluate`: bundle + labeled texts -> metrics, and the mistakes by kind."""

import json as encoder
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.console import command, echo, print_result, table
from jobs.prepare import (
    FormatOption,
    OffsetsOption,
    TagColumnOption,
    TagNamesOption,
    TokenColumnOption,
    as_names,
    echo_skips,
)
from model.readers.options import AUTO, ReadOptions

if TYPE_CHECKING:
    from model.data.dataset import Split
    from model.data.examples import Example
    from model.data.labeled_text import LabeledText, SkipCounts
    from model.inference.bundle import Bundle
    from model.inference.mistakes import KindCounts, Mistake


@dataclass(frozen=True)
class EvaluationResult:
    """The result of the command.

    Attributes:
        rows: texts that were measured.
        metrics: of both heads; see `model.training.metrics.summarize`.
        mistakes: by kind; None where the training split is not available.
        skipped: texts that were not measured, by reason.
    """

    rows: int
    metrics: dict[str, float]
    mistakes: "dict[str, KindCounts] | None"
    skipped: dict[str, int]

    def as_json(self) -> dict[str, object]:
        """Return the result as plain values, the metrics at the top level."""
        return {"rows": self.rows, **self.metrics, "mistakes": self.mistakes, "skipped": self.skipped}


@command
def evaluate(
    bundle: Annotated[str, typer.Argument(help="Bundle of a finished run: a path or URI.")],
    data: Annotated[str, typer.Option(help="Dataset directory, or a labeled file, URI or glob.")],
    split: Annotated[
        str | None, typer.Option(help="Split of a dataset directory: train, valid or test, the default.")
    ] = None,
    format: FormatOption = "auto",
    token_column: TokenColumnOption = None,
    tag_column: TagColumnOption = None,
    tag_names: TagNamesOption = None,
    offsets: OffsetsOption = "characters",
    max_tokens: Annotated[int, typer.Option(min=1, help="Skip longer texts.")] = 1_000,
    mistakes: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write every mistake to this file, as JSON lines.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Measure a tagger: precision, recall and F1 of both heads with 95 % bootstrap intervals, and mistakes by kind."""
    from model.data.dataset import split_from_examples
    from model.data.examples import examples
    from model.data.labeled_text import SkipCounts
    from model.errors import UserError
    from model.inference.bundle import load_bundle
    from model.inference.error_analysis import find_errors
    from model.inference.mistakes import by_kind
    from model.network.device import resolve_device
    from model.training.evaluation import evaluate as measure
    from model.training.metrics import KEYPHRASE, Column, summarize

    if mistakes is not None:
        _require_new_file(mistakes)
    place = resolve_device(device)
    loaded = load_bundle(bundle)
    train = _training_split(loaded, data, required=mistakes is not None)
    skips = SkipCounts()
    reading = ReadOptions(format, token_column, tag_column, offsets, as_names(tag_names))
    texts = labeled_texts(data, split, reading)

    def read(skips: SkipCounts) -> "Iterator[Example]":
        return examples(texts(skips), loaded.tokenizer, skips, max_tokens)

    rows = split_from_examples(read(skips), loaded.config.tagger.uses_word_features, loaded.subwords)
    echo_skips(skips.counts, skips.places)
    if not len(rows):
        raise UserError(f"{data}: no text is left to measure on; see the reasons above")
    counts = measure(loaded.tagger.to(place), rows, place).counts
    metrics = summarize(counts)
    if not rows.tags.any():
        echo(f"warning: {data}: has no keyphrases, so that recall and F1 are 0 whatever is found")
    lines = [f"{len(rows):,} texts of {data}", table(metrics)]
    kinds, found = None, []
    if train is not None:
        wrong_rows = counts[:, KEYPHRASE][:, Column.EXACT] == 0
        wrong = compress(read(SkipCounts()), wrong_rows)  # read again, so that not all texts are in memory
        found = find_errors(loaded.tagger, wrong, train, place, loaded.subwords)
        kinds = by_kind(found)
        lines.append(_kinds_table(kinds))
    print_result("\n".join(lines), EvaluationResult(len(rows), metrics, kinds, skips.counts).as_json(), json)
    if mistakes is not None:
        _write_mistakes(mistakes, found)


def _require_new_file(mistakes: str) -> None:
    """Check before the work that a file can be written. Raises UserError where there is one already, or OSError."""
    from model import storage
    from model.errors import UserError

    if storage.exists(mistakes):
        raise UserError(f"{mistakes}: exists already, and may hold labels; give --mistakes another file, or delete it")
    storage.write(mistakes, b"")
    storage.remove(mistakes)


def labeled_texts(
    data: str, split: str | None, reading: ReadOptions
) -> "Callable[[SkipCounts], Iterator[LabeledText]]":
    """Return a function that reads the texts of a dataset directory's split, or of labeled files, as often as it is called.

    Raises:
        UserError: there is no such split, or no such files, or what was said of them is of the other kind.
    """
    from model import storage
    from model.data.dataset import SPLITS, Dataset
    from model.errors import UserError
    from model.readers.readers import Reader, labeled_files, left_out, resolve_inputs

    if storage.file_type(data).name == "Directory" and not labeled_files(data):
        chosen = split or "test"
        if chosen not in SPLITS:
            raise UserError(f"--split {chosen}: is unknown; choose one of {', '.join(SPLITS)}")
        if reading != AUTO:
            raise UserError(
                f"--format, --token-column, --tag-column, --tag-names and --offsets: are of labeled files, and {data} is a "
                f"dataset directory; leave them out"
            )
        return lambda skips: Dataset(data).texts(chosen)
    files = resolve_inputs([data], reading)  # once: a pipe cannot be opened again
    if split is not None:
        raise UserError(f"--split {split}: is of a dataset directory, and {data} is none; leave it out")
    for line in left_out([data]):
        echo(f"warning: {line}")
    return lambda skips: (text for file in files for text in Reader(file).read(skips))


def _training_split(bundle: "Bundle", data: str, required: bool) -> "Split | None":
    """Load the training split of the bundle's dataset; where it is gone and not required, report that and return None."""
    from model.errors import UserError
    from model.inference.training_stats import training_split

    try:
        return training_split(bundle, bundle.config.data, data)
    except UserError as error:
        if required:
            raise
        echo(f"no mistakes by kind: {error}")
        return None


def _write_mistakes(location: str, mistakes: "list[Mistake]") -> None:
    from model import storage

    lines = "".join(f"{encoder.dumps(each.as_record(), ensure_ascii=False)}\n" for each in mistakes)
    storage.write(location, lines.encode())
    echo(f"{len(mistakes):,} mistakes are in {location}, by kind, the most informative first")


def _kinds_table(kinds: dict[str, "KindCounts"]) -> str:
    lines = ["mistakes               misses  false positives  share"]
    for kind, of_kind in kinds.items():
        misses, false_positives = f"{of_kind['misses']:,}", f"{of_kind['false_positives']:,}"
        lines.append(f"{kind:<21}  {misses:>6}  {false_positives:>15}  {of_kind['share']:5.1%}")
    return "\n".join(lines)
