"""Keyphrases as token spans: looked up in whatever letters they are written, or given as spans in any text."""

import unicodedata

import pytest
from helpers import any_texts, refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.data.examples import examples
from model.data.labeled_text import LabeledText, SkipCounts
from model.data.tokenizer import encode, new_tokenizer

RULES = new_tokenizer()


def found(text: str, *keyphrases: str, every: bool = False) -> tuple[list[str], dict[str, int]]:
    """The keyphrases as they stand in the text, and what was counted."""
    skips = SkipCounts()
    labeled = LabeledText(text, "here:1", keyphrases=keyphrases, every=every)
    made = list(examples([labeled], RULES, skips, 1000))
    return [text[e.offsets[a][0] : e.offsets[b - 1][1]] for e in made for a, b in e.spans], skips.counts


@pytest.mark.parametrize(
    ("text", "keyphrase", "as_written"),
    [
        ("dün İzmir çok sıcaktı", "izmir", "İzmir"),
        ("die GROSSE STRASSE ruht", "große Straße", "GROSSE STRASSE"),
        ("at O’Hara’s tonight", "O'Hara's", "O’Hara’s"),
        ("a ＣＰＵ and more", "CPU", "ＣＰＵ"),
        ("the tag\xadger learns", "tagger", "tag\xadger"),
        ("a deep\u200blearning day", "deep learning", "deep\u200blearning"),
        ("to \u200fMalvern\u200e by bus", "Malvern", "Malvern"),
        ("a oak\xa0kiln works", "oak kiln", "oak\xa0kiln"),
        ("an E\u0301clair here", "éclair", "E\u0301clair"),
        ("an Éclair here", "e\u0301clair", "Éclair"),
        ("\u1112\u1161\u11ab글 좋다", "한글", "\u1112\u1161\u11ab글"),
        ("the ﬂood gate", "flood gate", "ﬂood gate"),
        ("an up‑to‑date list", "up-to-date", "up‑to‑date"),
        ("now R&amp;D grows", "R&D", "R&amp;D"),
        ("عند بـــاب المدينة", "باب المدينة", "بـــاب المدينة"),
        ("the input/output layer", "output layer", "output layer"),
        ("vector machine(s) win", "vector machine", "vector machine"),
        ("we love #Malvern today", "Malvern", "Malvern"),
        ("明日は新型電車が走る", "新型電車", "新型電車"),
        ("我们在南山公园看樱花", "南山公园", "南山公园"),
        ("ฝนตกที่ตลาดเก่าวันนี้", "ตลาดเก่า", "ตลาดเก่า"),
        ("我爱Python编程", "python", "Python"),
    ],
)
def test_a_keyphrase_is_found_in_other_letters(text: str, keyphrase: str, as_written: str):
    assert found(text, keyphrase) == ([as_written], {})


@pytest.mark.parametrize(
    ("text", "keyphrase", "as_written"),
    [
        ("Malvern's tram is late", "Malvern", "Malvern's"),
        ("the old Malvern’s tram", "old Malvern", "old Malvern’s"),
        ("the Malvern tram", "Malvern's", "Malvern"),
        ("the BSE-related rules", "BSE", "BSE-related"),
    ],
)
def test_a_word_that_goes_on_after_a_keyphrase_is_marked_whole(text: str, keyphrase: str, as_written: str):
    widened = {"span widened to whole tokens": 1} if len(as_written) > len(keyphrase) else {}
    assert found(text, keyphrase) == ([as_written], widened)


def test_the_keyphrase_itself_is_preferred_to_a_longer_word():
    assert found("BSE-free and BSE", "BSE", every=True) == (["BSE"], {})


@pytest.mark.parametrize(
    ("text", "keyphrase"), [("the database", "base"), ("non-linear", "linear"), ("oaks", "oak"), ("a", "\xad")]
)
def test_a_part_of_a_word_is_no_keyphrase(text: str, keyphrase: str):
    assert found(text, keyphrase)[1]["keyphrase not in its text"] == 1


def test_every_spelling_is_marked():
    text = "Café, CAFÉ and cafe\u0301"
    assert found(text, "café", every=True) == (["Café", "CAFÉ", "cafe\u0301"], {})


def test_spans_in_another_unit_are_refused():
    texts = [LabeledText("🚀🎉 the tram opens", f"a:{i}", spans=((9, 13),)) for i in (1, 2)]
    refused(lambda: list(examples(texts, RULES, SkipCounts(), 1000)), "a:1: ", "UTF-16", "--offsets utf16")
    texts = [LabeledText("🚀 the tram opens", f"a:{i}", spans=((9, 13),)) for i in (1, 2)]
    refused(lambda: list(examples(texts, RULES, SkipCounts(), 1000)), "a:1: ", "bytes", "--offsets bytes")


@settings(deadline=None)
@given(any_texts(), st.data())
def test_spans_of_tokens_survive(text: str, data: st.DataObject):
    [tokens] = encode(RULES, [text])
    assume(tokens.offsets)
    count = len(tokens.offsets)
    start, end = sorted(data.draw(st.lists(st.integers(0, count), min_size=2, max_size=2, unique=True)))
    span = (tokens.offsets[start][0], tokens.offsets[end - 1][1])
    [example] = examples([LabeledText(text, "a:1", spans=(span,))], RULES, skips := SkipCounts(), 1000)
    assert example.spans == [(start, end)] and not skips.counts


@settings(deadline=None)
@given(any_texts(), st.data())
def test_a_word_is_found_in_its_text_in_any_normal_form(text: str, data: st.DataObject):
    [tokens] = encode(RULES, [text])
    words = [text[start:end] for start, end in tokens.offsets if text[start:end].isalnum()]
    assume(words)
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    word = unicodedata.normalize(form, data.draw(st.sampled_from(words)))
    assert found(text, word)[0], word
