"""One form for the outputs of all segmentation models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from udas_fast.errors import InputError, bad


@dataclass(frozen=True, eq=False)
class SegmentationOutput:
    """Output of a segmentation network.

    Iterates over (primary, auxiliary), so that ``primary, auxiliary = network(image)`` works. torch.compile,
    torch.export and ONNX see the tensors in it.

    Attributes:
        primary: logits, float [N, C, h, w].
        auxiliary: logits of a second head, [N, C] as the primary's, at any size; None for a network with one head.
        align_corners: how the logits are upsampled in every loss, score and prediction, as in
            torch.nn.functional.interpolate. True for AdaptSegNet, ADVENT and MRNet.
    """

    primary: Tensor
    auxiliary: Tensor | None = None
    align_corners: bool = False

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.primary, self.auxiliary))

    def detach(self) -> SegmentationOutput:
        """Return the same logits without their history of gradients."""
        auxiliary = None if self.auxiliary is None else self.auxiliary.detach()
        return replace(self, primary=self.primary.detach(), auxiliary=auxiliary)

    def ensemble(self) -> Tensor:
        """Return MRNet's logits of both heads, primary + 0.5·auxiliary, at the primary's size.

        Raises InputError for a network with one head.
        """
        auxiliary = self.auxiliary
        if auxiliary is None:
            raise InputError("the ensemble of both heads needs a network with an auxiliary head")
        if auxiliary.shape != self.primary.shape:  # DeepLabV3+'s auxiliary head is coarser
            auxiliary = F.interpolate(
                auxiliary, self.primary.shape[-2:], mode="bilinear", align_corners=self.align_corners
            )
        return self.primary + 0.5 * auxiliary


def _flatten(output: SegmentationOutput) -> tuple[list[Tensor | None], bool]:
    return [output.primary, output.auxiliary], output.align_corners


def _flatten_with_keys(
    output: SegmentationOutput,
) -> tuple[list[tuple[pytree.KeyEntry, Tensor | None]], bool]:
    heads, align_corners = _flatten(output)
    keys = (pytree.GetAttrKey("primary"), pytree.GetAttrKey("auxiliary"))
    return list(zip(keys, heads, strict=True)), align_corners


def _unflatten(heads: Iterable[Tensor | None], align_corners: bool) -> SegmentationOutput:
    return SegmentationOutput(*heads, align_corners=align_corners)


# torch.export.register_dataclass would make align_corners an output of the graph.
pytree.register_pytree_node(
    SegmentationOutput,
    _flatten,
    _unflatten,
    serialized_type_name="udas_fast.models.SegmentationOutput",
    flatten_with_keys_fn=_flatten_with_keys,
)

EXPECTED = "a tensor, (primary, auxiliary), a dict with 'out' (and 'aux') or an object with .logits"


def to_output(output: object) -> SegmentationOutput:
    """Convert what a model returns to a :class:`SegmentationOutput`, which is returned as it is.

    Takes a tensor, a tuple or list of one or two tensors (primary first), a dict with "out" and maybe "aux"
    (torchvision) and any object with ``.logits`` (transformers). Raises InputError for anything else, for tensors
    that are not floating-point [N, C, h, w] and for heads that differ in images or classes.
    """
    first, second = _split(output)
    primary = _logits("model output", first)
    auxiliary = None if second is None else _logits("auxiliary model output", second)
    if auxiliary is not None and auxiliary.shape[:2] != primary.shape[:2]:
        raise bad("auxiliary model output", list(auxiliary.shape), f"[N, C] of {list(primary.shape)}")
    return output if isinstance(output, SegmentationOutput) else SegmentationOutput(primary, auxiliary)


def _split(output: object) -> tuple[object, object]:
    if isinstance(output, SegmentationOutput):
        return output.primary, output.auxiliary
    if isinstance(output, Tensor):
        return output, None
    if isinstance(output, Mapping) and "out" in output:
        return output["out"], output.get("aux")
    if hasattr(output, "logits"):
        return output.logits, None
    if isinstance(output, (tuple, list)) and 1 <= len(output) <= 2:
        return output[0], output[1] if len(output) == 2 else None
    raise bad("model output", _describe(output), EXPECTED)


def _logits(what: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise bad(what, _describe(value), "a tensor of logits")
    if value.dim() != 4 or not torch.is_floating_point(value):
        raise bad(what, f"{value.dtype} {list(value.shape)}", "floating-point logits [N, C, h, w]")
    return value


def _describe(value: object) -> str:
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"{kind} with keys {', '.join(map(str, value)) or 'none'}"
    if isinstance(value, (tuple, list)):
        return f"{kind} of length {len(value)}"
    return kind
