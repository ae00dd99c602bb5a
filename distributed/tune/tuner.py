"""Running Ray Tune: a thread for it, and a watch over it and over what Ray leaves behind."""

import logging
import os
import tempfile
import threading
import time
from typing import Any

import ray
from ray import tune as raytune
from ray.tune.schedulers import TrialScheduler

from distributed.cluster.ray_internals import HEAD_NODE_RESOURCE, MAX_PENDING_TRIALS, TUNE_ENVIRONMENT
from distributed.cluster.wait import ResourceWait
from distributed.sweep.plan import SweepConfig, TrialResources
from distributed.train.events import SweepEventHandler
from distributed.tune.placement_groups import PlacementGroupCleaner
from distributed.tune.recorder import RecorderCallback, SweepRecorder, name_of
from distributed.tune.searcher import JournalSearcher
from distributed.tune.trainable import TrialTrainable
from distributed.tune.trial_run import TrialSettings

_POLL_SECONDS = 0.2
_SECONDS_BEFORE_NOTE = 30.0


class TunerRun:
    """Runs Tune beside this thread, which passes on what happens and looks after what Ray leaves behind."""

    def __init__(
        self,
        plan: SweepConfig,
        settings: TrialSettings,
        seats: TrialResources,
        recorder: SweepRecorder,
        on_event: SweepEventHandler,
    ) -> None:
        self.plan, self.settings, self.seats = plan, settings, seats
        self.recorder, self.on_event = recorder, on_event
        self.groups = PlacementGroupCleaner() if plan.workers_per_trial > 1 else None
        self.ends = time.monotonic() + plan.time_budget if plan.time_budget else float("inf")
        self.sign = time.monotonic()  # when something was last heard of any trial

    def run(self, proposals: JournalSearcher, scheduler: TrialScheduler) -> None:
        """Trains all that is proposed.

        Raises:
            OSError: the journal could not be written.
            NotGrantedError: the cluster did not grant any trial its place in time.
            Exception: whatever else ended Tune.
        """
        if not proposals.left:
            return
        failures: list[Exception] = []

        def fit() -> None:
            try:
                self._fit(proposals, scheduler)
            except Exception as error:  # carried over to the thread that waits
                failures.append(error)

        wait = ResourceWait(self._asks(), self.plan.config.run.wait_minutes, lambda text: self.on_event("note", text))
        thread = threading.Thread(target=fit, name="tuner", daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            self._look_round()
            wait.poll()
        self._look_round()
        if self.groups:
            self.groups.remove_all()
        if failures:
            raise self.recorder.failure or failures[0]

    def _fit(self, proposals: JournalSearcher, scheduler: TrialScheduler) -> None:
        os.environ.update(TUNE_ENVIRONMENT)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # we tell of them ourselves
        os.environ[MAX_PENDING_TRIALS] = str(self.seats.at_once)
        alone = self.plan.workers_per_trial == 1
        bundle = {"CPU": self.seats.cpus, "GPU": self.seats.gpus} if alone else {HEAD_NODE_RESOURCE: 0.001}
        with tempfile.TemporaryDirectory(prefix="tandem-tune-") as scratch:
            raytune.Tuner(
                raytune.with_resources(
                    raytune.with_parameters(TrialTrainable, settings=self.settings),
                    raytune.PlacementGroupFactory([bundle]),
                ),
                tune_config=raytune.TuneConfig(
                    search_alg=proposals,
                    scheduler=scheduler,
                    num_samples=proposals.left,
                    max_concurrent_trials=self.seats.at_once,
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
            ).fit()

    def _look_round(self) -> None:
        """Passes on what has happened, and says what a sweep waits for where nothing has."""
        waiting = self.settings.events.qsize()
        for kind, value in self.settings.events.get_nowait_batch(waiting) if waiting else []:
            self._take(kind, value)
        while not self.recorder.news.empty():
            self.sign = time.monotonic()
            self.on_event(*self.recorder.news.get())
        self.recorder.over = self.recorder.over or time.monotonic() > self.ends
        if self.groups:
            for text in self.groups.clean():
                self.on_event("note", text)
        if time.monotonic() - self.sign > _SECONDS_BEFORE_NOTE:
            self.sign = time.monotonic()
            self.on_event("note", self._what_it_waits_for())

    def _take(self, kind: str, value: Any) -> None:
        """An event from a trial's process."""
        if kind == "beat":
            assert self.groups is not None
            self.groups.beats[value] = time.monotonic()
            return
        if kind == "begun":
            trial = self.recorder.sweep.trials[value["trial"]]
            if trial.begun is None:
                self.recorder.record("begun", trial=trial.name)
            return
        self.sign = time.monotonic()
        self.on_event("note" if kind == "waiting" else kind, value)

    def _what_it_waits_for(self) -> str:
        running = [trial for trial in self.recorder.sweep.all if trial.state == "running"]
        parts = [
            f"{trial.name}: {'training epoch' if trial.begun else 'to start, before epoch'} {len(trial.metrics) + 1}"
            for trial in running
        ]
        free = ray.available_resources()
        return (
            f"nothing heard for {_SECONDS_BEFORE_NOTE:.0f} s; waiting for {'; '.join(parts) or 'Tune to end'}; a trial needs "
            f"{self._asks()}, free are {free.get('CPU', 0):g} CPU, {free.get('GPU', 0):g} GPU"
        )

    def _asks(self) -> str:
        return f"{self.plan.workers_per_trial} x ({self.seats.cpus} CPU, {self.seats.gpus:g} GPU)"
