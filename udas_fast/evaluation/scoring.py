"""Evaluation of a model on a dataset, by one confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from typing import Literal

import torch
from torch import Tensor, nn

from udas_fast import distributed, ops
from udas_fast.data import IGNORE, Batch, ClassSet, SegmentationDataset
from udas_fast.data.loader import evaluation_batches
from udas_fast.data.user_loader import UserLoader
from udas_fast.errors import bad
from udas_fast.evaluation.metrics import Protocol, Scores
from udas_fast.models import normalization_of, normalize, to_output

Precision = Literal["fp32", "bf16", "fp16"]
PIXELS = 2**21
"""Pixels of the images that go through the network of a GPU at once, if one image has not more: 1024x2048."""
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(model: nn.Module, batches: Iterable[Batch], classes: ClassSet, protocol: Protocol) -> Scores:
    """Score ``model`` on ``batches`` under ``protocol``, in evaluation mode; its own mode is restored.

    The model receives images from :func:`udas_fast.models.normalize` on its own device. Its primary logits are
    upsampled to the label inside ``ops.confusion_matrix``, with ``align_corners`` of the model's output, which the
    protocol of the scores records. Pixels of 255 never count. With several processes each passes its part of the
    batches, and all return the scores of the whole (collective).

    Args:
        model: a segmentation model (:func:`udas_fast.models.to_output`).
        batches: images uint8 [N, 3, H, W] of the protocol's input size, labels [N, H', W'] of any size, on any device.
        classes: of the labels.
        protocol: expected size and number of the images; precision of the forward pass.

    Raises:
        InputError: the batches do not fit the protocol (size, number, label ids), no pixel is labelled, or the model's
            output has other classes or is not finite.
    """
    if protocol.num_classes != len(classes):
        raise bad("protocol.num_classes", protocol.num_classes, f"{len(classes)} as in {classes.name}")
    if protocol.flips or protocol.scales != (1.0,):
        raise bad("protocol", f"flips {protocol.flips}, scales {protocol.scales}", "one view, unscaled")
    matrix, counts = _count(model, batches, classes, protocol)
    matrix = distributed.all_reduce_sum(matrix)
    images, corners, broken = distributed.all_reduce_sum(counts).tolist()
    name = f"{protocol.dataset} {protocol.split}"
    if protocol.images not in (None, images):
        raise bad(name, f"{images} images", f"{protocol.images} as in the protocol")
    if protocol.align_corners and not corners:
        raise bad("protocol.align_corners", True, "False, as in the model's output")
    if broken:
        raise bad("model output", "NaN or infinite logits", "finite ones")
    if not matrix.any():
        raise bad(name, "no labelled pixel", "labels to score against")
    return Scores(matrix, classes.names, replace(protocol, images=images, align_corners=bool(corners)))


def evaluate_dataset(
    model: nn.Module,
    dataset: SegmentationDataset | UserLoader,
    split: str,
    size: tuple[int, int] | None = None,
    *,
    precision: Precision = "fp32",
    workers: int = 0,
    selected: str | None = None,
) -> Scores:
    """Score ``model`` on a whole ``dataset`` (:func:`evaluate`), its images resized to ``size`` (H, W).

    Labels keep their size. ``workers`` processes decode ahead; on a GPU as many images go through the network at once
    as have two megapixels together. ``selected`` is :attr:`Protocol.selected`. Batches and image sizes of a user's own
    loader are determined by the loader.
    """
    batches: Iterable[Batch]
    if isinstance(dataset, UserLoader):
        batches = islice(dataset.epoch(), distributed.get_rank(), None, distributed.get_world_size())
        images, size = None, None
    else:
        # On the CPU one by one, which is as fast: rounding then does not depend on the number of processes.
        together = (
            1 if size is None or device_of(model).type == "cpu" else max(1, PIXELS // (size[0] * size[1]))
        )
        batches, images = evaluation_batches(dataset, size, workers, together), len(dataset)
    protocol = Protocol(
        dataset=dataset.name,
        split=split,
        images=images,
        input_size=size,
        num_classes=len(dataset.classes),
        precision=precision,
        selected=selected,
    )
    return evaluate(model, batches, dataset.classes, protocol)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` into evaluation mode, and restore the mode of every module afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's parameters; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _count(
    model: nn.Module, batches: Iterable[Batch], classes: ClassSet, protocol: Protocol
) -> tuple[Tensor, Tensor]:
    """Return this process's confusion matrix, and int64 [3]: images, aligned corners, non-finite logits."""
    device = device_of(model)
    matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    dtype, images, corners = AUTOCAST[protocol.precision], 0, False
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            label = _checked_label(batch, classes, protocol).to(device, non_blocking=True)
            image = batch.image.to(device, non_blocking=True)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                output = to_output(model(normalize(image, normalization_of(model))))
            logits, corners = output.primary, output.align_corners
            if logits.shape[1] != len(classes):
                found = f"{logits.shape[1]} classes"
                raise bad("model output", found, f"{len(classes)} as in {classes.name}")
            finite &= logits.isfinite().all()
            matrix += ops.confusion_matrix(logits, label, len(classes), align_corners=corners)
            images += len(batch.ids)
    return matrix.cpu(), torch.tensor([images, corners, not finite], dtype=torch.int64)


def _checked_label(batch: Batch, classes: ClassSet, protocol: Protocol) -> Tensor:
    """Return the label of ``batch``; raise InputError, naming the image, if the batch does not fit ``protocol``."""
    name = f"{protocol.dataset} {protocol.split} {', '.join(batch.ids)}"
    size = tuple(batch.image.shape[-2:])
    if protocol.input_size is not None and size != tuple(protocol.input_size):
        raise bad(f"image of {name}", size, f"{tuple(protocol.input_size)} as in the protocol")
    if batch.label is None:
        raise bad(f"label of {name}", None, "train ids to score against")
    wrong = _ids_outside(batch.label, len(classes))
    if wrong:
        expected = f"0 to {len(classes) - 1} of {classes.name}, or {IGNORE}"
        raise bad(f"label of {name}", f"id {wrong[0]}", expected)
    return batch.label


def _ids_outside(label: Tensor, classes: int) -> list[int]:
    return [i for i in label.unique().tolist() if not 0 <= i < classes and i != IGNORE]
