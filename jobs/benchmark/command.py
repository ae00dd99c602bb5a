"""`python -m jobs benchmark`: measure speed on this machine, or compare accuracy with other systems."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from jobs.console import command, echo, print_result

if TYPE_CHECKING:
    from jobs.benchmark.accuracy import ComparisonResult
    from jobs.benchmark.result import BenchmarkResult


SystemsOption = Annotated[
    str | None,
    typer.Option(
        help="With --peers: some of crf,spacy,record,best, and with --encoder transformers,encoder; default: all."
    ),
]
EncoderOption = Annotated[
    str | None,
    typer.Option(
        help="A pretrained encoder, to measure the steps of the preset encoder; with --peers, to compare that preset with the "
        "Trainer of transformers: path, URI, or name on the hub."
    ),
]
OutOption = Annotated[
    str | None,
    typer.Option(
        help="With --peers: file to which each finished training is added; those that it has are not repeated."
    ),
]
PrecisionOption = Annotated[
    Literal["float32", "bfloat16"],
    typer.Option(help="With --peers: of the training of the presets and of transformers."),
]


@command
def benchmark(
    data: Annotated[str | None, typer.Option(help="Dataset directory; default: the built-in corpus.")] = None,
    workers: Annotated[int | None, typer.Option(min=2, help="Processes of a group; default: 2.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Number of rounds; medians are reported.")] = 5,
    texts: Annotated[
        int | None, typer.Option(min=1000, help="Texts to prepare in each round; default: 200,000.")
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Compare the presets with a CRF and spaCy, and measure nothing else.")
    ] = False,
    systems: SystemsOption = None,
    encoder: EncoderOption = None,
    device: Annotated[
        str,
        typer.Option(help="With --peers: cpu or cuda, for what is made of torch modules; CRF and spaCy use the CPU."),
    ] = "cpu",
    precision: PrecisionOption = "float32",
    seeds: Annotated[int | None, typer.Option(min=1, help="With --peers: trainings of each system (1).")] = None,
    out: OutOption = None,
    serve: Annotated[
        str | None,
        typer.Option(metavar="BUNDLE", help="Measure a server with this bundle, and nothing else; needs wrk."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Measure training against a reference loop and the machine's limit, and the speed of everything else.

    Takes about ten minutes on 2 cores. Uses a GPU if this machine has one.

    With --peers: train a CRF, spaCy and the presets on the dataset, and compare them on its test split.

    With --serve: put load on a server, in one process and in 2 replicas, beside extraction in one process.
    """
    from model.errors import RunFailedError, UserError

    if not peers and (systems or seeds or out or device != "cpu" or precision != "float32"):
        raise UserError(
            "--systems, --seeds, --device, --precision and --out: only --peers uses them; add it, or leave them out"
        )
    if serve and encoder:
        raise UserError("--encoder: --serve does not use it; leave it out")
    if (peers or serve) and (workers or texts):
        raise UserError("--workers and --texts: --peers and --serve do not use them; leave them out")
    if peers and serve:
        raise UserError("--peers and --serve: each measures nothing else; leave one out")
    with _dataset(data) as location:
        if peers:
            from jobs.benchmark.accuracy import ComparisonConfig, compare_systems

            chosen = _chosen_systems(systems, encoder)
            config = ComparisonConfig(location, chosen, seeds or 1, repeats, encoder, device, precision, out)
            compared = compare_systems(config, echo)
            text, result = _accuracy_table(compared), asdict(compared)
        elif serve:
            text, result = _measure_serving(serve, location, repeats)
        else:
            measured = _measure(location, workers or 2, repeats, texts or 200_000, encoder)
            text, result = _speed_table(measured), asdict(measured)
    print_result(text, result, json)
    if result.get("failed"):
        raise RunFailedError("a part of the benchmark failed, as said above")


@contextmanager
def _dataset(data: str | None) -> Iterator[str]:
    """Yield the location of a dataset, or of the built-in corpus while it is needed."""
    from jobs.corpora.generated import prepare_corpus, write_corpus
    from jobs.corpora.tweets import generate
    from model import storage

    with tempfile.TemporaryDirectory(prefix="tandem-corpus-") as folder:
        location = data or prepare_corpus(write_corpus(Path(folder), generate(12_000)), Path(folder) / "dataset")
        yield storage.absolute(location)


def _measure_serving(bundle: str, data: str, repeats: int) -> tuple[str, dict[str, object]]:
    from jobs.benchmark.serving.measure import measure_serving, serving_table
    from model.serving.settings import require_packages

    require_packages("grpc_reflection")
    measured = measure_serving(bundle, data, repeats, echo)
    return serving_table(measured), asdict(measured)


def _chosen_systems(systems: str | None, encoder: str | None) -> tuple[str, ...]:
    from jobs.benchmark.accuracy import SYSTEMS, WITH_ENCODER

    if systems is not None:
        return tuple(dict.fromkeys(systems.split(",")))
    return tuple(each for each in SYSTEMS if encoder is not None or each not in WITH_ENCODER)


def _measure(data: str, workers: int, repeats: int, texts: int, encoder: str | None) -> BenchmarkResult:
    from jobs.benchmark.speed import BenchmarkConfig
    from jobs.benchmark.speed import benchmark as measure

    try:
        return measure(BenchmarkConfig(data, workers, repeats, texts, encoder), echo)
    finally:
        import ray

        ray.shutdown()


def _accuracy_table(result: ComparisonResult) -> str:
    """Return a line for each system."""
    lines = [
        f"{'':<14}{'F1':>8}{'95 % interval':>20}{'against highest':>29}{'spread':>8}{'precision':>11}{'recall':>8}"
        f"{'train s':>10}{'stopped s':>11}{'cores':>7}{'texts/s':>10}{'cores':>7}"
    ]
    for row in result.systems:
        interval = f"{row.low:.4f} to {row.high:.4f}"
        test, spread = row.against, "" if row.spread is None else f"{row.spread:.4f}"
        against = "" if test is None else f"{test.difference:.4f} ({test.low:.4f} to {test.high:.4f})"
        lines.append(
            f"{row.system:<14}{row.keyphrase_f1:>8.4f}{interval:>20}{against:>29}{spread:>8}{row.precision:>11.4f}"
            f"{row.recall:>8.4f}{row.train_s:>10,.1f}{row.stopped_s:>11,.1f}{row.train_cores:>7.2f}"
            f"{row.texts_per_s:>10,.0f}{row.use_cores:>7.2f}"
        )
    return "\n".join(lines)


def _speed_table(result: BenchmarkResult) -> str:
    """Return the measurements, then the ratios."""
    lines = [f"{'':<52}{'median':>12}{'lowest':>12}{'highest':>12}"]
    for row in result.table:
        lines.append(f"{row.name:<52}{row.median:>12,.0f}{row.low:>12,.0f}{row.high:>12,.0f}  {row.unit}")
    lines += [f"{f'started, {name}':<52}{seconds:>12.1f}{'':24}  s" for name, seconds in result.started_s.items()]
    ratios = [(name, value) for name, value in asdict(result).items() if isinstance(value, float)]
    return "\n".join([*lines, *(f"{name:<52}{value:>12.3f}" for name, value in ratios)])
