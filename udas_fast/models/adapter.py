"""What a segmentation model may return, brought to one form."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from udas_fast.errors import bad


class Logits(NamedTuple):
    """What a network says of its images: (primary, auxiliary), float [N, C, h, w] each; auxiliary may be None.

    How both are brought to an image's size, in every loss, score and prediction, is theirs to say.
    """

    primary: Tensor
    auxiliary: Tensor | None = None
    align_corners = False  # of the bilinear upsampling, as in torch.nn.functional.interpolate


class AlignedLogits(Logits):
    """Logits that are upsampled with align_corners=True, as AdaptSegNet, ADVENT and MRNet do."""

    align_corners = True


WANTED = "a tensor, (primary, auxiliary), a dict with 'out' (and 'aux') or an object with .logits"


def heads(output: object) -> Logits:
    """The (primary, auxiliary) logits [N, C, h, w] in a model's output; auxiliary may be None.

    Takes :class:`Logits` and :class:`AlignedLogits`, and as the former a tensor, a tuple or list of one or two
    tensors (primary first), a dict with "out" and maybe "aux" (torchvision) and any object with ``.logits``
    (transformers). Raises InputError for anything else, for tensors that are not floating-point [N, C, h, w] and
    for heads that differ in images or classes.
    """
    primary, auxiliary = _split(output)
    _check("model output", primary)
    if auxiliary is not None:
        _check("auxiliary model output", auxiliary)
        if auxiliary.shape[:2] != primary.shape[:2]:
            raise bad("auxiliary model output", list(auxiliary.shape), f"[N, C] of {list(primary.shape)}")
    return output if isinstance(output, Logits) else Logits(primary, auxiliary)


def ensemble(logits: Logits) -> Tensor:
    """MRNet's logits of both heads, primary + 0.5·auxiliary, at the primary's size."""
    primary, auxiliary = logits
    if auxiliary.shape != primary.shape:  # DeepLabV3+'s auxiliary head is coarser
        auxiliary = F.interpolate(
            auxiliary, primary.shape[-2:], mode="bilinear", align_corners=logits.align_corners
        )
    return primary + 0.5 * auxiliary


def _split(output: object) -> tuple[object, object]:
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, Mapping) and "out" in output:
        return output["out"], output.get("aux")
    if hasattr(output, "logits"):
        return output.logits, None
    if isinstance(output, (tuple, list)) and 1 <= len(output) <= 2:
        return output[0], output[1] if len(output) == 2 else None
    raise bad("model output", _describe(output), WANTED)


def _check(what: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise bad(what, _describe(value), "a tensor of logits")
    if value.dim() != 4 or not torch.is_floating_point(value):
        raise bad(what, f"{value.dtype} {list(value.shape)}", "floating-point logits [N, C, h, w]")


def _describe(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"{kind} with keys {', '.join(map(str, value)) or 'none'}"
    if isinstance(value, (tuple, list)):
        return f"{kind} of length {len(value)}"
    return kind
