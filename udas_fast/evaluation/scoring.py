"""Evaluation of a model on a dataset, by one confusion matrix."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from udas_fast.evaluation.calibration import BINS, FINE, Reliability, confidence_histogram
from udas_fast.evaluation.metrics import Protocol, Scores
from udas_fast.evaluation.views import geometric_views
from udas_fast.models import SegmentationOutput, normalization_of, normalize, to_output

Precision = Literal["fp32", "bf16", "fp16"]
MOST_VIEWS = 16  # of ops.pseudo_label
PIXELS = 2**21
"""Pixels of the images that go through the network of a GPU at once, if one image has not more: 1024x2048."""
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(
    model: nn.Module | Sequence[nn.Module],
    batches: Iterable[Batch],
    classes: ClassSet,
    protocol: Protocol,
    *,
    by_image: dict[str, Tensor] | None = None,
) -> Scores:
    """Score ``model`` on ``batches`` under ``protocol``, in evaluation mode; its own mode is restored.

    Of several models, scales and mirrored views the mean of the softmaxes is scored, upsampled to the label from their
    small logits (:func:`udas_fast.ops.pseudo_label`).

    The model receives images from :func:`udas_fast.models.normalize` on its own device. Its primary logits are
    upsampled to the label inside ``ops.confusion_matrix``, with ``align_corners`` of the model's output, which the
    protocol of the scores records. Pixels of 255 never count. With several processes each passes its part of the
    batches, and all return the scores of the whole (collective).

    Args:
        model: a segmentation model (:func:`udas_fast.models.to_output`), or several.
        batches: images uint8 [N, 3, H, W] of the protocol's input size, labels [N, H', W'] of any size, on any device.
        classes: of the labels.
        protocol: expected size and number of the images; views, models and precision of the forward pass.
        by_image: is filled with the confusion matrix of each image by its id, int64 [C, C] on the CPU.

    Raises:
        InputError: the batches do not fit the protocol (size, number, label ids), no pixel is labelled, the model's
            output has other classes or is not finite, or there are more than 16 views of all models.
    """
    models = [model] if isinstance(model, nn.Module) else list(model)
    if protocol.num_classes != len(classes):
        raise bad("protocol.num_classes", protocol.num_classes, f"{len(classes)} as in {classes.name}")
    if protocol.models != len(models):
        raise bad("protocol.models", protocol.models, f"{len(models)}, the number given")
    views = len(models) * len(protocol.scales) * (1 + protocol.flips)
    if not 0 < views <= MOST_VIEWS:
        raise bad("views of an image", f"{views} of {len(models)} models", f"1 to {MOST_VIEWS}")
    matrix, histogram, counts = _count(models, batches, classes, protocol, by_image)
    matrix, histogram = distributed.all_reduce_sum(matrix), distributed.all_reduce_sum(histogram)
    if by_image is not None:
        for part in distributed.all_gather_object(by_image):
            by_image.update(part)
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
    measured = replace(protocol, images=images, align_corners=bool(corners))
    confident = all(getattr(model, "gives_confidence", True) for model in models)
    reliability = Reliability.of_histogram(histogram) if confident else None
    return Scores(matrix, classes.names, measured, reliability)


def evaluate_dataset(
    model: nn.Module | Sequence[nn.Module],
    dataset: SegmentationDataset | UserLoader,
    split: str,
    size: tuple[int, int] | None = None,
    *,
    precision: Precision = "fp32",
    workers: int = 0,
    scales: tuple[float, ...] = (1.0,),
    flips: bool = False,
    temperature: float = 1.0,
    selected: str | None = None,
    by_image: dict[str, Tensor] | None = None,
) -> Scores:
    """Score ``model`` on a whole ``dataset`` (:func:`evaluate`), its images resized to ``size`` (H, W).

    Labels keep their size. ``workers`` processes decode ahead; on a GPU as many images go through the network at once
    as have two megapixels together. Batches and image sizes of a user's own loader are determined by the loader.
    ``scales``, ``flips``, ``temperature`` and ``selected`` are those of the :class:`Protocol`; ``by_image``: see
    :func:`evaluate`.
    """
    models = [model] if isinstance(model, nn.Module) else list(model)
    batches: Iterable[Batch]
    if isinstance(dataset, UserLoader):
        batches = islice(dataset.epoch(), distributed.get_rank(), None, distributed.get_world_size())
        images, size = None, None
    else:
        # On the CPU one by one, which is as fast: rounding then does not depend on the number of processes.
        together = (
            1 if size is None or device_of(models[0]).type == "cpu" else max(1, PIXELS // (size[0] * size[1]))
        )
        batches, images = evaluation_batches(dataset, size, workers, together), len(dataset)
    protocol = Protocol(
        dataset=dataset.name,
        split=split,
        images=images,
        input_size=size,
        num_classes=len(dataset.classes),
        precision=precision,
        scales=scales,
        flips=flips,
        models=len(models),
        temperature=temperature,
        selected=selected,
    )
    return evaluate(models, batches, dataset.classes, protocol, by_image=by_image)


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
    models: Sequence[nn.Module],
    batches: Iterable[Batch],
    classes: ClassSet,
    protocol: Protocol,
    by_image: dict[str, Tensor] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Count this process's part of the images.

    Returns:
        The confusion matrix, the :func:`confidence_histogram`, and int64 [3]: images, aligned corners, non-finite
        logits.
    """
    device = device_of(models[0])
    matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=device)
    histogram = torch.zeros(2 * BINS * FINE, dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    images, corners = 0, False
    with ExitStack() as modes, torch.inference_mode():
        for model in models:
            modes.enter_context(evaluating(model))
        for batch in batches:
            label = _checked_label(batch, classes, protocol).to(device, non_blocking=True)
            outputs, flips = _views(models, batch.image.to(device, non_blocking=True), classes, protocol)
            corners = outputs[0].align_corners
            logits = [output.primary for output in outputs]
            finite &= torch.stack([one.isfinite().all() for one in logits]).all()
            fused = ops.pseudo_label(
                logits,
                label.shape[-2:],
                threshold=0.0,
                temperature=protocol.temperature,
                flips=flips,
                reduce="mean",
                align_corners=corners,
            )
            histogram += confidence_histogram(label, fused.label, fused.confidence)
            parts = [slice(i, i + 1) for i in range(len(label))] if by_image is not None else [slice(None)]
            for part in parts:
                if len(logits) == 1:
                    found = ops.confusion_matrix(
                        logits[0][part], label[part], len(classes), align_corners=corners
                    )
                else:
                    found = _confusion(label[part], fused.label[part], len(classes))
                matrix += found
                if by_image is not None:
                    by_image[batch.ids[part.start]] = found.cpu()
            images += len(batch.ids)
    counts = torch.tensor([images, corners, not finite], dtype=torch.int64)
    return matrix.cpu(), histogram.cpu(), counts


def _views(
    models: Sequence[nn.Module], image: Tensor, classes: ClassSet, protocol: Protocol
) -> tuple[list[SegmentationOutput], list[bool]]:
    """Return each model's output for each view of the protocol, and whether the view is mirrored."""
    dtype = AUTOCAST[protocol.precision]
    outputs, flips = [], []
    for model in models:
        normal = normalize(image, normalization_of(model))
        scales = [scale for scale in protocol.scales if scale != 1]
        plain = [(normal, False)] if 1 in protocol.scales else []
        views = geometric_views(normal, scales, protocol.flips)
        if protocol.flips and not plain:
            views = views[1:]  # the mirrored view of the image's own scale
        for view, mirrored in (*plain, *views):
            with torch.autocast(image.device.type, dtype, enabled=dtype is not None):
                outputs.append(to_output(model(view)))
            flips.append(mirrored)
    for output in outputs:
        if output.primary.shape[1] != len(classes):
            found = f"{output.primary.shape[1]} classes"
            raise bad("model output", found, f"{len(classes)} as in {classes.name}")
        if output.align_corners != outputs[0].align_corners:
            raise bad("models", "logits with aligned corners and without", "one of both")
    return outputs, flips


def _confusion(label: Tensor, predicted: Tensor, classes: int) -> Tensor:
    counted = label != IGNORE
    cell = label[counted].long() * classes + predicted[counted]
    return torch.bincount(cell, minlength=classes * classes).view(classes, classes)


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
