"""`python -m jobs train`: dataset directory -> run folder with a bundle, on Ray Train."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs.console import command, echo, invocation, print_json, print_result, table, using_ray
from jobs.progress import TrainingProgress

if TYPE_CHECKING:
    from distributed.train.result import TrainResult
    from model.config import Config

TeacherOption = Annotated[
    list[str] | None, typer.Option(help="training.teacher: texts that label has labeled; may be given again.")
]


@command
def train(
    data: Annotated[str | None, typer.Option(help="Dataset directory made by prepare.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; made from the time otherwise.")] = None,
    resume: Annotated[str | None, typer.Option(help="Name of a run to resume from its last checkpoint.")] = None,
    preset: Annotated[str | None, typer.Option(help="record (the defaults), best or encoder.")] = None,
    config: Annotated[str | None, typer.Option(help="Configuration file, YAML or JSON.")] = None,
    set: Annotated[list[str] | None, typer.Option(help="A field by its dotted name, as in training.lr=0.002.")] = None,
    lr: Annotated[float | None, typer.Option(help="training.lr: learning rate.")] = None,
    alpha: Annotated[float | None, typer.Option(help="training.alpha: weight of the keyword loss.")] = None,
    epochs: Annotated[int | None, typer.Option(help="training.epochs: passes over the data at most.")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", "--batch", help="training.global_batch_size: texts in a step, over all workers."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="training.seed.")] = None,
    cell: Annotated[str | None, typer.Option(help="tagger.cell: rnn, gru, lstm or none.")] = None,
    teacher: TeacherOption = None,
    workers: Annotated[
        str | None,
        typer.Option(
            help="run.workers: processes that share each batch; 2:8 continues with as few as 2 where nodes are lost."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="run.device: auto, cpu or cuda.")] = None,
    storage: Annotated[str | None, typer.Option(help="run.storage: where run folders are, a path or URI.")] = None,
    wandb_project: Annotated[
        str | None, typer.Option("--wandb-project", "--project", help="run.wandb_project: W&B project.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the configuration and the resources; run nothing.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Train a tagger on a dataset directory; the cluster is the one of RAY_ADDRESS, else this machine.

    A value given by a flag wins over --set, which wins over the configuration file, which wins
    over the preset.
    """
    flags = {
        "data": data,
        "training.lr": lr,
        "training.alpha": alpha,
        "training.epochs": epochs,
        "training.global_batch_size": batch_size,
        "training.seed": seed,
        "tagger.cell": cell,
        "training.teacher": teacher or None,
        "run.name": name,
        **_workers(workers),
        "run.device": device,
        "run.storage": storage,
        "run.wandb_project": wandb_project,
    }
    given = merge_sources(config, set or [], flags)
    resolved = resolve(over_preset(preset, given, given.get("data")), resume)
    if dry_run:
        from distributed.train.preflight import dry_run as plan

        print_json(plan(resolved))
    else:
        _print_result(run(resolved), resolved, json)


def _print_result(result: "TrainResult", config: "Config", json: bool) -> None:
    echo(f"next: {invocation('evaluate', result.bundle, '--data', config.data)}")
    bundle = f"bundle: {result.bundle} (epoch {result.best_epoch} of {result.epochs})"
    print_result(f"{table(result.valid)}\n{bundle}", result.as_json(), json)


def _workers(text: str | None) -> dict[str, int]:
    """Parse `4`, or `2:8` for the fewest and the most. Raises UserError."""
    from model.errors import UserError

    if text is None:
        return {}
    fewest, sign, most = text.rpartition(":")
    try:
        return ({"run.min_workers": int(fewest)} if sign else {}) | {"run.workers": int(most)}
    except ValueError:
        raise UserError(f"--workers {text}: write it as 4, or as 2:8 for the fewest and the most") from None


def merge_sources(path: str | None, assignments: list[str], flags: Mapping[str, object]) -> dict[str, Any]:
    """Return the tree of the values given: by file, then by --set, then by flag; the last wins."""
    from model.config import assign, merge, read_config, set_dotted

    tree: dict[str, Any] = {}
    if path:
        merge(tree, read_config(path))
    for assignment in assignments:
        assign(tree, assignment)
    for dotted, value in flags.items():
        if value is not None:
            set_dotted(tree, dotted, value)
    return tree


def over_preset(preset: str | None, given: dict[str, Any], data: object) -> dict[str, Any]:
    """Return what a preset sets, with the values given in its place.

    Args:
        preset: its name, if there is one.
        given: values by name.
        data: dataset whose size the preset fits, unless labels of a teacher add to it. None: a large one.

    Raises:
        UserError: there is no such preset or dataset.
    """
    from model.config import merge
    from model.data.dataset import Dataset
    from model.presets import preset_values

    if preset is None:
        return given
    alone = isinstance(data, str) and not (given.get("training") or {}).get("teacher")
    tree = preset_values(preset, Dataset(str(data)).rows("train") if alone else None)
    merge(tree, given)
    return tree


def resolve(tree: dict[str, Any], resume: str | None) -> "Config":
    """Return the configuration of the run to start or resume."""
    from distributed.train.runs import new_run, resumed_run
    from model.config import RunConfig, make_config

    if resume is None:
        return new_run(make_config(tree))
    location = tree.get("run", {}).get("storage", RunConfig().storage)
    return resumed_run(resume, location, tree)


def run(config: "Config") -> "TrainResult":
    """Train with progress output; where the training is stopped, print how to resume it."""
    from distributed.train.driver import train as fit
    from distributed.train.runs import run_exists

    def say_how_to_resume() -> None:
        if run_exists(config):
            resume = invocation("train", "--resume", f"{config.run.name}", "--storage", config.run.storage)
            echo(f"stopped; resume with: {resume}")
        else:
            echo("stopped before the run began")

    with using_ray(say_how_to_resume), TrainingProgress(config.training.epochs) as progress:
        return fit(config, progress.event)
