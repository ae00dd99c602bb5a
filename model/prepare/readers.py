"""Readers: the labeled texts of input files, see model/prepare/formats.py for the formats."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, repeat

from model import storage
from model.data.labeled_text import LabeledText, SkipCounts
from model.errors import LineError, UserError
from model.prepare.formats import FORMATS, decode_line
from model.shards import FileRange

_SAMPLE_LINES = 200
_OPEN_FILES = 16  # whose first lines are read at a time


class Reader:
    """Reads the labeled texts of one range of a file.

    Attributes:
        lines: number of lines, known once `read` is exhausted.
    """

    def __init__(self, file_range: FileRange, skip_bad_lines: bool = False) -> None:
        """Read a range; with `skip_bad_lines`, count lines that cannot be used instead of raising LineError."""
        self.file_range = file_range
        self.skip_bad_lines = skip_bad_lines
        self.lines = 0

    def read(self, skips: SkipCounts) -> Iterator[LabeledText]:
        """Yield the texts in file order, with line numbers counted from 1 at the start of the range.

        Raises:
            LineError: a line cannot be used.
        """
        parse = FORMATS[self.file_range.format].parse
        for lines in self._records():
            try:
                labeled = parse([(place, decode_line(raw, place)) for place, raw in lines], skips)
            except LineError as error:
                if not self.skip_bad_lines:
                    raise
                skips.add(f"bad line: {error.problem}", error.place)
                continue
            if labeled is not None:
                yield labeled

    def _records(self) -> Iterator[list[tuple[str, bytes]]]:
        """Yield the lines of each record: a block that a blank line ends, or each line that is not blank."""
        path, blocks, number = self.file_range.path, self.file_range.blocks, 0
        record: list[tuple[str, bytes]] = []
        for number, raw in enumerate(self.file_range.lines(), 1):
            line = raw.rstrip(b"\r\n")
            if line.strip():
                record.append((f"{path}:{number}", line))
            if record and not (blocks and line.strip()):
                yield record
                record = []
        if record:
            yield record
        self.lines = number


def resolve_inputs(patterns: list[str], format: str = "auto") -> list[FileRange]:
    """Return the input files that paths, URIs and globs match, with their format.

    Args:
        patterns: at least one.
        format: a key of FORMATS, or `auto` to detect it from the content.

    Raises:
        UserError: a file is missing, empty or of no known format, or the files differ in format.
    """
    if format != "auto" and format not in FORMATS:
        raise UserError(f"format {format!r} is unknown; choose one of {', '.join(['auto', *FORMATS])}")
    paths = [path for pattern in patterns for path in storage.expand(pattern)]
    with ThreadPoolExecutor(_OPEN_FILES) as threads:  # remote files are mostly waited for
        formats = dict(
            zip(paths, threads.map(detect_format, paths) if format == "auto" else repeat(format), strict=False)
        )
    if len(set(formats.values())) > 1:
        listed = ", ".join(f"{path} is {name}" for path, name in formats.items())
        raise UserError(f"the input files differ in format: {listed}; prepare them separately, or set --format")
    return [FileRange(path, formats[path], blocks=FORMATS[formats[path]].blocks) for path in paths]


def detect_format(path: str) -> str:
    """Return the name of a file's format, detected from its first lines.

    Raises:
        UserError: the file is empty, or looks like none of the formats.
    """
    lines = first_lines(path)
    for format in FORMATS.values():
        if format.sniff(lines):
            return format.name
    known = "; ".join(f"{format.name}: {format.summary}" for format in FORMATS.values())
    raise UserError(f"{path}:1: looks like none of the formats ({known}); convert the file, or set --format")


def first_lines(path: str) -> list[str]:
    """Return the lines that are not blank among the first lines of a file. Raises UserError where there are none."""
    lines = [
        line.decode("utf-8", "replace").strip("\r\n\ufeff")
        for line in islice(FileRange(path, "auto").lines(), _SAMPLE_LINES)
    ]
    filled = [line for line in lines if line.strip()]
    if not filled:
        raise UserError(f"{path}: is empty; give a file with at least one text")
    return filled
