"""Word vectors trained on unlabelled texts: word2vec's skip-gram over the words that our tokenizer finds.

The texts are cut once, to a temporary file on this machine, which gensim then reads as often as it needs. With one
thread and a seed, equal texts give equal vectors.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from typing import IO, Any, NamedTuple
from zlib import crc32

from model import storage
from model.data.labelled_text import SkipCounts
from model.data.tokenizer import CachedTokenizer
from model.errors import LineError, UserError
from model.prepare.formats import FORMATS, is_json, text_of_line
from model.prepare.readers import Reader, first_lines
from model.prepare.vocabulary import COUNTED
from model.shards import FileRange, checksum

FREQUENCY = 5  # words seen less often get no vector
EPOCHS = 5
PASSES = EPOCHS + 2  # over the texts: one cuts them, one counts the words
_TEXTS = 4096  # held and cut at a time
_WORDS = 1_000_000  # distinct words remembered while cutting


class Pretrained(NamedTuple):
    """Word vectors, and what they were made from.

    Attributes:
        vectors: gensim's KeyedVectors, the most frequent words first.
        about: for dataset.json: sources with checksums, texts, tokens, lines left out, settings.
    """

    vectors: Any
    about: dict[str, Any]


def unlabelled_files(patterns: list[str]) -> list[FileRange]:
    """The files that paths, URIs and globs name: `jsonl`, `conll`, or `text`, of which what follows a tab is left out.

    Raises:
        UserError: a file is missing or empty.
    """
    paths = [path for pattern in patterns for path in storage.expand(pattern)]
    return [_unlabelled_file(path) for path in paths]


def train_word2vec(
    files: list[FileRange],
    size: int,
    frequency: int = FREQUENCY,
    skip_bad_lines: bool = False,
    seed: int = 0,
    tell: Callable[[int], None] = lambda texts: None,
) -> Pretrained:
    """Trains the vectors of words.

    Args:
        files: of `unlabelled`.
        size: values of a vector.
        frequency: words seen less often get none.
        skip_bad_lines: leave out lines that cannot be read.
        seed: what the vectors depend on besides the texts.
        tell: is told how many texts are done, each of them PASSES times.

    Raises:
        LineError: a line cannot be read.
        UserError: a file cannot be read, or no word is seen often enough.
        OSError: there is no room for the temporary file.
    """
    from gensim.models import Word2Vec

    logging.getLogger("gensim").setLevel(logging.ERROR)  # advice on how to use more threads
    with tempfile.NamedTemporaryFile("w+", encoding="utf-8", newline="\n", prefix="tandem-") as spool:
        about = _cut(files, skip_bad_lines, spool, tell)
        sentences = _Sentences(spool.name, about["texts"], tell)
        # One worker, for the order of updates; checksums, for Python's own hash differs from process to process.
        word2vec = Word2Vec(
            sg=1,
            vector_size=size,
            min_count=frequency,
            max_vocab_size=COUNTED,
            epochs=EPOCHS,
            workers=1,
            seed=seed,
            hashfxn=lambda word: crc32(word.encode()),
        )
        word2vec.build_vocab(sentences)
        if not len(word2vec.wv):
            raise UserError(
                f"{', '.join(file.path for file in files)}: no word is seen {frequency} times; give more texts to "
                f"--pretrain, or a lower --pretrain-frequency"
            )
        word2vec.train(sentences, total_examples=word2vec.corpus_count, epochs=EPOCHS)
    return Pretrained(word2vec.wv, about | {"frequency": frequency, "epochs": EPOCHS, "seed": seed})


class _Sentences:
    """The words of each text, from the file to which they were cut; again and again."""

    def __init__(self, path: str, texts: int, tell: Callable[[int], None]) -> None:
        self._path, self._done, self._tell = path, texts, tell

    def __iter__(self) -> Iterator[list[str]]:
        with open(self._path, encoding="utf-8", newline="\n") as lines:  # noqa: PTH123
            for line in lines:
                self._done += 1
                if not self._done % _TEXTS:
                    self._tell(self._done)
                yield line[:-1].split(" ")


def _cut(files: list[FileRange], skip_bad_lines: bool, spool: IO[str], tell: Callable[[int], None]) -> dict[str, Any]:
    """Writes the words of each text as a line."""
    sources, all_texts, tokens, tally = [], 0, 0, SkipCounts()
    words: dict[str, int] = {}
    cut = CachedTokenizer(lambda word: words.setdefault(word, len(words)))
    for file in files:
        texts = _texts(file, skip_bad_lines, tally)
        before = all_texts
        while chunk := list(islice(texts, _TEXTS)):
            if len(words) > _WORDS:
                words.clear()
                cut = CachedTokenizer(lambda word: words.setdefault(word, len(words)))
            found = cut(chunk)
            surface = list(words)
            begins, ids = found.begins.tolist(), found.ids.tolist()
            for begin, end in pairwise(begins):
                if begin < end:
                    spool.write(" ".join([surface[i] for i in ids[begin:end]]) + "\n")
            all_texts, tokens = all_texts + len(chunk), tokens + len(ids)
            tell(all_texts)
        size, digest = checksum(file)
        sources.append(
            {"path": file.path, "format": file.format, "texts": all_texts - before, "bytes": size, "sha256": digest}
        )
    spool.flush()
    skipped = {"skipped": tally.counts, "skipped_places": tally.places}
    return {"sources": sources, "texts": all_texts, "tokens": tokens, **skipped}


def _texts(file: FileRange, skip_bad_lines: bool, tally: SkipCounts) -> Iterator[str]:
    """The texts of a file. Raises LineError."""
    if file.blocks:
        yield from (labelled.text for labelled in Reader(file, skip_bad_lines).read(tally))
        return
    for number, raw in enumerate(file.lines(), 1):
        try:
            text = text_of_line(raw.rstrip(b"\r\n"), f"{file.path}:{number}", file.format == "jsonl")
        except LineError as error:
            if not skip_bad_lines:
                raise
            tally.add(f"bad line: {error.problem}", error.place)
            continue
        if file.format == "text":
            text = text.partition("\t")[0]
        if text.strip():
            yield text


def _unlabelled_file(path: str) -> FileRange:
    lines = first_lines(path)
    if is_json(lines):
        return FileRange(path, "jsonl")
    # A line of a block is a token, not a text; such files have to be read as labelled ones.
    labelled = next((format for format in FORMATS.values() if format.blocks and format.sniff(lines)), None)
    return FileRange(path, labelled.name, blocks=True) if labelled else FileRange(path, "text")
