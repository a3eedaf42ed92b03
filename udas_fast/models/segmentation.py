"""What the segmentation networks share: a dilated ResNet with a head on layer4 and an auxiliary one on layer3."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from udas_fast.errors import bad
from udas_fast.models.adapter import SegmentationOutput
from udas_fast.models.checkpointing import run_micro_batches
from udas_fast.models.norm import NORMS
from udas_fast.models.resnet import ResNet


class SegmentationNetwork(nn.Module):
    """Base of the networks: a subclass's ``logits`` gives (primary, auxiliary), float [N, num_classes, h, w].

    backbone, width, norm and output_stride: see :class:`udas_fast.models.ResNet`. Raises InputError for a
    number of classes outside 2 to 255, unknown names and numbers outside their range.
    """

    #: How the logits are to be upsampled; :class:`udas_fast.models.ModelConfig` sets it.
    align_corners = False
    #: Images that go through at once, None: all (:func:`udas_fast.models.set_micro_batch_size`).
    micro_batch_size: int | None = None

    def __init__(self, num_classes: int, *, backbone: str, width: int, norm: str, output_stride: int) -> None:
        super().__init__()
        if not 2 <= num_classes <= 255:
            raise bad("num_classes", num_classes, "2 to 255")
        self.num_classes = num_classes
        self.backbone = ResNet(backbone, width=width, norm=norm, output_stride=output_stride)

    def forward(self, x: Tensor) -> SegmentationOutput:
        """Normalised image, float [N, 3, H, W], to (primary, auxiliary) logits."""
        size = self.micro_batch_size
        if size is None or len(x) <= size:
            heads = self.logits(x)
        else:
            heads = map(torch.cat, zip(*run_micro_batches(self, x, size), strict=True))
        return SegmentationOutput(*heads, align_corners=self.align_corners)

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Normalised image, float [N, 3, H, W], to (primary, auxiliary) logits."""
        raise TypeError(f"{type(self).__name__} has no logits()")

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that are new for the task, which learn faster than the pretrained backbone."""
        return (p for name, p in self.named_parameters() if not name.startswith("backbone."))


def head_norm(norm: str) -> Callable[[int], nn.Module]:
    """The normalisation of heads that have one: the backbone's, but a new head has nothing to freeze."""
    return NORMS["batch" if norm == "frozen" else norm]
