"""Weights & Biases, written by the driver: a worker may be killed before its log reaches the disk.

Without a key the run is logged offline, and `wandb sync` uploads it later. A server that cannot be reached neither blocks
nor ends a run: tracking then continues offline.
"""

import hashlib
import os
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyarrow.fs import copy_files

from model import storage
from model.config import Config

if TYPE_CHECKING:
    from wandb import Run

CONNECT_TIMEOUT_S = 20
FINISH_TIMEOUT_S = 60


class WandbRun:
    """One W&B run for one training.

    Attributes:
        run: the W&B run; None where W&B is disabled, and after the end.
        mode: `online`, `offline` or `disabled`.
        where: the place of the log, in words.
    """

    def __init__(self, config: Config, folder: str) -> None:
        """Start the W&B run; without a server or a key it is offline."""
        local, name = local_folder(folder), config.run.name
        assert name is not None
        mode = wandb_mode()
        settings = {
            "project": config.run.wandb_project,
            "name": name,
            "id": run_id(name, folder),
            "config": config.model_dump(),
        }
        self.run = start_run(mode, local, **settings)
        self.mode = "disabled" if self.run is None else self.run.settings.mode
        self.where = describe_location(self.mode, config, local)

    def __enter__(self) -> "WandbRun":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.run is not None and kind is not None:
            self._end(exit_code=1)

    def epoch(self, metrics: dict[str, float]) -> None:
        """Log the metrics of an epoch."""
        if self.run is not None:
            self.run.log(metrics, step=int(metrics["epoch"]))

    def finish(self, result: Mapping[str, object]) -> None:
        """Write the summary and the bundle as an artifact, and end the W&B run.

        Args:
            result: as `TrainResult.as_json` returns it.
        """
        if self.run is None:
            return
        self.run.summary.update({key: value for key, value in result.items() if key not in ("valid", "bundle")})
        log_artifact(self.run, f"{result['name']}-bundle", "model", str(result["bundle"]))
        self._end(exit_code=0)

    def _end(self, exit_code: int) -> None:
        """End the W&B run, and wait for at most a minute for a server that no longer answers."""
        import wandb

        run, self.run = self.run, None
        assert run is not None

        def end() -> None:
            run.finish(exit_code=exit_code)
            wandb.teardown()  # waits until the whole log is on the disk

        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        ending.join(FINISH_TIMEOUT_S)
        if ending.is_alive():
            warn(f"the W&B server does not accept the log; upload it later with `wandb sync {run.settings.sync_dir}`")


def local_folder(folder: str) -> Path:
    """Return the folder of W&B's files: the run's own, or the working directory where the run is on remote storage."""
    local = Path() if storage.is_remote(folder) else Path(storage.absolute(folder))
    local.mkdir(parents=True, exist_ok=True)
    return local


def describe_location(mode: str, config: Config, local: Path) -> str:
    """Return the place of the log, in words."""
    words = {"online": f"W&B project {config.run.wandb_project}", "offline": f"W&B offline in {local}/wandb"}
    return words.get(mode, "W&B disabled")


def run_id(name: str, folder: str) -> str:
    """Return a W&B id: the same when the run is resumed, another for a run of the same name elsewhere."""
    return f"{name}-{hashlib.blake2b(folder.encode(), digest_size=4).hexdigest()}"


def log_artifact(run: "Run", name: str, kind: str, location: str) -> None:
    """Log a file or directory as an artifact."""
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


def wandb_mode() -> str:
    """Return WANDB_MODE, by default online where there is a key and offline elsewhere."""
    return os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")


def _has_key() -> bool:
    import wandb

    return wandb.login(prompt=False, verify=False)


def start_run(mode: str, local: Path, **settings: Any) -> "Run | None":
    """Start a W&B run; offline where the server cannot be reached, None where W&B is disabled."""
    import wandb

    os.environ.setdefault("WANDB_SILENT", "true")

    def start(mode: str) -> "Run":
        return wandb.init(
            **settings,
            resume="allow",  # a resumed training continues its W&B run
            dir=str(local),
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off", init_timeout=CONNECT_TIMEOUT_S, x_disable_stats=True),
        )

    if mode == "disabled":
        return None
    try:
        return start(mode)
    except (wandb.errors.CommError, wandb.errors.UsageError, wandb.errors.AuthenticationError) as error:
        warn(f"W&B cannot be reached or refused the key ({error}); the run is tracked offline")
        wandb.teardown()  # frees the run's id, which the failed attempt still holds
        return start("offline")


def warn(text: str) -> None:
    """Print a warning for the user, to stderr."""
    print(f"warning: {text}", file=sys.stderr)
