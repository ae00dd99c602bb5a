"""Keyphrases of the texts of many files as JSON lines: to one stream, or shard by shard to a directory of parts.

    part-*.jsonl       one object per text, in the order of the texts
    extraction.json    numbers of texts, keyphrases and parts, the bundle and the files; written last

Each shard is processed independently, so the concatenated parts equal the stream.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import tee, zip_longest
from typing import BinaryIO, NamedTuple, Protocol, TypedDict

from model import staging, storage
from model.data.labeled_text import SkipCounts, shift_line
from model.errors import LineError, UserError
from model.inference.extractor import PIPE_BATCH_SIZE, Extractor
from model.inference.keyphrase import Keyphrase
from model.readers.readers import Reader, left_out, reading_notes, stream_texts, unlabeled_inputs
from model.shards import FileRange, ParallelMap, make_shards, serial_map

MANIFEST = "extraction.json"
ExtractedText = tuple[str, list[Keyphrase]]


class Pipe(Protocol):
    """What extracts texts: an extractor, or a client of a server that has one."""

    def pipe(self, texts: Iterable[str], batch_size: int = ...) -> Iterator[list[Keyphrase]]:
        """Yield the keyphrases of each text, in order."""


@dataclass(frozen=True)
class ExtractionConfig:
    """The bundle, the input and the output of an extraction.

    Attributes:
        bundle: path or URI of a bundle.
        files: paths, URIs or globs of files with one text per line, or JSON lines with "text".
        out: path or URI of the directory of parts.
        device: `cpu`, `cuda` or `cuda:N`.
        overwrite: whether to replace an existing extraction at `out`.
    """

    bundle: str
    files: list[str]
    out: str
    device: str = "cpu"
    overwrite: bool = False


@dataclass
class ShardResult:
    """How far a shard was read.

    Attributes:
        lines: lines of each range that was read completely, or records where these are no lines.
        error: what stopped the shard, in the range after those in `lines`.
    """

    lines: list[int] = field(default_factory=list)
    error: UserError | OSError | None = None


@dataclass
class PartResult(ShardResult):
    """The result of a shard: numbers of its texts, and of the keyphrases written."""

    texts: int = 0
    keyphrases: int = 0


class ExtractionShard(NamedTuple):
    """A shard of the input and the number of its part."""

    number: int
    ranges: list[FileRange]


class SourceLines(TypedDict):
    """An input file and the number of its lines, or of its records where these are no lines."""

    path: str
    lines: int


class ExtractionInfo(TypedDict):
    """The content of extraction.json."""

    texts: int
    keyphrases: int
    parts: int
    bundle: str
    sources: list[SourceLines]


def extract(
    config: ExtractionConfig,
    parallel_map: ParallelMap = serial_map,
    on_progress: Callable[[int], None] = lambda texts: None,
    on_note: Callable[[str], None] = lambda note: None,
) -> ExtractionInfo:
    """Write the directory of parts and return the content of its extraction.json.

    Args:
        config: the bundle, the input and the output.
        parallel_map: applies a function to the shards, in this process or elsewhere.
        on_progress: called with the number of texts that are done.
        on_note: called with what may surprise in how a file is read.

    Raises:
        UserError: the bundle, the input or the output cannot be used; nothing is left at `out`.
        OSError: the storage is full or cannot be written; likewise.
    """
    staging.require_absent(config.out, MANIFEST, "extraction", config.overwrite, ["part-*"])
    shards = [
        ExtractionShard(number, ranges) for number, ranges in enumerate(make_shards(input_files(config.files, on_note)))
    ]
    texts = keyphrases = 0
    sources: list[SourceLines] = []
    with staging.staged_shared_directory(config.out, MANIFEST, config.overwrite) as folder:
        storage.make_directory(folder)
        write = partial(_write_part, storage.absolute(config.bundle), config.device, folder)
        with closing(parallel_map(write, shards)) as parts:
            for shard, part in zip(shards, parts, strict=True):
                add_lines(sources, shard.ranges, part)
                texts, keyphrases = texts + part.texts, keyphrases + part.keyphrases
                on_progress(texts)
        info: ExtractionInfo = {
            "texts": texts,
            "keyphrases": keyphrases,
            "parts": len(shards),
            "bundle": config.bundle,
            "sources": sources,
        }
        content = json.dumps(info, indent=2, ensure_ascii=False)
        storage.write(storage.join(folder, MANIFEST), content.encode())
    return info


def input_files(patterns: list[str], on_note: Callable[[str], None]) -> list[FileRange]:
    """Return the files that paths, URIs and globs name, to be read without labels. Raises UserError where there are none.

    `on_note` is called with what may surprise in how a file is read.
    """
    files = unlabeled_inputs(patterns, may_be_empty=True)
    for note in reading_notes(files) + left_out(patterns):
        on_note(note)
    return files


def extract_from_files(
    extractor: Pipe, patterns: list[str], on_note: Callable[[str], None] = lambda note: None
) -> Iterator[ExtractedText]:
    """Yield the texts of files with their keyphrases, in order: the content of the parts of `extract`.

    `on_note` is called with what may surprise in how a file is read.

    Raises:
        UserError: a file is missing.
        LineError: a line is not UTF-8, or a record has no text.
    """
    sources: list[SourceLines] = []
    for ranges in make_shards(input_files(patterns, on_note)):
        part = ShardResult()
        try:
            yield from _with_keyphrases(extractor, texts_of_shard(ranges, part.lines))
        except LineError as error:
            part.error = error
        add_lines(sources, ranges, part)


def extract_from_stream(extractor: Pipe, stream: BinaryIO, name: str, batch_size: int) -> Iterator[ExtractedText]:
    """Yield the texts of a stream with their keyphrases, `batch_size` at a time.

    Raises:
        UserError: the stream is no text.
        LineError: a line is not UTF-8, or a record has no text.
    """
    yield from _with_keyphrases(extractor, stream_texts(stream, name), batch_size)


def as_json(text: str, keyphrases: list[Keyphrase]) -> str:
    """Return a text and its keyphrases as a line of JSON."""
    found = {"text": text, "keyphrases": [keyphrase.as_record() for keyphrase in keyphrases]}
    return json.dumps(found, ensure_ascii=False)


@cache
def _loaded(bundle: str, device: str) -> Extractor:
    return Extractor.load(bundle, device)


def _write_part(bundle: str, device: str, folder: str, shard: ExtractionShard) -> PartResult:
    part = PartResult()
    try:
        extractor = _loaded(bundle, device)
        with storage.open_atomic(storage.join(folder, f"part-{shard.number:05d}.jsonl")) as file:
            for text, keyphrases in _with_keyphrases(extractor, texts_of_shard(shard.ranges, part.lines)):
                file.write(f"{as_json(text, keyphrases)}\n".encode())
                part.texts, part.keyphrases = part.texts + 1, part.keyphrases + len(keyphrases)
    except (UserError, OSError) as error:
        part.error = error
    return part


def add_lines(sources: list[SourceLines], ranges: list[FileRange], part: ShardResult) -> None:
    """Add the lines of a shard to those of its files. Raises the shard's error, with the line's number in its file."""
    for file_range, lines in zip_longest(ranges, part.lines):
        if file_range.start == 0:
            sources.append({"path": file_range.path, "lines": 0})
        if lines is None:
            break
        sources[-1]["lines"] += lines
    if isinstance(part.error, LineError):
        raise LineError(shift_line(part.error.place, sources[-1]["lines"]), part.error.problem)
    if part.error is not None:
        raise part.error


def _with_keyphrases(
    extractor: Pipe, texts: Iterator[str], batch_size: int = PIPE_BATCH_SIZE
) -> Iterator[ExtractedText]:
    texts, again = tee(texts)
    yield from zip(again, extractor.pipe(texts, batch_size), strict=True)


def texts_of_shard(ranges: list[FileRange], lines: list[int]) -> Iterator[str]:
    """Yield the texts of a shard; append the lines of each range that was read. Line numbers begin at 1 in each range."""
    for file_range in ranges:
        reader = Reader(file_range)
        yield from reader.texts(SkipCounts())
        lines.append(reader.lines)
