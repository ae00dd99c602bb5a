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


class Tracker:
    """One W&B run for one training.

    Attributes:
        where: where the log goes, in words.
    """

    def __init__(self, config: Config, folder: str) -> None:
        """Starts the run; never raises for want of a server or a key."""
        local = Path() if storage.is_remote(folder) else Path(storage.absolute(folder))
        local.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("WANDB_SILENT", "true")
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
        self.run = _start(config, folder, local, mode)
        self.mode = "disabled" if self.run is None else self.run.settings.mode
        self.where = {"online": f"W&B project {config.run.project}", "offline": f"W&B offline in {local}/wandb"}.get(
            self.mode, "W&B disabled"
        )

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
        self._keep_bundle(result["bundle"], str(result["name"]))
        self._end(exit_code=0)

    def _keep_bundle(self, bundle: str, name: str) -> None:
        import wandb

        artifact = wandb.Artifact(f"{name}-bundle", type="model")
        with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
            filesystem, path = storage.resolve(bundle)
            copy_files(path, folder, source_filesystem=filesystem)
            artifact.add_dir(folder)
            self.run.log_artifact(artifact)

    def _end(self, exit_code: int) -> None:
        """Ends the run, and does not wait for ever on a server that went away."""
        ending = threading.Thread(target=self.run.finish, kwargs={"exit_code": exit_code}, daemon=True)
        ending.start()
        ending.join(_SECONDS_TO_FINISH)
        if ending.is_alive():
            _warn(
                f"the W&B server does not take the log; upload it later with `wandb sync {self.run.settings.sync_dir}`"
            )
        self.run = None


def _has_key() -> bool:
    import wandb

    return wandb.login(prompt=False, verify=False)


def _start(config: Config, folder: str, local: Path, mode: str) -> Any:
    import wandb

    def start(mode: str) -> Any:
        return wandb.init(
            project=config.run.project,
            name=config.run.name,
            id=f"{config.run.name}-{hashlib.blake2b(folder.encode(), digest_size=4).hexdigest()}",
            resume="allow",  # a training that goes on goes on in the same W&B run
            config=config.model_dump(),
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
