"""Weights & Biases, written by the driver: a worker may be killed before its log reaches the disk.

Without a key the run is kept offline and `wandb sync` uploads it later. A server that cannot be reached neither blocks
nor ends a run: tracking then goes on offline.
"""

import hashlib
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from pyarrow.fs import copy_files

from model import storage
from model.config import Config

_SECONDS_TO_CONNECT = 20
_SECONDS_TO_FINISH = 60


class WandbRun:
    """One W&B run for one training.

    Attributes:
        where: where the log goes, in words.
    """

    def __init__(self, config: Config, folder: str) -> None:
        """Starts the run; never raises for want of a server or a key."""
        local, name = _local(folder), config.run.name
        assert name is not None
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        about = {
            "project": config.run.wandb_project,
            "name": name,
            "id": _id(name, folder),
            "config": config.model_dump(),
        }
        self.run = _start(mode, local, **about)
        self.mode = "disabled" if self.run is None else self.run.settings.mode
        self.where = _where(self.mode, config, local)

    def __enter__(self) -> "WandbRun":
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if self.run is not None and kind is not None:
            self._end(exit_code=1)

    def epoch(self, metrics: dict[str, float]) -> None:
        """Logs the figures of an epoch under our names and the record's."""
        if self.run is not None:
            self.run.log(metrics, step=int(metrics["epoch"]))

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


def _local(folder: str) -> Path:
    """Where W&B keeps its files: beside the run, or here where the run lies on other storage."""
    local = Path() if storage.is_remote(folder) else Path(storage.absolute(folder))
    local.mkdir(parents=True, exist_ok=True)
    return local


def _where(mode: str, config: Config, local: Path) -> str:
    words = {"online": f"W&B project {config.run.wandb_project}", "offline": f"W&B offline in {local}/wandb"}
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
        if storage.file_type(location).name == "File":
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
