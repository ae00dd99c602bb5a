"""A tagger's mistakes on labelled texts, told apart by what it was trained on."""

from collections.abc import Iterable, Iterator
from itertools import islice

import torch

from model.data.dataset import Dataset, Split, split_of
from model.data.examples import CHUNK, Example
from model.data.labels import O
from model.errors import UserError
from model.inference.bundle import Bundle
from model.inference.error_analysis import Found, Marked, Mistake, mistakes_in
from model.network.decoding import find, scored
from model.network.tagger import Tagger
from model.training.loop import answers


def review(tagger: Tagger, examples: Iterable[Example], train: Split, device: torch.device) -> list[Mistake]:
    """The mistakes of a tagger, by kind; see model/inference/error_analysis.py.

    Args:
        tagger: on the device.
        examples: labelled texts, read with its tokenizer.
        train: the split that it was trained on.
        device: where to compute.
    """
    return mistakes_in(_marked(tagger, examples, device), train)


def training_split(bundle: Bundle, *locations: str) -> Split:
    """The training split of the dataset that a bundle was trained on: of the first location that has it.

    Raises:
        UserError: none of them is a dataset with the bundle's vocabulary.
    """
    vocabulary, missing = bundle.tokenizer.to_str(), []
    for location in dict.fromkeys(locations):
        try:
            dataset = Dataset(location)
            if dataset.tokenizer().to_str() == vocabulary:
                return dataset.load("train")
            missing.append(f"{location} has another vocabulary")
        except (UserError, OSError) as error:  # OSError: it is there and may not be read, or the network is not
            missing.append(str(error))
    raise UserError(
        f"mistakes are told apart by what the tagger was trained on, and that is not there: {'; '.join(missing)}; put the "
        f"dataset back, or give it as --data"
    )


def _marked(tagger: Tagger, examples: Iterable[Example], device: torch.device) -> Iterator[Marked]:
    """The texts in which the tagger differs from the data."""
    examples = iter(examples)
    while chunk := list(islice(examples, CHUNK)):
        found: list[tuple[list[Found], list[Found]]] = [([], []) for _ in chunk]
        for rows, batch, logits in answers(tagger, split_of(chunk, tagger.config.spelled), device):
            gold = scored(logits, batch.lengths, batch.keyphrase.clamp(min=O))
            for side, (spans, scores) in enumerate((gold, find(logits, batch.lengths))):
                for (row, start, end), score in zip(spans.tolist(), scores.tolist(), strict=True):
                    found[rows[row]][side].append((start, end, score))
        for example, (wanted, has) in zip(chunk, found, strict=True):
            if [span[:2] for span in wanted] != [span[:2] for span in has]:
                yield Marked(example.text, example.place, example.ids, example.offsets, wanted, has)
