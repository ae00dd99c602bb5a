"""Mistakes by kind: one small case for each, and a real tagger's mistakes against its figures."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused, trained_tokenizer
from typer.testing import CliRunner

from jobs.__main__ import app
from model.data.dataset import Dataset, Split, split_from_examples
from model.data.examples import Example, examples
from model.data.labeled_text import LabeledText, SkipCounts
from model.data.labels import spans_to_tags
from model.inference.bundle import load_bundle, save_bundle
from model.inference.error_analysis import (
    AnnotatedText,
    classify_errors,
    find_errors,
)
from model.inference.extractor import Extractor
from model.inference.mistakes import KINDS, Mistake, by_kind
from model.inference.training_stats import TrainingStats, training_split
from model.training.evaluation import evaluate
from model.training.metrics import KEYPHRASE

# A keyphrase stands in brackets.
TRAINING = [
    *["we ate an apple today"] * 7,
    *["the new [apple] is out"] * 3,
    *["[storm ada] closes schools"] * 6,
    *["good morning to you"] * 9,
    "[good morning] to you",
    *["we love [tennis] here"] * 2,
    "we love [table tennis] here",
    "tickets for [open air] cinema",
    "see the [blue moon]",
    *["a blue moon rises"] * 4,
]


def labeled(text: str) -> LabeledText:
    """A text whose keyphrases stand in brackets."""
    plain, spans, begin = "", [], 0
    for sign in text:
        if sign == "[":
            begin = len(plain)
        elif sign == "]":
            spans.append((begin, len(plain)))
        else:
            plain += sign
    return LabeledText(plain, "here:1", tuple(spans))


TOKENIZER = trained_tokenizer(labeled(text).text for text in TRAINING)


def read(texts: list[str]) -> list[Example]:
    return list(examples(map(labeled, texts), TOKENIZER, SkipCounts(), 100))


def mistakes(*pairs: tuple[str, str], score: float = 0.5) -> list[Mistake]:
    """The mistakes of a tagger that marks what stands in the brackets of the second text of each pair, all with one score."""
    texts = []
    for gold, predicted in pairs:
        [wanted], [has] = read([gold]), read([predicted])
        sides = ([(start, end, score) for start, end in each.spans] for each in (wanted, has))
        texts.append(AnnotatedText(wanted.text, wanted.place, wanted.ids, wanted.offsets, *sides))
    return classify_errors(texts, split_from_examples(read(TRAINING)))


def only(gold: str, predicted: str, score: float = 0.5) -> Mistake:
    [mistake] = mistakes((gold, predicted), score=score)
    return mistake


def test_what_is_right_is_no_mistake():
    assert mistakes(("see [storm ada]", "see [storm ada]"), ("nothing here", "nothing here")) == []


def test_spans_that_overlap_are_one_mistake_with_a_wrong_boundary():
    mistake = only("the [apple pie] and", "the [apple] pie and")
    assert mistake.kind == "wrong boundary"
    assert mistake.reason == "the data has `apple pie`, the tagger `apple`"
    assert mistake.as_record()["gold"] == [{"text": "apple pie", "start": 4, "end": 13, "score": 0.5}]
    two = only("see [storm] [ada] here", "see [storm ada] here", score=0.99)
    assert two.kind == "wrong boundary" and "`storm` and `ada`" in two.reason
    counts = by_kind([mistake, two])["wrong boundary"]
    assert counts == {"misses": 3, "false_positives": 2, "share": 1.0}
    beside = mistakes(("see [storm] ada", "see storm [ada]"))
    assert len(beside) == 2 and all(each.kind != "wrong boundary" for each in beside)


@pytest.mark.parametrize(
    ("gold", "predicted", "score", "reason"),
    [
        ("an [apple] here", "an apple here", 0.1, None),  # in training 3 of 10: neither mostly nor hardly ever
        ("[good morning] all", "good morning all", 0.1, "in training `good morning`: keyphrase in 1 of 10"),
        ("storm ada is near", "[storm ada] is near", 0.3, "in training `storm ada`: keyphrase in 6 of 6"),
        ("we saw air today", "we saw [air] today", 0.81, "the tagger is sure of it (0.81)"),
        ("we saw air today", "we saw [air] today", 0.79, None),
        ("we saw [schools] today", "we saw schools today", 0.01, "`schools`: keyphrase in 0 of 6"),
        ("we saw [air] today", "we saw air today", 0.01, None),  # a tagger that is sure of nothing proves nothing
        ("[blue moon] here", "blue moon here", 0.01, "`blue moon`: keyphrase in 1 of 5"),  # 80 % the other way
        ("see open air", "see [open air]", 0.3, None),  # once in training is too seldom
    ],
)
def test_labels_are_suspected_where_the_tagger_or_training_say_otherwise(
    gold: str, predicted: str, score: float, reason: str | None
):
    mistake = only(gold, predicted, score)
    assert (mistake.kind == "label noise suspected") == (reason is not None), mistake
    assert reason is None or reason in mistake.reason


def test_an_unseen_word():
    mistake = only("[storm zelda] is near", "storm zelda is near")
    assert (mistake.kind, mistake.reason) == ("unseen word", "`zelda` is not known from training")
    assert only("Zelda is near", "[Zelda] is near").about == "zelda"
    assert only("Zelda is near", "[Zelda] is near", score=0.9).kind == "label noise suspected"


def test_a_word_that_was_never_in_a_keyphrase():
    mistake = only("the [storm schools] here", "the storm schools here")
    assert (mistake.kind, mistake.reason) == ("never a keyphrase", "`schools`: keyphrase in 0 of 6")
    assert only("[storm schools zelda]", "storm schools zelda").kind == "unseen word"


def test_an_ambiguous_word_comes_with_its_share_in_training():
    assert only("see [apple]", "see apple")[6:] == ("`apple`: keyphrase in 3 of 10", "apple")
    phrase = only("[good apple]", "good apple")  # good is one in 1 of 10: apple is nearer to one half
    assert (phrase.kind, phrase.about) == ("ambiguous word", "apple")
    assert only("see apple", "see [apple]").kind == "ambiguous word"


def test_what_is_left_is_other():
    mistake = only("see [open air]", "see open air")
    assert mistake.kind == "other" and mistake.reason == "`open`: keyphrase in 1 of 1; `air`: keyphrase in 1 of 1"


def test_each_miss_and_false_positive_is_counted_once():
    found = mistakes(
        ("[storm zelda] and [apple] and tennis", "storm zelda and apple and [tennis]"),
        ("see [open air] and [apple pie]", "see open air and [apple] pie"),
    )
    counts = by_kind(found)
    assert list(counts) == list(KINDS) and sum(kind["share"] for kind in counts.values()) == pytest.approx(1)
    assert sum(kind["misses"] for kind in counts.values()) == 4
    assert sum(kind["false_positives"] for kind in counts.values()) == 2
    order = [list(KINDS).index(each.kind) for each in found]
    assert order == sorted(order) and len(set(order)) == 4
    assert all(kind["share"] == 0 for kind in by_kind([]).values())


def test_the_word_of_most_mistakes_comes_first_then_the_largest_distance():
    found = mistakes(("[yoga]", "yoga"), ("[zelda] now", "zelda now"), ("[zelda] then", "zelda then"))
    assert [each.about for each in found] == ["zelda", "zelda", "yoga"]
    texts = [
        AnnotatedText(name, "here:1", [1], [(0, 4)], [(0, 1, score)], [])
        for name, score in (("near", 0.7), ("afar", 0.1))
    ]
    assert [each.text for each in classify_errors(texts, split_from_examples(read(TRAINING)))] == ["afar", "near"]


def test_a_phrase_inside_a_longer_keyphrase_is_neither_marked_nor_unmarked():
    seen = TrainingStats(
        split_from_examples(read(TRAINING)), {tuple(read(["tennis"])[0].ids), tuple(read(["storm"])[0].ids)}
    )
    assert seen.phrase(tuple(read(["tennis"])[0].ids)) == (2, 2)
    assert seen.phrase(tuple(read(["storm"])[0].ids)) == (0, 0)
    assert seen.word(read(["storm"])[0].ids[0]) == (6, 6) and seen.word(10**6) == (0, 0)


def test_phrases_are_counted_as_a_plain_search_counts_them():
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 9, size=300)
    begins = np.concatenate([[0], np.cumsum(lengths)])
    ids = draw.integers(1, 5, size=begins[-1]).astype(np.int32)
    spans = [(b + at, b + at + size) for b, n in zip(begins, lengths, strict=False) if (at := draw.integers(4)) < n
             for size in [int(draw.integers(1, n - at + 1))]]  # fmt: skip
    train = Split(ids, spans_to_tags(np.array(spans), len(ids)), begins)
    phrases = {tuple(draw.integers(1, 6, size=size).tolist()) for size in (1, 2, 3, 4) for _ in range(20)}
    seen = TrainingStats(train, phrases)
    counted = 0
    for phrase in phrases:
        marked = outside = 0
        for begin, end in pairwise(begins):
            for at in range(begin, end - len(phrase) + 1):
                place = (at, at + len(phrase))
                if 1 not in phrase and tuple(ids[slice(*place)].tolist()) == phrase:
                    marked += place in spans
                    outside += not train.tags[slice(*place)].any()
        assert seen.phrase(phrase) == (marked, marked + outside), phrase
        counted += marked
    assert counted > 20


def test_a_taggers_mistakes_add_up_to_its_figures(small_bundle: str, small_dataset: str):
    bundle, dataset = load_bundle(small_bundle), Dataset(small_dataset)
    texts = list(examples(dataset.texts("test"), bundle.tokenizer, SkipCounts(), 100))
    right, predicted, gold = evaluate(bundle.tagger, split_from_examples(texts), torch.device("cpu")).counts.sum(0)[
        KEYPHRASE
    ][:3]
    train = training_split(bundle, "nowhere", small_dataset)
    found = find_errors(bundle.tagger, texts, train, torch.device("cpu"))
    counts = by_kind(found).values()
    assert sum(kind["misses"] for kind in counts) == gold - right > 0
    assert sum(kind["false_positives"] for kind in counts) == predicted - right > 0
    extracted = dict(
        zip((text.text for text in texts), Extractor.load(small_bundle).pipe(t.text for t in texts), strict=True)
    )
    for each in found:
        own = {(keyphrase.start, keyphrase.end): keyphrase.score for keyphrase in extracted[each.text]}
        assert not {(wanted.start, wanted.end) for wanted in each.gold} & set(own)
        for keyphrase in each.predicted:
            assert own[keyphrase.start, keyphrase.end] == pytest.approx(keyphrase.score, abs=1e-5)


def test_the_split_that_taught_the_tagger_is_known_by_its_vocabulary(small_bundle: str, tmp_path: Path):
    from model.prepare.builder import PrepareConfig, prepare

    source = tmp_path / "a.tsv"
    source.write_text("red car\tcar\n" * 3)
    prepare(PrepareConfig([str(source)], str(tmp_path / "other"), [str(source)]))
    bundle = load_bundle(small_bundle)
    places = (str(tmp_path / "none"), str(tmp_path / "other"))
    refused(lambda: training_split(bundle, *places), "none: no such directory", "another vocabulary", "--data")


def test_evaluate_writes_every_mistake_as_a_line(small_bundle: str, small_dataset: str, tmp_path: Path):
    file = tmp_path / "mistakes.jsonl"
    call = ["evaluate", small_bundle, "--data", small_dataset, "--json", "--mistakes", str(file)]
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0 and "unseen word" in done.stderr
    counts = json.loads(done.stdout)["mistakes"]
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    for kind in KINDS:
        assert counts[kind]["misses"] == sum(len(line["gold"]) for line in lines if line["kind"] == kind)
    for line in lines:
        assert set(line) == {"kind", "text", "gold", "predicted", "score", "reason", "place"}
        for span in line["gold"] + line["predicted"]:
            assert line["text"][span["start"] : span["end"]] == span["text"]
    again = CliRunner().invoke(app, call)
    assert again.exit_code == 2 and "exists already" in again.stderr


def test_evaluate_goes_on_where_the_training_texts_are_gone(small_bundle: str, small_dataset: str, tmp_path: Path):
    from model.config import make_config

    loaded = load_bundle(small_bundle)
    tree = loaded.config.model_dump() | {"data": str(tmp_path / "gone")}
    bundle, file = str(tmp_path / "bundle"), str(Path(small_dataset).parent / "test.jsonl")
    tokenizer = Dataset(small_dataset).tokenizer_bytes()
    save_bundle(bundle, make_config(tree), tokenizer, loaded.tagger.state_dict(), loaded.metrics)
    done = CliRunner().invoke(app, ["evaluate", bundle, "--data", file, "--json"])
    assert done.exit_code == 0 and json.loads(done.stdout)["mistakes"] is None
    assert "no mistakes by kind" in done.stderr and "gone: no such directory" in done.stderr
    wanted = CliRunner().invoke(app, ["evaluate", bundle, "--data", file, "--mistakes", str(tmp_path / "m")])
    assert wanted.exit_code == 2 and "gone: no such directory" in wanted.stderr and not (tmp_path / "m").exists()
    moved = CliRunner().invoke(app, ["evaluate", bundle, "--data", small_dataset, "--json"])
    assert json.loads(moved.stdout)["mistakes"]["unseen word"]
