"""Order of images for labelling: those that a model is least sure of, or whose labels it contradicts."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from udas_fast import ops
from udas_fast.atomic import atomic_write
from udas_fast.data import IGNORE, SegmentationDataset
from udas_fast.data.geometry import resize
from udas_fast.data.types import Sample
from udas_fast.errors import bad
from udas_fast.evaluation import evaluating, label_and_confidence
from udas_fast.evaluation.scoring import device_of
from udas_fast.evaluation.views import geometric_views
from udas_fast.inference.model import TrainedModel
from udas_fast.models import SegmentationOutput, normalization_of, normalize, to_output

By = Literal["uncertainty", "disagreement", "rare", "doubt"]
BY = get_args(By)
SCALES = (0.75, 1.25)  # of the further views of one model, which are also mirrored
SURE = 0.9  # confidence from which a prediction contradicts a label
GRID = 4  # parts of an image's height and width in its description
POOL = 4  # of so many times the images that are asked for, the most different are chosen


@dataclass(frozen=True)
class Ranked:
    """One image with its score, from 0 upwards; the highest comes first.

    Attributes:
        index: in the dataset.
        id: of the image.
        score: what the images are ordered by.
        pair: "label as prediction" that is contradicted most often; "" unless ranked by doubt.
        description: float ``[16 C]``: mean probabilities of the classes in a grid of 4 x 4 parts.
    """

    index: int
    id: str
    score: float
    pair: str
    description: Tensor


@torch.inference_mode()
def rank_images(
    models: Sequence[TrainedModel],
    dataset: SegmentationDataset,
    indices: Sequence[int],
    by: By,
    *,
    rarity: Tensor | None = None,
    progress: Callable[[int], object] = lambda count: None,
) -> list[Ranked]:
    """Return the images ``indices`` of ``dataset`` by falling score; equal scores keep the dataset's order.

    Scores are of the first model, but for disagreement:

    - uncertainty: mean entropy of the pixels, 0 to 1 (:func:`udas_fast.ops.entropy`);
    - disagreement: share of pixels on whose class the models, or six views of one model, do not agree;
    - rare: mean over the pixels of ``rarity`` of the predicted class;
    - doubt: share of labelled pixels where another class is predicted with a confidence of 0.9 or more.

    Args:
        models: of the same classes and size.
        dataset: its images, and for doubt its labels.
        indices: of the images.
        by: the score.
        rarity: float ``[C]``, for rare.
        progress: is called with 1 after each image.

    Raises:
        InputError: an image that cannot be read, or one without label where labels are doubted.
    """
    found = []
    for index in indices:
        sample = dataset[index] if by == "doubt" else dataset.unlabelled(index)
        found.append(_rank(models, dataset, index, sample, by, rarity))
        progress(1)
    return sorted(found, key=lambda one: -one.score)


def _rank(
    models: Sequence[TrainedModel],
    dataset: SegmentationDataset,
    index: int,
    sample: Sample,
    by: By,
    rarity: Tensor | None,
) -> Ranked:
    first, size = models[0], models[0].size
    views = _view_outputs(models, sample, several=by == "disagreement")
    output, _ = views[0]
    logits = output.primary / first.temperature
    pair = ""
    if by == "uncertainty":
        score = ops.entropy(logits, size, align_corners=output.align_corners).item()
    elif by == "disagreement":
        labels = torch.stack(
            [
                label_and_confidence(one, size)[0].flip(-1)
                if mirrored
                else label_and_confidence(one, size)[0]
                for one, mirrored in views
            ]
        )
        score = (labels != labels[0]).any(0).double().mean().item()
    elif by == "rare":
        if rarity is None:
            raise bad("rarity", None, "a number for each class")
        label, _ = label_and_confidence(output, size)
        score = rarity.to(label.device)[label.long()].double().mean().item()
    else:
        score, pair = _doubt(first, output, sample, dataset)
    description = F.adaptive_avg_pool2d(logits.softmax(1), GRID).flatten().cpu()
    return Ranked(index, sample.id, score, pair, description)


def _view_outputs(
    models: Sequence[TrainedModel], sample: Sample, *, several: bool
) -> list[tuple[SegmentationOutput, bool]]:
    """Return each model's output for the image, and of a single one where ``several`` are asked for its views'."""
    pixels = torch.from_numpy(resize(sample.image, models[0].size, Image.Resampling.BILINEAR))
    found = []
    for trained in models if several else models[:1]:
        image = pixels.permute(2, 0, 1)[None].to(device_of(trained.model))
        normal = normalize(image, normalization_of(trained.model))
        views = [(normal, False)]
        if several and len(models) == 1:
            views += geometric_views(normal, SCALES, flip=True)
        with evaluating(trained.model):
            found += [(to_output(trained.model(view)), mirrored) for view, mirrored in views]
    return found


def _doubt(
    trained: TrainedModel, output: SegmentationOutput, sample: Sample, dataset: SegmentationDataset
) -> tuple[float, str]:
    if sample.label is None:
        raise bad(f"{dataset.name} {sample.id}", "no label", "one that can be doubted")
    truth = torch.from_numpy(sample.label)
    size = (truth.shape[0], truth.shape[1])
    label, confidence = (v.cpu() for v in label_and_confidence(output, size, trained.temperature))
    counted = truth != IGNORE
    contradicted = counted & (label != truth) & (confidence >= SURE)
    pairs = Counter(zip(truth[contradicted].tolist(), label[contradicted].tolist(), strict=True))
    names = dataset.classes.names
    pair = ""
    if pairs:
        (own, other), _ = pairs.most_common(1)[0]
        pair = f"{names[own]} as {names[other]}"
    return (contradicted.sum() / counted.sum().clamp(min=1)).item(), pair


def class_rarity(counts: Tensor) -> Tensor:
    """Return 1 / (share + 0.01) of each class, divided by its maximum: float64 ``[C]`` from pixel counts ``[C]``."""
    share = counts.double() / counts.sum().clamp(min=1)
    rarity = 1 / (share + 0.01)
    return rarity / rarity.max()


def spread_out(ranked: Sequence[Ranked], count: int) -> list[Ranked]:
    """Choose ``count`` different images: k-centres among the first ``4 * count`` of ``ranked``.

    The first image is taken, then each time the one that is farthest from those that are taken (Sener and Savarese,
    "Active Learning for Convolutional Neural Networks", ICLR 2018, algorithm 1), by :attr:`Ranked.description`.
    """
    pool = list(ranked[: POOL * count])
    if not pool:
        return []
    descriptions = torch.stack([one.description for one in pool]).double()
    taken = [0]
    distance = (descriptions - descriptions[0]).norm(dim=1)
    while len(taken) < min(count, len(pool)):
        distance[taken] = -1  # two equal images are both there, but neither twice
        farthest = int(distance.argmax())
        taken.append(farthest)
        distance = torch.minimum(distance, (descriptions - descriptions[farthest]).norm(dim=1))
    return [pool[i] for i in taken]


def write_ranking(ranked: Sequence[Ranked], chosen: Sequence[Ranked], by: By, folder: Path) -> None:
    """Write the ids of ``chosen`` to ``next.txt``, one a line, and the scores of all to ``rank.csv``.

    Raises:
        InputError: a file cannot be written.
    """
    atomic_write("".join(f"{one.id}\n" for one in chosen), folder / "next.txt")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    last = ["contradicted"] if by == "doubt" else []
    writer.writerow(["image", by, "chosen", *last])
    ids = {one.index for one in chosen}
    for one in ranked:
        row = [one.id, f"{one.score:.6f}", int(one.index in ids)]
        writer.writerow([*row, one.pair] if last else row)
    atomic_write(text.getvalue(), folder / "rank.csv")
