"""`python -m jobs tune`: dataset directory -> a sweep's folder with evidence and a bundle, on Ray Tune."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from distributed.sweep.samplers import SAMPLERS
from jobs.console import command, echo, invocation, print_json, print_result, using_ray
from jobs.progress import SweepProgress
from jobs.train import merge_sources, over_preset

if TYPE_CHECKING:
    from distributed.sweep.budget import Spent
    from distributed.sweep.plan import SweepConfig
    from distributed.sweep.results import RecordRow, TuneResult

SpaceOption = Annotated[
    list[str] | None,
    typer.Option(
        help="Range of a field: training.lr=log:1e-4:1e-2, training.alpha=0.1:0.9, tagger.cell=rnn,gru; `record`."
    ),
]
SeedsOption = Annotated[
    int | None, typer.Option(help="Fresh seeds of each finalist; seeds of each row of an ablation (3).")
]
WorkersPerTrialOption = Annotated[int | None, typer.Option(help="Processes that share each batch of a trial (1).")]
PresetOption = Annotated[
    str | None, typer.Option(help="What all trials begin from: record (the defaults), best or encoder.")
]
SetOption = Annotated[
    list[str] | None, typer.Option(help="A field of all trials, as in training.global_batch_size=32.")
]
WandbProjectOption = Annotated[
    str | None, typer.Option("--wandb-project", "--project", help="run.wandb_project: W&B project.")
]


@command
def tune(
    data: Annotated[str | None, typer.Option(help="Dataset directory made by prepare.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the sweep; made from the time otherwise.")] = None,
    resume: Annotated[str | None, typer.Option(help="Name of a sweep to resume.")] = None,
    trials: Annotated[int | None, typer.Option(help="Configurations to try (16); a grid tries all of its own.")] = None,
    max_epochs: Annotated[int | None, typer.Option(help="Epochs of a trial that is never stopped (9).")] = None,
    space: SpaceOption = None,
    sampler: Annotated[str | None, typer.Option(help=f"How trials are chosen: {', '.join(SAMPLERS)}.")] = None,
    grace: Annotated[int | None, typer.Option(help="Epochs before the first trials are stopped (1).")] = None,
    eta: Annotated[float | None, typer.Option(help="At each rung about 1 in eta trials continues (3).")] = None,
    stopping: Annotated[bool | None, typer.Option(help="ASHA, or every trial in full.")] = None,
    metric: Annotated[str | None, typer.Option(help="What trials are ranked by (valid/keyphrase_f1).")] = None,
    finalists: Annotated[int | None, typer.Option(help="Best configurations to train again and compare (0).")] = None,
    seeds: SeedsOption = None,
    max_concurrent: Annotated[int | None, typer.Option(help="Trials at once; as many as fit otherwise.")] = None,
    time_budget: Annotated[str | None, typer.Option(help="No epoch begins after this: 90s, 30m, 2h.")] = None,
    budget: Annotated[str | None, typer.Option(help="The most that trials may spend: 3gpuh, 40cpuh, '$20'.")] = None,
    price: Annotated[float | None, typer.Option(help="Price of an hour of a GPU; of a CPU without GPUs.")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(help="0.2 packs five trials onto a GPU.")] = None,
    workers_per_trial: WorkersPerTrialOption = None,
    preset: PresetOption = None,
    config: Annotated[str | None, typer.Option(help="Configuration file of all trials, YAML or JSON.")] = None,
    set: SetOption = None,
    lr: Annotated[float | None, typer.Option(help="training.lr, instead of searching it.")] = None,
    alpha: Annotated[float | None, typer.Option(help="training.alpha, instead of searching it.")] = None,
    seed: Annotated[int | None, typer.Option(help="training.seed: of the sampler and of every trial.")] = None,
    device: Annotated[str | None, typer.Option(help="run.device: auto, cpu or cuda.")] = None,
    storage: Annotated[str | None, typer.Option(help="run.storage: where sweeps are stored, a path or URI.")] = None,
    wandb_project: WandbProjectOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the resources; run nothing.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Search for the best configuration: many trials, of which ASHA stops the worse early.

    The cluster is the one of RAY_ADDRESS, else this machine. Trials are ranked by their best epoch on the validation
    split; the test split is read once, for the winner of the finalists.
    """
    fields: dict[str, Any] = {
        **_space_and_sampler(space, sampler),
        "trials": trials,
        "max_epochs": max_epochs,
        "grace": grace,
        "eta": eta,
        "stopping": stopping,
        "metric": metric,
        "max_concurrent": max_concurrent,
        "time_budget": None if time_budget is None else _seconds(time_budget),
        "budget": budget,
        "price": price,
        "gpus_per_trial": gpus_per_trial,
        "workers_per_trial": workers_per_trial,
        "finalists": finalists,
        "seeds": seeds,
    }
    flags = _flags(data, lr, alpha, seed, name, device, storage, wandb_project)
    plan = _plan(preset, merge_sources(config, set or [], flags), fields, resume)
    if dry_run:
        _print_plan(plan)
    else:
        _print_result(run(plan), plan, json)


def _space_and_sampler(space: list[str] | None, sampler: str | None) -> dict[str, Any]:
    """Return the fields that --space and --sampler set; `--space record` is a sampler."""
    from model.errors import UserError

    if space is None or "record" not in space:
        return {"space": space, "sampler": sampler}
    if sampler not in (None, "record"):
        raise UserError(
            f"--space record: is a sampler of its own; leave out --sampler {sampler}, or give other --space"
        )
    return {"space": [text for text in space if text != "record"], "sampler": "record"}


def _flags(
    data: str | None,
    lr: float | None,
    alpha: float | None,
    seed: int | None,
    name: str | None,
    device: str | None,
    storage: str | None,
    wandb_project: str | None,
) -> dict[str, Any]:
    """Return the flags that set a field of the configuration, by its dotted name."""
    return {
        "data": data,
        "training.lr": lr,
        "training.alpha": alpha,
        "training.seed": seed,
        "run.name": name,
        "run.device": device,
        "run.storage": storage,
        "run.wandb_project": wandb_project,
    }


def _plan(preset: str | None, given: dict[str, Any], fields: dict[str, Any], resume: str | None) -> "SweepConfig":
    """Return the plan of a new or a resumed sweep.

    Args:
        preset: that all trials begin from.
        given: the configuration as a tree.
        fields: of the plan; None where one was not given.
        resume: name of a sweep to resume.
    """
    from distributed.sweep.plan import make_plan, new_sweep
    from distributed.sweep.state import resumed_sweep
    from model.config import RunConfig, make_config, merge
    from model.errors import UserError

    fields = {name: value for name, value in fields.items() if value is not None}
    if ignored := {"workers", "min_workers"} & given.get("run", {}).keys():
        raise UserError(f"run.{min(ignored)}: a trial's workers are given with --workers-per-trial")
    if resume is not None:
        run = given.pop("run", {})
        location = run.pop("storage", RunConfig().storage)
        if preset or "name" in run or any(given.values()):
            raise UserError(
                f"--resume {resume}: the sweep keeps its configuration, except for run.*; leave --data, other --set and the "
                f"like out"
            )
        return _without_settled(resumed_sweep(resume, location, fields, run), fields)
    if "epochs" in given.get("training", {}):
        raise UserError("training.epochs: a trial's epochs are given with --max-epochs")
    tree = over_preset(preset, {}, given.get("data"))
    training = tree.setdefault("training", {})
    of_preset = {"max_epochs": training["epochs"]} if "epochs" in training else {}
    training["patience"] = 0  # ASHA does the stopping
    merge(tree, given)
    # What a preset sets may still be searched.
    fixed = [f"{part}.{name}" for part in ("tagger", "training") for name in given.get(part, {})]
    plan = make_plan({"config": make_config(tree), "fixed": fixed, **of_preset, **fields})
    return new_sweep(_without_settled(plan, fields))


def _without_settled(plan: "SweepConfig", fields: dict[str, Any]) -> "SweepConfig":
    """Return a plan. Raises UserError where a field was given that its sampler would ignore."""
    from model.errors import UserError

    for name in plan.strategy.settles:
        if name in fields:
            raise UserError(
                f"--{name.replace('_', '-')} {fields[name]}: follows from --sampler {plan.sampler}; leave it out"
            )
    return plan


def _seconds(text: str) -> float:
    """Read `90s`, `30m` or `2h`. Raises UserError, also without a unit: minutes could be meant as well as seconds."""
    from model.errors import UserError

    units = {"s": 1, "m": 60, "h": 3600}
    try:
        return float(text[:-1]) * units[text[-1:]]
    except (ValueError, KeyError):
        raise UserError(f"--time-budget {text}: write it as 90s, 30m or 2h") from None


def run(plan: "SweepConfig") -> "TuneResult":
    """Run the sweep with progress output; where it is stopped, write a bundle and print how to resume it."""
    from distributed.sweep.results import read_result
    from distributed.sweep.state import sweep_exists
    from distributed.tune.driver import tune as run_sweep
    from distributed.tune.driver import write_best_bundle

    resume = invocation("tune", "--resume", f"{plan.config.run.name}", "--storage", plan.config.run.storage)

    def write_bundle() -> None:
        if not sweep_exists(plan.folder):
            echo("stopped before the sweep began")
            return
        if read_result(plan.folder):
            echo(f"stopped; {plan.folder} keeps the bundle of its result")
        else:
            echo("stopped; writing the bundle of the best trial so far ...")
            bundle = write_best_bundle(plan.folder)
            echo(f"bundle: {bundle}" if bundle else "no trial has finished an epoch yet: there is no bundle")
        echo(f"resume with: {resume}")

    with using_ray(write_bundle, f"; resume with: {resume}"), SweepProgress() as view:
        return run_sweep(plan, view.event)


def _print_plan(plan: "SweepConfig") -> None:
    from distributed.sweep.plan import dry_run
    from distributed.sweep.state import forecast_of

    print_json(dry_run(plan, forecast_of(plan)).as_dict())


def _print_result(result: "TuneResult", plan: "SweepConfig", json: bool) -> None:
    print_result("\n".join(_summary(result, plan)), result.as_dict(), json)


def _summary(result: "TuneResult", plan: "SweepConfig") -> list[str]:
    """Return the result as lines."""
    best = result.best
    values = ", ".join(f"{name} {value}" for name, value in best.config.items())
    lines = [
        f"{result.trials} trials: {result.stopped} stopped early, {result.failed} failed; "
        f"{result.epochs_spent} epochs of {result.epochs_full} in full",
        f"best: {best.trial}, valid keyphrase F1 {best.keyphrase_f1:.4f} ({best.low:.4f} to {best.high:.4f}) "
        f"at epoch {best.epoch:.0f}; {values}",
    ]
    if result.ablation:
        from distributed.report.ablation_table import as_text

        lines.append(as_text(result.ablation, plan.ranking))
    lines.append(result.verdict)
    if result.spent:
        lines.append(_spending_line(result.spent, result.stopped_by, plan))
    if result.test:
        test = result.test
        lines.append(
            f"test: keyphrase F1 {test['keyphrase_f1']:.4f} ({test['keyphrase_f1_low']:.4f} to "
            f"{test['keyphrase_f1_high']:.4f}), keyword F1 {test['keyword_f1']:.4f}"
        )
    if result.record:
        from distributed.sweep.record_runs import record_size

        runs, epochs = record_size()
        lines.append(f"the {runs} runs of the record, of {epochs} epochs in all, repeated in {result.epochs_spent}:")
        lines += map(_record_line, result.record)
    return [*lines, *(result.conclusions or ()), f"bundle: {result.bundle}", f"report: {result.report}"]


def _spending_line(spent: "Spent", stopped_by: str | None, plan: "SweepConfig") -> str:
    cost = "" if spent.cost is None else f", cost {spent.cost:.4g}"
    ended = {
        "budget": f"; the budget of {plan.budget} ended the sweep",
        "time_budget": "; the time budget ended the sweep",
    }
    return f"spent: {spent.cpu_hours:.4g} CPU hours, {spent.gpu_hours:.4g} GPU hours{cost}{ended.get(stopped_by or '', '')}"


def _record_line(row: "RecordRow") -> str:
    """Return a run of the record beside what repeats it, by the record's definition and by Tandem's."""

    def shown(value: float | None) -> str:
        return "     -" if value is None else f"{value:.4f}"

    recorded, repeated = (metrics.get("eval_sequence_precision") for metrics in (row.record, row.repeated))
    return (
        f"{row.series:<6} lr {row.lr:<6g} alpha {row.alpha:g} epochs {row.epochs:<2}  evaluation exact match of 64: "
        f"record {shown(recorded)}, here {shown(repeated)}  keyphrase F1 {shown(row.keyphrase_f1)}"
    )
