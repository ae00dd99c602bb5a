"""Word vectors trained on unlabeled texts: word2vec's skip-gram (Mikolov et al., 2013) over the words of our tokenizer.

The texts are tokenized once, to a temporary file on this machine, which gensim reads in every epoch. One thread and a
seed make the vectors reproducible.
"""

import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import IO, NamedTuple
from zlib import crc32

from model.data.dataset_info import PretrainingInfo, PretrainingTexts, UnlabeledSourceInfo
from model.data.labeled_text import SkipCounts
from model.data.tokenizer import CachedTokenizer
from model.errors import UserError
from model.prepare.vectors import KeyedVectors
from model.prepare.vocabulary import MAX_COUNTED_WORDS, WordCounts, vocabulary
from model.readers.readers import Reader
from model.shards import FileRange, checksum

MIN_FREQUENCY = 5  # default; less frequent words get no vector
EPOCHS = 5
PASSES = EPOCHS + 2  # over the texts: one tokenizes them, one counts the words
_CHUNK_TEXTS = 4096  # texts tokenized at a time
_CACHED_WORDS = 1_000_000


class TrainedVectors(NamedTuple):
    """Word vectors, the most frequent words first, and what dataset.json contains about them."""

    vectors: KeyedVectors
    info: PretrainingInfo


def train_word2vec(
    files: list[FileRange],
    vector_size: int,
    min_frequency: int = MIN_FREQUENCY,
    skip_bad_lines: bool = False,
    seed: int = 0,
    progress: Callable[[int], None] = lambda texts: None,
) -> TrainedVectors:
    """Train word vectors.

    Args:
        files: from `unlabeled_inputs`.
        vector_size: dimensions of a vector.
        min_frequency: less frequent words get no vector.
        skip_bad_lines: whether to skip lines that cannot be read.
        seed: of the initial vectors and the sampling.
        progress: called with the number of texts done; each text counts PASSES times.

    Raises:
        LineError: a line cannot be read.
        UserError: a file cannot be read, or no word is frequent enough.
        OSError: there is no room for the temporary file.
    """
    from gensim.models import Word2Vec

    logging.getLogger("gensim").setLevel(logging.ERROR)  # it recommends more threads
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8", newline="\n", prefix="tandem-") as spool:
        texts = _tokenize_files(files, skip_bad_lines, spool, progress)
        sentences = _Sentences(spool.name, texts["texts"], progress)
        # One worker keeps the order of updates; crc32, because Python's own hash differs from process to process.
        word2vec = Word2Vec(
            sg=1,
            vector_size=vector_size,
            min_count=min_frequency,
            max_vocab_size=MAX_COUNTED_WORDS,
            epochs=EPOCHS,
            workers=1,
            seed=seed,
            hashfxn=lambda word: crc32(word.encode()),
        )
        word2vec.build_vocab(sentences)
        if not len(word2vec.wv):
            raise UserError(
                f"{', '.join(file.path for file in files)}: no word occurs {min_frequency} times; give more texts to "
                f"--pretrain, or a lower --pretrain-frequency"
            )
        word2vec.train(sentences, total_examples=word2vec.corpus_count, epochs=EPOCHS)
    return TrainedVectors(word2vec.wv, {**texts, "frequency": min_frequency, "epochs": EPOCHS, "seed": seed})


def frequent_words(
    files: list[FileRange],
    min_frequency: int = MIN_FREQUENCY,
    skip_bad_lines: bool = False,
    progress: Callable[[int], None] = lambda texts: None,
) -> tuple[list[str], PretrainingTexts]:
    """Return the words of unlabeled texts, the most frequent first, and what was read.

    Args:
        files: from `unlabeled_inputs`.
        min_frequency: less frequent words are left out.
        skip_bad_lines: whether to skip lines that cannot be read.
        progress: called with the number of texts done.

    Raises:
        LineError: a line cannot be read.
        UserError: a file cannot be read.
        OSError: there is no room for a temporary file.
    """
    counts = WordCounts()
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8", newline="\n", prefix="tandem-") as spool:
        texts = _tokenize_files(files, skip_bad_lines, spool, progress)
        spool.seek(0)
        while lines := list(islice(spool, _CHUNK_TEXTS)):
            counts.add(Counter(word for line in lines for word in line[:-1].split(" ")))
    return vocabulary(counts.counted(), min_frequency, MAX_COUNTED_WORDS).to_pylist(), texts


class _Sentences:
    """The words of each text, from the temporary file, as often as it is iterated."""

    def __init__(self, path: str, texts: int, progress: Callable[[int], None]) -> None:
        self._path, self._done, self._progress = path, texts, progress

    def __iter__(self) -> Iterator[list[str]]:
        with open(self._path, encoding="utf-8", newline="\n") as lines:  # noqa: PTH123
            for line in lines:
                self._done += 1
                if not self._done % _CHUNK_TEXTS:
                    self._progress(self._done)
                yield line[:-1].split(" ")


def _tokenize_files(
    files: list[FileRange], skip_bad_lines: bool, spool: IO[str], progress: Callable[[int], None]
) -> PretrainingTexts:
    """Write the words of each text as a line; return what was read."""
    sources: list[UnlabeledSourceInfo] = []
    total_texts, total_tokens, skips = 0, 0, SkipCounts()
    word_ids: dict[str, int] = {}
    tokenize = CachedTokenizer(lambda word: word_ids.setdefault(word, len(word_ids)))
    for file in files:
        texts = _texts(file, skip_bad_lines, skips)
        texts_before = total_texts
        while chunk := list(islice(texts, _CHUNK_TEXTS)):
            if len(word_ids) > _CACHED_WORDS:
                word_ids.clear()
                tokenize = CachedTokenizer(lambda word: word_ids.setdefault(word, len(word_ids)))
            tokens = tokenize(chunk)
            words = list(word_ids)
            begins, ids = tokens.begins.tolist(), tokens.ids.tolist()
            for begin, end in pairwise(begins):
                if begin < end:
                    spool.write(" ".join([words[i] for i in ids[begin:end]]) + "\n")
            total_texts, total_tokens = total_texts + len(chunk), total_tokens + len(ids)
            progress(total_texts)
        size, digest = checksum(file)
        texts_read = total_texts - texts_before
        sources.append(
            {"path": file.path, "format": file.layout.format, "texts": texts_read, "bytes": size, "sha256": digest}
        )
    spool.flush()
    return {
        "sources": sources,
        "texts": total_texts,
        "tokens": total_tokens,
        "skipped": skips.counts,
        "skipped_places": skips.places,
    }


def _texts(file: FileRange, skip_bad_lines: bool, skips: SkipCounts) -> Iterator[str]:
    """Yield the texts of a file. Raises LineError."""
    for text in Reader(file, skip_bad_lines).texts(skips):
        if file.layout.format == "text":
            text = text.partition("\t")[0]
        if text.strip():
            yield text
