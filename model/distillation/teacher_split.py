"""The training split of a student: gold texts, and after them texts that a teacher labeled."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from model.config import TrainingConfig
from model.data.batching import length_sorted_batches, padded
from model.data.dataset import Dataset, Split
from model.data.features import WordFeatures
from model.data.labels import TeacherTargets
from model.data.subwords import SubwordTokenizer, concatenate_subwords, ranges
from model.data.tokenizer import UNKNOWN, CachedTokenizer, TokenizedTexts
from model.distillation.label_files import LabeledTexts, TeacherLabels
from model.errors import UserError
from model.network.decoding import viterbi_decode

Number = TypeVar("Number", bound=np.generic)
_BATCH = 1024  # texts whose most probable tags are found at a time
_LEAST = 1e-8  # probability instead of 0, below all that float16 holds


class _Part(NamedTuple):
    """Some labeled texts that can be learned from, with their words."""

    texts: list[str]
    tokens: TokenizedTexts
    keyword: npt.NDArray[np.float16]
    keyphrase: npt.NDArray[np.float16]


def teacher_labels(training: TrainingConfig) -> list[TeacherLabels]:
    """Return the label folders that a run learns from; none for a run without a teacher.

    Raises:
        UserError: a folder cannot be used, or has other labels than when the run was started.
    """
    labels = [TeacherLabels(location) for location in training.teacher or ()]
    if labels and training.teacher_digest not in (None, labels_digest(labels)):
        raise UserError(
            f"{', '.join(each.location for each in labels)}: no longer the labels that the run was started on; restore them, or "
            f"start a new run with another --name"
        )
    return labels


def labels_digest(labels: Sequence[TeacherLabels]) -> str:
    """Return the SHA-256 of the label folders, in their order; of one folder, its own."""
    digests = [each.digest for each in labels]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def count_held_out(labels: Sequence[TeacherLabels], dataset: Dataset) -> list[dict[str, int]]:
    """Return how many texts of each label folder are in the validation and in the test split as well.

    Splits without any are left out. Texts are the same if they differ in case and white space alone.

    Raises:
        UserError: the labels are damaged.
    """
    if not labels:
        return []

    def key(text: str) -> str:
        return " ".join(text.casefold().split())

    held_out = {
        key(each.text): split for split in ("test", "valid") if dataset.rows(split) for each in dataset.texts(split)
    }
    found = [Counter(held_out.get(key(text)) for part in each.read() for text in part.texts) for each in labels]
    return [{split: counts[split] for split in ("valid", "test") if counts[split]} for counts in found]


def add_labeled_texts(
    gold: Split,
    labels: Sequence[TeacherLabels],
    dataset: Dataset,
    word_features: bool = False,
    subwords: SubwordTokenizer | None = None,
) -> Split:
    """Return a training split with labeled texts after its own.

    Words outside the dataset's vocabulary become `<unk>`. Texts without a word are left out, and those that `prepare` would
    skip because they are too long.

    Args:
        gold: the dataset's training split.
        labels: folders of one teacher or of several, at least one.
        dataset: whose vocabulary the student has.
        word_features, subwords: what to add, as in `Dataset.load`.

    Raises:
        UserError: the labels of a folder are damaged, empty, or those of a teacher with other words.
    """
    parts = [part for folder in labels for part in _parts(folder, dataset)]
    ids, starts, ends = (
        np.concatenate([np.zeros(0, np.int32), *(getattr(part.tokens, name) for part in parts)])
        for name in ("ids", "starts", "ends")
    )
    lengths = np.concatenate([np.zeros(0, np.int64), *(np.diff(part.tokens.begins) for part in parts)])
    begins = np.concatenate([[0], lengths.cumsum()])
    keyword = np.concatenate([np.zeros(0, np.float16), *(part.keyword for part in parts)])
    keyphrase = np.concatenate([np.zeros((0, 5), np.float16), *(part.keyphrase for part in parts)])
    tags, confidence = _most_probable_tags(keyphrase, begins)

    def texts() -> Iterator[str]:
        return (text for part in parts for text in part.texts)

    features = WordFeatures()(texts(), starts, ends, begins) if word_features else None
    found = subwords(texts(), starts, ends, begins) if subwords else None
    teacher = TeacherTargets(keyword, keyphrase, np.ones(len(lengths), np.bool_), confidence)
    return _join(gold, Split(ids, tags, begins, features, found, teacher=teacher))


def _parts(labels: TeacherLabels, dataset: Dataset) -> list[_Part]:
    """Return the texts of each part that can be learned from."""
    labels.check_words(dataset.tokenizer_bytes(), dataset.location)
    tokenizer, longest = dataset.tokenizer(), dataset.info["recipe"]["max_tokens"]
    vocabulary = tokenizer.get_vocab()
    tokenize = CachedTokenizer(lambda word: vocabulary.get(word, UNKNOWN), tokenizer)
    parts = [_usable(part, tokenize(part.texts), longest, labels.location) for part in labels.read() if part.texts]
    if not any(part.texts for part in parts):
        raise UserError(f"{labels.location}: has no text to learn from; label texts that have words")
    return parts


def _usable(part: LabeledTexts, tokens: TokenizedTexts, longest: int, location: str) -> _Part:
    lengths = np.diff(tokens.begins)
    if not np.array_equal(lengths, part.lengths):
        text = part.texts[int((lengths != part.lengths).argmax())]
        raise UserError(
            f"{location}: the teacher divides {text[:60]!r} into other words than the dataset; label the texts again with this "
            f"version"
        )
    kept = (lengths > 0) & (lengths <= longest)
    words = np.repeat(kept, lengths)
    begins = np.concatenate([[0], lengths[kept].cumsum()])
    own = TokenizedTexts(tokens.ids[words], tokens.starts[words], tokens.ends[words], begins)
    texts = [text for text, keep in zip(part.texts, kept, strict=True) if keep]
    return _Part(texts, own, part.keyword[words], part.keyphrase[words])


def _most_probable_tags(
    probabilities: npt.NDArray[np.float16], begins: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return the tags (words,) of the best legal sequence of each text, and the lowest probability among them (rows,)."""
    lengths = np.diff(begins)
    tags, confidence = np.zeros(len(probabilities), np.int8), np.ones(len(lengths), np.float32)
    for rows in length_sorted_batches(lengths, _BATCH):
        own = padded(probabilities, begins[rows], lengths[rows], 0, np.float32)
        found = viterbi_decode(own.clamp(min=_LEAST).log(), torch.from_numpy(lengths[rows]))
        real = torch.arange(own.shape[1]) < torch.from_numpy(lengths[rows])[:, None]
        chosen = own.gather(-1, found[..., None])[..., 0].masked_fill(~real, 1)
        confidence[rows] = chosen.amin(1).numpy()
        tags[ranges(begins[rows], lengths[rows])] = found[real].numpy()
    return tags, confidence


def _both(one: npt.NDArray[Number], other: npt.NDArray[Number]) -> npt.NDArray[Number]:
    return np.concatenate([one, other])


def _join(gold: Split, labeled: Split) -> Split:
    """Return the texts of both splits as one; gold texts have no probabilities."""
    assert labeled.teacher is not None
    of_teacher = labeled.teacher
    teacher = TeacherTargets(
        _both(np.zeros(len(gold.ids), np.float16), of_teacher.keyword),
        _both(np.zeros((len(gold.ids), 5), np.float16), of_teacher.keyphrase),
        _both(np.zeros(len(gold), np.bool_), of_teacher.labeled),
        _both(np.ones(len(gold), np.float32), of_teacher.confidence),
    )
    features = subwords = None
    if gold.word_features is not None and labeled.word_features is not None:
        features = _both(gold.word_features, labeled.word_features)
    if gold.subwords is not None and labeled.subwords is not None:
        subwords = concatenate_subwords([gold.subwords, labeled.subwords], gold.subwords.layout)
    return Split(
        _both(gold.ids, labeled.ids),
        _both(gold.tags, labeled.tags),
        _both(gold.begins, labeled.begins[1:] + gold.begins[-1]),
        features,
        subwords,
        teacher=teacher,
    )
