"""Ray Data over the pieces of an input: `prepare` and `extract` on many cores and nodes.

A piece is a row of its own block, so each is one task. What a task reads and writes goes past Ray, from file to file;
only what it found out, a few hundred bytes, comes back, in the order of the pieces.
"""

import logging
import os
import pickle
from collections.abc import Callable, Generator
from typing import Any

from model import storage
from model.errors import RunFailedError, UserError
from model.shards import ParallelMap, serial_map


def parallel_map(out: str, workers: int | None = None, actors: bool = False, gpu: bool = False) -> ParallelMap:
    """Where to work on the pieces: in this process, on a Ray of `workers` processes, or on the cluster of RAY_ADDRESS.

    Args:
        out: the directory that will be written.
        workers: at most so many at once; on a cluster as many as it has room for otherwise.
        actors: let processes stay for many pieces, for what takes long to load.
        gpu: give each a GPU.

    Raises:
        UserError: the workers would not see each other's files.
    """
    if not os.environ.get("RAY_ADDRESS") and (workers or 1) == 1:
        return serial_map
    from distributed.cluster.connection import connect
    from distributed.cluster.preflight import check_storage

    if out.startswith("memory://"):
        raise UserError(f"{out}: is the memory of one process, and workers are many; give --out a path or another URI")
    check_storage(storage.parent(out), connect(workers), "--out")

    def on_ray(function: Callable[[Any], Any], items: list[Any]) -> Generator[Any, None, None]:
        yield from _results(function, items, workers, actors, gpu)

    return on_ray


def _results(
    function: Callable[[Any], Any], items: list[Any], workers: int | None, actors: bool, gpu: bool
) -> Generator[Any, None, None]:
    import ray
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

    _quieten(DataContext.get_current())
    rows = [{"piece": pickle.dumps(item)} for item in items]
    most = min(workers or len(items), len(items))
    compute = ActorPoolStrategy(min_size=1, max_size=most) if actors else TaskPoolStrategy(size=most)
    results = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
        _Work if actors else _Work(function),
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
        raise RunFailedError(f"a worker failed: {cause}; nothing is left at --out, run the command again") from error


class _Work:
    """Carries a function out in a task or an actor."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": pickle.dumps(self._function(pickle.loads(row["piece"])))}


def _quieten(context: Any) -> None:
    """Leaves it to us to speak of progress, and asks for the results in order."""
    context.enable_progress_bars = context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.ERROR)
