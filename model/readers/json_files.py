"""JSON in input files: a value per line, or one value, such as an array of records."""

import json
import re
from collections.abc import Iterator
from typing import Any

from model.errors import LineError

_LISTS = ("annotations", "data", "examples", "rows", "documents", "records")  # fields that hold all records of a file
# Or what is meant to be one, such as a dict that Python has printed: reading it tells what is wrong.
_JSON = re.compile(r"""\s*(?:\{\s*(?:["'}]|\w+\s*:|$)|\[\s*(?:["\[{\]]|null|$))""")


def is_json(lines: list[str]) -> bool:
    """Return whether the lines begin JSON objects or an array of records, rather than a text such as `[Live] a storm`."""
    return _JSON.match("\n".join(lines[:2])) is not None


def is_one_value(lines: list[str]) -> bool:
    """Return whether a JSON file is one value, rather than a value per line, of which some may be damaged."""
    first = lines[0].strip()
    if is_json_line(first):
        return len(lines) == 1 and _is_list(first)
    return first.endswith(("[", "{", ",")) or not any(map(is_json_line, lines))


def is_json_line(line: str) -> bool:
    """Return whether a line is a JSON object or array."""
    try:
        return isinstance(parse_json(line, ""), dict | list)
    except LineError:
        return False


def parse_json(line: str, place: str) -> Any:
    """Return the JSON value of a line. Raises LineError."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise LineError(place, f"is not JSON ({error}); write one JSON object per line, or one array of them") from None


def _is_list(line: str) -> bool:
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
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise LineError(f"{path}:{line}", f"is not JSON that can be read ({error}); mend the file") from None
    except IndexError:
        raise LineError(
            f"{path}:{content.count(chr(10)) + 1}", "the JSON ends too early; is the file complete?"
        ) from None


def _start_of_items(content: str) -> int | None:
    """Return where the first record of a list is, or None where the whole content is one record."""
    whole, begin = json.loads(content.removeprefix("\ufeff")), _skip(content, 0)
    if isinstance(whole, list):
        return None if is_pair(whole) else begin + 1
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
        case {"paragraphs": list(paragraphs)} if all(map(_has_sentences, paragraphs)):
            for paragraph in paragraphs:
                for sentence in paragraph["sentences"]:
                    tokens = sentence["tokens"]
                    tags = ["O" if token.get("ner", "-") == "-" else token["ner"] for token in tokens]
                    yield {"tokens": [token.get("orth") for token in tokens], "ner_tags": tags}
        case None:
            return
        case _:
            yield value


def _has_sentences(paragraph: Any) -> bool:
    """Return whether a paragraph has sentences of tokens, rather than what other tools name so."""
    match paragraph:
        case {"sentences": list(sentences)}:
            lists = [each["tokens"] if isinstance(each, dict) and "tokens" in each else None for each in sentences]
            return all(isinstance(each, list) and all(isinstance(token, dict) for token in each) for each in lists)
    return False


def _skip(content: str, at: int) -> int:
    while content[at : at + 1] in (" ", "\n", "\r", "\t", ",", "\ufeff") and at < len(content):
        at += 1
    return at


def is_pair(value: object) -> bool:
    """Return whether a value is a training example of spaCy: text and annotations."""
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], dict)


def _is_record(value: dict[str, Any]) -> bool:
    """Return whether an object has a text of its own, rather than a list of records."""
    tokens = value.get("tokens")
    with_tokens = isinstance(tokens, list) and bool(tokens) and isinstance(tokens[0], str)
    names = {name.lower() for name in value}
    return "text" in names or isinstance(value.get("data"), dict) or with_tokens or {"title", "abstract"} <= names
