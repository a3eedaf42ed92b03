"""Pseudo-labels of a round: all images on disk before it, a report on all or some of them after it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from udas_fast import distributed, ops
from udas_fast.atomic import make_folder
from udas_fast.data import (
    Batch,
    PseudoLabelDataset,
    PseudoLabelFolder,
    Sample,
    SegmentationDataset,
    resize,
    with_labels,
)
from udas_fast.data.augment import apply_each, draw_each
from udas_fast.data.classes import IGNORE
from udas_fast.data.pseudo_labels import read_summary, write_json
from udas_fast.errors import InputError
from udas_fast.evaluation.pseudo_labels import pseudo_label_quality
from udas_fast.models import SegmentationOutput
from udas_fast.objectives.pseudo_labels import PseudoLabeller

REPORTED = 32  # images of a report where labels are made in every step
PICTURED = 4


@dataclass(frozen=True)
class LabelledRound:
    """The images that a labeller labels in a round, and how it sees them.

    Attributes:
        name: name of the phase.
        images: the target's training images; labels that they may have are only used for the report.
        size: (H, W) of whole images for the network.
        folder: for the round's labels and report; it need not exist.
        picture: for a picture of some labels.
        generator: CPU generator seeded by (seed, phase) and the place that it is called with.
        normalize: uint8 ``[N, 3, H, W]`` to the network's floating-point input.
        check_stop: ends the run where that has been asked for.
    """

    name: str
    images: SegmentationDataset
    size: tuple[int, int]
    folder: Path
    picture: Path
    generator: Callable[..., torch.Generator]
    normalize: Callable[[Tensor], Tensor]
    check_stop: Callable[[], None]


def label_to_disk(labeller: PseudoLabeller, round: LabelledRound) -> PseudoLabelDataset:
    """Label every image once, whole and at its own size; return the images with these labels (collective).

    Labels that an earlier attempt has written with the same teacher are kept.
    """
    folder = PseudoLabelFolder(round.folder, round.images, _fingerprint(labeller, round))
    if not folder.complete:
        silent = None if distributed.is_main() else True
        for index in tqdm(folder.missing(), desc="pseudo-labels", unit="image", leave=False, disable=silent):
            round.check_stop()
            sample = round.images.unlabelled(index)
            pseudo = label_image(labeller, sample, index, round, threshold=0.0)
            folder.add(index, pseudo.label[0].cpu().numpy(), pseudo.confidence[0].cpu().numpy())
        folder.finish(lambda histogram: _by_class(labeller, torch.from_numpy(histogram)[:, None]).numpy())
    return PseudoLabelDataset(round.images, round.folder)


def label_image(
    labeller: PseudoLabeller, sample: Sample, index: int, round: LabelledRound, threshold: float | Tensor
) -> ops.PseudoLabel:
    """Return labels ``[1, H, W]`` of image ``index`` at its own size; the network sees it at the round's."""
    views, flips = _views(labeller, sample, index, round)
    if isinstance(threshold, Tensor):
        threshold = threshold.to(labeller.histogram.device)
    height, width = sample.image.shape[:2]
    return labeller.label(views, flips, (height, width), threshold)


def _views(
    labeller: PseudoLabeller, sample: Sample, index: int, round: LabelledRound
) -> tuple[list[SegmentationOutput], list[bool]]:
    """Return the teacher's output for each view of image ``index``, and whether it is mirrored."""
    device = labeller.histogram.device
    pixels = resize(sample.image, round.size, Image.Resampling.BILINEAR)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)
    generator = round.generator("views", index)
    photometric = labeller.photometric_views(
        Batch(image, None, [sample.id]),
        lambda images, kind: apply_each(images, draw_each(len(images), generator, kind)),
    )
    return labeller.views(photometric, round.normalize)


def _view_confidences(
    labeller: PseudoLabeller, sample: Sample, index: int, round: LabelledRound
) -> list[np.ndarray]:
    """Return the confidence of each view of image ``index`` alone, float32 ``[H, W]`` at its own size."""
    height, width = sample.image.shape[:2]
    pairs = zip(*_views(labeller, sample, index, round), strict=True)
    found = [labeller.label([view], [flip], (height, width), 0.0) for view, flip in pairs]
    return [pseudo.confidence[0].cpu().numpy() for pseudo in found]


def report_round(labeller: PseudoLabeller, round: LabelledRound) -> None:
    """Write ``report.json`` on the round's pseudo-labels and a picture of some of them.

    Labels on disk are all reported; otherwise those that the teacher gives to at most :data:`REPORTED` images at the
    thresholds of the round's end. Accuracy needs labels of these images, which training has not seen; a file
    that cannot be read is left out, as no run may end at its report.
    """
    truth = with_labels(round.images)
    images, classes = round.images, round.images.classes
    stored = PseudoLabelDataset(images, round.folder) if labeller.config.labels == "disk" else None
    if stored is not None:
        summary = read_summary(round.folder)
        indices = list(range(len(images)))
        thresholds, histogram = torch.tensor(summary["threshold"]), np.array(summary["histogram"])
    else:
        indices = _spread(len(images), REPORTED)
        thresholds = _by_class(labeller, labeller.histogram)
        histogram = np.zeros((len(classes), 2, 64), np.int64)
    counts = np.zeros((len(classes), len(classes)), np.int64)  # truth × pseudo-label, where both are a class
    seen = []
    for index in indices:
        if (sample := _read(images, truth, index)) is None:
            continue
        seen.append(index)
        if stored is not None:
            label = stored.label(index)
        else:
            pseudo = label_image(labeller, sample, index, round, thresholds)
            label = pseudo.label[0].cpu().numpy()
            histogram += pseudo.histogram.cpu().numpy()
        if sample.label is not None:
            both = (sample.label != IGNORE) & (label != IGNORE)
            pairs = sample.label[both].astype(np.int64) * len(classes) + label[both]
            counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
    report = {
        "phase": round.name,
        "classes": list(classes.names),
        "threshold": thresholds.tolist(),
        "histogram": histogram.tolist(),
        "images": len(seen),
        **pseudo_label_quality(histogram, None if truth is None else counts),
    }
    make_folder(round.folder)
    write_json(round.folder / "report.json", report)
    if seen:
        _draw(labeller, round, [seen[i] for i in _spread(len(seen), PICTURED)], truth, thresholds)


def _read(images: SegmentationDataset, truth: SegmentationDataset | None, index: int) -> Sample | None:
    """Return image ``index``, with its label where ``truth`` has a readable one; None for an unreadable image."""
    for dataset in (truth, images):
        if dataset is not None:
            with suppress(InputError):
                return dataset[index]
    return None


def _draw(
    labeller: PseudoLabeller,
    round: LabelledRound,
    indices: Sequence[int],
    truth: SegmentationDataset | None,
    thresholds: Tensor,
) -> None:
    """Draw images, the teacher's confidence by view and in all, the labels that are kept, and the truth if known."""
    # Late, as matplotlib takes its time to import.
    from udas_fast.evaluation import pseudo_label_figure

    pairs = [(index, _read(round.images, truth, index)) for index in indices]
    samples = [(index, sample) for index, sample in pairs if sample is not None]
    found = [label_image(labeller, sample, index, round, thresholds) for index, sample in samples]
    by_image = [_view_confidences(labeller, sample, index, round) for index, sample in samples]
    labels = [sample.label for _, sample in samples if sample.label is not None]

    def stack(maps: Sequence[np.ndarray], method: Image.Resampling = Image.Resampling.NEAREST) -> np.ndarray:
        return np.stack([resize(pixels, round.size, method) for pixels in maps])

    pseudo_label_figure(
        stack([sample.image for _, sample in samples], Image.Resampling.BILINEAR),
        [stack(view) for view in zip(*by_image, strict=True)],
        stack([pseudo.confidence[0].cpu().numpy() for pseudo in found]),
        stack([pseudo.label[0].cpu().numpy() for pseudo in found]),
        stack(labels) if len(labels) == len(samples) else None,
        round.images.classes,
        round.picture,
    )


def _by_class(labeller: PseudoLabeller, histogram: Tensor) -> Tensor:
    """Return the thresholds that follow from a histogram, float32 ``[C]`` on the CPU."""
    thresholds = torch.as_tensor(labeller.thresholds(histogram))
    return thresholds.float().cpu().expand(len(histogram)).clone()


def _fingerprint(labeller: PseudoLabeller, round: LabelledRound) -> str:
    """Return a digest of everything that the labels follow from: weights, options, images and the place in the run."""
    data = (round.images.name, len(round.images), round.size)
    place = round.generator("views").initial_seed()
    digest = hashlib.blake2b(repr((labeller.config, data, place)).encode(), digest_size=16)
    for value in _state(labeller.teacher):
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _state(network: nn.Module) -> list[Tensor]:
    return list(network.state_dict().values())


def _spread(length: int, most: int) -> list[int]:
    """Return at most ``most`` indices, evenly over ``length``."""
    return sorted({round(i) for i in np.linspace(0, length - 1, min(length, most))})
