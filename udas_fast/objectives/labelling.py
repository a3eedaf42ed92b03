"""A teacher labels a round's images: all of them to disk before it, and some or all in its report after it."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from udas_fast import distributed, ops
from udas_fast.atomic import make_folder
from udas_fast.data import (
    IGNORE,
    Batch,
    PseudoLabelDataset,
    PseudoLabelFolder,
    Sample,
    SegmentationDataset,
    auto_augment,
    resize,
    with_labels,
)
from udas_fast.data.pseudo_labels import read_summary, write_json
from udas_fast.errors import InputError
from udas_fast.objectives.base import Round

if TYPE_CHECKING:
    from udas_fast.objectives.self_training import SelfTraining

REPORTED = 32  # images that a report looks at where labels are made in every step
PICTURED = 4


def label_to_disk(teacher: SelfTraining, round: Round) -> PseudoLabelDataset:
    """Label every unlabelled image once, whole and at its own size; the images with these labels.

    What an earlier attempt has written with the same teacher is kept.
    """
    folder = PseudoLabelFolder(round.folder, round.unlabelled, _fingerprint(teacher, round))
    if not folder.complete:
        silent = None if distributed.is_main() else True
        for index in tqdm(folder.missing(), desc="pseudo-labels", unit="image", leave=False, disable=silent):
            round.check_stop()
            sample = round.unlabelled.unlabelled(index)
            pseudo = label_image(teacher, sample, index, round, threshold=0.0)
            folder.add(index, pseudo.label[0].cpu().numpy(), pseudo.confidence[0].cpu().numpy())
        folder.finish(lambda histogram: _by_class(teacher, torch.from_numpy(histogram)[:, None]).numpy())
    return PseudoLabelDataset(round.unlabelled, round.folder)


def label_image(
    teacher: SelfTraining, sample: Sample, index: int, round: Round, threshold: float | Tensor
) -> ops.PseudoLabel:
    """The teacher's labels ``[1, H, W]`` of image ``index``, resized for the network, at the image's own size."""
    device = teacher.histogram.device
    pixels = resize(sample.image, round.size, Image.Resampling.BILINEAR)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].to(device)
    generator = round.generator("views", index)
    batch = Batch(image, None, [sample.id])
    photometric = teacher.photometric_views(batch, lambda images: auto_augment(images, generator))
    views, flips = teacher.look(photometric, round.normalize)
    if isinstance(threshold, Tensor):
        threshold = threshold.to(device)
    return teacher.label(views, flips, sample.image.shape[:2], threshold)


def report_round(teacher: SelfTraining, round: Round) -> None:
    """Write ``report.json`` on the round's pseudo-labels and a picture of some of them.

    Labels on disk are all reported; otherwise those that the teacher gives, at the thresholds of the round's end,
    to at most :data:`REPORTED` images. Accuracy needs labels of these images, which training has not seen; a file
    that cannot be read is left out, as no run is to end at its report.
    """
    truth = with_labels(round.unlabelled)
    images, classes = round.unlabelled, round.unlabelled.classes
    stored = PseudoLabelDataset(images, round.folder) if teacher.config.labels == "disk" else None
    if stored is not None:
        summary = read_summary(round.folder)
        indices = list(range(len(images)))
        thresholds, histogram = torch.tensor(summary["threshold"]), np.array(summary["histogram"])
    else:
        indices = _spread(len(images), REPORTED)
        thresholds = _by_class(teacher, teacher.histogram)
        histogram = np.zeros((len(classes), 2, 64), np.int64)
    counts = np.zeros((len(classes), len(classes)), np.int64)  # truth × pseudo-label, where both are a class
    seen = []
    for index in indices:
        if (sample := _look_at(images, truth, index)) is None:
            continue
        seen.append(index)
        if stored is not None:
            label = stored.label(index)
        else:
            pseudo = label_image(teacher, sample, index, round, thresholds)
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
        **quality(histogram, None if truth is None else counts),
    }
    make_folder(round.folder)
    write_json(round.folder / "report.json", report)
    if seen:
        _picture(teacher, round, [seen[i] for i in _spread(len(seen), PICTURED)], truth, thresholds)


def _look_at(images: SegmentationDataset, truth: SegmentationDataset | None, index: int) -> Sample | None:
    """Image ``index`` with its label where ``truth`` has one to read; None where the image itself cannot be read."""
    for dataset in (truth, images):
        if dataset is not None:
            with suppress(InputError):
                return dataset[index]
    return None


def quality(histogram: np.ndarray, counts: np.ndarray | None) -> dict[str, Any]:
    """Kept shares and accuracies, by class of the pseudo-label and over all; None where nothing was counted.

    Args:
        histogram: int64 ``[C, 2, 64]``, pixels by pseudo-label, kept (0) or dropped (1).
        counts: int64 ``[C, C]``, kept pixels by true class and pseudo-label; None without labels.
    """
    kept = histogram.sum(2)
    report = {
        "kept_share": [_ratio(a, a + b) for a, b in kept],
        "kept_share_all": _ratio(kept[:, 0].sum(), kept.sum()),
        "accuracy": None,
        "accuracy_all": None,
        "labelled": counts is not None,
    }
    if counts is not None:
        report["accuracy"] = [_ratio(counts[c, c], counts[:, c].sum()) for c in range(len(counts))]
        report["accuracy_all"] = _ratio(counts.trace(), counts.sum())
    return report


def _picture(
    teacher: SelfTraining,
    round: Round,
    indices: list[int],
    truth: SegmentationDataset | None,
    thresholds: Tensor,
) -> None:
    """Images, the teacher's confidence in them, what is kept, and the truth where it is there, at the round's size."""
    # Here, as matplotlib takes its time, and recipes are only data.
    from udas_fast.evaluation import pseudo_label_figure

    samples = [_look_at(round.unlabelled, truth, index) for index in indices]
    found = [
        label_image(teacher, sample, index, round, thresholds)
        for sample, index in zip(samples, indices, strict=True)
    ]

    def stack(maps: list[np.ndarray], method: Image.Resampling = Image.Resampling.NEAREST) -> np.ndarray:
        return np.stack([resize(pixels, round.size, method) for pixels in maps])

    labelled = all(sample.label is not None for sample in samples)
    pseudo_label_figure(
        stack([sample.image for sample in samples], Image.Resampling.BILINEAR),
        stack([pseudo.confidence[0].cpu().numpy() for pseudo in found]),
        stack([pseudo.label[0].cpu().numpy() for pseudo in found]),
        stack([sample.label for sample in samples]) if labelled else None,
        round.unlabelled.classes,
        round.picture,
    )


def _by_class(teacher: SelfTraining, histogram: Tensor) -> Tensor:
    """The thresholds that follow from a histogram, float32 ``[C]`` on the CPU."""
    return torch.as_tensor(teacher.thresholds(histogram)).float().cpu().expand(len(histogram)).clone()


def _fingerprint(teacher: SelfTraining, round: Round) -> str:
    """What the labels follow from: weights, options, images and the place in the run."""
    data = (round.unlabelled.name, len(round.unlabelled), round.size)
    place = round.generator("views").initial_seed()
    digest = hashlib.blake2b(repr((teacher.config, data, place)).encode(), digest_size=16)
    for value in teacher.teacher.state_dict().values():
        digest.update(value.cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _spread(length: int, most: int) -> list[int]:
    """At most ``most`` indices, evenly over ``length``."""
    return sorted({round(i) for i in np.linspace(0, length - 1, min(length, most))})


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
