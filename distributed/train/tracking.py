"""Weights & Biases, written by the driver: a worker may be killed before its log reaches the disk.

Without a key the run is kept offline and `wandb sync` uploads it later. A server that cannot be reached neither blocks
nor ends a run: tracking then goes on offline.
"""

import hashlib
import os
import queue
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from pyarrow.fs import copy_files

from distributed.sweep.plan import Plan
from distributed.sweep.state import Event, Sweep, Trial
from model import storage
from model.config import Config

_SECONDS_TO_CONNECT = 20
_SECONDS_TO_FINISH = 60


class Tracker:
    """One W&B run for one training.

    Attributes:
        where: where the log goes, in words.
    """

    def __init__(self, config: Config, folder: str) -> None:
        """Starts the run; never raises for want of a server or a key."""
        local, name = _local(folder), config.run.name
        assert name is not None
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        about = {"project": config.run.project, "name": name, "id": _id(name, folder), "config": config.model_dump()}
        self.run = _start(mode, local, **about)
        self.mode = "disabled" if self.run is None else self.run.settings.mode
        self.where = _where(self.mode, config, local)

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self.run is not None and kind is not None:
            self._end(exit_code=1)

    def epoch(self, figures: dict[str, float]) -> None:
        """Logs the figures of an epoch under our names and the record's."""
        if self.run is not None:
            self.run.log(figures, step=int(figures["epoch"]))

    def finish(self, result: dict[str, Any]) -> None:
        """Writes the summary and the bundle as an artifact, and ends the run."""
        if self.run is None:
            return
        self.run.summary.update({key: value for key, value in result.items() if key not in ("valid", "bundle")})
        _keep(self.run, f"{result['name']}-bundle", "model", result["bundle"])
        self._end(exit_code=0)

    def _end(self, exit_code: int) -> None:
        """Ends the run, and does not wait for ever on a server that went away."""
        import wandb

        def end() -> None:
            self.run.finish(exit_code=exit_code)
            wandb.teardown()  # what is still on its way to the disk arrives there before

        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        ending.join(_SECONDS_TO_FINISH)
        if ending.is_alive():
            _warn(
                f"the W&B server does not take the log; upload it later with `wandb sync {self.run.settings.sync_dir}`"
            )
        self.run = None


class SweepTracker:
    """A W&B group for a sweep, with a run for each trial; finalists are tagged.

    A thread of its own does the writing: a sweep does not wait for W&B.

    Attributes:
        where: where the log goes, in words.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan, self.local = plan, _local(plan.folder)
        self.mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        self.where = _where(self.mode, plan.config, self.local)
        self.events: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()
        self.runs: dict[str, Any] = {}
        self.thread = threading.Thread(target=self._work, name="wandb", daemon=True)

    def __enter__(self) -> "SweepTracker":
        self.thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.events.put(None)
        self.thread.join(_SECONDS_TO_FINISH)
        if self.thread.is_alive():
            _warn(f"the W&B server does not take the log; upload it later with `wandb sync {self.local}/wandb/*`")

    def take(self, sweep: Sweep, event: Event) -> None:
        """Takes an event of the sweep."""
        if event["event"] in ("epoch", "broken"):
            trial = sweep.trials[event["trial"]]
            self.events.put((trial, sweep.config_of(trial), event))

    def finish(self, result: dict[str, Any], report: str) -> None:
        """Logs the result, the bundle and the report in a run of the sweep's own."""
        self.events.put((report, result))

    def _work(self) -> None:
        while self.mode != "disabled":
            match self.events.get():
                case None:
                    break
                case (report, result):
                    self._result(report, result)
                case (trial, config, event):
                    self._trial(trial, config, event)
        for run in self.runs.values():
            run.finish(exit_code=1)  # a trial that has not come to its end

    def _trial(self, trial: Trial, config: Config, event: Event) -> None:
        run = self.runs.get(trial.name)
        if run is None:
            tags = ["finalist", trial.finalist_of] if trial.finalist_of else ["trial"]
            run = self._open(trial.name, config.model_dump() | {"searched": trial.values}, tags, "trial")
            self.runs[trial.name] = run
        if run is None:
            return
        if event["event"] == "epoch":
            run.log(event["figures"], step=int(event["figures"]["epoch"]))
        if event.get("state"):
            run.summary.update({"state": event["state"], "error": event.get("error")})
            self.runs.pop(trial.name).finish(exit_code=int(event["event"] == "broken"))

    def _result(self, report: str, result: dict[str, Any]) -> None:
        run = self._open("result", self.plan.model_dump(), ["sweep"], "sweep")
        if run is None:
            return
        run.summary.update({key: value for key, value in result.items() if key not in ("record", "ablation")})
        _keep(run, f"{self.plan.config.run.name}-bundle", "model", result["bundle"])
        _keep(run, f"{self.plan.config.run.name}-report", "report", report)
        run.finish()

    def _open(self, name: str, config: dict[str, Any], tags: list[str], kind: str) -> Any:
        sweep = self.plan.config.run.name
        run = _start(
            self.mode,
            self.local,
            project=self.plan.config.run.project,
            group=sweep,
            name=f"{sweep}-{name}",
            id=_id(f"{sweep}-{name}", self.plan.folder),
            job_type=kind,
            tags=tags,
            config=config,
            reinit="create_new",
        )
        if run is not None:
            self.mode = run.settings.mode  # offline from now on where the server cannot be reached
        return run


def _local(folder: str) -> Path:
    """Where W&B keeps its files: beside the run, or here where the run lies on other storage."""
    local = Path() if storage.is_remote(folder) else Path(storage.absolute(folder))
    local.mkdir(parents=True, exist_ok=True)
    return local


def _where(mode: str, config: Config, local: Path) -> str:
    words = {"online": f"W&B project {config.run.project}", "offline": f"W&B offline in {local}/wandb"}
    return words.get(mode, "W&B disabled")


def _id(name: str, folder: str) -> str:
    """A run's id: the same when it goes on, another for a run of the same name elsewhere."""
    return f"{name}-{hashlib.blake2b(folder.encode(), digest_size=4).hexdigest()}"


def _keep(run: Any, name: str, kind: str, location: str) -> None:
    """Logs a file or directory as an artifact."""
    import wandb

    artifact = wandb.Artifact(name, type=kind)
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        filesystem, path = storage.resolve(location)
        if storage.kind(location).name == "File":
            copy_files(path, f"{folder}/{Path(path).name}", source_filesystem=filesystem)
        else:
            copy_files(path, folder, source_filesystem=filesystem)
        artifact.add_dir(folder)
        run.log_artifact(artifact)


def _has_key() -> bool:
    import wandb

    return wandb.login(prompt=False, verify=False)


def _start(mode: str, local: Path, **about: Any) -> Any:
    """Starts a W&B run; offline where the server cannot be reached, None where W&B is disabled."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")

    def start(mode: str) -> Any:
        return wandb.init(
            **about,
            resume="allow",  # a training that goes on goes on in the same W&B run
            dir=str(local),
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off", init_timeout=_SECONDS_TO_CONNECT, x_disable_stats=True),
        )

    if mode == "disabled":
        return None
    try:
        return start(mode)
    except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        _warn(f"W&B cannot be reached or refused the key ({error}); the run is tracked offline")
        wandb.teardown()  # or the first try would still hold the run's id
        return start("offline")


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)
