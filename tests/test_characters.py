import unicodedata

import pytest
from helpers import any_texts
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.characters import UNITS, Unit, fold, is_ignorable, is_sign, is_spaceless, likely_unit, to_characters


@pytest.mark.parametrize(
    ("word", "folded"),
    [
        ("Storm", "storm"),
        ("İstanbul", "istanbul"),
        ("HAUPTSTRASSE", "hauptstrasse"),
        ("Hauptstraße", "hauptstrasse"),
        ("ＧＰＵ", "gpu"),
        ("cafe\u0301", "café"),
        ("ﬁsh", "fish"),
        ("key\xadphrase", "keyphrase"),
        ("\u200fNorwick\u200e", "norwick"),
        ("سوــق", "سوق"),
        ("don’t", "don't"),
        ("non‑linear", "non-linear"),
        ("“", '"'),
        ("\u200b", ""),
        ("❤️", "❤"),
        ("ΟΔΟΣ", "οδοσ"),
        ("ς", "σ"),
        ("ｶﾞ", "ガ"),
    ],
)
def test_words_that_read_alike_have_one_folded_form(word: str, folded: str):
    assert fold(word) == fold(folded) == folded


@settings(deadline=None)
@given(any_texts())
def test_folding_does_not_depend_on_the_normal_form(text: str):
    assert fold(unicodedata.normalize("NFD", text)) == fold(unicodedata.normalize("NFC", text)) == fold(text)


@pytest.mark.parametrize("word", ["我", "々", "ー", "が", "か\u3099", "กำ", "ที่", "ຂ້", "ខ្", "မြ", "𠮷"])
def test_signs_of_scripts_without_spaces(word: str):
    assert is_sign(word) and is_spaceless(f"a {word}")


@pytest.mark.parametrize("word", ["a", "한", "क", "ק", "。", "ๆๆ", "我们", "฿", "๏", "😀", "1"])
def test_other_words_are_no_signs(word: str):
    assert not is_sign(word)


def test_invisible_signs():
    assert is_ignorable("\xad\u200b\ufeff") and not is_ignorable("a\u200b") and not is_ignorable(" ")


def in_unit(text: str, at: int, unit: Unit) -> int:
    encoded = {"characters": text[:at], "utf16": text[:at].encode("utf-16-le"), "bytes": text[:at].encode()}[unit]
    return len(encoded) // (2 if unit == "utf16" else 1)


@settings(deadline=None)
@given(any_texts(), st.data())
def test_spans_of_every_unit_become_characters(text: str, data: st.DataObject):
    start, end = sorted(data.draw(st.integers(0, len(text))) for _ in range(2))
    for unit in UNITS:
        assert to_characters([[in_unit(text, start, unit), in_unit(text, end, unit)]], text, unit) == ((start, end),)


@pytest.mark.parametrize(
    ("span", "unit"), [((1, 2), "utf16"), ((0, 3), "bytes"), ((0, 5), "characters"), ((-1, 2), "bytes")]
)
def test_offsets_that_are_no_characters_are_refused(span: tuple[int, int], unit: Unit):
    with pytest.raises(ValueError, match=r"offset -?\d is outside the text or inside a character"):
        to_characters([span], "😀 ab", unit)


TEXTS = [
    "🚀🎉 the new tram line opens in Norwick",
    "we met café owners 😀 at Haydn Hall",
    "plain words of a market hall",
]
PHRASES = ["tram line", "Haydn Hall", "market hall"]


def spans_of(text: str, phrase: str, unit: Unit) -> list[list[int]]:
    at = text.index(phrase)
    return [[in_unit(text, at, unit), in_unit(text, at + len(phrase), unit)]]


@pytest.mark.parametrize("unit", UNITS)
def test_the_unit_of_spans_is_recognized(unit: Unit):
    texts = [(text, spans_of(text, phrase, unit)) for text, phrase in zip(TEXTS, PHRASES, strict=True)]
    assert likely_unit(texts) == unit
    assert likely_unit(texts[:1]) == unit


def test_a_careless_span_among_others_is_no_other_unit():
    texts = [(text, spans_of(text, phrase, "characters")) for text, phrase in zip(TEXTS, PHRASES, strict=True)] * 3
    careless = (TEXTS[0], spans_of(TEXTS[0], PHRASES[0], "utf16"))
    assert likely_unit([*texts, careless]) == "characters"
    assert likely_unit([]) == likely_unit([("abc", [[1, 2]]), ("äbc", [[1, 2]])]) == "characters"
