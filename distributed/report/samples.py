"""The texts of the report: samples with gold and predicted keyphrases, and the mistakes by kind."""

from itertools import groupby, islice, pairwise

from markupsafe import Markup, escape

from model import storage
from model.data.dataset import Dataset
from model.data.examples import examples
from model.data.labeled_text import LabeledText, SkipCounts
from model.errors import UserError
from model.inference.bundle import Bundle, load_bundle
from model.inference.error_analysis import find_errors
from model.inference.extractor import Extractor
from model.inference.mistakes import KINDS, Mistake, by_kind
from model.inference.training_stats import training_split
from model.network.device import resolve_device

SAMPLES = 20
ANALYSED = 10_000  # texts that are searched for mistakes
EXAMPLES = 8  # mistakes shown of a kind, each of another word or phrase
Span = tuple[int, int]
Section = dict[str, object]  # what the page's template shows, by its names


def sample_sections(folder: str, data: str) -> Section:
    """Return `samples` and `mistakes` of a run's or a sweep's bundle; where they cannot be shown, the reason.

    Args:
        folder: of the run or the sweep.
        data: the dataset that it was trained on.
    """
    location = storage.join(folder, "bundle")
    if not storage.exists(location):
        return _nothing("There is no bundle yet.")
    try:
        bundle, dataset = load_bundle(location), Dataset(data)
        return {"samples": _samples(bundle, dataset), "mistakes": _mistakes(bundle, dataset)}
    except (UserError, OSError) as error:  # OSError: it is there and may not be read, or the network is not
        return _nothing(f"The texts cannot be shown: {error}")


def _nothing(reason: str) -> Section:
    return {"samples": {"text": reason, "texts": []}, "mistakes": {"text": reason, "kinds": []}}


def _samples(bundle: Bundle, dataset: Dataset) -> Section:
    """Return texts of the test split (without one, of the validation split) with gold and predicted keyphrases."""
    split = "test" if dataset.rows("test") else "valid"
    chosen = _spread(dataset, split, SAMPLES)
    predicted = Extractor(bundle.tagger, bundle.tokenizer, subwords=bundle.subwords).pipe(
        labeled.text for labeled in chosen
    )
    texts = []
    for labeled, found in zip(chosen, predicted, strict=True):
        gold, has = sorted(labeled.spans or ()), [(each.start, each.end) for each in found]
        verdict = "right" if gold == has else "differs"
        texts.append(Markup('<li class="{}">{}</li>').format(verdict, highlight(labeled.text, gold, has)))
    return {"text": f"{len(texts)} texts of the {split} split, evenly spread over it.", "texts": texts}


def _mistakes(bundle: Bundle, dataset: Dataset) -> Section:
    """Return the mistakes on the validation split, by kind."""
    chosen = _spread(dataset, "valid", ANALYSED)
    read = examples(chosen, bundle.tokenizer, SkipCounts(), dataset.info["recipe"]["max_tokens"])
    try:
        train = training_split(bundle, dataset.location)
    except UserError as error:
        return {"text": f"They cannot be shown: {error}", "kinds": []}
    found = find_errors(bundle.tagger, read, train, resolve_device("cpu"), bundle.subwords)
    counts = by_kind(found)
    kinds = [
        {"name": kind, "text": KINDS[kind], "examples": _examples(list(some)), **counts[kind]}
        for kind, some in groupby(found, key=lambda each: each.kind)
    ]
    return {"text": f"{len(found):,} mistakes in {len(chosen):,} texts of the valid split.", "kinds": kinds}


def _examples(mistakes: list[Mistake]) -> list[Markup]:
    """Return the first mistake of each word or phrase that causes some, with the number of the others."""
    shown = []
    for _, some in islice(groupby(mistakes, key=lambda each: each.about), EXAMPLES):
        first, *others = some
        spans = ([(each.start, each.end) for each in side] for side in (first.gold, first.predicted))
        more = f"; {len(others):,} more like it" if others else ""
        shown.append(
            Markup("<li>{}<br><small>{} &middot; score {:.2f}{}</small></li>").format(
                highlight(first.text, *spans), first.reason, first.score, more
            )
        )
    return shown


def _spread(dataset: Dataset, split: str, most: int) -> list[LabeledText]:
    """Return at most so many texts of a split, evenly spread over it."""
    every = max(1, -(-dataset.rows(split) // most))
    return list(islice(dataset.texts(split), 0, None, every))


def highlight(text: str, gold: list[Span], predicted: list[Span]) -> Markup:
    """Return a text as HTML in which gold characters are underlined and predicted ones have a background."""
    edges = sorted({0, len(text), *(edge for span in gold + predicted for edge in span)})
    parts = []
    for start, end in pairwise(edges):
        kinds = [
            name for name, spans in (("gold", gold), ("predicted", predicted)) if any(a <= start < b for a, b in spans)
        ]
        piece = escape(text[start:end])
        parts.append(Markup('<span class="{}">{}</span>').format(" ".join(kinds), piece) if kinds else piece)
    return Markup("").join(parts)
