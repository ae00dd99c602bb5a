"""The keyphrases of a record, in whatever form: spans, phrases, or a tag per token."""

import json
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from model.data.characters import Unit, likely_unit, to_characters
from model.errors import LineError
from model.readers.conll import characters, is_tag, spans_of_tags

Record = dict[str, Any]
Labels = dict[str, Any]  # arguments of LabeledText
_START = ("start", "start_offset", "startOffset", "start_char", "begin", "BeginOffset", "offset")
_END = ("end", "end_offset", "endOffset", "end_char", "EndOffset")
_PHRASE = re.compile(r"(?:&(?:amp|lt|gt|quot|apos|nbsp|#\d+|#x[\da-f]+);|[^;])+", re.IGNORECASE)


class Source(NamedTuple):
    """The text of a record and its place.

    Attributes:
        unit: what offsets of spans count.
        offsets: the characters of its tokens, if it has any.
        tag_names: of tags that are numbers.
    """

    text: str
    place: str
    unit: Unit
    offsets: list[tuple[int, int]] | None = None
    tag_names: tuple[str, ...] = ()


def labels_of(record: Record, source: Source) -> Labels | None:
    """Return the keyphrases of a record, or None where no field holds any. Raises LineError where it holds no valid ones."""
    for name, read in LABELS.items():
        value = record.get(name)
        if value is not None and (labels := read(name, value, source)) is not None:
            require_whole_characters(" ".join(labels.get("keyphrases", ())), "a keyphrase", source.place)
            return labels
    return _token_spans(record["ner"], source) if _is_gliner(record) else None


def require_whole_characters(value: str, name: str, place: str) -> None:
    """Raise LineError where a value contains half of a character, as JSON may; `name` is for the message."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise LineError(
            place, f"{name} contains half of a surrogate pair (\\ud800 to \\udfff); repair the escape"
        ) from None


def has_tags(record: Record) -> bool:
    """Return whether the labels of a record that count are one tag per token."""
    for name, read in LABELS.items():
        match record.get(name):
            case None | str():
                continue
            case [str() | int(), *_]:
                return read is not _phrases
            case _:
                return False
    return _is_gliner(record)


def _is_gliner(record: Record) -> bool:
    """Return whether a record is training data of GLiNER, whose `ner` counts tokens."""
    return "tokenized_text" in record and isinstance(record.get("ner"), list)


def accepted(annotations: list[Any]) -> list[Any]:
    """Return the annotations of a record that nobody has cancelled."""
    return [each for each in annotations if not (isinstance(each, dict) and each.get("was_cancelled"))]


def phrases_of(value: str, text: str) -> tuple[str, ...]:
    """Return the keyphrases of a cell: split at ";", or where that finds none, and the whole is not in the text, at ","."""
    phrases = split_at_semicolons(value)
    if len(phrases) == 1 and "," in value and value.lower() not in text.lower():
        phrases = value.split(",")
    return tuple(phrase.strip() for phrase in phrases if phrase.strip())


def split_at_semicolons(value: str) -> list[str]:
    """Return the parts between semicolons, but for those that end a character of HTML, as in `R&amp;D`."""
    return _PHRASE.findall(value) if "&" in value else value.split(";")


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


def _spans(name: str, value: Any, source: Source) -> Labels:
    """Read [start, end, ...] or objects with a start and an end."""
    if isinstance(value, dict):
        value = _as_list(value)
    if value and source.offsets is not None:
        problem = f'"{name}" may count tokens or characters, since the record has tokens and no "text"'
        raise LineError(source.place, f'{problem}; add "text" and count its characters, or write a tag per token')
    if not isinstance(value, list):
        raise LineError(source.place, f'"{name}" is not a list; write [[start, end], ...]')
    return {"spans": tuple(_span(item, source) for item in value)}


def _spans_or_tags(name: str, value: Any, source: Source) -> Labels | None:
    """Read spans, entities by their texts, or one tag per token; a class label of the whole text is none of them."""
    match value:
        case dict() if isinstance(value := _as_list(value), list):
            return _spans(name, value, source)
        case [dict(), *_] if all(map(_is_text_alone, value)):
            return _phrases(name, [entity["text"] for entity in value], source)
        case [list() | dict(), *_] | []:
            return _spans(name, value, source)
        case [*_] if source.offsets is not None:
            return _tags(name, value, source)
    return None


def _as_list(columns: Record) -> Any:
    """Return entities from lists of their starts and ends, which `datasets` makes of a sequence of objects; else the value."""
    lists = [value for value in columns.values() if isinstance(value, list)]
    if columns.keys().isdisjoint(_START) or len(lists) < len(columns) or len({*map(len, lists)}) > 1:
        return columns
    return [dict(zip(columns, entity, strict=True)) for entity in zip(*lists, strict=True)]


def has_places(value: object) -> bool:
    """Return whether a value is a list of entities that have a start, whatever the name of its field."""
    return isinstance(value, list) and any(
        isinstance(item, dict) and not item.keys().isdisjoint(_START) for item in value
    )


def _is_text_alone(entity: Any) -> bool:
    """Return whether an entity has a text and no places; a number, but of its id, or a list may be some."""
    if not isinstance(entity, dict) or not isinstance(entity.get("text"), str):
        return False
    others = {name: value for name, value in entity.items() if name not in ("text", "id") and value is not None}
    plain = all(isinstance(value, str | float | bool) for value in others.values())
    return plain and others.keys().isdisjoint(_START + _END)


def _span(item: Any, source: Source) -> tuple[int, int]:
    if isinstance(item, dict):
        fields = item["value"] if isinstance(item.get("value"), dict) else item
        bounds: list[Any] = [next((fields[name] for name in names if name in fields), None) for names in (_START, _END)]
        if bounds[1] is None and _is_whole(bounds[0]) and _is_whole(fields.get("length")):
            bounds[1] = bounds[0] + fields["length"]
    else:
        bounds = item[:2] if isinstance(item, list) else []
    if len(bounds) < 2 or not all(_is_whole(bound) for bound in bounds):
        shown = json.dumps(item, ensure_ascii=False)
        raise LineError(source.place, f"span {shown} is not a pair of whole numbers; write [start, end]")
    return in_characters((int(bounds[0]), int(bounds[1])), source.text, source.unit, source.place)


def _token_spans(value: list[Any], source: Source) -> Labels | None:
    """Read [first token, last token, ...] of GLiNER."""
    if source.offsets is None:
        return None
    spans, count = [], len(source.offsets)
    for item in value:
        match item:
            case [int(first), int(last), *_] if 0 <= first <= last < count:
                spans.append((first, last + 1))
            case _:
                shown = json.dumps(item, ensure_ascii=False)
                problem = f'{shown} of "ner" is no span of the {count} tokens; write [first, last, "label"]'
                raise LineError(source.place, f"{problem} with tokens from 0, the last included")
    return {"spans": characters(spans, source.offsets)}


def _is_whole(value: object) -> bool:
    return type(value) is int or (isinstance(value, float) and value.is_integer())


def _phrases(name: str, value: Any, source: Source) -> Labels | None:
    """Read a list of phrases, of which every occurrence is marked, or one string, of which the first one is.

    What `extract` has written are entities.
    """
    if isinstance(value, list) and value and all(map(_is_entity, value)):
        return _spans_or_tags(name, value, source)
    if isinstance(value, str):
        if value.startswith(("['", '["')):
            problem = f'"{name}" is a string that looks like a list ({value[:40]})'
            raise LineError(source.place, f'{problem}; write ["one keyphrase", "another"], a list and no string of it')
        return {"keyphrases": phrases_of(value, source.text)}
    phrases = [item if type(item) is str else _phrase(item) for item in value] if isinstance(value, list) else [None]
    if None in phrases:
        raise LineError(source.place, f'"{name}" is not a list of strings; write ["one keyphrase", "another"]')
    return {"keyphrases": tuple(phrase for phrase in phrases if phrase and phrase.strip()), "every": True}


def _is_entity(item: Any) -> bool:
    return isinstance(item, dict) and not item.keys().isdisjoint(("text", *_START))


def _phrase(item: Any) -> str | None:
    match item:
        case int() | float():
            return f"{item:g}" if isinstance(item, float) else str(item)
        case [*words] if words and all(isinstance(word, str) for word in words):
            return " ".join(words)
    return None


def _tags_or_phrases(name: str, value: Any, source: Source) -> Labels | None:
    are_tags = isinstance(value, list) and "O" in value and all(isinstance(tag, str) and is_tag(tag) for tag in value)
    if are_tags and source.offsets is None:  # as phrases, I would be found in many texts
        raise LineError(source.place, f'"{name}" has a tag per token, but the record has no tokens; add "tokens"')
    return (_phrases if source.offsets is None else _tags)(name, value, source)


def _tags(name: str, value: Any, source: Source) -> Labels | None:
    """Read one tag per token."""
    if source.offsets is None or not isinstance(value, list):
        return None
    if len(value) != len(source.offsets):
        raise LineError(
            source.place, f'"{name}" has {len(value)} tags for {len(source.offsets)} tokens; mend the record'
        )
    tags = [_named(name, tag, source) if type(tag) is int else tag for tag in value]
    unknown = next((tag for tag in tags if not (isinstance(tag, str) and is_tag(tag))), None)
    if unknown is not None:
        raise LineError(
            source.place, f'tag {unknown!r} of "{name}" is unknown; write O, or B, I, E, S alone or as B-type'
        )
    return {"spans": characters(spans_of_tags(tags), source.offsets)}


def _named(name: str, tag: int, source: Source) -> str:
    """Return the name of a tag that is a number. Raises LineError where it has none."""
    names = source.tag_names
    if not names:
        problem = f'"{name}" holds numbers, and their names are not in the file'
        raise LineError(source.place, f"{problem}; name them in order, as --tag-names O,B-KEY,I-KEY")
    if not 0 <= tag < len(names):
        problem = f'tag {tag} of "{name}" has no name: --tag-names has those of 0 to {len(names) - 1}'
        raise LineError(source.place, f"{problem}; add what is missing, or mend the record")
    return names[tag]


def _is_region(result: Any) -> bool:
    """Return whether a result of Label Studio marks characters, rather than the whole text."""
    value = result.get("value") if isinstance(result, dict) else None
    return isinstance(value, dict) and "start" in value


def _annotations(name: str, value: Any, source: Source) -> Labels | None:
    """Read the first accepted annotation of Label Studio, or spans."""
    match accepted(value) if isinstance(value, list) else None:
        case [{"result": list(results)}, *_]:
            return _spans(name, [each for each in results if _is_region(each)], source)
        case None:
            return None
    return _spans_or_tags(name, value, source)


LABELS: dict[str, Callable[[str, Any, Source], Labels | None]] = {
    "spans": _spans,
    "keyphrases": _phrases,
    "doc_bio_tags": _tags,
    "ner_tags": _tags,
    "bio_tags": _tags,
    "keywords": _phrases,
    "keyword": _phrases,
    "keyphrase": _phrases,
    "key_phrases": _phrases,
    "key phrases": _phrases,
    "KeyPhrases": _phrases,  # of OpenKP
    "extractive_keyphrases": _phrases,
    "entities": _spans_or_tags,
    "ents": _spans,  # of a document that spaCy or Stanza has written
    "label": _spans_or_tags,
    "labels": _spans_or_tags,
    "annotations": _annotations,
    "completions": _annotations,
    "tags": _tags_or_phrases,
}

# What a table's columns may be named, in lower case.
LABEL_FIELDS = {name.lower() for name in LABELS}
