"""One HTML file that shows a sweep or a run: it opens offline and loads nothing from elsewhere."""

import json
import statistics
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from distributed.report import ablation_table, charts
from distributed.report.record import record_beside, record_of_sweep
from distributed.report.samples import Section, sample_sections
from distributed.sweep.plan import SweepConfig
from distributed.sweep.results import AblationRow, TuneResult, read_result
from distributed.sweep.state import SweepState, read_sweep
from distributed.train.result import read_history
from model import storage
from model.config import make_config
from model.errors import UserError
from model.training.device_usage import usage_of
from model.training.loop import SELECTION_METRIC

_BEGINNING = b"<!doctype html>"


def write_report(folder: str, out: str | None = None) -> str:
    """Write the report of a sweep or a run, finished or not.

    Args:
        folder: of the sweep or run, a path or URI.
        out: the file; `report.html` in the folder otherwise.

    Returns:
        the location of the report.

    Raises:
        UserError: there is neither a sweep nor a run, a file of it is damaged, or `out` is another file than a report.
    """
    if out and storage.exists(out) and not storage.read(out).startswith(_BEGINNING):
        raise UserError(f"--out {out}: is a file that report did not write; name another")
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


def _sweep_page(sweep: SweepState, folder: str) -> Section:
    plan, metric = sweep.plan, sweep.plan.metric
    result = read_result(folder)
    # Those of a trial that failed, or that still runs, are not saved.
    spared = sum(trial.epochs - len(trial.metrics) for trial in sweep.searched if trial.state == "stopped")
    saved = spared / sweep.epochs_full if sweep.epochs_full else 0.0
    tiles = [
        ("trials", str(len(sweep.searched))),
        ("stopped early", str(sweep.count("stopped"))),
        ("failed", str(sweep.count("failed") + sweep.count("diverged"))),
        ("epochs", f"{sweep.epochs_spent} of {sweep.epochs_full}, {saved:.0%} saved"),
        ("time", f"{sweep.seconds / 60:.1f} min"),
        *_spending_tiles(sweep),
    ]
    sections = [
        (
            "Learning curves",
            "A cross marks where a trial was stopped; the best trial has a thick line.",
            charts.curves(sweep),
        ),
    ]
    if not plan.rows:
        text = "Each dot is a trial at its best epoch; large dots were trained longer."
        sections.append(("What was searched", text, charts.searched(sweep)))
    if sweep.plan.rungs:
        text = (
            f"ASHA compared the trials after {_list(sweep.plan.rungs)} epochs and let about 1 in {plan.eta:g} continue."
        )
        sections.append(("Rungs", text, charts.rungs(sweep)))
    if result and result.finalists:
        text = (
            f"{plan.seeds} fresh seeds each; bars are 95 % intervals of the mean over texts and seeds. The test is paired by "
            f"text, so that it may show a difference of two whose bars overlap. {result.verdict}."
        )
        sections.append(("Finalists", text, charts.finalists(result.finalists, metric)))
    return {
        "title": f"Sweep {plan.config.run.name}",
        "headline": _headline(sweep, result),
        "tiles": tiles,
        "sections": [(name, text, charts.as_html(figure)) for name, text, figure in sections],
        "ablation": _ablation(result.ablation, plan) if result and result.ablation else None,
        "table": _trials_table(sweep),
        "record": record_of_sweep(sweep),
        **sample_sections(folder, plan.config.data),
        "config": json.dumps(plan.model_dump(), indent=2),
    }


def _run_page(folder: str) -> Section:
    config = make_config(_json(folder, "config.json"), f"{folder}/config.json")
    history = read_history(folder)
    if not history:
        raise UserError(f"{folder}: the run has not finished an epoch yet; there is nothing to report")
    best = max(history, key=lambda metrics: metrics[SELECTION_METRIC])
    speed = statistics.median(metrics["train/tokens_per_s"] for metrics in history)
    names = {
        "epoch": "epoch",
        "valid/keyphrase_f1": "keyphrase F1",
        "valid/keyphrase_precision": "precision",
        "valid/keyphrase_recall": "recall",
        "valid/keyword_f1": "keyword F1",
        "train/loss": "training loss",
        "valid/loss": "validation loss",
        "train/seconds": "seconds",
        "device/peak_memory_mb": "peak MB",
        "device/utilization": "utilization",
    }
    rows = [[charts.cell(metrics.get(name)) for name in names] for metrics in history]
    return {
        "title": f"Run {config.run.name}",
        "headline": f"best epoch {best['epoch']:.0f}: valid keyphrase F1 {charts.interval(best)}",
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
        "record": record_beside(f"run {config.run.name}", history),
        **sample_sections(folder, config.data),
        "config": json.dumps(config.model_dump(), indent=2),
    }


def _headline(sweep: SweepState, result: TuneResult | None) -> str:
    sentence = result.verdict if result else "the sweep is not finished"
    best = sweep.best
    if best is None:
        return sentence
    metrics = best.best(sweep.plan.metric)
    assert metrics is not None
    text = f"{sentence}. Best trial {best.name}: valid keyphrase F1 {charts.interval(metrics)} at epoch {metrics['epoch']:.0f}"
    if result and result.test:
        test = {f"valid/{name}": value for name, value in result.test.items()}
        text += f"; bundle on the test split: keyphrase F1 {charts.interval(test)}"
    return text


def _ablation(rows: list[AblationRow], plan: SweepConfig) -> Section:
    columns, cells = ablation_table.table(rows, plan.ranking)
    missing = ablation_table.missing_runs(rows)
    return {"text": ablation_table.caption(rows, plan), "columns": columns, "rows": cells, "lost": missing}


def _trials_table(sweep: SweepState) -> Section:
    metric = sweep.plan.metric
    names = list(dict.fromkeys(name for trial in sweep.searched for name in trial.values))
    shown = {
        metric: f"best {sweep.plan.ranking.label}",
        "valid/keyphrase_f1_low": "F1 from",
        "valid/keyphrase_f1_high": "to",
        "epoch": "at epoch",
        "valid/keyword_f1": "keyword F1",
    }
    trials = [*sweep.ranked, *sweep.finalists]
    troubled = any(trial.retries or trial.error for trial in trials)
    rows = []
    for trial in trials:
        best, usage = trial.best(metric) or {}, usage_of(trial.metrics)
        rows.append(
            [trial.name, trial.state, *(charts.cell(trial.values.get(name)) for name in names)]
            + [f"{len(trial.metrics)}/{trial.epochs}", *(charts.cell(best.get(name)) for name in shown)]
            + [charts.cell(value) for value in ((usage.peak_memory_mb, usage.utilization) if usage else (None, None))]
            + ([trial.retries, trial.error or ""] if troubled else [])
        )
    columns = ["trial", "state", *(name.rpartition(".")[2] for name in names), "epochs", *shown.values()]
    columns += ["peak MB", "utilization"]
    return {"title": "Trials", "columns": columns + (["retries", "why"] if troubled else []), "rows": rows}


def _spending_tiles(sweep: SweepState) -> list[tuple[str, str]]:
    """Return what was spent, and the budget where there is one; nothing of a sweep that did not count it."""
    spent, budget = sweep.spent.as_result(sweep.plan.price), sweep.plan.allowance
    hours = {"GPU hours": spent.gpu_hours, "CPU hours": spent.cpu_hours}
    tiles = [(kind, f"{value:.4g}") for kind, value in hours.items() if value]
    if spent.cost is not None:
        tiles.append(("cost", f"{spent.cost:.4g}"))
    if budget is not None:
        tiles.append(("budget", budget.show(budget.amount)))
    return tiles


def _list(numbers: list[int]) -> str:
    return " and ".join(filter(None, [", ".join(str(n) for n in numbers[:-1]), str(numbers[-1])]))


def _json(folder: str, name: str) -> Section:
    location = storage.join(folder, name)
    if not storage.exists(location):
        return {}
    try:
        return json.loads(storage.read(location))
    except ValueError as error:
        raise UserError(f"{location}: is damaged: {error}") from None
