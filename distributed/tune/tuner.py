"""Ray Tune in a thread of its own, while this one reports what happens and cleans up after Ray."""

import logging
import tempfile
import time

import ray
from ray import tune as raytune
from ray.tune.schedulers import TrialScheduler

from distributed.cluster.background import run_in_background
from distributed.cluster.ray_internals import (
    HEAD_NODE_RESOURCE,
    MAX_PENDING_TRIALS,
    TUNE_ENVIRONMENT,
    environment,
    keep_credentials_out_of_trials,
    restarts_after_low_memory,
)
from distributed.cluster.wait import ResourceWait
from distributed.sweep.journal import timestamp
from distributed.sweep.plan import SweepConfig, TrialResources
from distributed.train.events import Note, drain
from distributed.tune.events import Heartbeat, SweepEventHandler, TrialEvent, TrialStarted
from distributed.tune.placement_groups import PlacementGroupCleaner
from distributed.tune.recorder import RecorderCallback, SweepRecorder, name_of
from distributed.tune.searcher import JournalSearcher
from distributed.tune.trainable import TrialTrainable
from distributed.tune.trial_run import TrialSettings

_SECONDS_BEFORE_NOTE = 30.0
_EPOCHS_FOR_FORECAST = 5


class TunerRun:
    """Runs Tune beside this thread, which reports what happens and removes placement groups that Ray leaves behind.

    Attributes:
        ends: when the time budget is spent, on the monotonic clock.
        last_event: when any trial last reported something.
    """

    def __init__(
        self,
        plan: SweepConfig,
        settings: TrialSettings,
        resources: TrialResources,
        recorder: SweepRecorder,
        on_event: SweepEventHandler,
    ) -> None:
        self.plan, self.settings, self.resources = plan, settings, resources
        self.recorder, self.on_event = recorder, on_event
        self.request = resources.describe(plan.workers_per_trial)
        self.groups = PlacementGroupCleaner() if plan.workers_per_trial > 1 else None
        self.ends = time.monotonic() + plan.time_budget if plan.time_budget else float("inf")
        self.last_event = time.monotonic()
        self.forecast_told = False

    def run(self, searcher: JournalSearcher, scheduler: TrialScheduler) -> None:
        """Train all that the searcher has.

        Raises:
            OSError: the journal could not be written.
            NotGrantedError: the cluster did not grant any trial its resources in time.
            Exception: whatever else ended Tune.
        """
        if not searcher.remaining:
            return
        wait = ResourceWait(self.request, self.plan.config.run.wait_minutes, lambda text: self.on_event(Note(text)))
        remove_groups = self.groups.remove_all if self.groups else None
        try:
            run_in_background(lambda: self._fit(searcher, scheduler), self._poll, wait, cleanup=remove_groups)
        except Exception as error:
            if self.recorder.failure is not None:
                raise self.recorder.failure from error
            raise

    def _fit(self, searcher: JournalSearcher, scheduler: TrialScheduler) -> None:
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # failed trials are reported by the recorder
        keep_credentials_out_of_trials()
        with (
            restarts_after_low_memory(),
            environment({**TUNE_ENVIRONMENT, MAX_PENDING_TRIALS: str(self.resources.concurrent)}),
            tempfile.TemporaryDirectory(prefix="tandem-tune-") as scratch,
        ):
            self._tuner(searcher, scheduler, scratch).fit()

    def _tuner(self, searcher: JournalSearcher, scheduler: TrialScheduler, scratch: str) -> raytune.Tuner:
        nested = self.plan.workers_per_trial > 1  # the workers then have placement groups of their own
        bundle = {HEAD_NODE_RESOURCE: 0.001} if nested else {"CPU": self.resources.cpus, "GPU": self.resources.gpus}
        return raytune.Tuner(
            raytune.with_resources(
                raytune.with_parameters(TrialTrainable, settings=self.settings),
                raytune.PlacementGroupFactory([bundle]),
            ),
            tune_config=raytune.TuneConfig(
                search_alg=searcher,
                scheduler=scheduler,
                num_samples=searcher.remaining,
                max_concurrent_trials=self.resources.concurrent,
                reuse_actors=True,
                trial_name_creator=name_of,
                trial_dirname_creator=name_of,
            ),
            run_config=raytune.RunConfig(
                name="sweep",
                storage_path=scratch,
                callbacks=[RecorderCallback(self.recorder)],
                failure_config=raytune.FailureConfig(max_failures=self.plan.config.run.retries),
                checkpoint_config=raytune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        )

    def _poll(self) -> None:
        """Report what has happened, and what the sweep waits for where nothing has."""
        drain(self.settings.events, self._take)
        while not self.recorder.updates.empty():
            self.last_event = time.monotonic()
            self.on_event(self.recorder.updates.get())
        self.recorder.time_is_up = self.recorder.time_is_up or time.monotonic() > self.ends
        self._report_spending()
        if self.groups:
            for text in self.groups.clean():
                self.on_event(Note(text))
        if time.monotonic() - self.last_event > _SECONDS_BEFORE_NOTE:
            self.last_event = time.monotonic()
            self.on_event(Note(self._describe_wait()))

    def _take(self, event: TrialEvent) -> None:
        """Take an event from a trial's process."""
        if isinstance(event, Heartbeat):
            assert self.groups is not None
            self.groups.heartbeats[event.group] = time.monotonic()
        elif isinstance(event, TrialStarted):
            trial = self.recorder.sweep.trials[event.trial]
            if trial.name not in self.recorder.sweep.training:
                self.recorder.record({"event": "begun", "time": timestamp(), "trial": trial.name})
        else:
            self.last_event = time.monotonic()
            self.on_event(event)

    def _report_spending(self) -> None:
        """Tell once, after the first rung and some epochs, what the whole sweep will cost."""
        sweep, plan = self.recorder.sweep, self.plan
        budget, rung = plan.allowance, (plan.rungs or [1])[0]
        if budget is None or self.forecast_told or sweep.epochs_trained < _EPOCHS_FOR_FORECAST:
            return
        if all(len(trial.metrics) < rung for trial in sweep.all):
            return
        forecast = sweep.forecast()
        if forecast is not None:
            self.forecast_told = True
            self.on_event(Note(f"{budget.describe_forecast(forecast)}, from {sweep.epochs_trained} epochs"))

    def _describe_wait(self) -> str:
        running = [trial for trial in self.recorder.sweep.all if trial.state == "running"]
        parts = [
            f"{trial.name}: {'training epoch' if trial.started else 'to start, before epoch'} {len(trial.metrics) + 1}"
            for trial in running
        ]
        free = ray.available_resources()
        return (
            f"no event for {_SECONDS_BEFORE_NOTE:.0f} s; waiting for {'; '.join(parts) or 'Tune to end'}; a trial needs "
            f"{self.request}, free are {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
        )
