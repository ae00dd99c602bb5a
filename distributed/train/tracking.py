"""Weights & Biases, written by the driver: a worker may be killed before its log reaches the disk.

Without a key the run is logged offline, and `wandb sync` uploads it later. A server that cannot be reached neither blocks
nor ends a run: tracking then continues offline. See `wandb_settings` for what a user may set.
"""

import hashlib
import os
import shlex
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pyarrow.fs import copy_files
from pydantic import ValidationError

from model import storage
from model.config import Config
from model.errors import UserError, first_line

if TYPE_CHECKING:
    from wandb import Run

CONNECT_TIMEOUT_S = 20
FINISH_TIMEOUT_S = 60
DEFAULT_PROJECT = "tandem"
# By what W&B accepts: names of earlier versions, and `shared`, which is for runs with several writers.
_MODES = {
    "online": "online",
    "run": "online",
    "shared": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


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
        wandb = wandb_settings(config)
        self.run = start_run(
            wandb.mode, local, project=wandb.project, name=name, id=run_id(name, folder), config=config.model_dump()
        )
        self.mode = "disabled" if self.run is None else self.run.settings.mode
        self.where = describe_location(self.mode, wandb.project, local)

    def __enter__(self) -> "WandbRun":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if self.run is not None and kind is not None:
            self._end(exit_code=1)

    def epoch(self, metrics: dict[str, float]) -> None:
        """Log the metrics of an epoch."""
        if self.run is None:
            return
        try:
            self.run.log(metrics, step=int(metrics["epoch"]))
        except Exception as error:
            self._give_up(error)

    def finish(self, result: Mapping[str, object]) -> None:
        """Write the summary and the bundle as an artifact, and end the W&B run.

        Args:
            result: as `TrainResult.as_json` returns it.
        """
        if self.run is None:
            return
        try:
            self.run.summary.update({key: value for key, value in result.items() if key not in ("valid", "bundle")})
            log_artifact(self.run, f"{result['name']}-bundle", "model", str(result["bundle"]))
        except Exception as error:
            self._give_up(error)
        else:
            self._end(exit_code=0)

    def _give_up(self, error: Exception) -> None:
        """Go on without W&B, whose own process has ended: no reason to end a training."""
        self.run = None
        warn(f"W&B does not log any more ({first_line(error)}); the training goes on without it")

    def _end(self, exit_code: int) -> None:
        """End the W&B run, and wait for at most a minute for a server that no longer answers."""
        import wandb

        run, self.run = self.run, None
        assert run is not None

        def end() -> None:
            try:
                run.finish(exit_code=exit_code)
                wandb.teardown()  # waits until the whole log is on the disk
            except Exception as error:
                self._give_up(error)

        ending = threading.Thread(target=end, daemon=True)
        ending.start()
        ending.join(FINISH_TIMEOUT_S)
        if ending.is_alive():
            sync = shlex.join(["wandb", "sync", run.settings.sync_dir])
            warn(f"the W&B server does not accept the log; upload it later with `{sync}`")


def local_folder(folder: str) -> Path:
    """Return the folder of W&B's files: the run's own, or the working directory where the run is on remote storage."""
    local = Path() if storage.is_remote(folder) else Path(storage.absolute(folder))
    local.mkdir(parents=True, exist_ok=True)
    return local


def describe_location(mode: str, project: str, local: Path) -> str:
    """Return the place of the log, in words."""
    words = {"online": f"W&B project {project}", "offline": f"W&B offline in {local}/wandb"}
    return words.get(mode, "W&B disabled")


def run_id(name: str, folder: str) -> str:
    """Return a W&B id: the same when the run is resumed, another for a run of the same name elsewhere."""
    return f"{name}-{hashlib.blake2b(folder.encode(), digest_size=4).hexdigest()}"


def log_artifact(run: "Run", name: str, kind: str, location: str) -> None:
    """Log a file or directory as an artifact; where W&B cannot write its own files, say so."""
    import wandb

    artifact = wandb.Artifact(name, type=kind)
    with tempfile.TemporaryDirectory(prefix="tandem-") as folder:
        filesystem, path = storage.resolve(location)
        if storage.file_type(location).name == "File":
            copy_files(path, f"{folder}/{Path(path).name}", source_filesystem=filesystem)
        else:
            copy_files(path, folder, source_filesystem=filesystem)
        try:
            artifact.add_dir(folder)
            run.log_artifact(artifact)
        except OSError as error:  # HOME or WANDB_DATA_DIR, and the work is done
            warn(f"{location} is not logged to W&B: {error}")


class WandbSettings(NamedTuple):
    """What a user has set for W&B.

    Attributes:
        mode: `online`, `offline` or `disabled`.
        project: of the runs.
    """

    mode: str
    project: str


def wandb_settings(config: Config) -> WandbSettings:
    """Return the mode and the project, from the environment and W&B's settings files.

    The environment wins over the files, and the configuration's project over both. Without WANDB_MODE a run is online where
    there is a key, else offline.

    Raises:
        UserError: a variable has a value that W&B does not know.
    """
    _normalize_environment()
    import wandb
    from wandb.sdk import wandb_setup

    checked = wandb.Settings()
    for name in sorted(name for name in os.environ if name.startswith("WANDB_")):
        with _explained(name):
            checked.update_from_env_vars({name: os.environ[name]})
    settings = wandb_setup.singleton().settings  # of the environment and the files; starts no process
    project = config.run.wandb_project or settings.project or DEFAULT_PROJECT
    with _explained("run.wandb_project"):
        checked.project = project
    mode = os.environ.get("WANDB_MODE") or _MODES[settings.mode]  # W&B reads the variable once in a process
    if mode == "online" and "WANDB_MODE" not in os.environ and not _has_key():
        mode = "offline"
    return WandbSettings(mode, project)


def _normalize_environment() -> None:
    """Make the variables what W&B reads. Raises UserError for a mode that does not exist."""
    for name in [name for name, value in os.environ.items() if name.startswith("WANDB_") and not value.strip()]:
        del os.environ[name]  # what CI and compose files make of a secret that is not set
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "on"):
        os.environ["WANDB_MODE"] = "disabled"
    mode = os.environ.get("WANDB_MODE")
    if mode is not None:
        known = _MODES.get(mode.strip().lower())
        if known is None:
            raise UserError(f"WANDB_MODE={mode}: does not exist; set it to online, offline or disabled")
        os.environ["WANDB_MODE"] = known
    os.environ.setdefault("WANDB_SILENT", "true")


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Raise what W&B says of a setting as a UserError that names it, without its value, which may be a key."""
    import wandb

    try:
        yield
    except (ValueError, wandb.errors.Error) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise UserError(f"{name}: {reason}; correct it, or leave it out") from None


def _has_key() -> bool:
    """Return whether there is a key for the server; one that cannot be a key is reported and not used."""
    import wandb

    try:
        return wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        warn(f"{error}; the run is tracked offline")
        return False


def start_run(mode: str, local: Path, **settings: Any) -> "Run | None":
    """Start a W&B run; offline where the server cannot be reached, None where W&B is disabled."""
    import wandb

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
