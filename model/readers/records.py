"""Records: what annotation tools and collections write as JSON, or as the named columns of a table.

A record has its text in one of _TEXTS, as tokens, or as title and abstract, and its keyphrases in one of _LABELS. Both
tables are in order: the first field that is there counts. `null` is as good as absent.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from model.data.characters import Unit, likely_unit, to_characters
from model.data.labeled_text import LabeledText, SkipCounts
from model.errors import LineError, UserError
from model.readers import hashtags
from model.readers.conll import characters, is_tag, join_tokens, spans_of_tags
from model.readers.options import SUMMARIES

Record = dict[str, Any]
Labels = dict[str, Any]  # arguments of LabeledText
KNOWN = SUMMARIES["jsonl"]
_TEXTS = ("text", "full_text", "document", "sentence", "tweet", "content", "data")
_TOKENS = ("tokens", "document", "words", "sentence")
_WHOLE_TWEETS = ("extended_tweet", "note_tweet")  # of a tweet whose text is cut off
_BEFORE_TEXT = {*_TOKENS, *_WHOLE_TWEETS}  # what counts rather than "text"
_LISTS = ("annotations", "data", "examples", "rows", "documents", "records")  # fields that hold all records of a file
_START, _END = ("start", "start_offset", "startOffset", "begin"), ("end", "end_offset", "endOffset")
_REJECTED = ("reject", "ignore")  # answers of Prodigy


class _Source(NamedTuple):
    """The text of a record, its place, the unit of its offsets, and the characters of its tokens, if it has any."""

    text: str
    place: str
    unit: Unit
    offsets: list[tuple[int, int]] | None = None


def parse_json(line: str, place: str) -> Any:
    """Return the JSON value of a line. Raises LineError."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError(place, f"is not JSON ({error}); write one JSON object per line, or one array of them") from None


def is_list(line: str) -> bool:
    """Return whether a line is the whole list of records of a file."""
    try:
        return _start_of_items(line) is not None
    except (ValueError, RecursionError):
        return False


def json_items(content: str, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the records of a file that is one JSON value: `file:line` and the value of each.

    Raises:
        LineError: it is not JSON.
    """
    decoder, line, counted = json.JSONDecoder(), 1, 0
    try:
        at = _start_of_items(content)
        if at is None:
            yield f"{path}:1", json.loads(content.removeprefix("\ufeff"))
            return
        while content[(at := _skip(content, at))] != "]":
            line, counted = line + content.count("\n", counted, at), at
            value, at = decoder.raw_decode(content, at)
            for record in _sentences(value):
                yield f"{path}:{line}", record
    except json.JSONDecodeError as error:
        raise LineError(f"{path}:{error.lineno}", f"is not JSON ({error.msg}); mend the file") from None
    except (IndexError, RecursionError):
        raise LineError(
            f"{path}:{content.count(chr(10)) + 1}", "the JSON ends too early; is the file complete?"
        ) from None


def _start_of_items(content: str) -> int | None:
    """Return where the first record of a list is, or None where the whole content is one record."""
    whole, begin = json.loads(content.removeprefix("\ufeff")), _skip(content, 0)
    if isinstance(whole, list):
        return None if _is_pair(whole) else begin + 1
    if not isinstance(whole, dict) or _is_record(whole):
        return None
    for name in _LISTS:
        match whole.get(name):
            case [dict() | list(), *_] if found := re.search(rf'"{name}"\s*:\s*\[', content):
                return found.end()
    return None


def _sentences(value: Any) -> Iterator[Any]:
    """Yield the records of an item of a list: one, none where it is null, or each sentence of training JSON of spaCy 2."""
    match value:
        case {"paragraphs": list(paragraphs)}:
            for paragraph in paragraphs:
                for sentence in paragraph.get("sentences", []):
                    tokens = sentence.get("tokens", [])
                    tags = ["O" if token.get("ner", "-") == "-" else token["ner"] for token in tokens]
                    yield {"tokens": [token.get("orth") for token in tokens], "ner_tags": tags}
        case None:
            return
        case _:
            yield value


def _skip(content: str, at: int) -> int:
    while content[at : at + 1] in (" ", "\n", "\r", "\t", ",", "\ufeff") and at < len(content):
        at += 1
    return at


def _is_pair(value: object) -> bool:
    """Return whether a value is a training example of spaCy: text and annotations."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict)


def _is_record(value: Record) -> bool:
    """Return whether an object has a text of its own, rather than a list of records."""
    tokens = value.get("tokens")
    with_tokens = isinstance(tokens, list) and bool(tokens) and isinstance(tokens[0], str)
    return (
        "text" in value or isinstance(value.get("data"), dict) or with_tokens or {"title", "abstract"} <= value.keys()
    )


def is_labeled(value: object) -> bool:
    """Return whether a record holds keyphrases, in whatever form."""
    record = _unwrapped(value)
    try:
        return record is not None and _labels(record, _source(record, "")) is not None
    except LineError:  # there are labels, but not as they should be
        return True


def parse_record(value: object, place: str, unit: Unit, skips: SkipCounts) -> LabeledText | None:
    """Return the labeled text of a record, or None where it is left out, which is counted.

    Args:
        value: a JSON object, or a training example of spaCy.
        place: `file:line` of the record.
        unit: what offsets of spans count.
        skips: counts what is left out.

    Raises:
        LineError: the record has no text or no keyphrases, or they cannot be used.
    """
    record = _unwrapped(value)
    if record is None:
        raise LineError(place, f"is not a JSON object; write {KNOWN}")
    if reason := _rejection(value, record):
        skips.add(reason, place)
        return None
    source = _source(record, place, unit)
    labels = _labels(record, source)
    if labels is not None:
        return LabeledText(source.text, place, **labels)
    if isinstance(value, dict) and any(value.get(name, "") is None for name in _LABELS):
        skips.add("keyphrases are null", place)
        return None
    raise LineError(place, f"has neither keyphrases nor spans among its fields ({_names(record)}); write {KNOWN}")


def parse_tweet(value: object, place: str, skips: SkipCounts) -> LabeledText | None:
    """Return the text of a record labeled by its hashtag, or None, see `hashtags.label_by_hashtag`. Raises LineError."""
    return label_tweet(text_of_record(value, place), place, skips)


def label_tweet(tweet: str, place: str, skips: SkipCounts) -> LabeledText | None:
    """Return a tweet labeled by its hashtag, or None, see `hashtags.label_by_hashtag`."""
    labeled = hashtags.label_by_hashtag(tweet)
    if isinstance(labeled, str):
        skips.add(labeled, place)
        return None
    text, span = labeled
    return LabeledText(text, place, spans=(span,))


def text_of_record(value: object, place: str) -> str:
    """Return the text of a record, whether it is labeled or not; "" where it is null. Raises LineError."""
    record = _unwrapped(value)
    if record is None:
        raise LineError(place, 'is not a JSON object; write {"text": ...}')
    if _has_null_text(value, record):
        return ""
    return _source(record, place, labeled=False).text


def unusable_fields(value: object, path: str) -> UserError:
    """Return the error for a file whose records hold no keyphrases."""
    fields = f"its records have the fields {_names(value)}" if isinstance(value, dict) else "its values are not objects"
    return UserError(
        f"{path}:1: {fields}, and none holds keyphrases; read are {', '.join(_LABELS)} beside a text, "
        f"or tweets with one hashtag; rename the field"
    )


def checked_text(value: object, place: str) -> str:
    """Return a text that is one. Raises LineError where it is missing, empty or broken."""
    if not isinstance(value, str):
        raise LineError(place, f'"text" is missing or not a string; write {KNOWN}')
    if not value.strip():
        raise LineError(place, "the text is empty; delete the line or add its text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise LineError(
            place, "the text contains half of a surrogate pair (\\ud800 to \\udfff); repair the escape"
        ) from None
    return value


def phrases_of(value: str, text: str) -> tuple[str, ...]:
    """Return the keyphrases of a cell: split at ";", or where that finds none, and the whole is not in the text, at ","."""
    separator = "," if ";" not in value and "," in value and value.lower() not in text.lower() else ";"
    return tuple(phrase.strip() for phrase in value.split(separator) if phrase.strip())


def _unwrapped(value: object) -> Record | None:
    """Return a record without its nulls and without what is around it, or None where it is none."""
    if _is_pair(value):
        return {"text": value[0], **value[1]}  # type: ignore[index]
    if not isinstance(value, dict):
        return None
    record = value if None not in value.values() else {n: field for n, field in value.items() if field is not None}
    for name in ("data", "row"):  # of the Twitter API v2 and Label Studio; of a page of a dataset's viewer
        if isinstance(record.get(name), dict):
            return {**record[name], **{n: field for n, field in record.items() if n != name}}
    return record


def _rejection(value: object, record: Record) -> str | None:
    """Return why a record is left out, or None."""
    if record.get("answer") in _REJECTED:
        return f"answer is {record['answer']}"
    if _has_null_text(value, record):
        return "text is null"
    annotations = record.get("annotations")
    if isinstance(annotations, list) and annotations and not _accepted(annotations):
        return "annotation was cancelled"
    return None


def _has_null_text(value: object, record: Record) -> bool:
    return isinstance(value, dict) and value.get("text", "") is None and not any(name in record for name in _TEXTS)


def _accepted(annotations: list[Any]) -> list[Any]:
    return [each for each in annotations if not (isinstance(each, dict) and each.get("was_cancelled"))]


def _names(record: Record) -> str:
    return ", ".join(list(record)[:12]) or "none"


def _source(record: Record, place: str, unit: Unit = "characters", labeled: bool = True) -> _Source:
    """Return the text of a record. Raises LineError where there is none.

    Of a record with a text and its tokens, the tokens count where its labels are one tag per token.
    """
    if "text" in record and _BEFORE_TEXT.isdisjoint(record):
        return _Source(checked_text(record["text"], place), place, unit)
    for whole in _WHOLE_TWEETS:
        if isinstance(record.get(whole), dict):
            inner = record[whole]
            return _Source(checked_text(inner.get("full_text", inner.get("text")), place), place, unit)
    for name in _TOKENS if "text" not in record or (labeled and _has_tags(record)) else ():
        tokens = record.get(name)
        if isinstance(tokens, list) and tokens and all(isinstance(token, str) for token in tokens):
            text, offsets = join_tokens(tokens)
            return _Source(checked_text(text, place), place, unit, offsets)
    if isinstance(record.get("title"), str) and isinstance(record.get("abstract"), str) and "text" not in record:
        return _Source(checked_text(f"{record['title']}\n{record['abstract']}", place), place, unit)
    for name in _TEXTS:
        if isinstance(record.get(name), str):
            return _Source(checked_text(record[name], place), place, unit)
    problem = f'"text" is missing or not a string among the fields ({_names(record)})'
    raise LineError(place, f"{problem}; write {KNOWN}")


def _has_tags(record: Record) -> bool:
    """Return whether the labels of a record that count are one tag per token."""
    for name, read in _LABELS.items():
        match record.get(name):
            case None | str():
                continue
            case [str() | int(), *_]:
                return read is not _phrases
            case _:
                return False
    return False


def _labels(record: Record, source: _Source) -> Labels | None:
    """Return the keyphrases of a record, or None where no field holds any. Raises LineError where it holds no valid ones."""
    for name, read in _LABELS.items():
        value = record.get(name)
        if value is not None and (labels := read(name, value, source)) is not None:
            return labels
    return None


def _spans(name: str, value: Any, source: _Source) -> Labels:
    """Read [start, end, ...] or objects with a start and an end."""
    if not isinstance(value, list):
        raise LineError(source.place, f'"{name}" is not a list; write [[start, end], ...]')
    return {"spans": tuple(_span(item, source) for item in value)}


def _spans_or_tags(name: str, value: Any, source: _Source) -> Labels | None:
    """Read spans, or one tag per token; a class label of the whole text is none of both."""
    match value:
        case [list() | dict(), *_] | []:
            return _spans(name, value, source)
        case [*_] if source.offsets is not None:
            return _tags(name, value, source)
    return None


def _span(item: Any, source: _Source) -> tuple[int, int]:
    if isinstance(item, dict):
        fields = item["value"] if isinstance(item.get("value"), dict) else item
        bounds: list[Any] = [next((fields[name] for name in names if name in fields), None) for names in (_START, _END)]
    else:
        bounds = item[:2] if isinstance(item, list) else []
    if len(bounds) < 2 or not all(_is_whole(bound) for bound in bounds):
        shown = json.dumps(item, ensure_ascii=False)
        raise LineError(source.place, f"span {shown} is not a pair of whole numbers; write [start, end]")
    return in_characters((int(bounds[0]), int(bounds[1])), source.text, source.unit, source.place)


def in_characters(span: tuple[int, int], text: str, unit: Unit, place: str) -> tuple[int, int]:
    """Return a span of a text in characters. Raises LineError where it is out of range."""
    try:
        [(start, end)] = to_characters([span], text, unit)
    except ValueError:
        start = end = -1
    if not 0 <= start < end <= len(text):
        size = f"the text has {len(text)} characters, and start must be below end"
        likely = likely_unit([(text, [span])])
        remedy = f"; if they count {likely}, set --offsets {likely}" if likely != unit else ""
        raise LineError(place, f"span {list(span)} is out of range: {size}{remedy}")
    return start, end


def _is_whole(value: object) -> bool:
    return type(value) is int or (isinstance(value, float) and value.is_integer())


def _phrases(name: str, value: Any, source: _Source) -> Labels | None:
    """Read a list of phrases, of which every occurrence is marked, or one string, of which the first one is."""
    if isinstance(value, str):
        return {"keyphrases": phrases_of(value, source.text)}
    phrases = [item if type(item) is str else _phrase(item) for item in value] if isinstance(value, list) else [None]
    if None in phrases:
        raise LineError(source.place, f'"{name}" is not a list of strings; write ["one keyphrase", "another"]')
    return {"keyphrases": tuple(phrase for phrase in phrases if phrase and phrase.strip()), "every": True}


def _phrase(item: Any) -> str | None:
    match item:
        case int() | float():
            return f"{item:g}" if isinstance(item, float) else str(item)
        case [*words] if words and all(isinstance(word, str) for word in words):
            return " ".join(words)
    return None


def _tags_or_phrases(name: str, value: Any, source: _Source) -> Labels | None:
    return (_phrases if source.offsets is None else _tags)(name, value, source)


def _tags(name: str, value: Any, source: _Source) -> Labels | None:
    """Read one tag per token."""
    if source.offsets is None or not isinstance(value, list):
        return None
    if len(value) != len(source.offsets):
        raise LineError(
            source.place, f'"{name}" has {len(value)} tags for {len(source.offsets)} tokens; mend the record'
        )
    unknown = next((tag for tag in value if not (isinstance(tag, str) and is_tag(tag))), None)
    if isinstance(unknown, int):
        problem = f'"{name}" holds numbers, and their names are not in the file'
        raise LineError(source.place, f"{problem}; save the data as Parquet, which keeps them, or write the names")
    if unknown is not None:
        raise LineError(
            source.place, f'tag {unknown!r} of "{name}" is unknown; write O, or B, I, E, S alone or as B-type'
        )
    return {"spans": characters(spans_of_tags(value), source.offsets)}


def _is_region(result: Any) -> bool:
    """Return whether a result of Label Studio marks characters, rather than the whole text."""
    value = result.get("value") if isinstance(result, dict) else None
    return isinstance(value, dict) and "start" in value


def _annotations(name: str, value: Any, source: _Source) -> Labels | None:
    """Read the first accepted annotation of Label Studio, or spans."""
    match _accepted(value) if isinstance(value, list) else None:
        case [{"result": list(results)}, *_]:
            return _spans(name, [each for each in results if _is_region(each)], source)
        case None:
            return None
    return _spans_or_tags(name, value, source)


_LABELS: dict[str, Callable[[str, Any, _Source], Labels | None]] = {
    "spans": _spans,
    "keyphrases": _phrases,
    "doc_bio_tags": _tags,
    "ner_tags": _tags,
    "bio_tags": _tags,
    "keywords": _phrases,
    "keyword": _phrases,
    "KeyPhrases": _phrases,  # of OpenKP
    "extractive_keyphrases": _phrases,
    "entities": _spans_or_tags,
    "label": _spans_or_tags,
    "labels": _spans_or_tags,
    "annotations": _annotations,
    "completions": _annotations,
    "tags": _tags_or_phrases,
}

# What a table's columns may be named, in lower case.
LABEL_FIELDS = {name.lower() for name in _LABELS}
TEXT_FIELDS = {*_TEXTS, *_TOKENS, "title", "abstract"}
