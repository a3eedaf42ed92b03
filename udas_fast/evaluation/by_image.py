"""Scores of single images: a table as CSV, and a picture of the worst ones."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from udas_fast.atomic import atomic_write
from udas_fast.data import ClassSet, SegmentationDataset
from udas_fast.data.geometry import resize
from udas_fast.errors import bad
from udas_fast.evaluation.figure import colorize, draw_panels, save_figure
from udas_fast.evaluation.metrics import Protocol, Scores
from udas_fast.evaluation.prediction import predict

MOST_DRAWN = 12


def image_scores(by_image: Mapping[str, Tensor], classes: ClassSet, protocol: Protocol) -> dict[str, Scores]:
    """Return scores by the ids of images, sorted, from the matrices that :func:`udas_fast.evaluation.evaluate` gave."""
    one = replace(protocol, images=1)
    return {name: Scores(by_image[name], classes.names, one) for name in sorted(by_image)}


def write_image_scores(scores: Mapping[str, Scores], path: Path) -> None:
    """Write a line for each image: id, labelled pixels, pixel accuracy, mIoU and IoU by class.

    Scores are fractions of 1, and empty where nothing was counted.

    Raises:
        InputError: no images, or a file that cannot be written.
    """
    if not scores:
        raise bad("scores by image", "no images", "at least one")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    names = next(iter(scores.values())).classes
    writer.writerow(["image", "pixels", "pixel_accuracy", "miou", *names])
    for name, score in scores.items():
        values = [score.pixel_accuracy, score.miou, *score.iou.tolist()]
        cells = ["" if math.isnan(value) else f"{value:.4f}" for value in values]
        writer.writerow([name, int(score.matrix.sum()), *cells])
    atomic_write(text.getvalue(), path)


def worst_images(scores: Mapping[str, Scores]) -> list[str]:
    """Return the ids of up to 12 images with labels, those of the lowest mIoU first."""
    labelled = {name: score.miou for name, score in scores.items() if score.matrix.any()}
    return sorted(labelled, key=lambda name: labelled[name])[:MOST_DRAWN]


def draw_images(
    models: Mapping[str, nn.Module],
    dataset: SegmentationDataset,
    ids: list[str],
    size: tuple[int, int],
    path: str | os.PathLike[str],
) -> None:
    """Draw the images ``ids`` of ``dataset``, a row each: image, labels, each model's prediction, its confidence.

    All are drawn at ``size`` (H, W), which is also the models' input size; the confidence is that of the last model.
    Labels are left out unless all these images have them.

    Raises:
        InputError: an id that the dataset does not have, or a file that cannot be written.
    """
    index = {dataset.id(i): i for i in range(len(dataset))}
    images, labels, confidences = [], [], []
    predictions: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for name in ids:
        if name not in index:
            raise bad(dataset.name, f"no image {name}", "one of its ids")
        sample = dataset[index[name]]
        images.append(resize(sample.image, size, Image.Resampling.BILINEAR))
        if sample.label is not None:
            labels.append(resize(sample.label, size, Image.Resampling.NEAREST))
        pixels = torch.from_numpy(np.ascontiguousarray(sample.image)).permute(2, 0, 1)
        for title, model in models.items():
            label, confidence = predict(model, pixels, size, size)
            predictions[title].append(label.cpu().numpy())
        confidences.append(confidence.cpu().numpy())
    labelled = {"ground truth": labels} if len(labels) == len(images) else {}
    labelled |= predictions
    panels = [("image", np.stack(images))]
    panels += [(title, colorize(np.stack(maps), dataset.classes)) for title, maps in labelled.items()]
    panels.append(("confidence", np.stack(confidences)))
    save_figure(draw_panels(panels, dataset.classes), path)
