"""One confusion matrix over a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from udas_fast import distributed, ops
from udas_fast.data.loader import evaluation_batches
from udas_fast.data.types import IGNORE, Batch, ClassSet, SegmentationDataset
from udas_fast.data.user_loader import UserLoader
from udas_fast.errors import bad
from udas_fast.evaluation.metrics import Protocol, Scores
from udas_fast.models import normalize, to_output

AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def evaluate(model: nn.Module, batches: Iterable[Batch], classes: ClassSet, protocol: Protocol) -> Scores:
    """Score ``model`` on ``batches`` under ``protocol``, in evaluation mode, which is undone afterwards.

    batches: images uint8 [N, 3, H, W] of the protocol's input size and their labels [N, H', W'] at any size
    of their own, on any device. The model gets :func:`udas_fast.models.normalize`'s images on its own device;
    its primary logits are upsampled to the label inside ``ops.confusion_matrix``, with aligned corners where
    the model's output says so, which the scores' protocol records. Pixels of 255 never count.
    Among several processes each gives its part of the batches, and all get the scores of the whole (collective).
    Raises InputError where the batches are not what the protocol says (size, number, label ids), where no
    pixel is labelled, and where the model's output has other classes or is not finite.
    """
    if protocol.num_classes != len(classes):
        raise bad("protocol.num_classes", protocol.num_classes, f"{len(classes)} as in {classes.name}")
    if protocol.flips or protocol.scales != (1.0,):
        raise bad("protocol", f"flips {protocol.flips}, scales {protocol.scales}", "one view as it is")
    device = device_of(model)
    matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64, device=device)
    finite = torch.ones((), dtype=torch.bool, device=device)
    dtype, images, corners = AUTOCAST[protocol.precision], 0, False
    with evaluating(model), torch.inference_mode():
        for batch in batches:
            _check(batch, classes, protocol)
            batch = batch.to(device)
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                output = to_output(model(normalize(batch.image)))
            logits, corners = output.primary, output.align_corners
            if logits.shape[1] != len(classes):
                raise bad(
                    "model output", f"{logits.shape[1]} classes", f"{len(classes)} as in {classes.name}"
                )
            finite &= logits.isfinite().all()
            matrix += ops.confusion_matrix(logits, batch.label, len(classes), align_corners=corners)
            images += len(batch.ids)
    matrix = distributed.all_reduce_sum(matrix.cpu())
    counts = torch.tensor([images, corners, not finite], dtype=torch.int64)
    images, corners, broken = distributed.all_reduce_sum(counts).tolist()
    if protocol.images not in (None, images):
        raise bad(
            f"{protocol.dataset} {protocol.split}",
            f"{images} images",
            f"{protocol.images} as in the protocol",
        )
    if protocol.align_corners and not corners:
        raise bad("protocol.align_corners", True, "False, as the model's output says")
    if broken:
        raise bad("model output", "NaN or infinite logits", "finite ones")
    if not matrix.any():
        raise bad(f"{protocol.dataset} {protocol.split}", "no labelled pixel", "labels to score against")
    return Scores(matrix, classes.names, replace(protocol, images=images, align_corners=bool(corners)))


def evaluate_dataset(
    model: nn.Module,
    dataset: SegmentationDataset | UserLoader,
    split: str,
    size: tuple[int, int] | None = None,
    *,
    precision: str = "fp32",
) -> Scores:
    """:func:`evaluate` on a whole ``dataset``, its images resized to ``size`` (H, W), labels as they are.

    A user's own loader is scored as it comes: what its images' sizes are is its own to say.
    """
    own = isinstance(dataset, UserLoader)
    protocol = Protocol(
        dataset=dataset.name,
        split=split,
        images=None if own else len(dataset),
        input_size=None if own else size,
        num_classes=len(dataset.classes),
        precision=precision,
    )
    if own:
        batches = islice(dataset.epoch(), distributed.get_rank(), None, distributed.get_world_size())
    else:
        batches = evaluation_batches(dataset, size)
    return evaluate(model, batches, dataset.classes, protocol)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and every module's own mode back afterwards, whatever happens."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def device_of(model: nn.Module) -> torch.device:
    """Where the model's parameters are; the CPU for a model without any."""
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def _check(batch: Batch, classes: ClassSet, protocol: Protocol) -> None:
    """Raise InputError, naming the image, unless ``batch`` is what ``protocol`` says."""
    name = f"{protocol.dataset} {protocol.split} {', '.join(batch.ids)}"
    size = tuple(batch.image.shape[-2:])
    if protocol.input_size is not None and size != tuple(protocol.input_size):
        raise bad(f"image of {name}", size, f"{tuple(protocol.input_size)} as in the protocol")
    if batch.label is None:
        raise bad(f"label of {name}", None, "train ids to score against")
    wrong = _ids_outside(batch.label, len(classes))
    if wrong:
        raise bad(
            f"label of {name}", f"id {wrong[0]}", f"0 to {len(classes) - 1} of {classes.name}, or {IGNORE}"
        )


def _ids_outside(label: Tensor, classes: int) -> list[int]:
    return [i for i in label.unique().tolist() if not 0 <= i < classes and i != IGNORE]
