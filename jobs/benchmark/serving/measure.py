"""The benchmark of the server: requests of several sizes on several connections, in one process and in replicas.

The loads of a size are measured next to extraction in a process of its own on the same cores, while the server is idle, so that
other work on the machine slows both. The load generator shares the cores too.
"""

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobs.benchmark.serving.load import Load, put_load, require_wrk, running_server
from model import storage
from model.data.dataset import Dataset
from model.errors import RunFailedError
from model.inference.bundle import bundle_digest

SIZES, CONNECTIONS = (1, 8, 32, 128), (1, 8, 64)
LAYOUTS = {"one process": (), "2 replicas": ("--replicas", "2")}
_LOAD_S, _WARM_UP_S = 5, 2
_TEXTS = 3_000  # of a measurement in process
_IN_PROCESS = """
import sys, time
from model.inference.extractor import Extractor
extractor, texts = Extractor.load(sys.argv[1]), open(sys.argv[2], encoding="utf-8").read().split("\\0")
list(extractor.pipe(texts[:500]))
began = time.perf_counter()
list(extractor.pipe(texts))
print(len(texts) / (time.perf_counter() - began))
"""


@dataclass(frozen=True)
class ServingRow:
    """A load; medians over the rounds.

    Attributes:
        layout: one process or replicas.
        load: "highest", each connection sends as fast as it is answered, or "half" of the highest of this size.
        texts: of a request.
        ratio: texts_per_s relative to extraction in process, in the same round.
        failed: requests of all rounds.
    """

    layout: str
    load: str
    texts: int
    connections: int
    texts_per_s: float
    ratio: float
    p50_ms: float
    p99_ms: float
    failed: int


@dataclass(frozen=True)
class ServingResult:
    """What `benchmark --serve --json` prints."""

    bundle: str
    in_process_texts_per_s: float
    rows: list[ServingRow]


def measure_serving(bundle: str, data: str, repeats: int, log: Callable[[str], None]) -> ServingResult:
    """Measure a server with a bundle on the test split of a dataset.

    Raises:
        UserError: the dataset or the bundle cannot be used, or wrk is missing.
        RunFailedError: a server does not start, or wrk fails.
    """
    require_wrk()
    bundle = storage.absolute(bundle)
    bundle_digest(bundle)  # one that is missing or damaged is told of at once
    texts = [labeled.text for labeled in Dataset(data).texts("test")]
    texts = (texts * (_TEXTS // max(len(texts), 1) + 1))[:_TEXTS]
    in_process: list[float] = []
    measured: dict[tuple[str, str, int, int], list[tuple[Load, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="tandem-serve-") as folder:
        for number in range(1, repeats + 1):
            for layout, flags in LAYOUTS.items():
                log(f"round {number} of {repeats}  {layout}")
                with running_server(bundle, *flags) as url:
                    put_load(url, texts, 32, 8, _WARM_UP_S, Path(folder))
                    for size in SIZES:
                        in_process.append(_extract_in_process(bundle, texts, Path(folder)))
                        for name, connections, load in _loads(url, texts, size, Path(folder)):
                            measured.setdefault((layout, name, size, connections), []).append((load, in_process[-1]))
    rows = [_median(key, pairs) for key, pairs in measured.items()]
    return ServingResult(bundle, statistics.median(in_process), rows)


def _loads(url: str, texts: Sequence[str], size: int, folder: Path) -> Iterator[tuple[str, int, Load]]:
    """Yield the name, the connections and the result of each load with requests of `size` texts."""
    highest = 0.0
    for connections in CONNECTIONS:
        load = put_load(url, texts, size, connections, _LOAD_S, folder)
        highest = max(highest, load.texts_per_s / size)
        yield "highest", connections, load
    if highest:
        yield "half", connections, put_load(url, texts, size, connections, _LOAD_S, folder, highest / 2)


def _extract_in_process(bundle: str, texts: Sequence[str], folder: Path) -> float:
    """Return the texts per second of an extractor in a process with all cores."""
    path = folder / "texts"
    path.write_text("\0".join(text.replace("\0", " ") for text in texts), "utf-8")
    command = [sys.executable, "-c", _IN_PROCESS, bundle, str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RunFailedError(f"extraction failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return float(done.stdout)


def _median(key: tuple[str, str, int, int], pairs: list[tuple[Load, float]]) -> ServingRow:
    rate, ratio, p50, p99 = (
        statistics.median(values)
        for values in zip(
            *((load.texts_per_s, load.texts_per_s / beside, load.p50_ms, load.p99_ms) for load, beside in pairs),
            strict=True,
        )
    )
    return ServingRow(*key, rate, ratio, p50, p99, sum(load.failed for load, _ in pairs))


def serving_table(result: ServingResult) -> str:
    """Return a line for each load."""
    names = f"{'':<14}{'load':<9}{'texts':>6}{'connections':>13}{'texts/s':>10}{'in process':>12}"
    lines = [f"{names}{'p50 ms':>9}{'p99 ms':>9}{'failed':>8}"]
    for row in result.rows:
        lines.append(
            f"{row.layout:<14}{row.load:<9}{row.texts:>6}{row.connections:>13}{row.texts_per_s:>10,.0f}{row.ratio:>12.2f}"
            f"{row.p50_ms:>9,.1f}{row.p99_ms:>9,.1f}{row.failed:>8}"
        )
    return "\n".join([*lines, f"in process: {result.in_process_texts_per_s:,.0f} texts/s"])
