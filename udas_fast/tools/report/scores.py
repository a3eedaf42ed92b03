"""Sections of the page about scores: mIoU by phase, IoU by class, confusion, protocol."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from udas_fast.evaluation import Scores, mean_notes
from udas_fast.tools.report.charts import Line, bar_chart, confusion, line_chart, reliability
from udas_fast.tools.report.history import phase_bounds
from udas_fast.tools.report.markup import Element, element, legend, percent, table
from udas_fast.tools.report.read import RunRecord

SHOWN_BINS = 16  # of confidence


def by_step(runs: dict[str, RunRecord]) -> list[Element]:
    """Show mIoU over the steps of the runs that were scored during training, and the best that was kept."""
    lines, parts = [], []
    for index, (name, run) in enumerate(runs.items()):
        points = [(float(s.step), 100 * s.miou) for s in run.scored if s.miou is not None]
        if points:
            lines.append(Line(name, index, points))
        if best := [s for s in run.scored if s.best]:
            text = f"best.safetensors: {percent(best[-1].miou)} % at step {best[-1].step:,}, selected on these images; "
            text += "model.safetensors is the last."
            parts.append(element("p", f"{name}, {text}" if len(runs) > 1 else text, class_="soft"))
    if not lines:
        return []
    keys = [legend(runs)] if len(runs) > 1 else []
    chart = line_chart("mIoU by optimisation step, %", lines, bounds=phase_bounds(runs))
    return [*parts, *keys, element("div", chart, class_="charts")]


def by_phase(runs: dict[str, RunRecord]) -> list[Element]:
    """Show mIoU after each phase, where there is more than one phase."""
    phases = list(dict.fromkeys(phase for run in runs.values() for phase in run.scores))
    if len(phases) < 2:
        return []
    rows, lines = [], []
    for index, (name, run) in enumerate(runs.items()):
        scores = {phase: score.miou for phase, score in run.scores.items()}
        rows.append([name, *(percent(scores.get(phase)) for phase in phases)])
        points = [(float(i), 100 * scores[p]) for i, p in enumerate(phases) if scores.get(p, -1.0) >= 0]
        if points:  # mIoU is NaN where no class occurs
            lines.append(Line(name, index, points))
    chart = [line_chart("mIoU after each phase, %", lines, names=phases)] if lines else []
    keys = [legend(runs)] if len(runs) > 1 else []
    return [table(("Run", *phases), rows), *keys, element("div", *chart, class_="charts")]


def by_class(runs: dict[str, RunRecord]) -> list[Element]:
    """Show bars of the last phase of each run, or of all phases of a single run, and a table of all phases."""
    parts: list[Element] = []
    for classes, members in _by_classes(runs):
        columns = {
            f"{name} {phase}" if len(members) > 1 else phase: score
            for name, run in members.items()
            for phase, score in run.scores.items()
        }
        bars = _finals(members) if len(members) > 1 else columns
        values = {name: score.iou.tolist() for name, score in bars.items()}
        parts.append(legend(bars))
        parts.append(element("div", bar_chart("IoU by class, %", classes, values), class_="charts"))
        parts.append(_class_table(classes, columns))
        parts += [element("p", note, class_="soft") for note in mean_notes(columns)]
    return parts


def _by_classes(runs: dict[str, RunRecord]) -> Iterator[tuple[tuple[str, ...], dict[str, RunRecord]]]:
    """Yield (class names, the scored runs with these classes)."""
    finals = _finals(runs)
    for classes in dict.fromkeys(score.classes for score in finals.values()):
        yield classes, {name: runs[name] for name, score in finals.items() if score.classes == classes}


def _finals(runs: dict[str, RunRecord]) -> dict[str, Scores]:
    """Return the last scores of the runs that have any."""
    return {name: run.final for name, run in runs.items() if run.final is not None}


def _class_table(classes: tuple[str, ...], columns: Mapping[str, Scores]) -> Element:
    all_scores = list(columns.values())
    ious = [score.iou.tolist() for score in all_scores]
    rows = [[name, *map(percent, values)] for name, *values in zip(classes, *ious, strict=True)]
    rows.append(["mIoU", *(percent(score.miou) for score in all_scores)])
    for subset in all_scores[0].subset_means:
        rows.append([f"mIoU {subset}", *(percent(score.subset_means[subset]) for score in all_scores)])
    rows.append(["mean accuracy", *(percent(score.accuracy_mean) for score in all_scores)])
    rows.append(["mean F1", *(percent(score.f1_mean) for score in all_scores)])
    rows.append(["pixel accuracy", *(percent(score.pixel_accuracy) for score in all_scores)])
    return table(("IoU, %", *columns), rows)


def confusions(runs: dict[str, RunRecord]) -> list[Element]:
    """Show the confusion matrix after the last phase of each run."""
    drawings = [
        confusion(f"{name}, {list(run.scores)[-1]}", run.final.matrix.numpy(), run.final.classes)
        for name, run in runs.items()
        if run.final is not None
    ]
    if not drawings:
        return []
    text = "Rows are true classes, columns are predictions; numbers are percent of the row's pixels."
    return [element("p", text, class_="soft"), element("div", *drawings)]


def calibration(runs: dict[str, RunRecord]) -> list[Element]:
    """Show how often a confidence is right after the last phase of each run."""
    drawings = []
    for index, (name, run) in enumerate(runs.items()):
        found = None if run.final is None else run.final.reliability
        if found is not None:
            right, wrong = (n.view(SHOWN_BINS, -1).sum(1).tolist() for n in (found.right, found.wrong))
            title = f"{name}: calibration error {percent(found.ece)} %"
            drawings.append(reliability(title, right, wrong, index))
    if not drawings:
        return []
    text = (
        "Share of right pixels, %, by the confidence of the prediction, %; on the dashed line both are equal."
    )
    return [element("p", text, class_="soft"), element("div", *drawings, class_="charts")]


def protocols(runs: dict[str, RunRecord]) -> list[Element]:
    """Show how the scores were measured, with a warning where they cannot be compared."""
    found: dict[str, list[str]] = {}
    for name, run in runs.items():
        for phase, score in run.scores.items():
            found.setdefault(str(score.protocol), []).append(f"{name} {phase}")
    if not found:
        return []
    if len(found) == 1:
        return [element("p", next(iter(found)), class_="soft")]
    lines = [element("li", f"{', '.join(names)}: {protocol}") for protocol, names in found.items()]
    warning = "These scores were measured under different protocols and cannot be compared:"
    return [element("p", warning), element("ul", *lines, class_="notes")]
