"""Ray Data over the shards of an input: `prepare` and `extract` on many cores and nodes.

Each shard is a row in a block of its own, so it is one task. Tasks read and write files directly; only their results, a few
hundred bytes each, pass through Ray, in the order of the shards.
"""

import logging
import pickle
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Generic, TypeVar

from distributed.cluster.address import cluster_address, require_gpu_of_ray
from distributed.cluster.connection import connect, inspect_cluster
from model import storage
from model.errors import RunFailedError, UserError
from model.shards import ParallelMap, serial_map

if TYPE_CHECKING:
    from ray.data import DataContext

Item = TypeVar("Item")
Result = TypeVar("Result")


def parallel_map(out: str, workers: int | None = None, actors: bool = False, device: str = "cpu") -> ParallelMap:
    """Return a map over shards: in this process, in `workers` processes, or on the cluster of RAY_ADDRESS.

    Args:
        out: the directory that will be written.
        workers: the most processes at a time; on a cluster as many as fit by default.
        actors: reuse processes for many shards, for functions that take long to load.
        device: of each process; with `cuda`, Ray gives each a GPU.

    Raises:
        UserError: the workers would not see each other's files, or the cluster has no such GPU.
    """
    if not cluster_address() and (workers or 1) == 1:
        return serial_map
    from distributed.cluster.preflight import check_storage

    require_gpu_of_ray(device)
    gpu = device == "cuda"
    if gpu and not inspect_cluster().maximum.worker_slots(1, 1):
        raise UserError(
            f"--device cuda: no node of the cluster has a CPU and a GPU for a worker (it has {inspect_cluster().maximum}); use "
            f"--device cpu, or a cluster with GPUs"
        )
    if out.startswith("memory://"):
        raise UserError(
            f"{out}: is in the memory of one process, which workers do not share; give --out a path or another URI"
        )
    check_storage(storage.parent(out), connect(workers), "--out")

    def ray_map(function: Callable[[Item], Result], items: list[Item]) -> Generator[Result, None, None]:
        yield from _results(function, items, workers, actors, gpu)

    return ray_map


def _results(
    function: Callable[[Item], Result], items: list[Item], workers: int | None, actors: bool, gpu: bool
) -> Generator[Result, None, None]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    _configure(DataContext.get_current())
    rows = [{"item": pickle.dumps(item)} for item in items]
    concurrency = min(workers or len(items), len(items))
    compute = ActorPoolStrategy(min_size=1, max_size=concurrency) if actors else TaskPoolStrategy(size=concurrency)
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _RowFunction if actors else _RowFunction(function),
        fn_constructor_args=[function] if actors else None,
        compute=compute,
        num_cpus=1,
        num_gpus=1 if gpu else None,
    )
    try:
        for row in results.iter_rows():
            yield pickle.loads(row["result"])
    except ray.exceptions.RayError as error:
        cause = str(error).strip().splitlines()[-1]
        raise RunFailedError(f"a worker failed: {cause}; run the command again") from error


class _RowFunction(Generic[Item, Result]):
    """Applies a function to the pickled item of a row, in a task or an actor."""

    def __init__(self, function: Callable[[Item], Result]) -> None:
        self._function = function

    def __call__(self, row: dict[str, bytes]) -> dict[str, bytes]:
        return {"result": pickle.dumps(self._function(pickle.loads(row["item"])))}


def _configure(context: "DataContext") -> None:
    """Turn off Ray Data's own progress output, and request the results in order."""
    context.enable_progress_bars = context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
