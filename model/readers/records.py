"""Records: what annotation tools and collections write as JSON, or as the named columns of a table.

A record has its text in one of _TEXTS, as tokens, or as title and abstract, and its keyphrases in one of LABELS. Both
are in order: the first field that is there counts. `null` is as good as absent. Names in other capitals count where there is
no exact one.
"""

import re
from collections.abc import Iterable

from model.data.labeled_text import LabeledText, SkipCounts
from model.errors import LineError, UserError
from model.readers import hashtags
from model.readers.conll import join_tokens
from model.readers.json_files import is_pair
from model.readers.options import SUMMARIES
from model.readers.record_labels import (
    LABEL_FIELDS,
    LABELS,
    Record,
    Source,
    accepted,
    has_places,
    has_tags,
    labels_of,
    require_whole_characters,
)
from model.shards import Layout

KNOWN = SUMMARIES["jsonl"]
_PLAIN = Layout()
_TEXTS = ("text", "full_text", "document", "sentence", "tweet", "content", "data")
_TOKENS = ("tokens", "document", "words", "sentence", "tokenized_text")
_WHOLE_TWEETS = ("extended_tweet", "note_tweet")  # of a tweet whose text is cut off
_BEFORE_TEXT = {*_TOKENS, *_WHOLE_TWEETS}  # what counts rather than "text"
TEXT_FIELDS = {*_TEXTS, *_TOKENS, "title", "abstract"}  # what a table's columns may be named, in lower case
_TEXT_NAMES = {*TEXT_FIELDS, *_WHOLE_TWEETS}
_KEYPHRASES = re.compile("phrase|key.?word", re.IGNORECASE)
_REJECTED = ("reject", "ignore")  # answers of Prodigy


def is_labeled(value: object) -> bool:
    """Return whether a record holds keyphrases, in whatever form."""
    record = _unwrapped(value)
    try:
        return record is not None and labels_of(record, _source(record, "")) is not None
    except LineError:  # there are labels, but not as they should be
        return True


def parse_record(value: object, place: str, layout: Layout, skips: SkipCounts) -> LabeledText | None:
    """Return the labeled text of a record, or None where it is left out, which is counted.

    Args:
        value: a JSON object, or a training example of spaCy.
        place: `file:line` of the record.
        layout: of its file: what offsets of spans count, and the names of tags.
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
    source = _source(record, place, layout)
    labels = labels_of(record, source)
    # Prodigy and Label Studio (JSON_MIN, CSV) leave the field out where nothing is marked.
    of_label_studio = "annotation_id" in record and not record.get("label")
    if labels is None and (record.get("answer") == "accept" or of_label_studio):
        labels = {"spans": ()}
    if labels is not None:
        return LabeledText(source.text, place, **labels)
    if isinstance(value, dict) and any(value[name] is None and name.lower() in LABEL_FIELDS for name in value):
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
    """Return the text of a record, whether it is labeled or not, and blank or not; "" where it is null. Raises LineError."""
    record = _unwrapped(value)
    if record is None:
        raise LineError(place, 'is not a JSON object; write {"text": ...}')
    if _has_null_text(value, record):
        return ""
    if _has_blank_text(record):
        return str(record["text"])
    return _source(record, place, labeled=False).text


def unusable_fields(value: object, path: str) -> UserError:
    """Return the error for a file whose records hold no keyphrases."""
    fields = f"its records have the fields {_names(value)}" if isinstance(value, dict) else "its values are not objects"
    return UserError(
        f"{path}:1: {fields}, and none holds keyphrases; read are {', '.join(LABELS)} beside a text, "
        f"or tweets with one hashtag; rename the field"
    )


def keyphrase_names(fields: Iterable[str]) -> set[str]:
    """Return the fields that claim to hold keyphrases, in lower case: a hashtag must not count in their place."""
    return {name.lower() for name in fields if _KEYPHRASES.search(name)}


def keyphrase_fields(value: object) -> set[str]:
    """Return the fields of a record that claim to hold keyphrases, by their names or by entities with places in them."""
    if not isinstance(value, dict):
        return set()
    return keyphrase_names(value) | {name.lower() for name, held in value.items() if has_places(held)}


def checked_text(value: object, place: str) -> str:
    """Return a text that is one. Raises LineError where it is missing, empty or broken."""
    if not isinstance(value, str):
        raise LineError(place, f'"text" is missing or not a string; write {KNOWN}')
    if not value.strip():
        raise LineError(place, "the text is empty; delete the line or add its text")
    require_whole_characters(value, "the text", place)
    return value


def _unwrapped(value: object) -> Record | None:
    """Return a record without its nulls and without what is around it, or None where it is none."""
    if is_pair(value):
        return {"text": value[0], **value[1]}  # type: ignore[index]
    if not isinstance(value, dict):
        return None
    record = value if None not in value.values() else {n: field for n, field in value.items() if field is not None}
    for name in ("data", "row"):  # of the Twitter API v2 and Label Studio; of a page of a dataset's viewer
        if isinstance(record.get(name), dict):
            inner, around = record[name], {n: field for n, field in record.items() if n != name}
            if isinstance(around.get("annotations", around.get("completions")), list):
                # A task of Label Studio: what its data says of keyphrases is no annotation of them.
                inner = {n: field for n, field in inner.items() if n.lower() not in LABEL_FIELDS}
            return _in_lower_case({**inner, **around})
    return _in_lower_case(record)


def _in_lower_case(record: Record) -> Record:
    """Return a record with known names in lower case, where it has its text or its keyphrases only in other capitals."""
    for known in (_TEXT_NAMES, LABELS.keys()):
        if known.isdisjoint(record) and not all(map(str.islower, record)):
            names = [name.lower() for name in record]
            chosen = {name for name in known if names.count(name) == 1}  # of Text and TEXT, none
            record = {low if low in chosen else name: record[name] for low, name in zip(names, record, strict=True)}
    return record


def _rejection(value: object, record: Record) -> str | None:
    """Return why a record is left out, or None."""
    if record.get("answer") in _REJECTED:
        return f"answer is {record['answer']}"
    if _has_null_text(value, record):
        return "text is null"
    if _has_blank_text(record) and not any(record.get(name) for name in LABELS):  # as `extract` writes a blank line
        return "text is empty"
    annotations = record.get("annotations", record.get("completions"))
    if isinstance(annotations, list) and not accepted(annotations):
        if annotations:
            return "annotation was cancelled"
        if isinstance(value, dict) and isinstance(value.get("data"), dict):  # a task of Label Studio
            return "task without an annotation"
    return None


def _has_null_text(value: object, record: Record) -> bool:
    has_null = isinstance(value, dict) and any(value[name] is None and name.lower() == "text" for name in value)
    return has_null and not any(name in record for name in _TEXTS)


def _has_blank_text(record: Record) -> bool:
    text = record.get("text")
    return isinstance(text, str) and not text.strip() and _BEFORE_TEXT.isdisjoint(record)


def _names(record: Record) -> str:
    return ", ".join(list(record)[:12]) or "none"


def _source(record: Record, place: str, layout: Layout = _PLAIN, labeled: bool = True) -> Source:
    """Return the text of a record. Raises LineError where there is none.

    Of a record with a text and its tokens, the tokens count where its labels are one tag per token.
    """
    if "text" in record and _BEFORE_TEXT.isdisjoint(record):
        return Source(checked_text(record["text"], place), place, layout.offsets)
    for whole in _WHOLE_TWEETS:
        if isinstance(record.get(whole), dict):
            inner = record[whole]
            return Source(checked_text(inner.get("full_text", inner.get("text")), place), place, layout.offsets)
    for name in _TOKENS if "text" not in record or (labeled and has_tags(record)) else ():
        tokens = record.get(name)
        if isinstance(tokens, list) and tokens and all(isinstance(token, str) for token in tokens):
            text, offsets = join_tokens(tokens)
            return Source(checked_text(text, place), place, layout.offsets, offsets, layout.tag_names)
    if isinstance(record.get("title"), str) and isinstance(record.get("abstract"), str) and "text" not in record:
        return Source(checked_text(f"{record['title']}\n{record['abstract']}", place), place, layout.offsets)
    for name in _TEXTS:
        if isinstance(record.get(name), str):
            return Source(checked_text(record[name], place), place, layout.offsets)
    problem = f'"text" is missing or not a string among the fields ({_names(record)})'
    raise LineError(place, f"{problem}; write {KNOWN}")
