"""Checks of the operators' arguments: one sentence that names the argument, what was found and what is expected."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from udas_fast.errors import bad, unknown

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}  # the numbers of csrc
MAX_CLASSES = 256
MAX_VIEWS = 16
MOST = 2**30  # of a side, or of boxes; the kernels' integers have 32 bits
LOGIT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WHOLE = (int, torch.SymInt)
LABEL_DTYPES = (torch.uint8, torch.int64)


def shape(t: Tensor) -> str:
    """Return the shape of ``t`` for a message."""
    return f"shape {list(t.shape)}"


def tensor(name: str, value: object, expected: str) -> None:
    """Check that ``value`` is a dense tensor."""
    if not isinstance(value, Tensor):
        raise bad(name, type(value).__name__, expected)
    if value.layout is not torch.strided:
        raise bad(name, value.layout, "a dense tensor")


def logits(name: str, t: Tensor) -> None:
    """Check logits ``[N, C, h, w]``: C from 2 to 256, float32, float16 or bfloat16."""
    tensor(name, t, "a tensor of logits [N, C, h, w]")
    found = t.shape
    if len(found) != 4 or not 2 <= found[1] <= MAX_CLASSES or found[2] < 1 or found[3] < 1:
        raise bad(name, shape(t), f"[N, C, h, w] with C from 2 to {MAX_CLASSES}")
    if t.dtype not in LOGIT_DTYPES:
        raise bad(name, t.dtype, "float32, float16 or bfloat16 (udas_fast.ops.reference takes float64)")


def alike(name: str, t: Tensor, first_name: str, first: Tensor) -> None:
    """Check logits with the samples and classes of ``first``, on its device."""
    logits(name, t)
    if t.shape[:2] != first.shape[:2]:
        raise bad(name, shape(t), f"the samples and classes of {first_name}, {list(first.shape[:2])}")
    same_device(name, t, first_name, first)


def one_dtype(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return ``maps`` as they are, or all in float32 where their dtypes differ (low resolution: cheap)."""
    if all(m.dtype == maps[0].dtype for m in maps):
        return list(maps)
    return [m.float() for m in maps]


def same_device(name: str, t: Tensor, first_name: str, first: Tensor) -> None:
    """Check that ``t`` is on the device of ``first``."""
    if t.device != first.device:
        raise bad(name, f"device {t.device}", f"the device of {first_name}, {first.device}")


def size(value: Sequence[int]) -> tuple[int, int]:
    """Return ``value`` as (H, W), both from 1 to 2^30 - 1."""
    if isinstance(value, Sequence) and len(value) == 2:
        height, width = value
        if isinstance(height, np.integer) or isinstance(width, np.integer):
            height, width = (int(v) if isinstance(v, np.integer) else v for v in value)
        if (
            isinstance(height, WHOLE)
            and isinstance(width, WHOLE)
            and 1 <= height < MOST
            and 1 <= width < MOST
        ):
            return height, width
    raise bad("size", value, "(height, width), both at least 1 and below 2^30")


def plane(name: str, t: Tensor, like: Tensor, height: int, width: int) -> None:
    """Check a tensor ``[N, H, W]`` on the device of ``like``, whose first axis is N."""
    tensor(name, t, "a tensor [N, H, W]")
    if tuple(t.shape) != (like.shape[0], height, width):
        raise bad(name, shape(t), f"[N, H, W] = {[like.shape[0], height, width]}")
    if t.device != like.device:
        raise bad(name, f"device {t.device}", str(like.device))


def mask(t: Tensor | None, like: Tensor, size: Sequence[int]) -> None:
    """Check the pixels that count, None or bool ``[N, H, W]`` on the device of ``like``, whose first axis is N."""
    if t is None:
        return
    plane("mask", t, like, *size)
    if t.dtype != torch.bool:
        raise bad("mask", t.dtype, "bool")


def labels(name: str, t: Tensor, like: Tensor) -> None:
    """Check labels uint8 or int64 ``[N, H, W]`` on the device of ``like``, whose first axis is N."""
    tensor(name, t, "a tensor of labels [N, H, W]")
    found = t.shape
    if len(found) != 3 or found[0] != like.shape[0] or found[1] < 1 or found[2] < 1:
        raise bad(name, shape(t), f"[N, H, W] with N = {like.shape[0]}")
    if t.dtype not in LABEL_DTYPES:
        raise bad(name, t.dtype, "uint8 or int64")
    if t.device != like.device:
        raise bad(name, f"device {t.device}", str(like.device))


def constant(name: str, t: Tensor) -> None:
    """Refuse a tensor that requires grad, as no gradient flows into ``t``."""
    if t.requires_grad and torch.is_grad_enabled():
        raise bad(name, "a tensor that requires grad", "a constant (call .detach())")


def pixel_weight(t: Tensor | None, like: Tensor, size: Sequence[int]) -> Tensor | None:
    """Return floating-point ``[N, H, W]`` as float32."""
    if t is None:
        return None
    height, width = size
    plane("pixel_weight", t, like, height, width)
    if not t.is_floating_point():
        raise bad("pixel_weight", t.dtype, "a floating dtype")
    constant("pixel_weight", t)
    return t.float()


def class_vector(name: str, t: Tensor) -> None:
    """Check a floating-point ``[C]``."""
    tensor(name, t, "a tensor [C]")
    if t.dim() != 1 or not t.is_floating_point():
        raise bad(name, f"{t.dtype} {list(t.shape)}", "floating, one number per class, [C]")


def class_values(name: str, t: Tensor, like: Tensor) -> Tensor:
    """Return floating-point ``[C]`` as float32; it must be finite, as far as known, on the device of ``like``."""
    class_vector(name, t)
    if len(t) != like.shape[1]:
        raise bad(name, f"{t.dtype} {list(t.shape)}", f"floating, one number per class, [{like.shape[1]}]")
    if t.device != like.device:
        raise bad(name, f"device {t.device}", str(like.device))
    constant(name, t)
    if on_host(t) and not bool(t.isfinite().all()):
        raise bad(name, "a value that is not finite", "finite numbers")
    return t.float()


def on_host(value: Tensor) -> bool:
    """Return whether the values can be read without waiting; a subclass or a traced tensor may have none."""
    return value.device.type == "cpu" and type(value) is Tensor and not torch.compiler.is_compiling()


def reduction(value: str) -> str:
    """Return a known reduction."""
    return choice("reduction", value, REDUCTIONS)


def choice(name: str, value: str, known: Collection[str]) -> str:
    """Return ``value``, which must be one of ``known``."""
    if not isinstance(value, str):
        raise bad(name, value, f"one of {', '.join(known)}")
    if value not in known:
        raise unknown(name, value, known)
    return value


def positive(name: str, value: float) -> float:
    """Return ``value``, which must be a finite number above 0."""
    if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
        raise bad(name, value, "a finite number above 0")
    return float(value)


def flag(name: str, value: bool) -> bool:
    """Return ``value``, which must be True or False."""
    if not isinstance(value, bool):
        raise bad(name, value, "True or False")
    return value


def ignored(value: int) -> int:
    """Return the label of pixels that do not count: any integer of 64 bits."""
    if not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise bad("ignore_index", value, "an integer")
    return value


def ignore_byte(value: int) -> int:
    """Return an ignored label that fits uint8."""
    if not isinstance(value, int) or not 0 <= value <= 255:
        raise bad("ignore_index", value, "0 to 255")
    return int(value)


def count(name: str, values: Sequence[Tensor]) -> list[Tensor]:
    """Return 1 to 16 tensors as a list, as constants."""
    if not isinstance(values, Sequence) or not 1 <= len(values) <= MAX_VIEWS:
        kind = "one tensor" if isinstance(values, Tensor) else type(values).__name__
        found = f"{len(values)} tensors" if isinstance(values, Sequence) else kind
        raise bad(name, found, f"a sequence of 1 to {MAX_VIEWS} tensors")
    for k, value in enumerate(values):
        tensor(f"{name}[{k}]", value, "a tensor of logits [N, C, h, w]")
    return [value.detach() if value.requires_grad else value for value in values]
