"""A student of a teacher: its losses, its data, and what holds of every training."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from encoders import tiny_encoder
from helpers import (
    SMALL,
    Half,
    alone,
    best_weights_together,
    call,
    last_json,
    refused,
    without_digests,
    without_measurements,
)

from distributed.cluster.preflight import check_data, data_warnings
from distributed.train.driver import train
from distributed.train.runs import new_run, resumed_run
from distributed.train.shared_data import SharedData
from model.config import Config, TrainingConfig, make_config
from model.data.batching import Batch, SoftTargets, collate
from model.data.dataset import Dataset
from model.data.labels import LEGAL, MAY_END, MAY_START, B, E, I, O, S
from model.data.tokenizer import UNKNOWN
from model.distillation.label_files import TeacherLabels
from model.distillation.labeling import LabelConfig, label
from model.distillation.teacher_split import add_labeled_texts, count_held_out, labels_digest, teacher_labels
from model.inference.bundle import load_bundle
from model.network.crf import CrfTransitions, crf_cross_entropy, crf_nll, temper_marginals
from model.network.decoding import tag_marginals
from model.network.encoder_files import load_encoder
from model.network.logits import Logits
from model.network.tagger import new_tagger
from model.training.loop import Training
from model.training.loss import dual_loss, soft_dual_loss, training_loss
from model.training.training_texts import GlobalBatch

pytestmark = pytest.mark.filterwarnings("ignore")
LENGTHS = torch.tensor([5, 1, 4])
BEST = {**SMALL, "cell": "gru", "bidirectional": True, "word_feature_dim": 4, "crf": True, "decoding": "spans"}


@pytest.fixture(scope="module")
def labels(small_bundle: str, small_dataset: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the small tagger says of 200 texts that are in no split but the test, and of one whose words are unknown."""
    folder = tmp_path_factory.mktemp("labels")
    texts = [labeled.text for labeled in Dataset(small_dataset).texts("test")]
    (folder / "texts.txt").write_text("\n".join(["", *texts, "zzyzx qwfp", "rain " * 1001]) + "\n", "utf-8")
    label(LabelConfig(small_bundle, [str(folder / "texts.txt")], str(folder / "labels")))
    return str(folder / "labels")


@pytest.fixture(scope="module")
def other_labels(small_bundle: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What it says of three other texts."""
    folder = tmp_path_factory.mktemp("labels")
    (folder / "texts.txt").write_text("a match by Roger Federer tonight\nrain in Bern\nno news\n", "utf-8")
    label(LabelConfig(small_bundle, [str(folder / "texts.txt")], str(folder / "labels")))
    return str(folder / "labels")


def scores(seed: int, crf: bool) -> tuple[torch.Tensor, CrfTransitions]:
    torch.manual_seed(seed)
    transitions = CrfTransitions()
    for each in transitions.parameters():
        torch.nn.init.normal_(each) if crf else None
    return torch.randn(3, 5, 5, requires_grad=True), transitions


def sequences(
    logits: torch.Tensor, transitions: CrfTransitions, temperature: float = 1
) -> list[dict[tuple[int, ...], torch.Tensor]]:
    """The log-probability of each legal tag sequence of each text."""
    found: list[dict[tuple[int, ...], torch.Tensor]] = []
    crf = transitions()
    for row, length in enumerate(LENGTHS.tolist()):
        paths: list[tuple[int, ...]] = [(tag,) for tag in range(5) if MAY_START[tag]]
        for _ in range(length - 1):
            paths = [(*path, tag) for path in paths for tag in range(5) if LEGAL[path[-1], tag]]
        paths = [path for path in paths if MAY_END[path[-1]]]
        sums = [
            sum(logits[row, t, tag] for t, tag in enumerate(path))
            + crf.start[path[0]]
            + sum(crf.transition[pair] for pair in pairwise(path))
            + crf.end[path[-1]]
            for path in paths
        ]
        found.append(dict(zip(paths, torch.log_softmax(torch.stack(sums) / temperature, 0), strict=True)))
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("seed", range(2))
def test_the_cross_entropy_of_a_crf_is_that_of_all_sequences(seed: int, temperature: float):
    """Of a teacher whose neighboring tags are independent but for what is legal, and of any student."""
    teacher, flat = scores(seed, crf=False)
    student, transitions = scores(seed + 10, crf=True)
    wanted = torch.zeros(())
    tempered = sequences(teacher, flat, temperature), sequences(student, transitions, temperature)
    for of_teacher, of_student in zip(*tempered, strict=True):
        wanted = wanted - sum(of_teacher[path].detach().exp() * of_student[path] for path in of_teacher)
    marginals = tag_marginals(Logits(teacher[..., :2], teacher), LENGTHS)
    targets = SoftTargets(torch.arange(3), torch.arange(0), torch.rand(3, 5), marginals)
    logits = Logits(torch.randn(3, 5, 2), student, transitions())
    loss = soft_dual_loss(logits, LENGTHS, targets, temperature).keyphrase / temperature**2
    torch.testing.assert_close(loss, wanted)
    inputs = [student, *transitions.parameters()]
    for one, other in zip(torch.autograd.grad(loss, inputs), torch.autograd.grad(wanted, inputs), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_a_teacher_that_is_sure_teaches_a_crf_as_gold_does():
    student, transitions = scores(1, crf=True)
    tags = torch.tensor([[B, I, E, O, S], [S, O, O, O, O], [O, S, B, E, O]])
    sure = crf_cross_entropy(student, transitions(), F.one_hot(tags, 5).float(), LENGTHS)
    assert torch.equal(sure, crf_nll(student, transitions(), tags, LENGTHS))


def test_marginals_at_a_temperature_of_one_are_themselves():
    teacher, flat = scores(2, crf=False)
    marginals = tag_marginals(Logits(teacher[..., :2], 20 * teacher, flat()), LENGTHS)  # sure, so with many zeros
    torch.testing.assert_close(temper_marginals(marginals, LENGTHS, 1.0), marginals, atol=1e-5, rtol=1e-4)
    real = torch.arange(5) < LENGTHS[:, None]
    warm = temper_marginals(marginals.half().float(), LENGTHS, 50.0)
    torch.testing.assert_close(warm.sum(-1), real.float())
    assert warm.max() < 0.9 < marginals.max()


def soft_targets(seed: int, rows: int = 3) -> SoftTargets:
    torch.manual_seed(seed)
    keyphrase = torch.rand(rows, 5, 5).softmax(-1)
    return SoftTargets(torch.arange(rows), torch.arange(0), torch.rand(rows, 5), keyphrase)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_soft_loss_is_the_cross_entropy_at_a_temperature(temperature: float):
    torch.manual_seed(3)
    logits, targets = Logits(torch.randn(3, 5, 2), torch.randn(3, 5, 5)), soft_targets(4)
    sums = soft_dual_loss(logits, LENGTHS, targets, temperature)
    keyword = torch.stack([1 - targets.keyword, targets.keyword], -1)
    for head, probabilities, found in (
        (logits.keyword, keyword, sums.keyword),
        (logits.keyphrase, targets.keyphrase, sums.keyphrase),
    ):
        flat = torch.softmax(probabilities.log() / temperature, -1)
        wanted = sum(
            F.cross_entropy(head[row, :length] / temperature, flat[row, :length], reduction="sum")
            for row, length in enumerate(LENGTHS.tolist())
        )
        torch.testing.assert_close(found, temperature**2 * wanted)


def test_gold_and_labeled_texts_have_their_own_losses():
    torch.manual_seed(5)
    student, transitions = scores(6, crf=True)
    logits = Logits(torch.randn(3, 5, 2), student, transitions())
    tags = torch.tensor([[B, I, E, O, S], [S, O, O, O, O], [O, S, B, E, O]])
    tags[1, 1:], tags[2, 4:] = -100, -100
    keyword = torch.where(tags < 0, tags, (tags > 0).long())
    whole = Batch(tags, LENGTHS, keyword, tags)
    chosen, gold = torch.tensor([0, 2]), torch.tensor([1])
    targets = soft_targets(7)
    mixed = SoftTargets(chosen, gold, targets.keyword[chosen], targets.keyphrase[chosen])
    config = TrainingConfig(teacher="t", teacher_weight=0.5, teacher_temperature=2.0)
    found = training_loss(logits, whole._replace(teacher=mixed), config)

    def rows(each: torch.Tensor) -> Logits:
        return Logits(logits.keyword[each], logits.keyphrase[each], logits.crf)

    own = dual_loss(rows(gold), Batch(tags[gold], LENGTHS[gold], keyword[gold], tags[gold]))
    soft = soft_dual_loss(rows(chosen), LENGTHS[chosen], mixed, 2.0)
    for head in range(2):
        torch.testing.assert_close(found[head], own[head] + 0.5 * soft[head])
    hard = training_loss(
        logits, whole._replace(teacher=mixed), TrainingConfig(teacher="t", teacher_targets="hard", teacher_weight=1)
    )
    for one, other in zip(hard, dual_loss(logits, whole), strict=True):
        torch.testing.assert_close(one, other)


def test_labeled_texts_follow_the_gold_ones(small_dataset: str, labels: str):
    dataset = Dataset(small_dataset)
    gold = dataset.load("train", word_features=True)
    split = add_labeled_texts(gold, [TeacherLabels(labels)], dataset, word_features=True)
    test = dataset.load("test", word_features=True)
    assert split.teacher is not None and len(split) == 700 + 200 + 1  # the blank and the long one are left out
    assert np.array_equal(split.ids[len(gold.ids) : -2], test.ids) and (split.ids[-2:] == UNKNOWN).all()
    assert np.array_equal(split.word_features[len(gold.ids) : -2], test.word_features)
    assert np.array_equal(split.tags[: len(gold.ids)], gold.tags)
    assert split.teacher.labeled.sum() == 201 and not split.teacher.labeled[:700].any()
    own = split.tags[len(gold.ids) : -2]
    assert 0.2 < (own == test.tags).mean() < 1 and {B, E, O, S} <= set(own.tolist())  # what the teacher finds
    row = 705
    words = slice(split.begins[row], split.begins[row + 1])
    chosen = split.teacher.keyphrase[words][np.arange(split.lengths[row]), split.tags[words]]
    assert split.teacher.confidence[row] == pytest.approx(chosen.min(), abs=1e-3)
    batch = collate(split, np.array([3, 700, 5]))
    assert batch.teacher is not None
    assert batch.teacher.labeled.tolist() == [1] and batch.teacher.gold.tolist() == [0, 2]
    length, first = int(batch.lengths[1]), split.begins[700]
    assert np.array_equal(batch.teacher.keyphrase[0, :length], split.teacher.keyphrase[first : first + length])
    assert np.array_equal(batch.teacher.keyword[0, :length], split.teacher.keyword[first : first + length])
    assert (batch.teacher.keyphrase[0, length:] == 0).all()


def test_the_texts_of_several_teachers_follow_each_other(small_dataset: str, labels: str, other_labels: str):
    dataset = Dataset(small_dataset)
    gold = dataset.load("train", word_features=True)
    one, two = TeacherLabels(labels), TeacherLabels(other_labels)
    both = add_labeled_texts(gold, [one, two], dataset, word_features=True)
    alone = [add_labeled_texts(gold, [each], dataset, word_features=True) for each in (one, two)]
    assert len(both) == 700 + 201 + 3 and both.teacher is not None and both.teacher.labeled.sum() == 204
    for split, first, rows in ((alone[0], 0, 901), (alone[1], 901, 3)):
        own, wanted = both.take(np.arange(first, first + rows)), split.take(np.arange(len(split))[-rows:])
        assert np.array_equal(own.ids, wanted.ids) and np.array_equal(own.word_features, wanted.word_features)
        assert np.array_equal(own.teacher.keyphrase, wanted.teacher.keyphrase)  # type: ignore[union-attr]
    digests = {labels_digest(each) for each in ([one], [two], [one, two], [two, one])}
    assert len(digests) == 4 and labels_digest([one]) == one.digest


def test_a_run_of_several_teachers_keeps_them_all(small_dataset: str, labels: str, other_labels: str, tmp_path: Path):
    given = ("train", "--data", small_dataset, "--storage", str(tmp_path), "--name", "student", "--dry-run")
    done = call(*given, "--teacher", os.path.relpath(labels), "--teacher", other_labels)
    assert done.exit_code == 0, done.stderr
    training = last_json(done.stdout)["config"]["training"]
    assert training["teacher"] == [labels, other_labels]
    assert training["teacher_digest"] == labels_digest([TeacherLabels(labels), TeacherLabels(other_labels)])
    as_list = call(*given, "--set", f"training.teacher=[{labels}, {other_labels}]")
    assert last_json(as_list.stdout)["config"]["training"] == training
    done = call(*given, "--teacher", labels, "--teacher", small_dataset)
    assert done.exit_code == 2 and f"{small_dataset}: is no label folder" in done.stderr
    done = call(*given, "--set", "training.teacher=[]")
    assert done.exit_code == 2 and "training.teacher" in done.stderr and "Traceback" not in done.output


def test_a_run_of_an_earlier_version_has_one_teacher(small_dataset: str, labels: str, tmp_path: Path):
    config = new_run(config_of(small_dataset, labels, run={"name": "student", "storage": str(tmp_path)}))
    tree = config.model_dump(mode="json")
    tree["training"]["teacher"] = labels
    (tmp_path / "student").mkdir()
    (tmp_path / "student" / "config.json").write_text(json.dumps(tree))
    for given in ({}, {"training": {"teacher": os.path.relpath(labels)}}, {"training": {"teacher": [labels]}}):
        assert resumed_run("student", str(tmp_path), given) == config
    refused(
        lambda: resumed_run("student", str(tmp_path), {"training": {"teacher": [labels, labels]}}), "training.teacher"
    )


def test_a_fold_of_the_gold_texts_is_left_out(small_dataset: str, labels: str, tmp_path: Path):
    left, texts = [], []
    for fold in ("1/3", "2/3", "3/3"):
        for teacher, rows in ((None, 0), (labels, 201)):
            config = config_of(small_dataset, teacher, held_out_fold=fold)
            check_data(config, Dataset(small_dataset))
            training = training_of(config)
            found = np.sort(np.concatenate([batch.rows for batch in training.texts.batches(0)]))
            assert (found >= 700).sum() == rows
        left.append(np.setdiff1d(np.arange(700), found))
        texts.append(training.texts.tokens)
    assert left[1].tolist() == list(range(1, 700, 3))
    assert sorted(np.concatenate(left)) == list(range(700)) and len(set(texts)) > 1
    for wrong in ("0/3", "4/3", "1/1", "1", "a/b", "1/3/5"):
        refused(lambda wrong=wrong: config_of(small_dataset, None, held_out_fold=wrong), "training.held_out_fold")  # type: ignore[misc]


def test_a_fold_that_leaves_nothing_is_refused(tmp_path: Path):
    rows = "rain in Bern\tBern\n"
    for split in ("train", "valid"):
        (tmp_path / f"{split}.tsv").write_text(rows)
    data = str(tmp_path / "data")
    done = call("prepare", str(tmp_path / "train.tsv"), "--valid", str(tmp_path / "valid.tsv"), "--out", data)
    assert done.exit_code == 0, done.stderr
    config = config_of(data, None, held_out_fold="1/2")
    refused(lambda: check_data(config, Dataset(data)), data, "training.held_out_fold=1/2 leaves no text")
    check_data(config_of(data, None, held_out_fold="2/2"), Dataset(data))


def config_of(
    data: str,
    labels: str | None,
    tagger: dict[str, Any] | None = None,
    run: dict[str, Any] | None = None,
    **training: Any,
) -> Config:
    fields = {"epochs": 2, "lr": 0.01, "patience": 0, "teacher": labels} | training
    tree = {"data": data, "tagger": {**BEST, "dropout": 0.1, **(tagger or {})}, "training": fields, "run": run or {}}
    return make_config(tree)


def training_of(config: Config, communicator: Any = None) -> Training:
    data = SharedData.load(config.data, config.tagger, config.training)
    tagger = data.new_tagger(config.tagger, config.training.seed)
    return Training(config.training, tagger, data.train, data.valid, communicator)


def bits(training: Training) -> list[torch.Tensor]:
    return list(training.tagger.state_dict().values())


def same(one: Training, other: Training) -> bool:
    return all(torch.equal(*pair) for pair in zip(bits(one), bits(other), strict=True))


def test_without_a_teacher_labeled_texts_change_no_bit(small_dataset: str, labels: str):
    """As in a sweep, whose trials share the data whether they have the teacher or not."""
    without = config_of(small_dataset, None, {"rare_word_dropout": 1.0}, epochs=1)
    data = SharedData.load(small_dataset, without.tagger, config_of(small_dataset, labels).training)
    shared = Training(without.training, data.new_tagger(without.tagger, 0), data.train, data.valid)
    list(shared.epochs())
    gold = alone(without)
    assert same(shared, gold)
    assert without_measurements(shared.history[0]) == without_measurements(gold.history[0])
    assert not same(alone(config_of(small_dataset, labels, {"rare_word_dropout": 1.0}, epochs=1)), gold)


@pytest.mark.parametrize(
    "fields",
    [{"teacher_temperature": 2.0, "teacher_weight": 0.5}, {"teacher_targets": "hard", "teacher_confidence": 0.5}],
)
def test_a_resumed_student_is_that_of_an_uninterrupted_training(small_dataset: str, labels: str, fields: dict):
    config = config_of(small_dataset, labels, global_batch_size=128, **fields)
    whole, first, second = alone(config), training_of(config), training_of(config)
    first.run_epoch()
    second.restore(first.state())
    list(second.epochs())
    assert same(whole, second) and not same(whole, first)
    assert without_measurements(whole.history[-1]) == without_measurements(second.history[-1])


def test_a_confidence_leaves_texts_out(small_dataset: str, labels: str):
    sizes = []
    for confidence in (0.0, 0.6, 1.0):
        training = training_of(config_of(small_dataset, labels, teacher_confidence=confidence))
        batches = list(training.texts.batches(0))
        sizes.append(sum(len(texts.rows) for texts in batches))
        assert training.texts.tokens == sum(texts.tokens for texts in batches)
    assert sizes[0] == 901 and 700 < sizes[1] < 901 and 700 <= sizes[2] < sizes[1]


@pytest.mark.parametrize("targets", ["soft", "hard"])
def test_the_sum_of_two_workers_gradients_is_that_of_one(small_dataset: str, labels: str, targets: str):
    config = config_of(
        small_dataset, labels, {"dropout": 0.0}, teacher_targets=targets, teacher_weight=0.5, max_grad_norm=0
    )
    for rows in (np.array([3, 701, 9, 705, 11]), np.array([702, 5, 703, 6, 704])):  # mixed; each worker has one kind
        gradients = []
        for communicator in (None, Half(0), Half(1)):
            training = training_of(config, communicator)
            parameters = list(training.tagger.parameters())
            for optimizer in training.optimizers:
                optimizer.step = optimizer.zero_grad = lambda: None  # type: ignore[method-assign, assignment]
            training.train_step(training.local_batches(GlobalBatch(training.train, rows), 0), 100, 0, 1e-3)
            assert all(each.grad is not None for each in parameters)
            gradients.append(torch.cat([p.grad.to_dense().flatten() for p in parameters]))  # type: ignore[union-attr]
        assert torch.allclose(gradients[0], gradients[1] + gradients[2], atol=1e-6)
        assert not torch.allclose(gradients[1], gradients[2], atol=1e-4)


@pytest.mark.long
def test_a_student_of_few_gold_texts_learns_from_the_teacher(small_dataset: str, labels: str):
    dataset = Dataset(small_dataset)
    valid, few = dataset.load("valid", word_features=True), np.arange(20)
    gold = dataset.load("train", word_features=True).take(few)
    both = add_labeled_texts(gold, [TeacherLabels(labels)], dataset, word_features=True)
    found = []
    for teacher, split in ((None, gold), (labels, both)):
        config = config_of(small_dataset, teacher, epochs=6, global_batch_size=16)
        training = Training(config.training, new_tagger(config.tagger, dataset.info["words"], 0), split, valid)
        list(training.epochs())
        found.append(training.history[training.best]["valid/keyphrase_f1"])
    assert found[1] > found[0] + 0.1


def test_the_subwords_of_labeled_texts_are_those_of_the_texts(small_dataset: str, labels: str, tmp_path: Path):
    subwords = load_encoder(tiny_encoder(tmp_path / "bert", "bert")).subwords()
    dataset = Dataset(small_dataset)
    gold, test = (dataset.load(split, subwords=subwords) for split in ("train", "test"))
    split = add_labeled_texts(gold, [TeacherLabels(labels)], dataset, subwords=subwords)
    for first, wanted in ((0, gold), (700, test)):
        rows = np.arange(first, first + len(wanted))
        found, whole = split.take(rows).subwords, wanted.take(np.arange(len(wanted))).subwords
        assert all(np.array_equal(*pair) for pair in zip(found[:-1], whole[:-1], strict=True))


def test_labels_that_do_not_fit_are_refused_by_name(small_dataset: str, labels: str, tmp_path: Path):
    config = config_of(small_dataset, labels)
    check_data(config, Dataset(small_dataset))
    data = shutil.copytree(small_dataset, tmp_path / "data")
    rules = json.loads((data / "tokenizer.json").read_text())
    rules["normalizer"]["normalizers"].pop()  # the case of letters is kept
    (data / "tokenizer.json").write_text(json.dumps(rules))
    without_digests(data / "dataset.json")
    refused(lambda: check_data(config_of(str(data), labels), Dataset(str(data))), labels, str(data), "other words")
    refused(lambda: alone(config_of(str(data), labels)), labels, str(data), "other words")
    changed = config.training.model_copy(update={"teacher_digest": "0" * 64})
    refused(lambda: teacher_labels(changed), labels, "no longer the labels")
    many = config.model_copy(update={"run": config.run.model_copy(update={"workers": 33})})
    refused(lambda: check_data(many, Dataset(small_dataset)), "33 workers")
    refused(lambda: alone(config_of(small_dataset, str(tmp_path / "none"))), "none", "no such folder")
    done = call("train", "--data", small_dataset, "--teacher", small_dataset, "--storage", str(tmp_path))
    assert done.exit_code == 2 and "is no label folder" in done.stderr and "Traceback" not in done.output


def test_labeled_texts_that_are_held_out_are_said(small_bundle: str, small_dataset: str, labels: str, tmp_path: Path):
    dataset, config = Dataset(small_dataset), config_of(small_dataset, labels)
    [warning] = data_warnings(config, dataset)
    assert f"{labels}: 200 labeled texts are in the test split of {small_dataset} as well" in warning
    assert data_warnings(config_of(small_dataset, None), dataset) == []
    held_out = next(dataset.texts("valid")).text
    (tmp_path / "texts.txt").write_text(f"{held_out.upper()}  \na new text\n", "utf-8")
    label(LabelConfig(small_bundle, [str(tmp_path / "texts.txt")], str(tmp_path / "labels")))
    assert count_held_out([TeacherLabels(str(tmp_path / "labels"))], dataset) == [{"valid": 1}]


def test_texts_without_words_teach_nothing(small_bundle: str, small_dataset: str, tmp_path: Path):
    (tmp_path / "texts.txt").write_text("\n \n")
    (tmp_path / "none.txt").write_text("")
    for name in ("texts", "none"):
        label(LabelConfig(small_bundle, [str(tmp_path / f"{name}.txt")], str(tmp_path / name)))
        refused(lambda name=name: alone(config_of(small_dataset, str(tmp_path / name))), name, "no text to learn from")  # type: ignore[misc]


def test_fields_of_the_teacher_are_searched_but_not_the_teacher(small_dataset: str, labels: str, tmp_path: Path):
    given = (
        "tune",
        "--data",
        small_dataset,
        "--storage",
        str(tmp_path),
        "--dry-run",
        "--set",
        f"training.teacher={labels}",
    )
    done = call(*given, "--space", "training.teacher_temperature=1:4", "--space", "training.teacher_targets=soft,hard")
    assert done.exit_code == 0, done.output
    plan = last_json(done.stdout)
    assert plan["plan"]["config"]["training"]["teacher_digest"] == TeacherLabels(labels).digest
    assert all(1 <= values["training.teacher_temperature"] <= 4 for values in plan["first"])
    done = call(*given[:-2], "--space", f"training.teacher={labels},other")
    assert done.exit_code == 2 and "all trials of a sweep share one teacher" in done.stderr
    done = call(*given, "--sampler", "ablation", "--set", "training.teacher_temperature=2")
    assert done.exit_code == 0 and "training.teacher=null" in last_json(done.stdout)["rows"]


def test_two_processes_of_a_student_end_with_the_weights_of_one(small_dataset: str, labels: str, tmp_path: Path):
    config = config_of(small_dataset, labels, {"dropout": 0.0}, epochs=1)
    weights, one = best_weights_together(config, 2, tmp_path / "two"), alone(config)
    for name, weight in one.tagger.state_dict().items():
        assert torch.allclose(weight, weights[name], atol=1e-4), name


@pytest.mark.ray
@pytest.mark.long
def test_a_students_run_goes_on_with_its_teacher_alone(cluster: Any, small_dataset: str, labels: str, tmp_path: Path):
    run = {"name": "student", "storage": str(tmp_path), "cpus_per_worker": 1}
    config = new_run(make_config(config_of(small_dataset, labels, epochs=1).model_dump() | {"run": run}))
    result = train(config, lambda event: None)
    bundle = load_bundle(result.bundle)
    assert bundle.config.training.teacher_digest == TeacherLabels(labels).digest
    assert sorted(path.name for path in Path(result.bundle).iterdir()) == [
        "README.md",
        "config.json",
        "metrics.json",
        "tokenizer.json",
        "weights.safetensors",
    ]
    for given in ({}, {"training": {"teacher": os.path.relpath(labels)}}):
        assert resumed_run("student", str(tmp_path), given).training == config.training
    refused(
        lambda: resumed_run("student", str(tmp_path), {"training": {"teacher_weight": 2}}), "training.teacher_weight"
    )
