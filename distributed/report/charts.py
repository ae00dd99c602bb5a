"""The charts of a report."""

from collections.abc import Mapping

import plotly.graph_objects as go
from markupsafe import Markup, escape

from distributed.sweep.results import Finalist
from distributed.sweep.state import SweepState, Trial

_BLUE, _GREEN, _GREY, _RED, _BLACK = "#2563eb", "#059669", "#9ca3af", "#dc2626", "#111827"
_SCALE = "Viridis"


def curves(sweep: SweepState) -> go.Figure:
    """Return the metric of each trial over its epochs."""
    metric, best = sweep.plan.metric, sweep.best
    figure = go.Figure()
    marks = {"stopped": "x", "diverged": "x-open", "failed": "x-open"}
    for trial in sweep.searched:
        if not trial.metrics:
            continue
        leading = trial is best
        color = _BLUE if leading else _RED if trial.state in ("diverged", "failed") else _GREY
        symbols = ["circle"] * (len(trial.metrics) - 1) + [marks.get(trial.state, "circle")]
        figure.add_scatter(
            x=[metrics["epoch"] for metrics in trial.metrics],
            y=[metrics[metric] for metrics in trial.metrics],
            mode="lines+markers",
            line={"color": color, "width": 3 if leading else 1.2},
            marker={"symbol": symbols, "size": [4] * (len(trial.metrics) - 1) + [9], "color": color},
            name=trial.name,
            hovertemplate=f"{_about(trial)}<br>epoch %{{x}}: %{{y:.4f}}<extra>{trial.state}</extra>",
        )
    for rung in sweep.plan.rungs:
        figure.add_vline(x=rung, line={"color": _GREY, "dash": "dot", "width": 1})
    figure.update_xaxes(title="epoch", dtick=1 if sweep.plan.max_epochs <= 20 else None)
    figure.update_yaxes(title=metric, rangemode="tozero")
    return figure.update_layout(showlegend=False)


def searched(sweep: SweepState) -> go.Figure:
    """Return the trials in the plane of the first two searched fields, coloured by the metric."""
    metric = sweep.plan.metric
    trials = [trial for trial in sweep.searched if trial.metrics]
    names = list(dict.fromkeys(name for trial in trials for name in trial.values))
    names.sort(key=lambda name: {"training.lr": 0, "training.alpha": 1}.get(name, 2))
    scores = [max(trial.best_score(metric), 0.0) for trial in trials]
    across = names[0] if names else "training.lr"
    up = names[1] if len(names) > 1 else None
    figure = go.Figure(
        go.Scatter(
            x=[trial.values.get(across) for trial in trials],
            y=[trial.values.get(up) for trial in trials] if up else scores,
            mode="markers",
            marker={
                "color": scores,
                "colorscale": _SCALE,
                "cmin": 0.6 * max(scores, default=0.0),  # the worst are dark; the good ones can be told apart
                "cmax": max(scores, default=1.0),
                "showscale": True,
                "colorbar": {"title": {"text": sweep.plan.ranking.label}},
                "size": [9 + 13 * len(trial.metrics) / trial.epochs for trial in trials],
                "line": {"width": 1, "color": "white"},
            },
            hovertemplate=[
                f"{_about(trial)}<br>best {score:.4f}<extra>{trial.state}</extra>"
                for trial, score in zip(trials, scores, strict=True)
            ],
        )
    )
    log = across == "training.lr" or f"{across}=log" in " ".join(sweep.plan.space)
    figure.update_xaxes(title=across)
    if log:
        figure.update_xaxes(type="log", tickvals=[m * 10**k for k in range(-7, 5) for m in (1, 2, 5)], tickformat="~g")
    return figure.update_yaxes(title=up or metric)


def rungs(sweep: SweepState) -> go.Figure:
    """Return how many trials reached each rung and continued."""
    reached = [sum(len(trial.metrics) >= rung for trial in sweep.searched) for rung in sweep.plan.rungs]
    stopped = [
        sum(trial.state == "stopped" and len(trial.metrics) == rung for trial in sweep.searched)
        for rung in sweep.plan.rungs
    ]
    labels = [f"epoch {rung}" for rung in sweep.plan.rungs] + [f"epoch {sweep.plan.max_epochs}: the end"]
    ended = sum(trial.state == "finished" for trial in sweep.searched)
    continued = [come - stop for come, stop in zip(reached, stopped, strict=True)] + [ended]
    figure = go.Figure()
    figure.add_bar(
        y=labels, x=continued, name="continued", orientation="h", marker={"color": _BLUE}, texttemplate="%{x}"
    )
    figure.add_bar(
        y=labels,
        x=[*stopped, 0],
        name="stopped",
        orientation="h",
        marker={"color": _GREY},
        text=[str(n) for n in stopped] + [""],
    )
    figure.update_xaxes(title="trials")
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(barmode="stack", height=120 + 50 * len(labels))


def finalists(finalists: list[Finalist], metric: str) -> go.Figure:
    """Return each finalist's mean, interval and seeds."""
    names = [each.trial for each in finalists]
    figure = go.Figure()
    figure.add_scatter(
        x=[each.mean for each in finalists],
        y=names,
        mode="markers",
        name="mean",
        marker={"size": 12, "color": _BLUE},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [each.high - each.mean for each in finalists],
            "arrayminus": [each.mean - each.low for each in finalists],
            "color": _BLUE,
        },
    )
    figure.add_scatter(
        x=[value for each in finalists for value in each.scores],
        y=[each.trial for each in finalists for _ in each.scores],
        mode="markers",
        name="a seed",
        marker={"size": 9, "color": _BLACK, "symbol": "circle-open"},
    )
    figure.update_xaxes(title=metric)
    figure.update_yaxes(autorange="reversed")
    return figure.update_layout(height=160 + 60 * len(names))


def f1_curves(history: list[dict[str, float]]) -> go.Figure:
    """Return F1 of both heads over the epochs of a run, with intervals."""
    epochs = [metrics["epoch"] for metrics in history]
    figure = go.Figure()
    for head, color in (("keyphrase", _BLUE), ("keyword", _GREEN)):
        low, high = ([metrics[f"valid/{head}_f1_{end}"] for metrics in history] for end in ("low", "high"))
        figure.add_scatter(
            x=epochs + epochs[::-1],
            y=high + low[::-1],
            fill="toself",
            fillcolor=color,
            opacity=0.15,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
        )
        figure.add_scatter(
            x=epochs,
            y=[metrics[f"valid/{head}_f1"] for metrics in history],
            mode="lines+markers",
            name=f"{head} head",
            line={"color": color},
        )
    figure.update_xaxes(title="epoch")
    return figure.update_yaxes(title="F1")


def losses(history: list[dict[str, float]]) -> go.Figure:
    """Return the losses over the epochs of a run."""
    figure = go.Figure()
    for split, dash in (("train", "dot"), ("valid", "solid")):
        for name, color in (("loss", _BLACK), ("keyphrase_loss", _BLUE), ("keyword_loss", _GREEN)):
            figure.add_scatter(
                x=[metrics["epoch"] for metrics in history],
                y=[metrics[f"{split}/{name}"] for metrics in history],
                mode="lines+markers",
                name=f"{split} {name.replace('_', ' ')}",
                line={"color": color, "dash": dash},
            )
    figure.update_xaxes(title="epoch")
    return figure.update_yaxes(title="loss", rangemode="tozero")


def as_html(figure: go.Figure) -> Markup:
    """Return a chart as HTML for a page that has plotly's script."""
    figure.update_layout(
        template="plotly_white", margin={"l": 60, "r": 20, "t": 20, "b": 50}, font={"family": "system-ui, sans-serif"}
    )
    if figure.layout.height is None:
        figure.update_layout(height=420)
    config = {"displaylogo": False, "responsive": True}
    return Markup(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


def _about(trial: Trial) -> str:
    return str(escape(f"{trial.name}: " + ", ".join(f"{name} {cell(value)}" for name, value in trial.values.items())))


def cell(value: object) -> str:
    """Return a value as a table shows it: four significant digits."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e6 and value >= 1 else f"{value:.4g}"
    return str(value)


def interval(metrics: Mapping[str, float]) -> str:
    """Return keyphrase F1 on the validation split with its 95 % interval, as text."""
    low, high = metrics["valid/keyphrase_f1_low"], metrics["valid/keyphrase_f1_high"]
    return f"{metrics['valid/keyphrase_f1']:.4f} ({low:.4f} to {high:.4f})"
