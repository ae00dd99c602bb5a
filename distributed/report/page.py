"""One HTML file that shows a sweep or a run: it opens offline and loads nothing from elsewhere."""

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from distributed.report import charts
from distributed.report.samples import sample_sections
from distributed.sweep import ablation, comparison
from distributed.sweep.plan import SweepConfig
from distributed.sweep.record_runs import RUNS
from distributed.sweep.state import SweepState, Trial, read_sweep
from model import storage
from model.aliases import RESULTS, current_keys
from model.config import make_config
from model.errors import UserError
from model.training.loop import SELECTION_METRIC


def write_report(folder: str, out: str | None = None) -> str:
    """Writes the report of a sweep or a run, finished or not.

    Args:
        folder: of the sweep or run, a path or URI.
        out: the file; `report.html` in the folder otherwise.

    Returns:
        Where the report is.

    Raises:
        UserError: there is neither a sweep nor a run, or a file of it is damaged.
    """
    if storage.exists(storage.join(folder, "sweep.json")):
        page = _sweep_page(read_sweep(folder), folder)
    elif storage.exists(storage.join(folder, "config.json")):
        page = _run_page(folder)
    else:
        raise UserError(f"{folder}: is neither a sweep nor a run; give the folder that train or tune wrote")
    out = out or storage.join(folder, "report.html")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = environment.get_template("page.html").render(plotly=Markup(get_plotlyjs()), **page)
    storage.write(out, html.encode())
    return out


def _sweep_page(sweep: SweepState, folder: str) -> dict[str, Any]:
    plan, metric = sweep.plan, sweep.plan.metric
    result = _json(folder, "result.json")
    best = sweep.best
    saved = 1 - sweep.epochs_spent / sweep.epochs_full if sweep.epochs_full else 0.0
    tiles = [
        ("trials", str(len(sweep.searched))),
        ("stopped early", str(sweep.count("stopped"))),
        ("failed", str(sweep.count("failed") + sweep.count("diverged"))),
        ("epochs", f"{sweep.epochs_spent} of {sweep.epochs_full}, {saved:.0%} saved"),
        ("time", f"{sweep.seconds / 60:.1f} min"),
    ]
    sections = [
        (
            "Learning curves",
            "A cross marks where a trial was stopped; the best trial is drawn thick.",
            charts.curves(sweep),
        ),
    ]
    if not plan.rows:
        text = "Each dot is a trial at its best epoch; large dots were trained longer."
        sections.append(("What was searched", text, charts.searched(sweep)))
    if sweep.plan.rungs:
        text = f"ASHA compared the trials after {_list(sweep.plan.rungs)} epochs and let about 1 in {plan.eta:g} go on."
        sections.append(("Rungs", text, charts.rungs(sweep)))
    if result.get("finalists"):
        text = (
            f"{plan.seeds} fresh seeds each; bars are 95 % intervals of the mean over texts and seeds. The test is paired by "
            f"text, so that it may tell two apart whose bars overlap. {result['verdict']}."
        )
        sections.append(
            ("Finalists", text, charts.finalists([current_keys(each, RESULTS) for each in result["finalists"]], metric))
        )
    return {
        "title": f"Sweep {plan.config.run.name}",
        "headline": _headline(result.get("verdict") or "the sweep is not finished", best, metric, result.get("test")),
        "tiles": tiles,
        "sections": [(name, text, charts.as_html(figure)) for name, text, figure in sections],
        "ablation": _ablation(result["ablation"], plan) if "ablation" in result else None,
        "table": _trials_table(sweep),
        "record": _record_of_sweep(sweep),
        **sample_sections(folder, plan.config.data),
        "config": json.dumps(plan.model_dump(), indent=2),
    }


def _run_page(folder: str) -> dict[str, Any]:
    config = make_config(_json(folder, "config.json"), f"{folder}/config.json")
    location = storage.join(folder, "metrics.jsonl")
    lines = storage.read(location).decode().splitlines() if storage.exists(location) else []
    if not lines:
        raise UserError(f"{folder}: the run has not finished an epoch yet; there is nothing to report")
    history = [json.loads(line) for line in lines]
    best = max(history, key=lambda metrics: metrics[SELECTION_METRIC])
    speed = sorted(metrics["train/tokens_per_s"] for metrics in history)[len(history) // 2]
    names = {
        "epoch": "epoch",
        "valid/keyphrase_f1": "keyphrase F1",
        "valid/keyphrase_precision": "precision",
        "valid/keyphrase_recall": "recall",
        "valid/keyword_f1": "keyword F1",
        "train/loss": "training loss",
        "valid/loss": "validation loss",
        "train/seconds": "seconds",
    }
    rows = [[charts.cell(metrics[name]) for name in names] for metrics in history]
    return {
        "title": f"Run {config.run.name}",
        "headline": f"best epoch {best['epoch']:.0f}: valid keyphrase F1 {_interval(best)}",
        "tiles": [
            ("epochs", f"{len(history)} of {config.training.epochs}"),
            ("keyword F1", f"{best['valid/keyword_f1']:.4f}"),
            ("speed", f"{speed:,.0f} tokens/s"),
        ],
        "sections": [
            (
                "F1 on the validation split",
                "The band is the 95 % interval over texts.",
                charts.as_html(charts.f1_curves(history)),
            ),
            (
                "Losses",
                "Means per token; the two heads and their sum as it is trained.",
                charts.as_html(charts.losses(history)),
            ),
        ],
        "table": {"title": "Epochs", "columns": list(names.values()), "rows": rows},
        "record": _record_beside(f"run {config.run.name}", history),
        **sample_sections(folder, config.data),
        "config": json.dumps(config.model_dump(), indent=2),
    }


def _headline(sentence: str, best: Trial | None, metric: str, test: dict[str, float] | None) -> str:
    if best is None:
        return sentence
    metrics = best.best(metric)
    assert metrics is not None
    text = (
        f"{sentence}. Best trial {best.name}: valid keyphrase F1 {_interval(metrics)} at epoch {metrics['epoch']:.0f}"
    )
    if test:
        text += (
            f"; bundle on the test split: keyphrase F1 {test['keyphrase_f1']:.4f} "
            f"({test['keyphrase_f1_low']:.4f} to {test['keyphrase_f1_high']:.4f})"
        )
    return text


def _interval(metrics: dict[str, float]) -> str:
    low, high = metrics["valid/keyphrase_f1_low"], metrics["valid/keyphrase_f1_high"]
    return f"{metrics['valid/keyphrase_f1']:.4f} ({low:.4f} to {high:.4f})"


def _ablation(rows: list[ablation.Row], plan: SweepConfig) -> dict[str, Any]:
    columns, cells = ablation.table(rows, plan.metric)
    return {"text": ablation.caption(plan), "columns": columns, "rows": cells, "lost": ablation.missing_runs(rows)}


def _trials_table(sweep: SweepState) -> dict[str, Any]:
    metric = sweep.plan.metric
    names = list(dict.fromkeys(name for trial in sweep.searched for name in trial.values))
    shown = {
        metric: f"best {metric.rpartition('/')[2].replace('_', ' ')}",
        "valid/keyphrase_f1_low": "F1 from",
        "valid/keyphrase_f1_high": "to",
        "epoch": "at epoch",
        "valid/keyword_f1": "keyword F1",
    }
    trials = [*sweep.ranked, *sweep.finalists]
    troubled = any(trial.retries or trial.error for trial in trials)
    rows = []
    for trial in trials:
        best = trial.best(metric) or {}
        rows.append(
            [trial.name, trial.state, *(charts.cell(trial.values.get(name)) for name in names)]
            + [f"{len(trial.metrics)}/{trial.epochs}", *(charts.cell(best.get(name)) for name in shown)]
            + ([trial.retries, trial.error or ""] if troubled else [])
        )
    columns = ["trial", "state", *(name.rpartition(".")[2] for name in names), "epochs", *shown.values()]
    return {"title": "Trials", "columns": columns + (["retries", "why"] if troubled else []), "rows": rows}


def _record_of_sweep(sweep: SweepState) -> dict[str, Any]:
    if not sweep.plan.strategy.repeats_record:
        best = sweep.best
        return _record_beside(best.name if best else "no trial", best.metrics if best else [])
    rows = []
    for row in comparison.record_rows(sweep):
        ours = (
            f"{row['keyphrase_f1']:.4f} ({row['low']:.4f} to {row['high']:.4f})"
            if row["keyphrase_f1"] is not None
            else ""
        )
        rows.append(
            [
                *(charts.cell(row[name]) for name in ("series", "lr", "alpha", "epochs")),
                *_pairs(row["record"], row["repeated"]),
                ours,
            ]
        )
    return {
        "text": "Each run of the hand-made record and what repeats it here, by the record's own definitions (a last batch of "
        "64 texts) and by ours (the whole validation split).",
        "conclusions": comparison.record_conclusions(),
        "columns": ["series", "lr", "alpha", "epochs", *_PAIR_COLUMNS, "our keyphrase F1"],
        "rows": rows,
    }


_COMPARED = {
    "eval_sequence_precision": "evaluation exact match",
    "train_sequence_f1": "training F1",
    "train_total_loss": "training loss",
}
_PAIR_COLUMNS = [f"{who} {name}" for name in _COMPARED.values() for who in ("record", "here")]


def _pairs(record: dict[str, Any], here: dict[str, Any]) -> list[str]:
    return [charts.cell(source.get(name, "")) for name in _COMPARED for source in (record, here)]


def _record_beside(name: str, history: list[dict[str, float]]) -> dict[str, Any]:
    """The record's epochs series beside a curve, epoch by epoch."""
    rows = []
    for run in RUNS:
        if run.series == "epochs" and run.epochs <= len(history):
            metrics = history[run.epochs - 1]
            rows.append([run.epochs, *_pairs(run._asdict(), metrics), _interval(metrics)])
    return {
        "text": f"The hand-made record's series over epochs (lr 0.001, alpha 0.3, its own data) beside the curve of {name}, by "
        "the record's definitions (a last batch of 64 texts) and by ours (the whole validation split). The data differ, so "
        "the levels do not compare; what compares is how far the figures of neighbouring epochs jump.",
        "conclusions": comparison.record_conclusions()[2:],
        "columns": ["epochs", *_PAIR_COLUMNS, "our keyphrase F1"],
        "rows": rows,
    }


def _list(numbers: list[int]) -> str:
    return " and ".join(filter(None, [", ".join(str(n) for n in numbers[:-1]), str(numbers[-1])]))


def _json(folder: str, name: str) -> dict[str, Any]:
    location = storage.join(folder, name)
    if not storage.exists(location):
        return {}
    try:
        return json.loads(storage.read(location))
    except ValueError as error:
        raise UserError(f"{location}: is damaged: {error}") from None
