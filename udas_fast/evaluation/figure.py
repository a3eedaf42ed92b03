"""Figures of predictions beside the ground truth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import nn

from udas_fast.atomic import make_folder, replacing
from udas_fast.data import IGNORE, ClassSet, SegmentationDataset
from udas_fast.data.geometry import resize
from udas_fast.errors import bad
from udas_fast.evaluation.prediction import predict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array: TypeAlias = np.ndarray | torch.Tensor

IGNORED_COLOUR = (224, 224, 224)
CONFIDENCE_MAP = "viridis"
DPI = 150
# inches
PANEL, GAP, TITLE, MARGIN = 2.4, 0.05, 0.26, 0.08
BAR, BAR_AREA, KEY_LINE, KEY_WIDTH = 0.09, 0.32, 0.18, 1.2


def colorize(label: Array, classes: ClassSet) -> np.ndarray:
    """Colour train ids [..., H, W] by the classes' palette: uint8 RGB [..., H, W, 3], 255 in light grey.

    Raises:
        InputError: another id.
    """
    label = np.asarray(label)
    wrong = (label != IGNORE) & ((label < 0) | (label >= len(classes)))
    if wrong.any():
        raise bad("label", f"id {label[wrong][0]}", f"0 to {len(classes) - 1} of {classes.name}, or {IGNORE}")
    table = np.full((IGNORE + 1, 3), IGNORED_COLOUR, np.uint8)
    table[: len(classes)] = classes.palette
    return table[label]


def comparison_figure(
    image: Array,
    label: Array,
    predictions: Mapping[str, Array],
    confidence: Array,
    pseudo_label: Array,
    classes: ClassSet,
    path: str | os.PathLike[str],
) -> None:
    """Save image, ground truth, predictions, confidence and kept pseudo-labels side by side to the PNG ``path``.

    image: uint8 RGB [H, W, 3]; label, predictions, pseudo_label: train ids [H, W], 255 drawn grey;
    confidence: [H, W] in 0 to 1. All may have a leading axis of N examples, which become N rows.

    Raises:
        InputError: their sizes differ, or a label has an unknown id.
    """
    image = np.asarray(image)
    labels = {"ground truth": label, **predictions, "kept pseudo-labels": pseudo_label}
    for name, values in {**labels, "confidence": confidence}.items():
        if values.shape != image.shape[:-1]:
            raise bad(name, list(values.shape), f"{list(image.shape[:-1])}, the image's")
    pictures = [(name, colorize(values, classes)) for name, values in labels.items()]
    panels = [("image", image), *pictures[:-1], ("confidence", np.asarray(confidence)), pictures[-1]]
    if image.ndim == 3:
        panels = [(title, values[None]) for title, values in panels]
    save_figure(draw_panels(panels, classes), path)


def pseudo_label_figure(
    image: np.ndarray,
    views: Sequence[np.ndarray],
    confidence: np.ndarray,
    pseudo_label: np.ndarray,
    label: np.ndarray | None,
    classes: ClassSet,
    path: str | os.PathLike[str],
) -> None:
    """Save how pseudo-labels come about to the PNG ``path`` (the figures of UDAS 4.2.5).

    Image, confidence of each view and of all together, mask of kept pixels, pseudo-labels and ground truth.
    image: uint8 RGB [N, H, W, 3]; pseudo_label, label: train ids [N, H, W], 255 drawn grey, label None if unknown;
    views, confidence: [N, H, W] in 0 to 1. A single view is the confidence, and not drawn.

    Raises:
        InputError: a label has an unknown id.
    """
    kept = np.repeat(np.where(pseudo_label != IGNORE, np.uint8(255), np.uint8(0))[..., None], 3, axis=-1)
    single = [(f"view {k}", view) for k, view in enumerate(views, 1) if len(views) > 1]
    panels = [("image", image), *single, ("confidence", confidence), ("kept", kept)]
    panels.append(("pseudo-labels", colorize(pseudo_label, classes)))
    if label is not None:
        panels.append(("ground truth", colorize(label, classes)))
    save_figure(draw_panels(panels, classes), path)


def mixed_figure(
    image: np.ndarray,
    label: np.ndarray,
    prediction: np.ndarray,
    confidence: np.ndarray,
    classes: ClassSet,
    path: str | os.PathLike[str],
) -> None:
    """Save mixed images, their labels, predictions and confidence side by side to the PNG ``path`` (UDAS 4.2.4).

    image: uint8 RGB [N, H, W, 3]; label, prediction: train ids [N, H, W], 255 drawn grey; confidence: [N, H, W] in
    0 to 1.

    Raises:
        InputError: a label has an unknown id.
    """
    panels = [("mixed image", image), ("mixed label", colorize(label, classes))]
    panels += [("prediction", colorize(prediction, classes)), ("confidence", confidence)]
    save_figure(draw_panels(panels, classes), path)


def validation_figure(
    models: Mapping[str, nn.Module],
    teacher: nn.Module,
    dataset: SegmentationDataset,
    size: tuple[int, int],
    path: str | os.PathLike[str],
    *,
    examples: int = 3,
    threshold: float = 0.6,
) -> None:
    """Save a :func:`comparison_figure` of ``examples`` images spread over ``dataset``.

    All are drawn at ``size`` (H, W), which is also the models' input size. Confidence and pseudo-labels are the
    ``teacher``'s on the plain image; labels less confident than ``threshold`` are dropped.

    Raises:
        InputError: the dataset is empty or has no labels.
    """
    if len(dataset) == 0:
        raise bad(dataset.name, "no images", "at least one")
    images, labels, confidences, kept = [], [], [], []
    predictions: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for index in sorted({round(i) for i in np.linspace(0, len(dataset) - 1, examples)}):
        sample = dataset[index]
        if sample.label is None:
            raise bad(f"{dataset.name} {sample.id}", "no label", "ground truth to draw")
        images.append(resize(sample.image, size, Image.Resampling.BILINEAR))
        labels.append(resize(sample.label, size, Image.Resampling.NEAREST))
        pixels = torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1)
        for name, model in models.items():
            predictions[name].append(predict(model, pixels, size, size)[0].cpu().numpy())
        label, confidence = (values.cpu().numpy() for values in predict(teacher, pixels, size, size))
        confidences.append(confidence)
        kept.append(np.where(confidence >= threshold, label, np.uint8(IGNORE)))
    stacked = {name: np.stack(maps) for name, maps in predictions.items()}
    data = (np.stack(images), np.stack(labels), stacked, np.stack(confidences), np.stack(kept))
    comparison_figure(*data, dataset.classes, path)


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = DPI) -> None:
    """Write ``figure`` atomically to the PNG ``path``. Raises InputError if it cannot be written."""
    make_folder(Path(path).parent)
    with replacing(Path(path)) as file:
        figure.savefig(file, format="png", dpi=dpi)


def draw_panels(panels: list[tuple[str, np.ndarray]], classes: ClassSet) -> Figure:
    """Draw one column per (title, [N, H, W, 3] colours or [N, H, W] confidences), with key and colour bar below.

    The bar is below the last column of confidences.
    """
    # Here, as a prediction draws nothing and matplotlib is large.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.cm import ScalarMappable
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    count, height, width = panels[0][1].shape[:3]
    tall = PANEL * height / width
    lefts = [MARGIN + i * (PANEL + GAP) for i in range(len(panels))]
    bar = max(i for i, (_, pictures) in enumerate(panels) if pictures.ndim == 3)
    # The key is placed on the wider side of the bar.
    key, key_end = (
        (MARGIN, lefts[bar]) if bar >= len(panels) / 2 else (lefts[bar + 1] + 2 * GAP, lefts[-1] + PANEL)
    )
    key_columns = max(1, int((key_end - key) / KEY_WIDTH))
    key_lines = -(-(len(classes) + 1) // key_columns)
    below = max(BAR_AREA, key_lines * KEY_LINE + GAP) + MARGIN
    total = np.array([lefts[-1] + PANEL + MARGIN, TITLE + count * (tall + GAP) - GAP + below])
    figure = Figure(figsize=tuple(total), facecolor="white")
    FigureCanvasAgg(figure)

    # In inches, for all pictures: axes of its own cost several times what a picture does.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, total[0]), ylim=(0, total[1]))
    axes.set_axis_off()
    for i, (left, (title, pictures)) in enumerate(zip(lefts, panels, strict=True)):
        for row, picture in enumerate(pictures):
            bottom = below + (count - 1 - row) * (tall + GAP)
            axes.imshow(
                picture,
                cmap=CONFIDENCE_MAP,
                vmin=0,
                vmax=1,
                interpolation="nearest",
                aspect="auto",
                extent=(left, left + PANEL, bottom, bottom + tall),
            )
        axes.text(left + PANEL / 2, total[1] - TITLE + GAP, title, fontsize=10, ha="center", va="baseline")
        if i == bar:
            scale = figure.add_axes((*((left, below - GAP - BAR) / total), *((PANEL, BAR) / total)))
            figure.colorbar(ScalarMappable(cmap=CONFIDENCE_MAP), cax=scale, orientation="horizontal")
            scale.tick_params(labelsize=7, length=2, pad=1)
    colours = [*zip(classes.names, classes.palette, strict=True), ("ignored", IGNORED_COLOUR)]
    figure.legend(
        handles=[Patch(color=(r / 255, g / 255, b / 255), label=name) for name, (r, g, b) in colours],
        loc="upper left",
        bbox_to_anchor=tuple((key - MARGIN, below) / total),
        ncols=key_columns,
        frameon=False,
        fontsize=8,
        handlelength=1,
    )
    return figure
