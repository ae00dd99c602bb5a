"""The result of the speed benchmark."""

from dataclasses import dataclass

from jobs.benchmark.communication import ExchangeRow
from jobs.benchmark.single_process import Row


@dataclass(frozen=True)
class Machine:
    """The machine that was measured; `cpu` is torch's name of its instruction set."""

    cores: int
    threads: int
    cpu: str
    gpu: str | None
    torch: str


@dataclass(frozen=True)
class BenchmarkResult:
    """What `benchmark --json` prints; docs/cli.md describes the fields. What could not be measured is None."""

    owner_ratio: float | None
    ceiling_share_fp32: float | None
    ceiling_share_tf32: float | None
    ceiling_share_best: float | None
    ray_vs_torchrun: float | None
    workers2_vs_1: float | None
    bytes_dense_vs_rows: float | None
    bytes_dense_vs_rows_bfloat16: float | None
    encoder_bfloat16_vs_float32: float | None
    extract_vs_train: float | None
    prepare_texts_per_s: float | None
    trial_start_s: float | None
    started_s: dict[str, float]
    groups_on: str
    failed: list[str]
    exchange: list[ExchangeRow]
    machine: Machine
    table: list[Row]
