"""Keyphrases as token spans: looked up in whatever letters they are written, or given as spans in any text."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
from helpers import any_texts, call, counts_of, last_json, refused
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from model.config import make_config
from model.data.characters import is_ignorable
from model.data.dataset import Dataset
from model.data.examples import examples
from model.data.labeled_text import LabeledText, SkipCounts
from model.data.tokenizer import encode, new_tokenizer
from model.inference.bundle import save_bundle
from model.inference.extractor import Extractor
from model.network.tagger import new_tagger
from model.prepare.builder import PrepareConfig, prepare
from model.training.metrics import summarize

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
        ("now List&lt;int&gt; wins", "List<int>", "List&lt;int&gt;"),
        ("all AT&T's plans", "AT&T", "AT&T's"),
        ("all AT&amp;T's plans", "AT&T", "AT&amp;T's"),
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
    widened = {"span widened to whole tokens": 1} if as_written.endswith("T's") else {}
    assert found(text, keyphrase) == ([as_written], widened)


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
    words = [text[start:end] for start, end in tokens.offsets]
    words = [word for word in words if word.isalnum() and not is_ignorable(word)]
    assume(words)
    form = data.draw(st.sampled_from(["NFC", "NFD"]))
    word = unicodedata.normalize(form, data.draw(st.sampled_from(words)))
    assert found(text, word)[0], word


def texts_of_all_planes(count: int) -> list[str]:
    """Texts of characters of all planes, a third of them decomposed."""
    rng, texts = random.Random(0), []
    blocks = [
        (0x21, 0x7F),
        (0xA0, 0x3000),
        (0x3000, 0xD800),
        (0xE000, 0x10000),
        (0x10000, 0x20000),
        (0x20000, 0x110000),
    ]
    while len(texts) < count:
        runs = [rng.choice(blocks) for _ in range(rng.randrange(1, 8))]
        text = "".join(chr(rng.randrange(*run)) + rng.choice(["", "", " ", "\u0301"]) for run in runs for _ in range(3))
        texts.append(unicodedata.normalize("NFD", text) if len(texts) % 3 == 0 else text)
    return texts


def test_spans_survive_prepare_and_evaluation_and_extraction_gives_substrings(tmp_path: Path):
    texts = texts_of_all_planes(3 * settings.default.max_examples)
    tokens = encode(RULES, texts)
    spans = [(each.offsets[0][0], each.offsets[len(each.offsets) // 2][1]) for each in tokens]
    rows = [json.dumps({"text": text, "spans": [span]}) for text, span in zip(texts, spans, strict=True)]
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(rows))
    info = prepare(PrepareConfig([str(source)], str(tmp_path / "d"), [str(source)]))
    dataset = Dataset(str(tmp_path / "d"))
    assert not info["splits"]["valid"]["skipped"]
    assert [(each.text, each.spans) for each in dataset.texts("valid")] == [
        (text, (span,)) for text, span in zip(texts, spans, strict=True)
    ]
    sizes = {"embedding_dim": 4, "keyword_hidden": 4, "keyphrase_hidden": 4, "word_feature_dim": 3}
    config = make_config({"data": str(tmp_path / "d"), "tagger": sizes | {"decoding": "spans"}})
    tagger = new_tagger(config.tagger, dataset.info["words"], seed=0)
    tagger.threshold.fill_(0.001)
    found = list(Extractor(tagger, dataset.tokenizer()).pipe(texts))
    assert sum(map(len, found)) > len(texts)
    for text, keyphrases in zip(texts, found, strict=True):
        assert all(each.text == text[each.start : each.end] and each.text.strip() for each in keyphrases)
    # Evaluation counts what extraction finds, against the spans of the file.
    bundle = str(tmp_path / "bundle")
    save_bundle(bundle, config, dataset.tokenizer_bytes(), tagger.state_dict(), summarize(counts_of(0.5, 0, 10)))
    measured = last_json(call("evaluate", bundle, "--data", str(source), "--json").stdout)
    right = sum(
        span in [(each.start, each.end) for each in of_text] for span, of_text in zip(spans, found, strict=True)
    )
    assert measured["rows"] == len(texts) and not measured["skipped"] and right > 0
    assert measured["keyphrase_recall"] == pytest.approx(right / len(texts))
    assert measured["keyphrase_precision"] == pytest.approx(right / sum(map(len, found)))
