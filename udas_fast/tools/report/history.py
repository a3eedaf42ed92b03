"""Sections of the page about the training: summary, curves, speed, environment, recipe."""

from __future__ import annotations

import json

from udas_fast.evaluation import mean_notes
from udas_fast.tools.report.charts import Line, line_chart
from udas_fast.tools.report.markup import Element, element, legend, percent, table
from udas_fast.tools.report.read import Curves, RunRecord


def summary(runs: dict[str, RunRecord]) -> list[Element]:
    """Show data, progress and score of each run, and what is missing in its folder."""
    header = ("Run", "Recipe", "Source", "Target", "Labels", "Seed", "Steps", "mIoU, %")
    parts = [table(header, [_summary_row(name, run) for name, run in runs.items()])]
    if len(runs) == 1:
        run = next(iter(runs.values()))
        if run.final is not None:
            parts.insert(0, element("p", f"mIoU {percent(run.final.miou)} %", class_="headline"))
        parts.append(element("p", run.recipe.summary, class_="soft"))
    finals = {name: run.final for name, run in runs.items() if run.final is not None}
    parts += [element("p", note, class_="soft") for note in mean_notes(finals)]
    notes = [f"{name}: {note}" if len(runs) > 1 else note for name, run in runs.items() for note in run.notes]
    if notes:
        parts.append(element("ul", *(element("li", note) for note in notes), class_="notes"))
    return parts


def _summary_row(name: str, run: RunRecord) -> list[str]:
    data, done, total = run.config.data, run.recorded_steps, run.recipe.steps
    names = ("as objects",) * 2 if data is None else (" + ".join(data.sources), data.target)
    labels = "–" if run.config.num_labels is None else str(run.config.num_labels)
    miou = "–" if run.final is None else percent(run.final.miou)
    steps = f"{done:,}" if run.finished and done == total else f"{done:,} of {total:,}"
    return [name, run.recipe.name, *(n or "–" for n in names), labels, str(run.config.seed), steps, miou]


def curves(runs: dict[str, RunRecord]) -> list[Element]:
    """Show the losses by name and the learning rate over the steps, each run in its colour."""
    found = {name: run.curves for name, run in runs.items()}
    names = dict.fromkeys(name for curves in found.values() for name in curves)
    if not names:
        return []
    shown = sorted(names, key=lambda name: name == "lr")  # the losses first
    charts = [
        _chart(name, found, phase_bounds(runs), "learning rate" if name == "lr" else name) for name in shown
    ]
    spans = {s.span for run in runs.values() for phases in run.curves.values() for s in phases.values()}
    points = "each step" if spans == {1} else f"means over up to {max(spans):,} steps"
    text = f"By optimisation step ({points}). Dashed lines mark where a phase begins."
    parts = [element("p", text, class_="soft")]
    return [*_legend(runs), *parts, element("div", *charts, class_="charts")]


def speed(runs: dict[str, RunRecord]) -> list[Element]:
    """Show the time of a step and the part of it spent waiting for data."""
    timed = {name: run.timing for name, run in runs.items() if {"seconds", "data_wait"} <= run.timing.keys()}
    if not timed:
        return []
    rows = []
    for name, timing in timed.items():
        steps = sum(series.count for series in timing["seconds"].values())
        seconds, wait = (sum(s.total for s in timing[key].values()) for key in ("seconds", "data_wait"))
        waiting = wait / seconds if seconds else None
        rate = f"{steps / seconds:.2f}" if seconds else "–"
        rows.append([name, f"{steps:,}", f"{seconds:,.0f}", rate, percent(waiting)])
    header = ("Run", "Steps timed", "Seconds", "Steps per second", "Waiting for data, %")
    charts = [
        _chart("seconds", timed, {}, "seconds per step"),
        _chart("data_wait", timed, {}, "seconds per step waiting for data"),
    ]
    return [table(header, rows), *_legend(runs), element("div", *charts, class_="charts")]


def environment(runs: dict[str, RunRecord]) -> list[Element]:
    """Show the versions and hardware that each run recorded."""
    known = {name: run.environment for name, run in runs.items() if run.environment}
    keys = list(dict.fromkeys(key for values in known.values() for key in values))
    if not keys:
        return []
    rows = [[key, *(_plain(values.get(key)) for values in known.values())] for key in keys]
    rows.append(["data engine", *(runs[name].config.engine for name in known)])
    return [table(("", *known), rows)]


def recipe(runs: dict[str, RunRecord]) -> list[Element]:
    """Show run.yaml of each run, folded."""
    return [
        element("details", element("summary", f"{name}: run.yaml"), element("pre", run.yaml))
        for name, run in runs.items()
    ]


def _chart(name: str, curves: dict[str, Curves], bounds: dict[float, str], title: str) -> Element:
    """Draw one quantity of all runs; a run keeps its colour where an earlier one lacks the curve."""
    lines = [
        Line(" · ".join(filter(None, (run, phase))), index, series.points)
        for index, (run, named) in enumerate(curves.items())
        for phase, series in named.get(name, {}).items()
    ]
    end = max(s.last for named in curves.values() for phases in named.values() for s in phases.values())
    return line_chart(title, lines, bounds=bounds, end=max(end, 1))


def phase_bounds(runs: dict[str, RunRecord]) -> dict[float, str]:
    """Return where phases begin, except the first of each run."""
    starts: dict[float, str] = {}
    for run in runs.values():
        for phase, (first, _) in run.recorded_phases.items():
            if first > 0:
                starts.setdefault(first, phase)
    return starts


def _legend(runs: dict[str, RunRecord]) -> list[Element]:
    return [legend(runs)] if len(runs) > 1 else []


def _plain(value: object) -> str:
    if value is None or value == []:
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
