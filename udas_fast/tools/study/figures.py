"""Figures of a study: mIoU by number of labels or by method with its spread, and predictions side by side."""

from __future__ import annotations

from dataclasses import replace
from math import nan
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from udas_fast.data import Batch, open_dataset
from udas_fast.evaluation import mixed_figure, predict, save_figure, validation_figure
from udas_fast.inference import TrainedModel
from udas_fast.models import NetworkInput, Normalization
from udas_fast.objectives import Batches, PrepareContext
from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.mixing import domain_cutmix, translated_source
from udas_fast.seeding import seed_step
from udas_fast.tools.study import paper
from udas_fast.tools.study.collect import Spread, StudyTable
from udas_fast.tools.study.plan import StudyPlan, StudyRun
from udas_fast.tools.study.tables import label_counts, methods
from udas_fast.training.requirements import open_domains

MIXED = 3  # images of the picture


def labels_figure(table: StudyTable, path: Path) -> None:
    """Draw mIoU over labelled target images: a dot per seed, lines through means, bands of one standard deviation."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    counts = label_counts(table)[::-1]
    for i, (name, by_labels) in enumerate(methods(table).items()):
        colour, rows = f"C{i}", sorted(by_labels.values(), key=lambda r: r.labels)
        x = [r.labels for r in rows]
        means, stds = zip(*(_mean_and_std(r.miou) for r in rows), strict=True)
        axes.plot(x, means, color=colour, marker="_", label=name)
        low, high = zip(*((m - s, m + s) for m, s in zip(means, stds, strict=True)), strict=True)
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
        for row in rows:
            axes.plot([row.labels] * len(table.seeds), _by_seed(row.miou), ".", color=colour)
        published = paper.LABELS["UDAS"].get(rows[0].recipe)
        if published and paper.is_paper_task(table.source, table.target):
            points = sorted(published.items())
            axes.plot(*zip(*points, strict=True), "--", color=colour, label=f"{name}, paper")
            counts = sorted({*counts, *published})
    if any(counts):  # linear from 0 to the fewest labels, logarithmic from there
        axes.set_xscale("symlog", linthresh=min(n for n in counts if n), linscale=0.5)
    axes.set_xticks(counts, [str(n) for n in counts])
    axes.minorticks_off()
    axes.set_xlabel("labelled target images")
    axes.set_ylabel("mIoU, %")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def methods_figure(table: StudyTable, path: Path) -> None:
    """Draw each row's mean mIoU as a bar with its standard deviation and a dot per seed, coloured by labels."""
    figure = Figure(figsize=(7, 1 + 0.3 * len(table.rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for i, labels in enumerate(reversed(label_counts(table))):
        places = [place for place, row in enumerate(table.rows) if row.labels == labels]
        widths, errors = zip(*(_mean_and_std(table.rows[place].miou) for place in places), strict=True)
        name = f"{labels} labels" if labels else "no labels"
        axes.barh(places, widths, xerr=errors, color=f"C{i}", alpha=0.6, capsize=3, label=name)
    for place, row in enumerate(table.rows):
        axes.plot(_by_seed(row.miou), [place] * len(table.seeds), ".", color="black", markersize=4)
    axes.set_yticks(range(len(table.rows)), [row.name for row in table.rows])
    axes.invert_yaxis()
    axes.set_xlabel("mIoU, %")
    axes.grid(axis="x", alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def _mean_and_std(spread: Spread) -> tuple[float, float]:
    return nan if spread.mean is None else spread.mean, spread.std or 0.0


def _by_seed(spread: Spread) -> list[float]:
    return [nan if value is None else value for value in spread.by_seed]


def predictions_figure(plan: StudyPlan, runs: Path, path: Path) -> None:
    """Draw validation images, ground truth, each row's prediction at the last seed and the last row's pseudo-labels."""
    models = {}
    for run in plan.runs[-len(plan.rows) :]:
        trained = TrainedModel.load(runs / run.folder, torch.device("cpu"))
        models[run.row.title] = trained.model
    val = open_dataset(plan.task.target, "val", size=trained.size)
    validation_figure(models, trained.model, val, trained.size, path)


def mixed_images_figure(plan: StudyPlan, runs: Path, path: Path) -> None:
    """Draw images that the first row with Domain CutMix was trained on, and what its network says of them.

    Nothing is drawn where no row has both Domain CutMix and labelled target images.
    """
    for run in plan.runs[-len(plan.rows) :]:
        mixed = mixed_images(run)
        if mixed is not None:
            trained = TrainedModel.load(runs / run.folder, torch.device("cpu"))
            height, width = mixed.image.shape[2:]
            found = [predict(trained.model, image, (height, width)) for image in mixed.image]
            label, confidence = (torch.stack(maps).cpu().numpy() for maps in zip(*found, strict=True))
            image = mixed.image.permute(0, 2, 3, 1).numpy()
            mixed_figure(image, mixed.required_label.numpy(), label, confidence, trained.classes, path)
            return


def mixed_images(run: StudyRun) -> Batch | None:
    """Return the first images that Domain CutMix made in ``run``, uint8 RGB; None where it has made none."""
    recipe = run.recipe()
    stage, config = next(
        ((s, s.objective) for s in recipe.stages if isinstance(s.objective, AdaptationConfig)), (None, None)
    )
    if stage is None or config is None or config.mixing is None or not run.row.num_labels:
        return None
    domains = open_domains(replace(run.data, engine="torch"), recipe)
    loaders = domains.loaders(recipe.geometries(stage), recipe.input, seed=run.seed, phase=stage.name)
    streams = {name: loader.batches() for name, loader in loaders.items()}
    made: list[Batch] = []
    while sum(len(batch.image) for batch in made) < MIXED:
        batches = Batches(**{name: next(batch) for name, batch in streams.items()})
        context = PrepareContext(
            step=len(made),
            steps=stage.steps,
            lr=stage.optimizer.lr,
            generator=seed_step(run.seed, stage.name, len(made)),
            backward=torch.Tensor.backward,
            input=NetworkInput(Normalization((0, 0, 0), (1, 1, 1))),
        )
        source = translated_source(batches, config.translate, config.fda_beta)
        made.append(domain_cutmix(source, batches.labelled, config.mixing, context))
    image, label = torch.cat([b.image for b in made]), torch.cat([b.required_label for b in made])
    if image.is_floating_point():
        image = (255 * image).round().to(torch.uint8)
    return Batch(image[:MIXED], label[:MIXED], [name for batch in made for name in batch.ids][:MIXED])
