"""The owner's record beside a sweep or a run, in the report."""

from collections.abc import Mapping

from distributed.report import charts
from distributed.report.samples import Section
from distributed.sweep import comparison
from distributed.sweep.record_runs import RUNS, record_size
from distributed.sweep.state import SweepState

_COMPARED = {
    "eval_sequence_precision": "evaluation exact match",
    "train_sequence_f1": "training F1",
    "train_total_loss": "training loss",
}
_PAIR_COLUMNS = [f"{who} {name}" for name in _COMPARED.values() for who in ("record", "here")]


def record_of_sweep(sweep: SweepState) -> Section:
    """Return the owner's record beside a sweep: run by run where it repeats the record, else beside its best curve."""
    if not sweep.plan.strategy.repeats_record:
        best = sweep.best
        return record_beside(best.name if best else "no trial", best.metrics if best else [])
    runs, epochs = record_size()
    rows = []
    for row in comparison.record_rows(sweep):
        ours = "" if row.keyphrase_f1 is None else f"{row.keyphrase_f1:.4f} ({row.low:.4f} to {row.high:.4f})"
        rows.append(
            [
                *(charts.cell(value) for value in (row.series, row.lr, row.alpha, row.epochs)),
                *_pairs(row.record, row.repeated),
                ours,
            ]
        )
    return {
        "text": f"The {runs} runs of the hand-made record, of {epochs} epochs in all, and what repeats them here in "
        f"{sweep.plan.epochs_planned}: by the record's own definitions (a last batch of 64 texts) and by ours (the whole "
        "validation split). The run of one epoch that belongs to two series is shown in both.",
        "conclusions": comparison.record_conclusions(),
        "columns": ["series", "lr", "alpha", "epochs", *_PAIR_COLUMNS, "our keyphrase F1"],
        "rows": rows,
    }


def _pairs(record: Mapping[str, float | None], here: Mapping[str, float | None]) -> list[str]:
    return [charts.cell(source.get(name, "")) for name in _COMPARED for source in (record, here)]


def record_beside(name: str, history: list[dict[str, float]]) -> Section:
    """Return the record's epochs series beside a curve, epoch by epoch."""
    rows = []
    for run in RUNS:
        if run.series == "epochs" and run.epochs <= len(history):
            metrics = history[run.epochs - 1]
            rows.append([run.epochs, *_pairs(run.metrics(), metrics), charts.interval(metrics)])
    return {
        "text": f"The hand-made record's series over epochs (lr 0.001, alpha 0.3, its own data) beside the curve of {name}, by "
        "the record's definitions (a last batch of 64 texts) and by ours (the whole validation split). The data differ, so "
        "the levels do not compare; what compares is how much the metrics of neighboring epochs differ.",
        "conclusions": comparison.record_conclusions()[2:],
        "columns": ["epochs", *_PAIR_COLUMNS, "our keyphrase F1"],
        "rows": rows,
    }
