"""Keyphrases of the texts of many files, as JSON lines: to one stream, or piece by piece to a directory of parts.

    part-*.jsonl       one object a text, in the order of the texts
    extraction.json    how many texts, keyphrases and parts, the bundle and the files; a directory that has it is whole

A piece is read and answered alone, and in the same runs of texts, so the parts one after the other are the stream.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache, partial
from itertools import tee, zip_longest
from typing import Any, NamedTuple

from model import staging, storage
from model.data.labelled_text import shift_line
from model.errors import LineError, UserError
from model.inference.extractor import TEXTS_HELD, Extractor, Keyphrase
from model.prepare.formats import text_of_line
from model.shards import FileRange, ParallelMap, make_shards, serial_map

MANIFEST = "extraction.json"
Answer = tuple[str, list[Keyphrase]]


@dataclass(frozen=True)
class ExtractionConfig:
    """What to extract from what.

    Attributes:
        bundle: path or URI of a bundle.
        files: paths, URIs or globs: a text a line, or JSON lines with "text".
        out: the directory of parts, a path or URI.
        device: cpu or cuda.
        overwrite: replace an extraction that stands at `out`.
    """

    bundle: str
    files: list[str]
    out: str
    device: str = "cpu"
    overwrite: bool = False


@dataclass
class PartResult:
    """What a part holds; `error` is what stopped it, in the range after the last of `lines`."""

    lines: list[int] = field(default_factory=list)
    keyphrases: int = 0
    error: UserError | OSError | None = None


class ExtractionShard(NamedTuple):
    """A piece of the input, and the part that it becomes."""

    number: int
    ranges: list[FileRange]


def extract(
    request: ExtractionConfig, over: ParallelMap = serial_map, tell: Callable[[int], None] = lambda texts: None
) -> dict[str, Any]:
    """Makes the directory of parts and gives the content of its extraction.json.

    Args:
        request: what to extract from what.
        over: where the pieces of the input are worked on.
        tell: is told how many texts are done.

    Raises:
        UserError: the bundle, the input or the output cannot be used; nothing is left at `out`.
        OSError: the storage is full or cannot be written; likewise.
    """
    staging.require_absent(request.out, MANIFEST, "extraction", request.overwrite)
    pieces = [ExtractionShard(i, ranges) for i, ranges in enumerate(pieces_of(request.files))]
    keyphrases = 0
    sources: list[dict[str, Any]] = []
    with staging.staged_shared_directory(request.out, MANIFEST) as folder:
        storage.make_directory(folder)
        write = partial(_write_part, storage.absolute(request.bundle), request.device, folder)
        with closing(over(write, pieces)) as parts:
            for piece, written in zip(pieces, parts, strict=True):
                _add(sources, piece.ranges, written)
                keyphrases += written.keyphrases
                tell(_lines(sources))
        info = {
            "texts": _lines(sources),
            "keyphrases": keyphrases,
            "parts": len(pieces),
            "bundle": request.bundle,
            "sources": sources,
        }
        content = json.dumps(info, indent=2, ensure_ascii=False)
        storage.write(storage.join(folder, MANIFEST), content.encode())
    return info


def pieces_of(patterns: list[str]) -> list[list[FileRange]]:
    """The pieces of the files that paths, URIs and globs name. Raises UserError where there is none."""
    paths = [path for pattern in patterns for path in storage.expand(pattern)]
    return make_shards([FileRange(path, _format(next(FileRange(path, "text").lines(), b""))) for path in paths])


def extract_from_files(extractor: Extractor, patterns: list[str]) -> Iterator[Answer]:
    """The texts of files with their keyphrases, in order: what the parts of `extract` hold.

    Raises:
        UserError: a file is missing.
        LineError: a line is not UTF-8, or no JSON object with a text in a file that begins with one.
    """
    sources: list[dict[str, Any]] = []
    for ranges in pieces_of(patterns):
        written = PartResult()
        try:
            yield from _answers(extractor, _texts(ranges, written.lines))
        except LineError as error:
            written.error = error
        _add(sources, ranges, written)


def extract_from_stream(extractor: Extractor, lines: Iterable[bytes], name: str, held: int) -> Iterator[Answer]:
    """The texts of a stream with their keyphrases, `held` read and answered at a time. Raises LineError."""
    yield from _answers(extractor, _texts_of_stream(lines, name), held)


def as_json(text: str, keyphrases: list[Keyphrase]) -> str:
    """A text and its keyphrases as a line of JSON."""
    found = {"text": text, "keyphrases": [keyphrase._asdict() for keyphrase in keyphrases]}
    return json.dumps(found, ensure_ascii=False)


@cache
def _loaded(bundle: str, device: str) -> Extractor:
    return Extractor.load(bundle, device)


def _write_part(bundle: str, device: str, folder: str, piece: ExtractionShard) -> PartResult:
    written = PartResult()
    try:
        extractor = _loaded(bundle, device)
        with storage.open_atomic(storage.join(folder, f"part-{piece.number:05d}.jsonl")) as file:
            for text, keyphrases in _answers(extractor, _texts(piece.ranges, written.lines)):
                file.write(f"{as_json(text, keyphrases)}\n".encode())
                written.keyphrases += len(keyphrases)
    except (UserError, OSError) as error:
        written.error = error
    return written


def _add(sources: list[dict[str, Any]], ranges: list[FileRange], written: PartResult) -> None:
    """Adds the lines of a piece to those of its files. Raises what stopped it, with the line counted in its file."""
    for part, lines in zip_longest(ranges, written.lines):
        if part.start == 0:
            sources.append({"path": part.path, "lines": 0})
        if lines is None:
            break
        sources[-1]["lines"] += lines
    if isinstance(written.error, LineError):
        raise LineError(shift_line(written.error.place, sources[-1]["lines"]), written.error.problem)
    if written.error is not None:
        raise written.error


def _lines(sources: list[dict[str, Any]]) -> int:
    return sum(source["lines"] for source in sources)


def _answers(extractor: Extractor, texts: Iterator[str], held: int = TEXTS_HELD) -> Iterator[Answer]:
    texts, again = tee(texts)
    yield from zip(again, extractor.pipe(texts, held), strict=True)


def _texts(ranges: list[FileRange], lines: list[int]) -> Iterator[str]:
    """The texts of a piece; adds the lines of each range that is read. Line numbers begin at 1 in each."""
    for part in ranges:
        number = 0
        for number, raw in enumerate(part.lines(), 1):
            yield text_of_line(raw.rstrip(b"\r\n"), f"{part.path}:{number}", part.format == "jsonl")
        lines.append(number)


def _texts_of_stream(lines: Iterable[bytes], name: str) -> Iterator[str]:
    format = ""
    for number, raw in enumerate(lines, 1):
        format = format or _format(raw)
        yield text_of_line(raw.rstrip(b"\r\n"), f"{name}:{number}", format == "jsonl")


def _format(line: bytes) -> str:
    return "jsonl" if line.lstrip().startswith(b"{") else "text"
