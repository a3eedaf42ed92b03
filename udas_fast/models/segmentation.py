"""Base of the segmentation networks: a dilated ResNet with a head on layer4 and an auxiliary one on layer3."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from udas_fast.errors import bad
from udas_fast.models.adapter import SegmentationOutput
from udas_fast.models.checkpointing import run_micro_batches
from udas_fast.models.norm import NORMS
from udas_fast.models.resnet import ResNet


class SegmentationNetwork(nn.Module):
    """Base of the networks: a subclass's ``logits`` returns (primary, auxiliary), float [N, num_classes, h, w].

    backbone, width, norm and output_stride: see :class:`udas_fast.models.ResNet`.

    Raises:
        InputError: a number of classes outside 2 to 255, an unknown name or a number outside its range.
    """

    #: How the logits are upsampled; set from :class:`udas_fast.models.ModelConfig`.
    align_corners = False
    #: Images in one forward pass, None: the whole batch (:func:`udas_fast.models.set_micro_batch_size`).
    micro_batch_size: int | None = None

    def __init__(self, num_classes: int, *, backbone: str, width: int, norm: str, output_stride: int) -> None:
        super().__init__()
        if not 2 <= num_classes <= 255:
            raise bad("num_classes", num_classes, "2 to 255")
        self.num_classes = num_classes
        self.backbone = ResNet(backbone, width=width, norm=norm, output_stride=output_stride)

    def forward(self, x: Tensor) -> SegmentationOutput:
        """Map a normalised image, float [N, 3, H, W], to the logits of both heads."""
        size = self.micro_batch_size
        if size is None or len(x) <= size:
            primary, auxiliary = self.logits(x)
        else:
            parts = run_micro_batches(self, x, size)
            primary = torch.cat([part.primary for part in parts])
            auxiliary = torch.cat([part.auxiliary for part in parts])
        return SegmentationOutput(primary, auxiliary, self.align_corners)

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map a normalised image, float [N, 3, H, W], to (primary, auxiliary) logits."""
        raise TypeError(f"{type(self).__name__} has no logits()")

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that are new for the task and learn faster than the pretrained backbone."""
        return (p for name, p in self.named_parameters() if not name.startswith("backbone."))


def head_norm(norm: str) -> Callable[[int], nn.Module]:
    """Return the norm layer of the heads: the backbone's, or "batch" where that is frozen, as a head is new."""
    return NORMS["batch" if norm == "frozen" else norm]


def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float,
    head_lr_mult: float = 10.0,
    backbone_lr_mult: float = 1.0,
) -> list[dict[str, Any]]:
    """Return groups "backbone" and "heads" for a torch optimiser, each trainable parameter in exactly one of them.

    The heads are what ``model.head_parameters()`` yields and learn at ``lr * head_lr_mult``, the rest at
    ``lr * backbone_lr_mult``; a model without that method is one group "all" at ``lr``. AdaptSegNet's code
    lists each backbone convolution three times: ``backbone_lr_mult=3`` gives its effective rate.

    Raises:
        InputError: the model has no trainable parameter.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise bad("model", "no trainable parameter", "at least one with requires_grad")
    head_parameters = getattr(model, "head_parameters", None)
    if head_parameters is None:
        return [{"name": "all", "params": trainable, "lr": lr, "weight_decay": weight_decay}]
    heads = {id(p) for p in head_parameters()}
    groups = [
        ("backbone", [p for p in trainable if id(p) not in heads], lr * backbone_lr_mult),
        ("heads", [p for p in trainable if id(p) in heads], lr * head_lr_mult),
    ]
    return [
        {"name": name, "params": params, "lr": rate, "weight_decay": weight_decay}
        for name, params, rate in groups
        if params
    ]
