"""The plan and the journal of a sweep: what is refused, and what a kill leaves."""

import errno
import fcntl
import io
import json
import random
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import call, last_json, refused
from rich.console import Console
from rich.live import Live

from distributed.cluster.resources import ClusterResources
from distributed.sweep.budget import Budget
from distributed.sweep.journal import Journal, read_events
from distributed.sweep.plan import SweepConfig, continuing, make_plan, new_sweep, validate_plan
from distributed.sweep.results import read_result
from distributed.sweep.samplers import SAMPLERS
from distributed.sweep.state import SweepState, Trial, read_sweep, require_same_sweep, resumed_sweep
from distributed.tune.searcher import JournalSearcher
from jobs.progress import SweepProgress
from model import storage
from model.errors import UserError


def plan_of(data: str, where: Path | str = "runs", **asked: Any) -> SweepConfig:
    run = {"name": "s", "storage": str(where)} | asked.pop("run", {})
    return make_plan({"config": {"data": data, "run": run}} | asked)


def epoch(number: int, f1: float) -> dict[str, float]:
    return {"epoch": number, "valid/keyphrase_f1": f1, "valid/keyphrase_loss": 1.0}


def proposal(time: float, name: str, lr: float) -> dict[str, Any]:
    trial = {"name": name, "values": {"training.lr": lr}, "epochs": 3, "series": None, "finalist_of": None}
    return {"event": "trial", "time": time, **trial}


EVENTS: list[dict[str, Any]] = [
    {"event": "session", "time": 0.0},
    proposal(1.0, "t001", 1e-3),
    {"event": "begun", "time": 1.5, "trial": "t001"},
    {"event": "epoch", "time": 2.0, "trial": "t001", "metrics": epoch(1, 0.3)},
    proposal(2.0, "t002", 1e-4),
    {"event": "epoch", "time": 3.0, "trial": "t001", "metrics": epoch(2, 0.5)},
    {"event": "epoch", "time": 3.0, "trial": "t002", "metrics": epoch(1, 0.1), "state": "stopped"},
    {"event": "retry", "time": 3.5, "trial": "t001", "error": "killed"},
    {"event": "epoch", "time": 4.0, "trial": "t001", "metrics": epoch(1, 0.3)},
    {"event": "session", "time": 100.0},
    {"event": "epoch", "time": 101.0, "trial": "t001", "metrics": epoch(3, 0.4), "state": "finished"},
]


def test_a_sweep_is_the_sum_of_its_events(small_dataset: str):
    sweep = SweepState(plan_of(small_dataset, trials=2, max_epochs=3))
    for event in EVENTS:
        sweep.apply(event)
    first, second = sweep.searched
    assert [metrics["epoch"] for metrics in first.metrics] == [1, 2, 3]  # what was told twice counts once
    assert (first.state, second.state, first.retries) == ("finished", "stopped", 1)
    assert sweep.best is first and first.best_score("valid/keyphrase_f1") == 0.5
    assert (sweep.epochs_spent, sweep.epochs_full, sweep.plan.rungs) == (4, 6, [1])
    assert sweep.seconds == 4.0 + 1.0  # not the time between the sessions


def test_every_epoch_has_a_line_also_where_several_end_between_two_looks(small_dataset: str, capsys):
    sweep, view = SweepState(plan_of(small_dataset, trials=2, max_epochs=3)), SweepProgress()
    for event in EVENTS[:4]:
        sweep.apply(event)
    view.event(sweep)  # the past of a resumed sweep
    for event in EVENTS[4:]:
        sweep.apply(event)
    view.event(sweep)
    view.event(sweep)
    lines = [line.split("  ") for line in capsys.readouterr().err.splitlines()]
    assert [(name, *rest) for name, _, *rest, _ in lines] == [
        ("t001", "epoch 1/3", "0.3000", "running"),
        ("t001", "epoch 2/3", "0.5000", "running"),
        ("t001", "epoch 3/3", "0.4000", "finished"),
        ("t002", "epoch 1/3", "0.1000", "stopped"),
    ]


@pytest.mark.parametrize("value", ["[red]", "runs/[/bold]", "a[1]"])
def test_the_table_shows_values_as_they_are(small_dataset: str, value: str):
    sweep, view = SweepState(plan_of(small_dataset, trials=2, max_epochs=3)), SweepProgress()
    sweep.apply(EVENTS[0])
    sweep.apply(proposal(1.0, "t001", 1e-3) | {"values": {"training.teacher": value}})
    view.sweep = sweep
    view.live = Live(console=Console(file=io.StringIO(), width=120), auto_refresh=False)
    view._draw()
    view.live.console.print(view.live.get_renderable())
    assert value in view.live.console.file.getvalue()


def test_what_broke_is_ranked_last(small_dataset: str):
    sweep = SweepState(plan_of(small_dataset, trials=2, max_epochs=3))
    for event in EVENTS:
        sweep.apply(event)
    sweep.apply({"event": "broken", "time": 5.0, "trial": "t001", "state": "diverged", "error": "nan"})
    assert [trial.name for trial in sweep.ranked] == ["t002", "t001"]
    sweep.apply({"event": "broken", "time": 5.0, "trial": "t002", "state": "failed", "error": "oops"})
    assert sweep.best is None


@pytest.mark.parametrize("place", ["local", "memory://sweeps"])
def test_a_journal_gives_back_its_events(place: str, tmp_path: Path, small_dataset: str):
    where = str(tmp_path) if place == "local" else f"{place}/{tmp_path.name}"
    plan = plan_of(small_dataset, where, max_epochs=3)
    storage.write(storage.join(plan.folder, "sweep.json"), plan.model_dump_json().encode())
    for part in (EVENTS[:4], EVENTS[4:]):
        journal = Journal(plan.folder)
        for event in part:
            journal.write(event)
        journal.close()
    assert list(read_events(plan.folder)) == EVENTS
    assert read_sweep(plan.folder).epochs_spent == 4


@pytest.mark.parametrize("removed", [0, 4, len(EVENTS) - 1])
def test_a_journal_without_a_damaged_file_goes_on_after_its_last_one(removed: int, tmp_path: Path):
    folder = f"memory://removed/{tmp_path.name}"
    journal = Journal(folder)
    for event in EVENTS:
        journal.write(event)
    storage.remove(storage.join(folder, f"journal-{removed:06d}.jsonl"))
    Journal(folder).write({"event": "session", "time": 200.0})
    rest = EVENTS[:removed] + EVENTS[removed + 1 :]
    assert list(read_events(folder)) == [*rest, {"event": "session", "time": 200.0}]


@pytest.mark.parametrize("places", [("local", "remote"), ("remote", "local"), ("local", "remote", "local")])
def test_a_sweep_copied_to_another_kind_of_storage_goes_on_there(places: tuple[str, ...], tmp_path: Path):
    last: str | None = None
    for number, place in enumerate(places):
        base = str(tmp_path) if place == "local" else f"memory://copies/{tmp_path.name}"
        folder = storage.join(base, str(number))
        for name in storage.list_directory(last) if last else []:
            storage.write(storage.join(folder, name), storage.read(storage.join(str(last), name)))
        journal, last = Journal(folder), folder
        for event in EVENTS[3 * number : None if number == len(places) - 1 else 3 * number + 3]:
            journal.write(event)
        journal.close()
    assert last and list(read_events(last)) == EVENTS


def written_journal(folder: Path) -> tuple[Path, bytes]:
    """The journal of EVENTS in a folder, and its content."""
    journal = Journal(str(folder))
    for event in EVENTS:
        journal.write(event)
    journal.close()
    path = folder / "journal.jsonl"
    return path, path.read_bytes()


def test_a_journal_cut_off_anywhere_loses_its_last_event_alone(tmp_path: Path, small_dataset: str):
    folder = tmp_path / "s"
    path, content = written_journal(folder)
    before = len(content[:-1].rpartition(b"\n")[0]) + 1
    for size in range(before, len(content)):
        path.write_bytes(content[:size])
        assert list(read_events(str(folder))) == EVENTS[:-1]
        journal = Journal(str(folder))
        journal.write({"event": "session", "time": 1.0})
        journal.close()
        assert list(read_events(str(folder))) == [*EVENTS[:-1], {"event": "session", "time": 1.0}]
    path.write_bytes(content[:30] + b"#" + content[31:])
    refused(lambda: list(read_events(str(folder))), f"{path}:1", "damaged")


def test_an_event_that_a_full_disk_cuts_off_is_refused_and_leaves_nothing(tmp_path: Path):
    journal = Journal(str(tmp_path))
    journal.write(EVENTS[0])
    size = (tmp_path / "journal.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))  # as a full disk, takes the beginning of a line
    try:
        with pytest.raises(OSError, match="No space left"):
            journal.write(EVENTS[1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    journal.write(EVENTS[1])
    assert list(read_events(str(tmp_path))) == EVENTS[:2]


def test_a_changed_byte_of_a_journal_is_noticed(tmp_path: Path):
    path, content = written_journal(tmp_path)
    for at in range(0, len(content) - 1, 2):
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            found = list(read_events(str(tmp_path)))  # the name of the checksum was changed
            assert all(wanted.items() <= event.items() for wanted, event in zip(EVENTS, found, strict=True))
        except UserError as error:
            assert str(error).startswith(f"{path}:") and "remove the line" in str(error)
    path.write_text("".join(json.dumps(event) + "\n" for event in EVENTS))  # as an earlier version did
    assert list(read_events(str(tmp_path))) == EVENTS


def test_two_processes_cannot_work_on_one_sweep(tmp_path: Path):
    journal = Journal(str(tmp_path))
    refused(lambda: Journal(str(tmp_path)), "another process is at work")
    journal.close()
    Journal(str(tmp_path)).close()


def test_a_sweep_runs_where_the_file_system_locks_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_lock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_lock)
    assert written_journal(tmp_path)[1].count(b"\n") == len(EVENTS)


HERE = ClusterResources(4, 1, 1)


def test_impossible_requests_are_refused_at_the_start(small_dataset: str):
    refused(lambda: plan_of(small_dataset, grace=5, max_epochs=4), "--grace 5", "--max-epochs 4")
    refused(lambda: plan_of(small_dataset, eta=1.5), "--eta 1.5", "greater than or equal to 2")
    refused(lambda: plan_of(small_dataset, metric="valid/bleu"), "--metric valid/bleu", "valid/keyphrase_f1")
    refused(lambda: plan_of(small_dataset, metric="valid/loss"), "--metric valid/loss", "does not exist")
    refused(lambda: plan_of(small_dataset, trials=0), "--trials 0")
    refused(lambda: plan_of(small_dataset, sampler="sobol"), "--sampler sobol", *SAMPLERS)

    def checked(**asked: Any) -> Any:
        return validate_plan(plan_of(small_dataset, **asked), HERE)

    refused(lambda: checked(workers_per_trial=5, run={"device": "cpu"}), "5 x (1 CPU, 0 GPU)", "room for 4")
    refused(lambda: checked(workers_per_trial=2), "2 x (1 CPU, 1 GPU)", "room for 1")
    refused(lambda: checked(gpus_per_trial=0.5, workers_per_trial=2), "a GPU of its own")
    refused(lambda: checked(gpus_per_trial=2), "--workers-per-trial")
    refused(lambda: checked(gpus_per_trial=0.2, run={"device": "cpu"}), "--device cpu")
    refused(lambda: checked(run={"cpus_per_worker": 9}), "1 x (9 CPU, 1 GPU)", "room for 0")
    refused(lambda: checked(finalists=17), "there are only 16 trials")
    refused(lambda: checked(space=["training.rate=1:2"]), "training.rate: is unknown")
    refused(lambda: checked(sampler="record", space=["training.lr=1e-3,1e-4"]), "leave out other --space")
    refused(
        lambda: checked(space=["training.global_batch_size=1,2"], workers_per_trial=2, run={"device": "cpu"}),
        "2 workers",
    )
    refused(lambda: plan_of("/nowhere") and validate_plan(plan_of("/nowhere"), HERE), "/nowhere", "prepare")


def test_trials_are_packed_onto_gpus_and_nodes(small_dataset: str):
    def at_once(cluster: ClusterResources = HERE, **asked: Any) -> int:
        return validate_plan(plan_of(small_dataset, trials=100, **asked), cluster)[2].concurrent

    assert at_once() == 1  # one GPU
    assert at_once(gpus_per_trial=0.2) == 4  # five would fit the GPU, four the CPUs
    assert at_once(run={"device": "cpu"}) == 4
    assert at_once(run={"device": "cpu"}, max_concurrent=3) == 3
    assert at_once(run={"device": "cpu"}, workers_per_trial=2) == 2
    nodes = ClusterResources(8, 0, 3, ((3, 0), (3, 0), (2, 0)))
    assert at_once(nodes, run={"device": "cpu", "cpus_per_worker": 2}) == 3  # not 4: no worker reaches across nodes


def test_finalists_train_side_by_side_with_all_their_seeds(small_dataset: str):
    for finalists, at_once in ((0, 2), (1, 3), (2, 6)):
        plan = plan_of(small_dataset, trials=2, finalists=finalists, seeds=3, run={"device": "cpu"})
        assert validate_plan(plan, ClusterResources(16, 0, 1))[2].concurrent == at_once


def test_the_same_seed_proposes_the_same_configurations(small_dataset: str):
    def proposed(seed: int) -> list[dict[str, Any]]:
        plan, space, _ = validate_plan(make_plan({"config": {"data": small_dataset, "training": {"seed": seed}}}), HERE)
        return [plan.strategy.propose(plan, space, number).values for number in range(16)]

    assert proposed(0) == proposed(0) != proposed(1)
    assert proposed(0)[0] == {"training.lr": 0.001879, "training.alpha": 0.3158}


def test_a_sweep_goes_on_only_as_itself(small_dataset: str, tmp_path: Path):
    plan = new_sweep(plan_of(small_dataset, tmp_path))
    storage.write(storage.join(plan.folder, "sweep.json"), plan.model_dump_json().encode())
    journal = Journal(plan.folder)
    for event in EVENTS:
        journal.write(event)
    journal.close()
    refused(lambda: new_sweep(plan_of(small_dataset, tmp_path)), "exists", "--resume s")
    refused(lambda: resumed_sweep("ghost", str(tmp_path), {}), "ghost", "no such sweep")
    refused(lambda: resumed_sweep("s", str(tmp_path), {"max_epochs": 4}), "--max-epochs", "has begun")
    refused(lambda: resumed_sweep("s", str(tmp_path), {"trials": 1}), "--trials 1", "2 trials have begun")
    assert resumed_sweep("s", str(tmp_path), {"finalists": 2, "trials": 20}).finalists == 2
    assert (
        resumed_sweep("s", str(tmp_path), {"space": list(plan.space)}, {"wait_minutes": 60}).config.run.wait_minutes
        == 60
    )
    for run, problem in (({"wait_minutes": -1}, "run.wait_minutes is -1"), ({"wait": 1}, "run.wait is unknown")):
        refused(lambda run=run: resumed_sweep("s", str(tmp_path), {}, run), f"--resume s: {problem}")
    shutil.copytree(tmp_path / "s", tmp_path / "copy")
    assert resumed_sweep("copy", str(tmp_path), {}).folder == str(tmp_path / "copy")
    with (tmp_path / "s" / "journal.jsonl").open("a") as file:  # as of earlier versions, without a checksum
        file.write('{"event": "begun", "time": 3.0, "trial": "t099"}\n')
    refused(lambda: read_sweep(str(tmp_path / "s")), "an event of 't099', of which it knows nothing")
    with (tmp_path / "copy" / "journal.jsonl").open("a") as file:
        file.write('{"event": "epoch", "time": 3.0, "trial": "t001", "metrics": {"epoch": 4}}\n')
    refused(lambda: read_sweep(str(tmp_path / "copy")), "an epoch of t001 without valid/keyphrase_f1")
    with (tmp_path / "s" / "journal.jsonl").open("a") as file:
        file.write('{"event": "begun", "time": "soon"}\n')
    refused(lambda: list(read_events(str(tmp_path / "s"))), "damaged", "remove the line")
    place, lacks_config = tmp_path / "s" / "sweep.json", "config: Field required"
    for content, problem in (
        ("{", "Invalid JSON: EOF while"),
        ("{}", lacks_config),
        ('{"sampler": "x"}', lacks_config),
    ):
        place.write_text(content)
        with pytest.raises(UserError, match=rf"{place}: is damaged \({problem}.*\); copy it again") as raised:
            resumed_sweep("s", str(tmp_path), {})
        assert "\n" not in str(raised.value)
    (tmp_path / "result.json").write_text('{"trials": 3}')
    refused(lambda: read_result(str(tmp_path)), "result.json: is damaged (name: Field required)", "delete it")


def test_a_sweep_does_not_go_on_where_another_process_has_got_further_in_the_meantime(
    small_dataset: str, tmp_path: Path
):
    """Both commands were given before the first had a folder; the second one waited for its Ray to start."""
    first, other = (
        plan_of(small_dataset, tmp_path, trials=2, eta=eta, space=["training.lr=1e-3,1e-2"]) for eta in (3, 2)
    )
    require_same_sweep(first)
    begun, _, _ = validate_plan(first, HERE)
    begun = begun.model_copy(update={"config": begun.config.model_copy(update={"data_digest": 64 * "0"})})
    storage.write(storage.join(first.folder, "sweep.json"), begun.model_dump_json().encode())
    written_journal(Path(first.folder))
    require_same_sweep(first)
    require_same_sweep(resumed_sweep("s", str(tmp_path), {"trials": 3}, {"wait_minutes": 60}))
    refused(lambda: require_same_sweep(other), str(tmp_path / "s"), "another sweep of this name has begun")
    fewer = first.model_copy(update={"trials": 1})
    refused(lambda: require_same_sweep(fewer), str(tmp_path / "s"), "more trials", "resume it again")


def test_what_a_sweep_spends_follows_from_its_journal(small_dataset: str):
    sweep = SweepState(plan_of(small_dataset, trials=2, max_epochs=3, budget="$0.001", price=3.6))
    for event in EVENTS:
        sweep.apply(event | ({"cpus": 2.0, "gpus": 0.5} if event["event"] == "session" else {}))
    # t001 trains from 1.5 to 3.5 s, when it fails, and again until 4.0 s at the latest; t002 is known at 3.0 s alone. In the
    # second session the first event of a trial comes at its end.
    assert sweep.spent.cpu_seconds == 2 * 2.0 and sweep.spent.gpu_seconds == 0.5 * 2.0
    assert sweep.spent.cost(3.6) == pytest.approx(1.0 * 3.6 / 3600)  # of GPU seconds
    assert not sweep.training and sweep.spent_until(1000.0) == sweep.spent
    sweep.apply(proposal(101.0, "t003", 1e-2))
    sweep.apply({"event": "begun", "time": 101.0, "trial": "t003"})
    assert sweep.spent_until(103.0).cpu_seconds == 2 * 4.0
    sweep.apply({"event": "session", "time": 200.0, "cpus": 1.0, "gpus": 0.0})  # the driver was killed in between
    assert sweep.spent_until(300.0).cpu_seconds == 2 * 2.0
    assert sweep.searched[0].started == 1.5  # the first start


def test_a_search_leaves_the_finalists_their_share(small_dataset: str):
    asked: dict[str, Any] = {"trials": 2, "max_epochs": 3, "finalists": 1, "seeds": 2, "budget": "1cpuh"}
    sweep = SweepState(plan_of(small_dataset, **asked))
    assert sweep.kept_for_finalists(sweep.spent) == 0.0 and sweep.forecast() is None
    for event in EVENTS:
        sweep.apply(event | ({"cpus": 1800.0} if event["event"] == "session" else {}))
    assert sweep.spent.cpu_seconds == 1800 * 2.0  # an hour, of four epochs
    assert sweep.kept_for_finalists(sweep.spent) == pytest.approx(6 / 4)
    # Two trials to the rung at epoch 1, two epochs more of the first and of each second other, and six of the finalist.
    forecast = sweep.forecast()
    assert forecast and forecast.cpu_seconds == pytest.approx(3600 / 4 * (2 + 1.5 * 2 + 6))
    final = {"name": "t001-seed1", "values": {}, "epochs": 3, "series": None, "finalist_of": "t001"}
    sweep.apply({"event": "trial", "time": 101.0, **final})
    sweep.apply({"event": "epoch", "time": 101.0, "trial": "t001-seed1", "metrics": epoch(1, 0.3)})
    assert sweep.kept_for_finalists(sweep.spent) == pytest.approx(5 / 5)


def test_a_forecast_is_never_less_than_what_was_spent(small_dataset: str):
    sweep = SweepState(plan_of(small_dataset, trials=2, max_epochs=9))
    sweep.apply({"event": "session", "time": 0.0, "cpus": 1.0})
    for name in ("t001", "t002"):  # of which one and a half go on at the first rung, on average
        sweep.apply(proposal(0.0, name, 1e-3))
        for number in range(1, 10):
            metrics = epoch(number, 0.5)
            sweep.apply({"event": "epoch", "time": sweep.seconds + 1.0, "trial": name, "metrics": metrics})
    assert sweep.epochs_trained == 18 > sweep.plan.epochs_expected
    assert sweep.forecast() == sweep.spent


@pytest.mark.parametrize(
    ("budget", "price", "amount", "shown"),
    [
        ("3gpuh", None, 3.0, "3 GPU hours"),
        ("0.5 CPUh", None, 0.5, "0.5 CPU hours"),
        ("$20", 1.2, 20.0, "20"),
        ("20", 1.2, 20.0, "20"),
    ],
)
def test_forms_of_a_budget(budget: str, price: float | None, amount: float, shown: str):
    read = Budget.parse(budget, price)
    assert read.amount == amount and read.show(amount) == shown


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        ({"budget": "3h"}, ("--budget 3h", "3gpuh, 40cpuh or '$20'")),
        ({"budget": "0cpuh"}, ("--budget 0cpuh",)),
        ({"budget": "nan cpuh"}, ("--budget nan cpuh",)),
        ({"budget": "$20"}, ("--budget $20", "--price")),
        ({"budget": "3cpuh", "price": 0}, ("--price 0",)),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(asked: dict[str, Any], parts: tuple[str, ...], small_dataset: str):
    refused(lambda: plan_of(small_dataset, **asked), *parts)


def test_gpu_hours_are_refused_where_trials_have_no_gpu(small_dataset: str):
    plan = plan_of(small_dataset, budget="3gpuh", run={"device": "cpu"})
    refused(lambda: validate_plan(plan, ClusterResources(4, 1, 1)), "--budget 3gpuh", "no GPU", "cpuh")


def test_a_dry_run_of_a_sweep_that_has_begun_forecasts_its_cost(small_dataset: str, tmp_path: Path):
    plan = plan_of(small_dataset, tmp_path, trials=2, max_epochs=3, stopping=False, price=2.0)
    storage.write(storage.join(plan.folder, "sweep.json"), plan.model_dump_json().encode())
    journal = Journal(plan.folder)
    for event in EVENTS:
        journal.write(event | ({"cpus": 1800.0} if event["event"] == "session" else {}))
    journal.close()
    resume = ("tune", "--resume", "s", "--storage", str(tmp_path), "--dry-run")
    for trials, epochs in ((), 6), (("--trials", "4"), 12):
        told = last_json(call(*resume, *trials).stdout)
        # Four epochs took an hour.
        assert told["forecast"] == {"cpu_hours": epochs / 4, "gpu_hours": 0.0, "cost": epochs / 4 * 2.0}
    assert "forecast" not in last_json(call("tune", "--data", small_dataset, "--dry-run").stdout)


def searcher_of(sweep: SweepState, searches: bool) -> JournalSearcher:
    def propose(trial: Trial) -> None:
        sweep.trials[trial.name] = trial

    recorder: Any = SimpleNamespace(sweep=sweep, must_stop=lambda: False, propose=propose)
    return JournalSearcher(recorder, validate_plan(sweep.plan, ClusterResources(2, 0, 1))[1] if searches else None)


def test_searched_trials_and_finalists_are_given_out_apart(small_dataset: str):
    sweep = SweepState(plan_of(small_dataset, trials=2, max_epochs=3, finalists=1, seeds=2))
    for event in EVENTS[:-1]:
        sweep.apply(event)
    final = {"name": "t001-seed1", "values": {}, "epochs": 3, "series": None, "finalist_of": "t001"}
    sweep.apply({"event": "trial", "time": 101.0, **final})
    given = [searcher_of(sweep, searches) for searches in (True, False)]
    assert [[trial.name for trial in each.unfinished] for each in given] == [["t001"], ["t001-seed1"]]
    assert [each.remaining for each in given] == [1, 1]


def test_what_the_adaptive_sampler_proposes_is_valid(small_dataset: str):
    plan = plan_of(small_dataset, sampler="tpe", trials=8, space=("tagger.window=1:7",))
    sweep = SweepState(plan)
    searcher = searcher_of(sweep, searches=True)
    for number in range(8):
        searcher.suggest(f"tune-{number}")
    windows = [trial.values["tagger.window"] for trial in sweep.searched]
    assert len(windows) == 8 and all(window % 2 for window in windows)  # as the tagger asks


@pytest.mark.parametrize("eta", [2.0, 3.0, 4.5])
def test_as_many_trials_continue_as_asha_lets_on_average(eta: float):
    draw, trials, rounds = random.Random(0), 12, 2000
    found = 0
    for _ in range(rounds):
        before: list[float] = []
        for _ in range(trials):
            score = draw.random()
            found += not before or score >= np.percentile(before, 100 * (1 - 1 / eta))  # as Ray's ASHA decides
            before.append(score)
    assert continuing(trials, eta) == pytest.approx(found / rounds, rel=0.03)
    assert continuing(trials + 0.5, eta) == pytest.approx((continuing(trials, eta) + continuing(trials + 1, eta)) / 2)
