"""One form for the outputs of all segmentation models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from udas_fast.errors import InputError, bad
from udas_fast.models.normalization import normalization_of


@dataclass(frozen=True, eq=False)
class SegmentationOutput:
    """Output of a segmentation network.

    Iterates over (primary, auxiliary), so that ``primary, auxiliary = network(image)`` works. torch.compile,
    torch.export and ONNX see the tensors in it.

    Attributes:
        primary: logits, float [N, C, h, w].
        auxiliary: logits of a second head, [N, C] as the primary's, of any height and width; None for a network with
            one head.
        align_corners: how the logits are upsampled in every loss, score and prediction, as in
            torch.nn.functional.interpolate. True for AdaptSegNet, ADVENT and MRNet.
    """

    primary: Tensor
    auxiliary: Tensor | None = None
    align_corners: bool = False

    def __iter__(self) -> Iterator[Tensor | None]:
        return iter((self.primary, self.auxiliary))

    def detach(self) -> SegmentationOutput:
        """Return the same logits, cut off from the graph of gradients."""
        auxiliary = None if self.auxiliary is None else self.auxiliary.detach()
        return replace(self, primary=self.primary.detach(), auxiliary=auxiliary)

    def ensemble(self) -> Tensor:
        """Return MRNet's logits of both heads, primary + 0.5·auxiliary, at the primary's size.

        Raises:
            InputError: the network has one head.
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


def _flatten_with_keys(output: SegmentationOutput) -> tuple[list[tuple[pytree.KeyEntry, Any]], bool]:
    heads, align_corners = _flatten(output)
    keys = (pytree.GetAttrKey("primary"), pytree.GetAttrKey("auxiliary"))
    return list(zip(keys, heads, strict=True)), align_corners


def _unflatten(heads: Iterable[Any], align_corners: bool) -> SegmentationOutput:
    primary, auxiliary = heads
    return SegmentationOutput(primary, auxiliary, align_corners)


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
    """Convert what a model returned to a :class:`SegmentationOutput`.

    Takes a SegmentationOutput, which is returned unchanged, a tensor, a tuple or list of one or two tensors (primary
    first), a dict with "out" and maybe "aux" (torchvision), and any object with ``.logits`` (transformers).

    Raises:
        InputError: anything else, tensors that are not floating-point [N, C, h, w], or heads that differ in images or
            classes.
    """
    first, second = _split(output)
    primary = _logits("model output", first)
    auxiliary = None if second is None else _logits("auxiliary model output", second)
    if auxiliary is not None and auxiliary.shape[:2] != primary.shape[:2]:
        raise bad("auxiliary model output", list(auxiliary.shape), f"[N, C] of {list(primary.shape)}")
    return output if isinstance(output, SegmentationOutput) else SegmentationOutput(primary, auxiliary)


class MeanNetwork(nn.Module):
    """Mean of several networks' primary probabilities, as logits: log(mean_k softmax_k), float32 [N, C, h, w].

    The networks share their stride, normalisation and the multiple that sides of an image have.
    """

    def __init__(self, networks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.normalization = normalization_of(self.networks[0])
        self.multiple = getattr(self.networks[0], "multiple", 1)

    def forward(self, x: Tensor) -> SegmentationOutput:
        """Map a normalised image, float [N, 3, H, W], to logits at the networks' stride, which all share."""
        outputs = [to_output(network(x)) for network in self.networks]
        logs = [output.primary.log_softmax(1, dtype=torch.float32) for output in outputs]
        # The sum instead of the mean adds a constant to the logits, which softmax ignores.
        return replace(outputs[0], primary=torch.stack(logs).logsumexp(0), auxiliary=None)


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
