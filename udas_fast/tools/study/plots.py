"""A study's pictures: mIoU by number of labels or by method with its spread, and predictions side by side."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from udas_fast.data import open_dataset
from udas_fast.evaluation import save_figure, validation_figure
from udas_fast.inference import TrainedModel
from udas_fast.tools.study import paper
from udas_fast.tools.study.plan import Plan
from udas_fast.tools.study.results import StudyTable
from udas_fast.tools.study.tables import label_counts, methods


def labels_plot(table: StudyTable, path: Path) -> None:
    """mIoU over labelled target images: a dot a seed, lines through the means, bands of one standard deviation."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    counts = label_counts(table)[::-1]
    for i, (name, by_labels) in enumerate(methods(table).items()):
        colour, rows = f"C{i}", sorted(by_labels.values(), key=lambda r: r.labels)
        x = [r.labels for r in rows]
        means, stds = [r.miou.mean for r in rows], [r.miou.std or 0.0 for r in rows]
        axes.plot(x, means, color=colour, marker="_", label=name)
        low, high = zip(*((m - s, m + s) for m, s in zip(means, stds, strict=True)), strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        for row in rows:
            axes.plot([row.labels] * len(table.seeds), row.miou.by_seed, ".", color=colour)
        if paper.is_paper_task(table.source, table.target):
            published = paper.LABELS[rows[0].recipe]
            axes.plot(
                *zip(*sorted(published.items()), strict=True), "--", color=colour, label=f"{name}, paper"
            )
            counts = sorted({*counts, *published})
    if any(counts):  # linear from 0 to the fewest labels, logarithmic from there
        axes.set_xscale("symlog", linthresh=min(n for n in counts if n), linscale=0.5)
    axes.set_xticks(counts, map(str, counts))
    axes.minorticks_off()
    axes.set_xlabel("labelled target images")
    axes.set_ylabel("mIoU, %")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def methods_plot(table: StudyTable, path: Path) -> None:
    """A bar a row to its mean mIoU, its standard deviation, a dot a seed; one colour for each number of labels."""
    figure = Figure(figsize=(7, 1 + 0.3 * len(table.rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, labels in enumerate(reversed(label_counts(table))):
        places = [place for place, row in enumerate(table.rows) if row.labels == labels]
        spreads = [table.rows[place].miou for place in places]
        widths, errors = [s.mean for s in spreads], [s.std or 0.0 for s in spreads]
        name = f"{labels} labels" if labels else "no labels"
        axes.barh(places, widths, xerr=errors, color=f"C{i}", alpha=0.6, capsize=3, label=name)
    for place, row in enumerate(table.rows):
        axes.plot(row.miou.by_seed, [place] * len(table.seeds), ".", color="black", markersize=4)
    axes.set_yticks(range(len(table.rows)), [row.name for row in table.rows])
    axes.invert_yaxis()
    axes.set_xlabel("mIoU, %")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def sheet(plan: Plan, runs: Path, path: Path) -> None:
    """Validation images, truth and the prediction of every row at the last seed; pseudo-labels are the last row's."""
    models = {}
    for run in plan.runs[-len(plan.rows) :]:
        trained = TrainedModel.load(runs / run.folder, torch.device("cpu"))
        models[run.row.title] = trained.model
    val = open_dataset(plan.task.target, "val", size=trained.size)
    validation_figure(models, trained.model, val, trained.size, path)
