"""A look at labeled files before a dataset is made of them."""

from collections import Counter
from dataclasses import dataclass, field
from itertools import chain, islice

import numpy as np

from model.data.characters import Span
from model.data.examples import RULES, Example, examples
from model.data.labeled_text import SkipCounts, format_skips
from model.prepare.advice import advice
from model.prepare.buckets import find_duplicates
from model.prepare.passes import text_digest
from model.readers.formats import describe
from model.readers.options import ReadOptions
from model.readers.readers import Reader, left_out, resolve_inputs

_SAMPLES = 5
_MOST_TEXTS = 20_000  # that are read


@dataclass
class Preview:
    """How files are read.

    Attributes:
        reading: what they are taken for, in words.
        samples: the first texts with keyphrases, and the characters of these.
        texts, keyphrases, without: numbers of texts, of keyphrases, and of texts that have none.
        cut: whether only the first texts were read.
        remarks: what would be left out or changed and why, and what is likely to be a mistake.
    """

    reading: str
    samples: list[tuple[str, list[Span]]] = field(default_factory=list)
    texts: int = 0
    keyphrases: int = 0
    without: int = 0
    cut: bool = False
    remarks: list[str] = field(default_factory=list)


def preview(patterns: list[str], options: ReadOptions, max_tokens: int, skip_bad_lines: bool = False) -> Preview:
    """Return how files are read, by the first texts of them all.

    Args:
        patterns: paths, URIs, globs or directories.
        options: what the content of the files does not tell.
        max_tokens: longer texts are skipped.
        skip_bad_lines: whether to skip lines that cannot be used.

    Raises:
        UserError: a file cannot be used.
    """
    files, skips = resolve_inputs(patterns, options), SkipCounts()
    found = Preview(describe(files[0].layout))
    labeled = chain.from_iterable(Reader(file, skip_bad_lines).read(skips) for file in files)
    digests = []
    for example in islice(examples(labeled, RULES, skips, max_tokens), _MOST_TEXTS):
        found.texts += 1
        found.keyphrases += len(example.spans)
        found.without += not example.spans
        digests.append((text_digest(example.text), hash(tuple(example.spans))))
        if example.spans and len(found.samples) < _SAMPLES:
            found.samples.append((example.text, _characters(example)))
    found.cut = found.texts == _MOST_TEXTS
    found.remarks = format_skips(skips.counts, skips.places) + [f"warning: {line}" for line in left_out(patterns)]
    if digests:
        texts, labelings = np.array(digests, np.int64).T
        duplicates = find_duplicates(np.zeros(len(texts), np.int8), texts, labelings)  # all of one split
        warnings = advice({"train": Counter(rows=found.texts, keyphrases=found.keyphrases)}, duplicates)
        found.remarks += [f"warning: {line.removeprefix('train: ')}" for line in warnings]
    return found


def _characters(example: Example) -> list[Span]:
    return [(example.offsets[first][0], example.offsets[end - 1][1]) for first, end in example.spans]
