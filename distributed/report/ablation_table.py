"""The table of an ablation, as text, as Markdown and as cells."""

from distributed.sweep.ablation import fewest_seeds
from distributed.sweep.metric import Metric
from distributed.sweep.plan import SweepConfig
from distributed.sweep.results import AblationRow
from model.training.significance import SIGNIFICANCE_LEVEL, describe_test


def table(rows: list[AblationRow], metric: Metric) -> tuple[list[str], list[list[str]]]:
    """Return the names of the columns, and a line of cells for each row."""
    columns = ["row", metric.label, "against whole", "p", "seeds", "best epochs", "s/epoch"]
    return [*columns, "parameters: embedding", "network"], [_cells(row) for row in rows]


def _cells(row: AblationRow) -> list[str]:
    test, size, seeds = row.against_whole, row.parameters, len(row.seeds)
    return [
        row.row,
        "" if row.mean is None else f"{row.mean:.4f} ({row.low:.4f} to {row.high:.4f})",
        f"{test.difference:+.4f} ({test.low:+.4f} to {test.high:+.4f})" if test else "",
        f"{test.p:.3f}" if test else "",
        f"{seeds} of {seeds + len(row.lost)}" if row.lost else str(seeds),
        " ".join(map(str, row.best_epochs)),
        f"{row.seconds_per_epoch:.1f}" if row.seconds_per_epoch else "",
        *(f"{count / 1e6:.2f}M" if size else "" for count in ((size.embedding, size.network) if size else (0, 0))),
    ]


def caption(rows: list[AblationRow], plan: SweepConfig) -> str:
    """Return what the table's metrics are."""
    test = describe_test(fewest_seeds(rows))
    chance = f" Of 20 rows that change nothing, about one has p < {SIGNIFICANCE_LEVEL}." if plan.seeds > 1 else ""
    return (
        f"Rows differ from the whole by the field that they name. {plan.metric} of the best of {plan.max_epochs} epochs: the "
        f"mean over seeds and its 95 % interval; differences to the whole are tested {test}.{chance}"
    )


def missing_runs(rows: list[AblationRow]) -> list[str]:
    """Return a line for each training that a row lacks."""
    return [f"{row.row}: {line}" for row in rows for line in row.lost]


def as_text(rows: list[AblationRow], metric: Metric) -> str:
    """Return the table as lines of a terminal."""
    columns, cells = table(rows, metric)
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in (columns, *cells)
    ]
    return "\n".join([line.rstrip() for line in lines] + missing_runs(rows))


def as_markdown(rows: list[AblationRow], verdict: str, plan: SweepConfig) -> str:
    """Return the table as Markdown, with its caption, the verdict and what is missing."""
    columns, cells = table(rows, plan.ranking)
    lines = [columns, ["---"] * len(columns), *([f"`{line[0]}`", *line[1:]] for line in cells)]
    text = f"{caption(rows, plan)} Result: {verdict}."
    notes = [f"- {line}" for line in [*missing_runs(rows), *plan.left_out]]
    return "\n".join([*(f"| {' | '.join(line)} |" for line in lines), "", text, *([""] if notes else []), *notes, ""])
