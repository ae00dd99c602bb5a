"""Annotated documents: brat and other pairs of files, WebAnno TSV 3, and spaCy's DocBin."""

import importlib
import re
from collections.abc import Iterator
from pathlib import PurePath

from model import storage
from model.data.characters import UNITS, Unit, fold, to_characters
from model.data.labeled_text import LabeledText, SkipCounts
from model.errors import LineError, StorageError, UserError
from model.readers.conll import Lines, characters, join_tokens
from model.readers.head import decode_file
from model.readers.record_labels import in_characters, phrases_of, split_at_semicolons
from model.readers.records import checked_text
from model.shards import FileRange

# Suffix of a text -> that of its keyphrases: brat, Inspec, and SemEval-2010 and its like.
PAIRS = {".txt": (".ann", ".key"), ".abstr": (".uncontr", ".contr")}
_LINE_END = re.compile("\r\n|\r|\n")  # `splitlines` also divides the words at a form feed or U+2028
WEBANNO = "#FORMAT=WebAnno TSV 3"
_BAR = re.compile(r"(?<!\\)\|")  # between annotations of WebAnno; one in a value has a backslash before it
# Layers of WebAnno and INCEpTION that say something of every word: parts of speech, lemmas, chunks.
_GRAMMAR = tuple(f"de.tudarmstadt.ukp.dkpro.core.api.{name}." for name in ("lexmorph", "segmentation", "syntax"))


def possible_companions(path: str) -> list[str]:
    """Return the paths where the keyphrases of a text may be; none where its suffix is not in PAIRS."""
    base, mark, options = path.partition("?")
    suffix = PurePath(base).suffix
    return [base.removesuffix(suffix) + other + mark + options for other in PAIRS.get(suffix, ())]


def companion(path: str) -> str | None:
    """Return the path of the keyphrases that belong to a text, or None where there is no such file."""
    return next(filter(storage.exists, possible_companions(path)), None)


def pair(file: FileRange) -> Iterator[tuple[str, tuple[str, str, str]]]:
    """Yield the one record of a text and its keyphrases: its place, then both contents, and the path of the second."""
    beside = companion(file.location or file.path)
    if beside is None:
        raise UserError(f"{file.path}: its keyphrases are missing; put the .ann, .key or .uncontr file beside it")
    yield f"{file.path}:1", (_read(file.location or file.path), _read(beside), beside)


def _read(path: str) -> str:
    """Return the content of a file with its line ends as they are, because offsets count them. Raises UserError."""
    try:
        return decode_file(storage.read(path), path)
    except StorageError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error}") from error


def parse_pair(record: tuple[str, str, str], place: str, unit: Unit, skips: SkipCounts) -> LabeledText | None:
    """Return the labeled text of a pair of files, or None where none of its annotations can be kept, which is counted.

    Raises:
        LineError: the annotations cannot be used.
    """
    text, annotations, beside = record
    checked_text(text, place)
    if not beside.partition("?")[0].endswith(".ann"):
        return LabeledText(text, place, keyphrases=_listed(annotations, text))
    spans, left_out = [], False
    for number, line in enumerate(_LINE_END.split(annotations), 1):
        if not line.startswith("T"):  # relations, events, notes
            continue
        span = _text_bound(line, text, f"{beside}:{number}", unit)
        if isinstance(span, str):
            skips.add(span, f"{beside}:{number}")
            left_out = True
        else:
            spans.append(span)
    if left_out and not spans:
        skips.add("text with no keyphrase left", place)
        return None
    return LabeledText(text, place, spans=tuple(spans))


def _listed(annotations: str, text: str) -> tuple[str, ...]:
    """Return keyphrases that stand one a line, or separated by ";", where a line may break within one."""
    if len(split_at_semicolons(annotations)) > 1:
        return phrases_of(" ".join(annotations.split()), text)
    return tuple(line.strip() for line in annotations.splitlines() if line.strip())


def _text_bound(line: str, text: str, place: str, unit: Unit) -> tuple[int, int] | str:
    """Return the span of a line `T1<TAB>Type 8 17<TAB>words`, or why it is left out. Raises LineError."""
    columns = line.split("\t")
    parts = columns[1].split(" ", 1)[1].split(";") if len(columns) > 1 and " " in columns[1] else []
    bounds = [bound for part in parts for bound in part.split()]
    if len(bounds) < 2 or len(bounds) % 2 or not all(bound.isdigit() for bound in bounds):
        raise LineError(place, "is no annotation of brat; write T1<TAB>Type start end<TAB>words")
    places = list(map(int, bounds))
    start, end = in_characters((places[0], places[-1]), text, unit, place)
    # A span over a line break is written in two parts, with only blanks between them.
    inner = zip(places[1:-1:2], places[2::2], strict=True)
    between = (in_characters(span, text, unit, place) for span in inner)
    if any(text[a:b].strip() for a, b in between):
        return "annotation in several parts"
    words = columns[2] if len(columns) > 2 else ""
    if not words.strip() or _is_at((start, end), words, text, "characters"):
        return start, end
    if likely := next((other for other in UNITS if _is_at((places[0], places[-1]), words, text, other)), None):
        raise LineError(place, f"its words are there only if it counts {likely}; set --offsets {likely}")
    return "annotation whose words are not where it says"


def _is_at(span: tuple[int, int], words: str, text: str, unit: Unit) -> bool:
    """Return whether words are at a span of a text, but for blanks and case."""
    try:
        [(start, end)] = to_characters([span], text, unit)
    except ValueError:
        return False
    return "".join(fold(text[start:end]).split()) == "".join(fold(words).split())


def span_columns(lines: list[str]) -> tuple[int, ...]:
    """Return the columns of a WebAnno file that hold annotations of words, from the lines that name its layers."""
    columns: list[int] = []
    at = 3  # after the number, the characters and the word
    for line in lines:
        name, _, layer = line.partition("=")
        features = max(layer.count("|"), 1)
        if name == "#T_SP" and not layer.startswith(_GRAMMAR):
            columns += range(at, at + features)
        if name in ("#T_SP", "#T_CH", "#T_RL"):
            at += features + (name == "#T_RL")
    return tuple(columns)


def parse_webanno(lines: Lines, columns: tuple[int, ...], skips: SkipCounts) -> LabeledText | None:
    """Return the text of a sentence, or None where the block has none. Counts what is widened. Raises LineError."""
    tokens: list[str] = []
    ids: list[set[tuple[int, str]]] = []  # of each token: the annotations that contain it, by column
    for place, line in lines:
        cells = line.split("\t")
        if line.startswith("#"):  # a sentence, a layer
            continue
        if len(cells) < 3 or "-" not in cells[0]:
            raise LineError(place, "is no word of WebAnno TSV 3; write sentence-word<TAB>start-end<TAB>word<TAB>labels")
        labels = [
            (column, label) for column in columns for label in cells[column : column + 1] if label not in ("", "_")
        ]
        found = {(column, _id(each, cells[0])) for column, label in labels for each in _BAR.split(label)}
        if "." in cells[0] and tokens:  # 1-2.1, a part of the word before it
            if found:
                skips.add("span widened to whole tokens", place)
                ids[-1] |= found
        else:
            tokens.append(cells[2])
            ids.append(found)
    if not tokens:
        return None
    text, offsets = join_tokens(tokens)
    spans = {(at[0], at[-1] + 1) for each in set().union(*ids) if (at := [i for i, of in enumerate(ids) if each in of])}
    return LabeledText(text, lines[0][0], spans=characters(sorted(spans), offsets))


def _id(label: str, word: str) -> str:
    """Return the number of an annotation, `KEY[3]`; one without a number is of its word alone."""
    return label.rpartition("[")[2] if label.endswith("]") else word


def doc_bin(file: FileRange) -> Iterator[tuple[str, LabeledText]]:
    """Yield the documents of spaCy's DocBin: their place, and their entities or spans as keyphrases.

    Raises:
        UserError: spaCy is not installed, or the file is damaged.
    """
    try:
        spacy, tokens = importlib.import_module("spacy"), importlib.import_module("spacy.tokens")
    except ImportError:
        raise UserError(f"{file.path}: is a DocBin of spaCy, which is not installed; run pip install spacy") from None
    with file.open() as stream:
        content = stream.read()
    try:
        documents = list(tokens.DocBin().from_bytes(content).get_docs(spacy.blank("xx").vocab))
    except Exception as error:  # the library raises whatever its parsers do
        raise UserError(f"{file.path}: is damaged or no DocBin of spaCy: {error}; save it again") from error
    for number, document in enumerate(documents, 1):
        groups = document.spans.values() if document.spans and not document.ents else [document.ents]
        spans = tuple((each.start_char, each.end_char) for group in groups for each in group)
        yield f"{file.path}:{number}", LabeledText(document.text, f"{file.path}:{number}", spans=spans)
