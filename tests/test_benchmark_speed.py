"""The parts of the speed benchmark: the baselines, measurements, and groups that are timed in rounds."""

from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from encoders import tiny_encoder
from helpers import SMALL
from torch.distributed import TCPStore

from jobs.benchmark import process_groups, reference, single_process, speed
from jobs.benchmark.communication import exchange_table
from jobs.benchmark.process_groups import GroupSpec, by_ray, by_torchrun
from jobs.benchmark.reference import flops_per_token, gemm_roofline, reference_steps, timed, training_steps
from jobs.benchmark.single_process import ENCODER_HALF, ENCODER_STEP, Measurements, measure_encoder, measure_prepare
from model.config import Config, TaggerConfig, TrainingConfig
from model.data.dataset import Dataset
from model.errors import RunFailedError
from model.network.tagger import new_tagger
from model.training.loop import Training

CPU = torch.device("cpu")


def test_operations_of_the_records_model():
    forward = 2 * (900 * 300 + 300 * 300 + 300 * 300 + 300 * 300 + 300 * 2 + 300 * 5)
    assert flops_per_token(TaggerConfig()) == 3 * forward
    [tokens] = islice(gemm_roofline(TaggerConfig(), torch.float32, CPU), 1)
    assert tokens * 3 * forward == pytest.approx(2 * 2048 * 900 * 300)


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_each_number_of_the_weights_is_multiplied_once_for_a_token(cell: str, bidirectional: bool):
    config = TaggerConfig(
        cell=cell, bidirectional=bidirectional, window=5, embedding_dim=6, keyword_hidden=7, keyphrase_hidden=8
    )
    weights = [each for name, each in new_tagger(config, 3, 0).named_parameters() if "embedding" not in name]
    assert flops_per_token(config) == 6 * sum(each.numel() for each in weights if each.dim() == 2)


def test_the_hand_made_loop_is_a_training(small_dataset: str, monkeypatch: pytest.MonkeyPatch):
    data, losses = Dataset(small_dataset), []
    entropy = reference.F.cross_entropy
    monkeypatch.setattr(reference.F, "cross_entropy", lambda *a: (losses.append(entropy(*a)), losses[-1])[1])
    config, train = TrainingConfig(lr=0.01), data.load("train")
    steps = reference_steps(TaggerConfig(**SMALL), config, train, data.info["words"], CPU)
    tokens = list(islice(steps, 40))
    first, last = (torch.stack(some).mean().item() for some in (losses[:8], losses[-8:]))
    assert last < first / 2
    per_epoch = len(train) // config.global_batch_size
    assert tokens[0] == tokens[per_epoch]  # the same batch again
    assert sum(tokens[:per_epoch]) == pytest.approx(
        len(train.ids) * per_epoch * config.global_batch_size / len(train), rel=0.05
    )


def test_a_rate_counts_what_was_done_and_the_time_it_took(monkeypatch: pytest.MonkeyPatch):
    now = iter(range(0, 1000, 2))  # each look at the clock finds it two seconds later
    monkeypatch.setattr(reference.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(reference, "_SECONDS", 5)
    assert timed(iter([10.0, 20.0, 30.0]), CPU) == 30 / 8


def test_steps_go_over_an_epoch_again_and_again(small_dataset: str):
    data = Dataset(small_dataset)
    train = data.load("train")
    training = Training(TrainingConfig(), new_tagger(TaggerConfig(**SMALL), data.info["words"], 0), train, train)
    tokens = list(islice(training_steps(training), 22))
    assert sum(tokens[:11]) == len(train.ids) and tokens[:11] == tokens[11:]


def test_ratios_are_medians_of_rounds():
    measurements = Measurements()
    for fast, slow in ((10, 1), (40, 2), (12, 1)):  # the second round was disturbed
        measurements.add("fast", "/s", fast)
        measurements.add("slow", "/s", slow)
    assert measurements.ratio("fast", "slow") == 12
    assert [row.median for row in measurements.rows()] == [12, 1] and measurements.rows()[0].high == 40

    assert measurements.ratio("fast", "never measured") is None
    measurements.add("fast", "/s", 1)  # the last round ended before the other
    assert measurements.ratio("fast", "slow") == 12


def test_each_ratio_is_of_the_measurements_that_its_name_says(small_dataset: str):
    measured = Measurements()
    rates = {
        speed.STEP: 600,
        speed.REFERENCE: 50,
        speed.CEILING: 800,
        speed.HALF: 700,
        speed.ENCODER_STEP: 20,
        speed.ENCODER_HALF: 50,
        speed.EXTRACT: 30,
        speed.PREPARE: 7,
    }
    groups = {speed.RAY: 90, speed.TORCHRUN: 100, speed.ONE: 60}
    sent = {speed.WHOLE_TABLE: 400, speed.TORCHRUN: 50, speed.BFLOAT16: 20}
    for name, value in (rates | groups | {speed._sent(group): value for group, value in sent.items()}).items():
        measured.add(name, "/s", value)
    result = speed._result(speed.BenchmarkConfig(small_dataset), CPU, measured, [0.5], {}, "cpu", [])
    assert (result.owner_ratio, result.ceiling_share_fp32, result.ceiling_share_best) == (12, 0.75, 0.875)
    assert (result.ray_vs_torchrun, result.workers2_vs_1) == (0.9, 1.5)
    assert result.encoder_bfloat16_vs_float32 == 2.5
    assert (result.bytes_dense_vs_rows, result.bytes_dense_vs_rows_bfloat16) == (8, 20)
    assert (result.prepare_texts_per_s, result.trial_start_s, result.ceiling_share_tf32) == (7, 0.5, None)
    train = Dataset(small_dataset).load("train")
    assert result.extract_vs_train == pytest.approx(30 * len(train.ids) / len(train) / 600, abs=0.001)


def test_the_encoders_step_is_measured_in_the_precisions_that_the_device_has(
    small_dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    encoder = tiny_encoder(tmp_path, "bert")
    precisions: list[str] = []

    class Watched(Training):
        def __init__(self, config: TrainingConfig, *arguments: Any, **named: Any) -> None:
            precisions.append(config.precision)
            super().__init__(config.model_copy(update={"precision": "float32"}), *arguments, **named)

    monkeypatch.setattr(single_process, "Training", Watched)
    monkeypatch.setattr(reference, "_SECONDS", 0.01)
    for bfloat16 in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda has=bfloat16: has)
        measurements = Measurements()
        measure_encoder(small_dataset, encoder, 2, CPU, measurements)
        names = [ENCODER_STEP, ENCODER_HALF] if bfloat16 else [ENCODER_STEP]
        assert list(measurements.values) == names
        assert all(len(rates) == 2 and min(rates) > 0 for rates in measurements.values.values())
    assert precisions == ["float32", "bfloat16", "float32"]


def test_a_part_that_fails_loses_no_results_of_the_others(small_dataset: str, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RunFailedError("the group x did not start")

    def fake(*arguments: object) -> None:
        arguments[-1].add("prepare, per second of a core", "texts/s", 7.0)

    monkeypatch.setattr(speed, "by_torchrun", lambda *_: nullcontext())
    monkeypatch.setattr(speed, "measure_in_process", lambda *_: None)
    monkeypatch.setattr(speed, "measure_prepare", fake)
    monkeypatch.setattr(speed, "_trial_start", lambda *_: 0.5)
    monkeypatch.setattr(speed, "_measure_groups", fail)
    monkeypatch.setattr(speed, "force_local_cluster", lambda: None)
    monkeypatch.setenv("WANDB_MODE", "offline")
    lines: list[str] = []
    result = speed.benchmark(speed.BenchmarkConfig(small_dataset), lines.append)
    assert result.failed == ["the group x did not start"] and result.ray_vs_torchrun is None
    assert (result.prepare_texts_per_s, result.trial_start_s) == (7.0, 0.5)
    assert len(lines) == 5 and "part 4 failed" in lines[-1]


def test_a_group_that_never_starts_or_answers_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(process_groups, "_START_LIMIT_S", 0.1)
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spec = GroupSpec("never", 2, ("127.0.0.1", store.port), {}, 1, gpu=True)
    with pytest.raises(RunFailedError, match=r"never did not start in 0.1 s.*a GPU each; use fewer --workers"):
        process_groups.ProcessGroupHandle(spec, store, lambda: True)
    monkeypatch.setattr(process_groups, "COLLECTIVE_TIMEOUT_S", 0.1)
    store.add("never ready", 2)
    group = process_groups.ProcessGroupHandle(spec, store, lambda: True)
    with pytest.raises(RunFailedError, match=r"never gave no result 0 0 in 0.1 s"):
        group.measure()


def test_prepare_is_measured_on_all_texts(small_dataset: str, tmp_path: Path):
    measurements = Measurements()
    measure_prepare(small_dataset, 3000, 2, tmp_path, measurements)
    [row] = measurements.rows()
    assert row.low > 100 and len(measurements.values[row.name]) == 2


def test_what_is_computed_of_the_exchange(small_dataset: str):
    rows = exchange_table(small_dataset)
    two, many = rows[0], rows[-1]
    assert (two.workers, two.words, many.workers, many.words) == (2, 30_000, 64, 3_000_000)
    network = sum(each.numel() for each in new_tagger(TaggerConfig(), 5, 0).parameters()) - 5 * 300
    assert two.whole_mb == pytest.approx(4e-6 * (network + 30_000 * 300), abs=0.001)
    assert two.rows_mb < two.whole_mb / 5 and many.rows_mb < many.whole_mb / 300


@pytest.mark.ray
@pytest.mark.long
def test_groups_of_torchrun_and_of_ray_train_take_turns(cluster, small_dataset: str):
    config = Config(data=small_dataset, tagger=TaggerConfig(**SMALL)).model_dump()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    spec = GroupSpec("torchrun", 2, ("127.0.0.1", store.port), config, 1, steps=10)
    with by_torchrun(spec, store) as one, by_ray(spec._replace(name="ray"), store) as other:
        results = [group.measure() for _ in range(2) for group in (one, other)]
    assert all(each.tokens_per_s > 100 for each in results)
    assert results[0].bytes_per_step > 4 * 2 * 3000  # the network's weights alone, from both
    assert one.startup_seconds > 0 and other.startup_seconds > 0 and min(*one.memory, *other.memory) > 100
    lost = spec._replace(name="lost", size=1, config=config | {"data": "/nowhere"})
    with pytest.raises(RunFailedError, match="lost did not start"), by_torchrun(lost, store):
        pass
