"""The accuracy benchmark: the baselines, their counts and intervals, and the command."""

import json
import math
import os
import signal
import tempfile
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from encoders import tiny_encoder
from helpers import SMALL, generated_dataset, needs_bfloat16, refused
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from typer.testing import CliRunner

from jobs.__main__ import app
from jobs.benchmark import accuracy, baselines, systems, token_classification
from jobs.benchmark.accuracy import (
    ComparisonConfig,
    FinishedTrainings,
    TrainingKey,
    compare_systems,
    system_rows,
)
from jobs.benchmark.baselines import bio_tags, features, spans_of_bio
from jobs.benchmark.systems import SystemResult, measure, raw_text_adapter
from jobs.benchmark.token_classification import labeled_subwords, new_tokenizer, tag_words
from jobs.console import echo
from model import presets
from model.config import Precision
from model.data.dataset import Dataset
from model.data.examples import Example, examples
from model.data.labeled_text import SkipCounts
from model.errors import RunFailedError
from model.inference.extractor import Extractor
from model.network.encoder_files import read_encoder_config
from model.prepare.builder import PrepareConfig, prepare
from model.training.evaluation import evaluate
from model.training.metrics import counts_of_spans, precision_recall_f1, summarize, summarize_seeds

KEYS = ["system", "keyphrase_f1", "low", "high", "precision", "recall", "seeds", "spread", "train_s", "stopped_s"]


@pytest.fixture(scope="module")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset directory of 70 training, 10 validation and 20 test texts."""
    return generated_dataset(tmp_path_factory.mktemp("tiny"), 100)


def benchmark(*arguments: str):
    return CliRunner().invoke(app, ["benchmark", *arguments])


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=6), st.integers(0, 3))
def test_spans_come_back_from_their_bio_tags(runs: list[tuple[int, int]], rest: int):
    spans, at = [], 0
    for gap, size in runs:
        spans.append((at + gap, at + gap + size))
        at += gap + size
    assert spans_of_bio(bio_tags(spans, at + rest)) == spans


def test_bio_tags_of_a_model_may_be_illegal():
    assert bio_tags([(1, 2), (2, 4)], 5) == ["O", "B", "B", "I", "O"]
    assert spans_of_bio(["I", "I", "O", "I", "B", "I"]) == [(0, 2), (3, 4), (4, 6)]
    assert spans_of_bio([]) == []


def test_features_tell_a_word_and_two_on_each_side():
    first, _, _, last = features(["Storm", "Ada", "hits", "Leeds7"])
    assert {"+0 word storm", "+0 begins sto", "+0 ends orm", "+0 capital True", "+0 length 5", "-1 none"} <= set(first)
    assert {"+1 word ada", "+2 word hits", "+2 capital False"} <= set(first) and "+0 digit False" in first
    assert {"-2 word ada", "-1 word hits", "+0 digit True", "+1 none", "+2 none"} <= set(last)
    assert not any("leeds7" in each for each in first)


def test_counts_of_spans_are_those_of_each_text_alone():
    found = [[(0, 4), (5, 9)], [], [(0, 4)], [(1, 2)]]
    gold = [[(5, 9), (10, 12)], [], [(0, 4)], []]
    assert counts_of_spans(found, gold)[:, :4].tolist() == [[1, 2, 2, 0], [0, 0, 0, 1], [1, 1, 1, 1], [0, 1, 0, 0]]
    with pytest.raises(ValueError):
        counts_of_spans(found[:3], gold)


def test_the_interval_over_seeds_is_that_of_resampled_texts():
    draw = np.random.default_rng(5)
    gold, runs = draw.integers(1, 3, 300), []
    for hit in (0.3, 0.4, 0.8):
        counts = np.zeros((300, 8), np.int64)
        counts[:, 0], counts[:, 1], counts[:, 2] = draw.random(300) < hit, 1, gold
        runs.append(counts)
    metrics = summarize_seeds(runs)
    assert metrics["keyphrase_f1"] == pytest.approx(np.mean([summarize(each)["keyphrase_f1"] for each in runs]))
    assert metrics["keyphrase_recall"] == pytest.approx(np.mean([summarize(each)["keyphrase_recall"] for each in runs]))
    means = []
    for _ in range(4000):
        texts = draw.integers(300, size=300)
        means.append(np.mean([precision_recall_f1(*counts[texts].sum(0)[:3]).f1 for counts in runs]))
    low, high = np.percentile(means, [2.5, 97.5])
    assert metrics["keyphrase_f1_low"] == pytest.approx(low, abs=0.005)
    assert metrics["keyphrase_f1_high"] == pytest.approx(high, abs=0.005)
    widths = [summarize(each)["keyphrase_f1_high"] - summarize(each)["keyphrase_f1_low"] for each in runs]
    assert high - low < min(widths)  # what differs between trainings averages out, and counts for no noise of the texts


def test_the_same_training_three_times_is_one_training():
    counts = np.random.default_rng(0).integers(0, 4, (50, 8))
    assert summarize_seeds([counts] * 3) == pytest.approx(summarize(counts))


def test_a_row_holds_means_over_trainings_and_their_spread():
    def result(right: int, seconds: float) -> SystemResult:
        counts = np.tile([0, 1, 1, 0, 0, 0, 0, 0], (10, 1))
        counts[:right, 0] = 1
        return SystemResult(counts, seconds, seconds + 1, 1.5, 100 * seconds, 1.0)

    [row] = system_rows({"spacy": [result(4, 2.0), result(8, 4.0)]})
    assert (row.keyphrase_f1, row.seeds, row.train_s, row.stopped_s) == (pytest.approx(0.6), 2, 3.0, 4.0)
    assert row.spread == pytest.approx(math.sqrt(2 * 0.2**2)) and row.texts_per_s == 300
    assert row.low < 0.6 < row.high
    [row] = system_rows({"crf": [result(4, 2.0)]})
    assert row.spread is None


def test_systems_are_compared_with_the_highest_on_the_same_texts():
    draw = np.random.default_rng(0)
    hard = draw.random(400)  # of each text, for all systems

    def results(skill: float, seeds: int = 3) -> list[SystemResult]:
        counts = [np.tile([0, 1, 1, 0, 0, 0, 0, 0], (400, 1)) for _ in range(seeds)]
        for own in counts:
            own[:, 0] = hard + draw.normal(0, 0.02, 400) < skill
        return [SystemResult(own, 1.0, 1.0, 1.0, 1.0, 1.0) for own in counts]

    low, same, high = system_rows({"crf": results(0.5), "best": results(0.55), "encoder": results(0.552)})
    assert high.against is None and low.high > high.low  # their own intervals overlap
    assert low.against and low.against.difference == low.keyphrase_f1 - high.keyphrase_f1
    assert low.against.low < low.against.difference < low.against.high < 0 and low.against.p < 0.01
    assert same.against and same.against.low < 0 < same.against.high and same.against.p > 0.05
    [alone] = system_rows({"best": results(0.5, 1)})
    assert alone.against is None


def test_a_missing_package_is_told_with_how_to_install_it(tiny_dataset: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        baselines, "PACKAGES", {"crf": {"no_such_crf": "sklearn-crfsuite"}, "spacy": {"no_such": "spaCy"}}
    )
    result = benchmark("--peers", "--data", tiny_dataset)
    assert result.exit_code == 2 and not result.stdout
    for part in (
        "sklearn-crfsuite and spaCy: not installed",
        "make peers",
        'pip install ".[peers,encoder]"',
        "record,best",
    ):
        assert part in result.stderr
    baselines.check_installed(["record", "best"])


def test_what_cannot_be_compared_is_refused(tiny_dataset: str, tmp_path: Path):
    for arguments, parts in (
        (["--peers", "--systems", "record,flair"], ("flair: is unknown", "crf,spacy,record,best")),
        (["--peers", "--systems", ""], ("choose some of crf,spacy,record,best",)),
        (["--systems", "record"], ("--peers",)),
        (["--seeds", "2"], ("--peers",)),
        (["--encoder", "/no/such"], ("/no/such: no such folder", "config.json")),
        (["--serve", "runs/a/bundle", "--encoder", "models/a"], ("--encoder", "leave it out")),
        (["--out", "a.jsonl"], ("--peers",)),
        (["--precision", "bfloat16"], ("--precision", "--peers")),
        (["--peers", "--systems", "crf,transformers,encoder"], ("transformers,encoder: needs", "--encoder PATH")),
        (["--peers", "--systems", "record", "--encoder", "models/a"], ("transformers and encoder", "leave it out")),
        (["--peers", "--systems", "encoder", "--encoder", "/no/such"], ("/no/such: no such folder", "config.json")),
        (["--peers", "--texts", "1000"], ("--texts", "leave them out")),
    ):
        result = benchmark("--data", tiny_dataset, *arguments)
        assert result.exit_code == 2 and not result.stdout, result.output
        assert all(part in result.stderr for part in parts), result.stderr
    source = tmp_path / "a.tsv"
    source.write_text("".join(f"text {i} of rain\train\n" for i in range(20)))
    prepare(PrepareConfig([str(source)], str(tmp_path / "d"), [str(source)]))
    refused(
        lambda: compare_systems(ComparisonConfig(str(tmp_path / "d"), ("record",)), echo),
        "has no test split",
        "--test FILE",
    )


def test_a_precision_that_would_be_imitated_is_refused(tiny_dataset: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    result = benchmark("--peers", "--data", tiny_dataset, "--systems", "record", "--precision", "bfloat16")
    assert result.exit_code == 2 and "this processor has no instructions" in result.stderr and not result.stdout


def test_the_records_preset_is_compared_from_beginning_to_end(tiny_dataset: str):
    result = benchmark("--peers", "--data", tiny_dataset, "--systems", "record", "--repeats", "1", "--json")
    assert result.exit_code == 0, result.output
    compared = json.loads(result.stdout)
    [row] = compared["systems"]
    assert set(KEYS) < set(row) and row["system"] == "record"
    assert compared["texts"] == {"train": 70, "valid": 10, "test": 20}
    assert 0 <= row["low"] <= row["keyphrase_f1"] <= row["high"] <= 1
    assert 0 < row["train_s"] <= row["stopped_s"] and row["texts_per_s"] > 1
    assert "1 of 1  record" in result.stderr and "texts/s" in result.stderr


def test_what_is_measured_of_a_preset_in_use_is_what_evaluate_measures(
    small_dataset: str, monkeypatch: pytest.MonkeyPatch
):
    kept = []
    monkeypatch.setattr(systems, "Extractor", lambda *a: (kept.append(a[0]), Extractor(*a))[1])
    small = {"tagger": SMALL | {"dropout": 0.1}, "training": {"lr": 0.01, "epochs": 6}}
    monkeypatch.setattr(systems, "preset_values", lambda name, texts: small)
    result = measure(Dataset(small_dataset), "record", 0, 1, echo)
    counts = evaluate(kept[0], Dataset(small_dataset).load("test"), torch.device("cpu")).counts
    assert counts[:, 0].sum() > 50
    assert (result.counts[:, :4] == counts[:, :4]).all()


def _dies(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raises(*_: object) -> None:
    raise ValueError("of its own")


@pytest.mark.parametrize(("log", "how"), [(_dies, "killed by signal 9"), (_raises, "ended with code 1")])
def test_a_system_whose_process_fails_is_an_error(tiny_dataset: str, log, how: str, capfd: pytest.CaptureFixture[str]):
    with pytest.raises(RunFailedError, match=rf"record, seed 0: its process.* {how}"):
        accuracy._measure_in_process(ComparisonConfig(tiny_dataset, ("record",)), "record", 0, log)
    if log is _raises:
        assert "ValueError: of its own" in capfd.readouterr().err


def test_an_error_of_the_user_comes_through_from_a_systems_process(tmp_path: Path):
    config = ComparisonConfig(str(tmp_path), ("record",))
    refused(lambda: accuracy._measure_in_process(config, "record", 0, echo), "is no dataset")


@pytest.mark.parametrize(("system", "package"), [("crf", "sklearn_crfsuite"), ("spacy", "spacy")])
def test_a_peer_learns_and_finds_in_raw_texts_what_it_finds_in_their_words(
    system: str, package: str, small_dataset: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip(package, reason=f"{package} is not installed; make peers installs it")
    monkeypatch.setattr(baselines, "_EPOCHS", 4)
    tags = []
    monkeypatch.setattr(systems, "raw_text_adapter", lambda *a: (tags.append(a[0]), raw_text_adapter(*a))[1])
    data = Dataset(small_dataset)
    result = measure(data, system, 0, 1, echo)
    assert summarize(result.counts)["keyphrase_f1"] > 0.3
    assert result.counts[:, 2].sum() == sum(len(each.spans or ()) for each in data.texts("test"))
    assert 0 < result.best_s <= result.stopped_s and result.texts_per_s > 1
    assert f"{system}: " in capsys.readouterr().err
    valid = list(examples(data.texts("valid"), data.tokenizer(), SkipCounts(), 1000))
    found = raw_text_adapter(tags[0], data)([each.text for each in valid] + ["", "  "])
    expected = [
        [(each.offsets[start][0], each.offsets[end - 1][1]) for start, end in spans]
        for each, spans in zip(valid, tags[0]([baselines.words_of(each) for each in valid]), strict=True)
    ]
    assert found == [*expected, [], []] and any(expected)


def _tokenizer(folder: Path, kind: str, positions: int):
    encoder = tiny_encoder(folder, kind, positions)
    return new_tokenizer((folder / "tokenizer.json").read_bytes(), read_encoder_config(encoder))


def _example(words: list[str], spans: list[tuple[int, int]]) -> Example:
    starts = [sum(len(each) + 1 for each in words[:i]) for i in range(len(words))]
    offsets = [(start, start + len(word)) for start, word in zip(starts, words, strict=True)]
    return Example(" ".join(words), [1] * len(words), offsets, spans, "here:1")


def _tagger_of_letters(tokenizer):
    """A model that tags the sub-words of b, i and o as these letters say, and all others as B."""
    tags = {tokenizer([[letter]], is_split_into_words=True).input_ids[0][1]: tag for tag, letter in enumerate("obi")}
    assert len(tags) == 3

    def model(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        labels = input_ids.clone().apply_(lambda each: tags.get(each, 1))
        return SimpleNamespace(logits=torch.nn.functional.one_hot(labels, 3))

    model.device = torch.device("cpu")  # as a model of the library has it
    return model


def test_tags_of_a_token_classifier_become_spans_of_words(tmp_path: Path):
    tokenizer = _tokenizer(tmp_path, "bert", positions=12)
    texts = ["b i o i b b", "o b \x01 i \x01 b", "", "b i o Zzyzzx o", "\x01", "o o o o o o o o b b b b"]
    found = tag_words(tokenizer, _tagger_of_letters(tokenizer), [text.split(" ") if text else [] for text in texts])
    assert found[0] == [(0, 2), (3, 4), (4, 5), (5, 6)]  # an I without a B, and two B side by side
    assert found[1] == [(1, 2), (3, 4), (5, 6)]  # words without a sub-word are O, and no tag moves
    assert found[2:5] == [[], [(0, 2), (3, 4)], []]
    assert found[5] == [(8, 9), (9, 10)]  # ten sub-words and two special tokens; what is beyond is O


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_first_subword_of_each_word_has_its_label(kind: str, tmp_path: Path):
    tokenizer = _tokenizer(tmp_path, kind, positions=24)
    words = ["o", "Zzyzzx", "qqjqq", *(["\x01"] if kind == "bert" else []), "storm", *["o"] * 30]
    last = words.index("storm")
    [row] = labeled_subwords(tokenizer, [_example(words, [(1, 3), (last, last + 1), (33, 34)])])
    assert len(row["input_ids"]) == len(row["labels"]) == 24  # cut off at the window
    pieces, at = [tokenizer([[word]], is_split_into_words=True).input_ids[0][1:-1] for word in words], 1
    assert len(pieces[1]) > 1
    tags = baselines.bio_tags([(1, 3), (last, last + 1)], len(words))
    for word, tag in zip(pieces, tags, strict=True):
        assert row["input_ids"][at : at + len(word)][: 23 - at] == word[: max(0, 23 - at)]
        expected = [("O", "B", "I").index(tag), *[-100] * (len(word) - 1)] if word else []
        assert row["labels"][at : min(at + len(word), 23)] == expected[: max(0, 23 - at)]
        at += len(word)
    assert row["labels"][0] == row["labels"][23] == -100
    raw = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("o storm").ids
    assert tokenizer([["o", "storm"]], is_split_into_words=True).input_ids[0][2:] == raw[2:]  # as inside a text


def test_a_tokenizer_may_have_no_pre_tokenizer(tmp_path: Path):
    encoder = tiny_encoder(tmp_path, "bert")
    tree = json.loads((tmp_path / "tokenizer.json").read_text()) | {"pre_tokenizer": None}
    tokenizer = new_tokenizer(json.dumps(tree).encode(), read_encoder_config(encoder))
    assert tokenizer([["o", "storm"]], is_split_into_words=True).encodings[0].word_ids[:2] == [None, 0]


def test_an_encoder_with_a_head_of_other_labels_gets_a_new_one(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    encoder = tiny_encoder(tmp_path, "bert")
    transformers.AutoModelForTokenClassification.from_pretrained(encoder, num_labels=9).save_pretrained(encoder)
    _, model = token_classification._load(encoder)
    assert model.classifier.out_features == 3
    body = transformers.AutoModel.from_pretrained(encoder).state_dict()
    assert all(torch.equal(values, body[name]) for name, values in model.bert.state_dict().items())


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
@pytest.mark.parametrize("system", ["transformers", "encoder"])
def test_a_pretrained_encoder_is_compared(
    system: str,
    precision: Precision,
    tiny_dataset: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    pytest.importorskip("accelerate", reason="accelerate is not installed; make peers installs it")
    encoder = tiny_encoder(tmp_path / "encoder", "bert")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setitem(token_classification._SETTINGS, "learning_rate", 5e-3)  # its weights are random
    monkeypatch.setitem(token_classification._SETTINGS, "num_train_epochs", 12)
    monkeypatch.setattr(presets, "_MIN_STEPS", 0)  # for the sake of time
    products, linear = [], torch.nn.Linear.forward
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda *a: products.append(linear(*a)) or products[-1])
    result = measure(Dataset(tiny_dataset), system, 0, 1, echo, encoder, precision=precision)
    assert (torch.bfloat16 in {each.dtype for each in products}) == (precision == "bfloat16")
    assert products[-1].dtype == torch.float32  # in use
    [row] = system_rows({system: [result]})
    assert 0 <= row.low <= row.keyphrase_f1 <= row.high <= 1
    assert 0 < row.train_s <= row.stopped_s and row.texts_per_s > 1
    assert result.counts[:, 2].sum() == sum(len(each.spans or ()) for each in Dataset(tiny_dataset).texts("test"))
    assert not list((tmp_path / "scratch").iterdir())
    output = capsys.readouterr()
    assert not output.out and f"{system}: epoch 1 of " in output.err
    if system == "transformers":
        assert row.keyphrase_f1 > 0.1 and "epoch 12 of 12" in output.err


def test_an_encoder_adds_two_systems(tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = []

    def fake(config: ComparisonConfig, system: str, seed: int, log) -> SystemResult:
        measured.append((system, config.encoder))
        return SystemResult(np.ones((20, 8), np.int64), 1.0, 1.0, 1.0, 1.0, 1.0)

    monkeypatch.setattr(accuracy, "_measure_in_process", fake)
    monkeypatch.setattr(accuracy, "check_installed", lambda systems: None)
    encoder = tiny_encoder(tmp_path, "bert")
    for arguments, extra in (([], []), (["--encoder", encoder], ["transformers", "encoder"])):
        measured.clear()
        result = benchmark("--peers", "--data", tiny_dataset, *arguments)
        assert result.exit_code == 0, result.output
        given = encoder if arguments else None
        assert measured == [(system, given) for system in ["crf", "spacy", "record", "best", *extra]]


def test_finished_trainings_are_not_repeated(tiny_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    measured = []

    def fake(config: ComparisonConfig, system: str, seed: int, log) -> SystemResult:
        measured.append((system, seed))
        if len(measured) == 3:
            raise RunFailedError("killed")
        return SystemResult(np.full((20, 8), seed + 1, np.int64), 1.5, 2.0, 1.0, 7.0, 1.0)

    monkeypatch.setattr(accuracy, "_measure_in_process", fake)
    out = tmp_path / "new" / "finished.jsonl"
    arguments = ["--peers", "--data", tiny_dataset, "--systems", "record,best", "--seeds", "2", "--out", str(out)]
    assert benchmark(*arguments).exit_code == 1
    assert len(out.read_text().splitlines()) == 2
    [row, _] = json.loads(benchmark(*arguments, "--json").stdout)["systems"]
    assert measured == [("record", 0), ("record", 1), ("best", 0), ("best", 0), ("best", 1)]
    results = [SystemResult(np.full((20, 8), count), 1.5, 2.0, 1.0, 7.0, 1.0) for count in (1, 2)]
    assert row == asdict(system_rows({"record": results, "best": results})[0])
    (tmp_path / "other").mkdir()
    other = generated_dataset(tmp_path / "other", 120)
    benchmark("--peers", "--data", other, "--systems", "best", "--out", str(out))
    assert measured[5:] == [("best", 0)] and len(out.read_text().splitlines()) == 5
    one, two = FinishedTrainings(str(tmp_path / "both")), FinishedTrainings(str(tmp_path / "both"))
    for finished, system in ((one, "best"), (two, "crf")):
        finished.add(TrainingKey("data", system, 0, None, "cpu", 2), results[0])
    assert len((tmp_path / "both").read_text().splitlines()) == 2
    result = benchmark(*arguments[:-1], "/proc/none/finished.jsonl")
    assert result.exit_code and "/proc/none" in result.stderr and len(measured) == 6
    out.write_text(out.read_text()[:-100])
    result = benchmark(*arguments)
    assert result.exit_code == 2 and f"{out}:5: is no result of benchmark --peers" in result.stderr
