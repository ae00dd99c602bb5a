"""What an ablation shows: each row's mean over seeds, its difference to the whole, and the table of both."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from distributed.sweep.ablation_rows import FULL
from distributed.sweep.plan import SweepConfig
from distributed.sweep.state import SweepState, Trial
from distributed.train.checkpoint import load_best
from model import storage
from model.config import TaggerConfig
from model.data.dataset import Dataset
from model.network.tagger import Tagger
from model.training.metrics import Counts
from model.training.significance import SIGNIFICANCE_LEVEL, bootstrap_means, describe_test, paired_bootstrap_test

Row = dict[str, Any]


def keep_counts(sweep: SweepState, trial: Trial) -> None:
    """Keeps a trial's counts on each validation text, before its weights are removed. Raises OSError."""
    place = _counts_place(sweep, trial)
    if not storage.exists(place):
        content = io.BytesIO()
        np.savez_compressed(content, counts=load_best(sweep.folder_of(trial))[1])
        storage.write(place, content.getvalue())


def _counts_of(sweep: SweepState, trial: Trial) -> Counts:
    """The counts (texts, 8) of a trial's best epoch. Raises FileNotFoundError."""
    place = _counts_place(sweep, trial)
    if not storage.exists(place):  # the leader, whose weights are there
        return load_best(sweep.folder_of(trial))[1]
    with np.load(io.BytesIO(storage.read(place)), allow_pickle=False) as file:
        return file["counts"]


def _counts_place(sweep: SweepState, trial: Trial) -> str:
    return storage.join(sweep.plan.folder, "counts", f"{trial.name}.npz")


def compare_rows(sweep: SweepState) -> tuple[list[Row], str]:
    """Compares the rows with the whole by a paired bootstrap over validation texts and seeds.

    Returns:
        the rows, the whole first and the others by their mean; and one sentence. A row has `row`, `values` (what differs from
        the whole), `seeds`, and of each seed that was trained in full `scores` and `best_epochs`; `mean`, `low`, `high` and
        `against_whole` (None where there is nothing to compare); `seconds_per_epoch`, `parameters`, and in `lost` a line
        for each seed that is missing.
    """
    plan = sweep.plan
    trained = {
        name: [trial for trial in sweep.searched if trial.series == name and trial.state == "finished"]
        for name in plan.rows
    }
    means = {
        name: float(np.mean([trial.best_score(plan.metric) for trial in seeds]))
        for name, seeds in trained.items()
        if seeds
    }
    head, figure = plan.metric.removeprefix("valid/").split("_", 1)
    draws: dict[str, npt.NDArray[np.float64]] = {}
    if means:
        counts = [[_counts_of(sweep, trial) for trial in trained[name]] for name in means]
        draws = dict(zip(means, bootstrap_means(counts, head, figure).T, strict=True))
    words = Dataset(plan.config.data).info["words"]
    rows = [_about(sweep, name, seeds, words) for name, seeds in trained.items()]
    for row in rows:
        name = row["row"]
        if name not in means:
            continue
        low, high = np.percentile(draws[name], [2.5, 97.5])
        row |= {"mean": means[name], "low": float(low), "high": float(high)}
        if name != FULL and FULL in means:
            row["against_whole"] = paired_bootstrap_test(draws[name], draws[FULL], means[name] - means[FULL])._asdict()
    rows.sort(key=lambda row: (row["row"] != FULL, row["mean"] is None, -(row["mean"] or 0.0)))
    return rows, _sentence(rows, describe_test(plan.seeds))


def _about(sweep: SweepState, name: str, trained: list[Trial], words: int) -> Row:
    """A row without what is compared."""
    plan = sweep.plan
    best = [metrics for trial in trained if (metrics := trial.best(plan.metric))]
    seconds = [metrics["train/seconds"] for trial in trained for metrics in trial.metrics]
    begun = [trial for trial in sweep.searched if trial.series == name]
    lost = [
        f"{trial.name} (seed {trial.values['training.seed']}) {trial.state}"
        + (f": {trial.error}" if trial.error else "")
        for trial in begun
        if trial not in trained
    ]
    return {
        "row": name,
        "values": plan.rows[name],
        "seeds": [trial.values["training.seed"] for trial in trained],
        "scores": [metrics[plan.metric] for metrics in best],
        "mean": None,
        "low": None,
        "high": None,
        "against_whole": None,
        "best_epochs": [int(metrics["epoch"]) for metrics in best],
        "seconds_per_epoch": round(float(np.mean(seconds)), 3) if seconds else None,
        "parameters": parameters(sweep.config_of(begun[0]).tagger, words) if begun else None,
        "lost": lost + ["a seed was not begun"] * (plan.seeds - len(begun)),
    }


def parameters(config: TaggerConfig, words: int) -> dict[str, int]:
    """How many numbers a tagger learns: in its tables, of which a step touches few rows, and in its network."""
    with torch.device("meta"):  # shapes alone
        tagger = Tagger(config, words)
    tables = sum(table.weight.numel() for table in tagger.tables)
    return {"embedding": tables, "network": sum(each.numel() for each in tagger.parameters()) - tables}


def _sentence(rows: list[Row], by: str) -> str:
    tested = [row for row in rows if row["against_whole"]]
    if not tested:
        return "no row can be compared with the whole: too few trainings came to their end"
    differ = [row for row in tested if row["against_whole"]["p"] < SIGNIFICANCE_LEVEL]
    parts = []
    if differ:
        named = ", ".join(f"{row['row']} ({row['against_whole']['difference']:+.4f})" for row in differ)
        verb = "differs" if len(differ) == 1 else "differ"
        parts.append(f"{named} {verb} from the whole, p < {SIGNIFICANCE_LEVEL} {by}")
    if same := [row["row"] for row in tested if row not in differ]:
        parts.append(f"no difference is shown for {', '.join(same)}")
    if missing := [row["row"] for row in rows if row["mean"] is None]:
        parts.append(f"there is no figure for {', '.join(missing)}")
    return "; ".join(parts)


def table(rows: list[Row], metric: str) -> tuple[list[str], list[list[str]]]:
    """The rows as they are shown: names of the columns, and a line of cells for each."""
    figure = metric.removeprefix("valid/").replace("_", " ").replace("f1", "F1")
    columns = [figure, "against whole", "p", "seeds", "best epochs", "s/epoch"]
    lines = []
    for row in rows:
        test, size, seeds = row["against_whole"], row["parameters"], len(row["seeds"])
        lines.append(
            [
                row["row"],
                "" if row["mean"] is None else f"{row['mean']:.4f} ({row['low']:.4f} to {row['high']:.4f})",
                f"{test['difference']:+.4f} ({test['low']:+.4f} to {test['high']:+.4f})" if test else "",
                f"{test['p']:.3f}" if test else "",
                f"{seeds} of {seeds + len(row['lost'])}" if row["lost"] else str(seeds),
                " ".join(map(str, row["best_epochs"])),
                f"{row['seconds_per_epoch']:.1f}" if row["seconds_per_epoch"] else "",
                *(f"{size[part] / 1e6:.2f}M" if size else "" for part in ("embedding", "network")),
            ]
        )
    return ["row", *columns, "parameters: embedding", "network"], lines


def caption(plan: SweepConfig) -> str:
    """What the table's figures are."""
    chance = f" Of 20 rows that change nothing, about one has p < {SIGNIFICANCE_LEVEL}." if plan.seeds > 1 else ""
    return (
        f"Rows differ from the whole by the field that they name. {plan.metric} of the best of {plan.max_epochs} epochs: the "
        f"mean over seeds and its 95 % interval; differences to the whole are tested {describe_test(plan.seeds)}.{chance}"
    )


def missing_runs(rows: list[Row]) -> list[str]:
    """A line for each training that a row lacks."""
    return [f"{row['row']}: {line}" for row in rows for line in row["lost"]]


def as_text(rows: list[Row], metric: str) -> str:
    """The table as lines of a terminal."""
    columns, cells = table(rows, metric)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in (columns, *cells)
    ]
    return "\n".join([line.rstrip() for line in lines] + missing_runs(rows))


def as_markdown(rows: list[Row], verdict: str, plan: SweepConfig) -> str:
    """The table as Markdown, with what it needs to be read."""
    columns, cells = table(rows, plan.metric)
    lines = [columns, ["---"] * len(columns), *([f"`{line[0]}`", *line[1:]] for line in cells)]
    text = f"{caption(plan)} Result: {verdict}."
    notes = [f"- {line}" for line in [*missing_runs(rows), *plan.left_out]]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", text, *([""] if notes else []), *notes, ""])
