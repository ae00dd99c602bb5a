"""`python -m jobs benchmark`: how fast everything is on this machine, side by side in one run."""

import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.console import command, echo, print_json


@command
def benchmark(
    data: Annotated[str | None, typer.Option(help="Dataset directory; the built-in corpus otherwise.")] = None,
    workers: Annotated[int | None, typer.Option(min=2, help="Processes of a group; 2 otherwise.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds; what is told are medians.")] = 5,
    texts: Annotated[
        int | None, typer.Option(min=1000, help="Texts that are prepared in each round; 200,000 otherwise.")
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", help="Compare both presets with what one would pick instead, and nothing else.")
    ] = False,
    systems: Annotated[
        str | None, typer.Option(help="With --peers: some of crf,spacy,record,best; all of them otherwise.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="With --peers: trainings of each system; 1 otherwise.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the ratios and the table as one JSON object.")] = False,
) -> None:
    """Measure training against the hand-made loop and against the machine's limit, and everything beside it.

    Takes about ten minutes on 2 cores. Uses a GPU where this machine has one.

    With --peers: train a CRF, spaCy and both presets on the dataset, on the CPU, and compare them on its test split.
    """
    from jobs.demo_corpus import prepare_corpus, write_corpus
    from model import storage
    from model.errors import UserError

    if not peers and (systems or seeds):
        raise UserError("--systems and --seeds: belong to --peers; give that as well")
    if peers and (workers or texts):
        raise UserError("--workers and --texts: --peers has no use for them; leave them out")
    with tempfile.TemporaryDirectory(prefix="tandem-corpus-") as folder:
        place = data or prepare_corpus(write_corpus(Path(folder) / "corpus", 12_000), Path(folder) / "dataset")
        place = storage.absolute(place)
        if peers:
            result = _compare(place, systems, seeds or 1, repeats)
        else:
            result = _measure(place, workers or 2, repeats, texts or 200_000)
    echo(_systems(result) if peers else _table(result))
    if json:
        print_json(result)


def _compare(data: str, systems: str | None, seeds: int, repeats: int) -> dict[str, Any]:
    from jobs.benchmark.accuracy import SYSTEMS, ComparisonConfig, compare_systems

    chosen = SYSTEMS if systems is None else tuple(dict.fromkeys(systems.split(",")))
    return compare_systems(ComparisonConfig(data, chosen, seeds, repeats), echo)


def _measure(data: str, workers: int, repeats: int, texts: int) -> dict[str, Any]:
    from jobs.benchmark.speed import BenchmarkConfig, benchmark

    try:
        return benchmark(BenchmarkConfig(data, workers, repeats, texts), echo)
    finally:
        import ray

        ray.shutdown()


def _systems(result: dict[str, Any]) -> str:
    """A line for each system."""
    lines = [
        f"{'':<8}{'F1':>8}{'95 % interval':>20}{'spread':>8}{'precision':>11}{'recall':>8}"
        f"{'train s':>10}{'stopped s':>11}{'cores':>7}{'texts/s':>10}{'cores':>7}"
    ]
    for row in result["systems"]:
        interval = f"{row['low']:.4f} to {row['high']:.4f}"
        spread = "" if row["spread"] is None else f"{row['spread']:.4f}"
        lines.append(
            f"{row['system']:<8}{row['keyphrase_f1']:>8.4f}{interval:>20}{spread:>8}{row['precision']:>11.4f}"
            f"{row['recall']:>8.4f}{row['train_s']:>10,.1f}{row['stopped_s']:>11,.1f}{row['train_cores']:>7.2f}"
            f"{row['texts_per_s']:>10,.0f}{row['use_cores']:>7.2f}"
        )
    return "\n".join(lines)


def _table(result: dict[str, Any]) -> str:
    """The rows, then the ratios."""
    lines = [f"{'':<52}{'median':>12}{'lowest':>12}{'highest':>12}"]
    for row in result["table"]:
        metrics = "".join(f"{row[name]:>12,.0f}" for name in ("median", "low", "high"))
        lines.append(f"{row['name']:<52}{metrics}  {row['unit']}")
    lines += [f"{f'started, {name}':<52}{seconds:>12.1f}{'':24}  s" for name, seconds in result["started_s"].items()]
    ratios = [(name, value) for name, value in result.items() if isinstance(value, float)]
    return "\n".join([*lines, *(f"{name:<52}{value:>12.3f}" for name, value in ratios)])
