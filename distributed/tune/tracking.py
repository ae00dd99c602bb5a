"""Weights & Biases for a sweep."""

import queue
import threading
from typing import TYPE_CHECKING

from distributed.sweep.journal import BrokenEvent, EpochEvent, JournalEvent
from distributed.sweep.plan import SweepConfig
from distributed.sweep.results import TuneResult
from distributed.sweep.state import SweepState, Trial
from distributed.train.tracking import (
    FINISH_TIMEOUT_S,
    describe_location,
    local_folder,
    log_artifact,
    run_id,
    start_run,
    wandb_settings,
    warn,
)
from model.config import Config
from model.errors import first_line

if TYPE_CHECKING:
    from wandb import Run

_TrialEvent = tuple[Trial, Config, EpochEvent | BrokenEvent]


class WandbGroup:
    """A W&B group for a sweep, with a run for each trial; finalists are tagged.

    A thread of its own does the writing: a sweep does not wait for W&B.

    Attributes:
        where: the place of the log, in words.
    """

    def __init__(self, plan: SweepConfig) -> None:
        self.plan, self.local = plan, local_folder(plan.folder)
        self.mode, self.project = wandb_settings(plan.config)
        self.where = describe_location(self.mode, self.project, self.local)
        self.events: queue.SimpleQueue[_TrialEvent | tuple[str, TuneResult] | None] = queue.SimpleQueue()
        self.runs: dict[str, Run] = {}
        self.thread = threading.Thread(target=self._work, name="wandb", daemon=True)

    def __enter__(self) -> "WandbGroup":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.events.put(None)
        self.thread.join(FINISH_TIMEOUT_S)
        if self.thread.is_alive():
            warn(f"the W&B server does not accept the log; upload it later with `wandb sync {self.local}/wandb/*`")

    def on_event(self, sweep: SweepState, event: JournalEvent) -> None:
        """Log an event of the sweep."""
        if event["event"] == "epoch" or event["event"] == "broken":
            trial = sweep.trials[event["trial"]]
            self.events.put((trial, sweep.config_of(trial), event))

    def finish(self, result: TuneResult, report: str) -> None:
        """Log the result, the bundle and the report in a run of the sweep's own."""
        self.events.put((report, result))

    def _work(self) -> None:
        try:
            self._log_events()
        except Exception as error:  # W&B's own process has ended: no reason to end a sweep
            warn(f"W&B does not log any more ({first_line(error)}); the sweep goes on without it")

    def _log_events(self) -> None:
        while self.mode != "disabled":
            match self.events.get():
                case None:
                    break
                case (report, result):
                    self._log_result(report, result)
                case (trial, config, event):
                    self._log_trial(trial, config, event)
        for run in self.runs.values():
            run.finish(exit_code=1)  # of a trial that has not ended

    def _log_trial(self, trial: Trial, config: Config, event: EpochEvent | BrokenEvent) -> None:
        run = self.runs.get(trial.name)
        if run is None:
            tags = ["finalist", trial.finalist_of] if trial.finalist_of else ["trial"]
            run = self._open(trial.name, config.model_dump() | {"searched": trial.values}, tags, "trial")
            if run is None:
                return
            self.runs[trial.name] = run
        if event["event"] == "epoch":
            run.log(event["metrics"], step=int(event["metrics"]["epoch"]))
        state = event.get("state")
        if state:
            run.summary.update({"state": state, "error": event.get("error")})
            self.runs.pop(trial.name).finish(exit_code=int(event["event"] == "broken"))

    def _log_result(self, report: str, result: TuneResult) -> None:
        run = self._open("result", self.plan.model_dump(), ["sweep"], "sweep")
        if run is None:
            return
        run.summary.update({key: value for key, value in result.as_dict().items() if key not in ("record", "ablation")})
        log_artifact(run, f"{self.plan.config.run.name}-bundle", "model", result.bundle)
        log_artifact(run, f"{self.plan.config.run.name}-report", "report", report)
        run.finish()

    def _open(self, name: str, config: dict[str, object], tags: list[str], kind: str) -> "Run | None":
        sweep = self.plan.config.run.name
        run = start_run(
            self.mode,
            self.local,
            project=self.project,
            group=sweep,
            name=f"{sweep}-{name}",
            id=run_id(f"{sweep}-{name}", self.plan.folder),
            job_type=kind,
            tags=tags,
            config=config,
            reinit="create_new",
        )
        if run is not None:
            self.mode = run.settings.mode  # offline from now on where the server cannot be reached
        return run
