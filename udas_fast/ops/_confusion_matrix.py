"""The confusion matrix of predictions at full resolution."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from udas_fast.errors import bad
from udas_fast.ops import _check, _library
from udas_fast.ops._dispatch import dispatch


def confusion_matrix(
    logits: Tensor,
    target: Tensor,
    num_classes: int,
    *,
    ignore_index: int = 255,
    align_corners: bool = False,
) -> Tensor:
    """Count pixels by true class and predicted class, the arg-max of the upsampled logits.

    Args:
        logits: ``[N, C, h, w]`` float32, float16 or bfloat16.
        target: ``[N, H, W]`` uint8 or int64; predictions are made at its size.
        num_classes: C, which the logits must have.
        ignore_index: label of pixels that do not count.
        align_corners: as in ``torch.nn.functional.interpolate``.

    Returns:
        int64 ``[C, C]``: rows are the truth, columns the prediction; ties go to the lowest class.

    Raises:
        InputError: wrong shape, dtype or device; on the CPU a label that is neither below C nor ignored (on
            CUDA such pixels do not count).
    """
    _check.logits("logits", logits)
    if not isinstance(num_classes, Integral):
        raise bad("num_classes", type(num_classes).__name__, "the number of classes")
    if logits.shape[1] != num_classes:
        raise bad("logits", _check.shape(logits), f"num_classes = {num_classes} classes")
    _check.labels("target", target, logits)
    ignore_index, align_corners = _check.ignored(ignore_index), _check.flag("align_corners", align_corners)
    options: dict[str, Any] = {
        "num_classes": num_classes,
        "ignore_index": ignore_index,
        "align_corners": align_corners,
    }
    schema = ignore_index, align_corners
    logits = logits.detach() if logits.requires_grad else logits
    return dispatch("confusion_matrix", logits, target, schema=schema, **options)


def _fake(logits: Tensor, *_: Any) -> Tensor:
    return logits.new_empty((logits.shape[1], logits.shape[1]), dtype=torch.int64)


_library.register("confusion_matrix", _fake)
