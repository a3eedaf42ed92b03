"""Base of the segmentation networks: a backbone with a head on its maps and an auxiliary one on the third."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from udas_fast.errors import bad
from udas_fast.models.adapter import SegmentationOutput
from udas_fast.models.backbones import Backbone, Maps, VisionTransformer, build_backbone
from udas_fast.models.checkpointing import run_micro_batches
from udas_fast.models.normalization import Normalization


class SegmentationNetwork(nn.Module, ABC):
    """Base of the networks: a subclass's ``logits`` returns (primary, auxiliary), float [N, num_classes, h, w].

    Raises:
        InputError: a number of classes outside 2 to 255.
    """

    #: How the logits are upsampled; set from :class:`udas_fast.models.ModelConfig`.
    align_corners = False
    #: Images in one forward pass, None: the whole batch (:func:`udas_fast.models.set_micro_batch_size`).
    micro_batch_size: int | None = None
    #: Pixels of which both sides of an image are made multiples, by resizing it.
    multiple: int = 1
    #: Input that the weights expect.
    normalization: Normalization

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        if not 2 <= num_classes <= 255:
            raise bad("num_classes", num_classes, "2 to 255")
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> SegmentationOutput:
        """Map a normalised image, float [N, 3, H, W], to the logits of both heads."""
        size = self.micro_batch_size
        if size is None or len(x) <= size:
            return SegmentationOutput(*self.logits(x), self.align_corners)
        parts = run_micro_batches(self, size, x)
        auxiliary = [part.auxiliary for part in parts if part.auxiliary is not None]
        return SegmentationOutput(
            torch.cat([part.primary for part in parts]),
            torch.cat(auxiliary) if auxiliary else None,
            self.align_corners,
        )

    @abstractmethod
    def logits(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map a normalised image, float [N, 3, H, W], to (primary, auxiliary) logits; None: no auxiliary head."""

    @abstractmethod
    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters that are new for the task and learn faster than the pretrained backbone."""


class BackboneNetwork(SegmentationNetwork):
    """Base of the networks with a backbone of this package: a subclass's ``decode`` turns its maps into logits.

    backbone: a network, or a name with width, norm and output_stride as
    :func:`udas_fast.models.backbones.build_backbone` takes them.

    Raises:
        InputError: a number of classes outside 2 to 255, an unknown name or a number outside its range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        backbone: str | Backbone,
        width: int | None = None,
        norm: str = "batch",
        output_stride: int | None = None,
    ) -> None:
        super().__init__(num_classes)
        if isinstance(backbone, str):
            backbone = build_backbone(backbone, width=width, norm=norm, output_stride=output_stride)
        self.backbone = backbone
        self.normalization, self.multiple = backbone.normalization, backbone.multiple

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map a normalised image, float [N, 3, H, W], to (primary, auxiliary) logits."""
        return self.decode(self.backbone(x))

    def encode(self, x: Tensor, hidden: Tensor | None = None) -> Maps:
        """Map a normalised image, float [N, 3, H, W], to the backbone's maps, in micro-batches where these are set.

        hidden: bool [N, 1, h, w] of a vision transformer's patches that are hidden
        (:class:`udas_fast.models.VisionTransformer`).
        """
        inputs = (x,) if hidden is None else (x, hidden)
        size = self.micro_batch_size
        if size is None or len(x) <= size:
            return self.backbone(*inputs)
        parts = run_micro_batches(self.backbone, size, *inputs)
        first, second, third, fourth = map(torch.cat, zip(*parts, strict=True))
        return first, second, third, fourth

    @abstractmethod
    def decode(self, maps: Maps) -> tuple[Tensor, Tensor | None]:
        """Map the backbone's maps to (primary, auxiliary) logits."""

    def head_parameters(self) -> Iterator[nn.Parameter]:
        """Yield the parameters of the heads."""
        return (p for name, p in self.named_parameters() if not name.startswith("backbone."))


def require_backbone(model: nn.Module, purpose: str) -> BackboneNetwork:
    """Return ``model``, whose backbone and head run apart for ``purpose``.

    Raises:
        InputError: it is no network of a backbone and a head of this package.
    """
    if not isinstance(model, BackboneNetwork):
        raise bad(f"network for {purpose}", type(model).__name__, "a backbone with a head of udas_fast")
    return model


def require_tokens(model: nn.Module, purpose: str) -> VisionTransformer:
    """Return the backbone of ``model``, which hides patches for ``purpose``.

    Raises:
        InputError: it is no vision transformer of this package.
    """
    backbone = require_backbone(model, purpose).backbone
    if not isinstance(backbone, VisionTransformer):
        raise bad(f"backbone for {purpose}", type(backbone).__name__, "one of DINOv2 or DINOv3")
    return backbone


class HeadNetwork(BackboneNetwork):
    """A backbone with any head of :mod:`udas_fast.models.heads` on its maps.

    primary: module that takes the four maps; auxiliary: module that takes the third.
    """

    def __init__(
        self, num_classes: int, backbone: Backbone, primary: nn.Module, auxiliary: nn.Module
    ) -> None:
        super().__init__(num_classes, backbone=backbone)
        self.primary, self.auxiliary = primary, auxiliary

    def decode(self, maps: Maps) -> tuple[Tensor, Tensor]:
        """Map the backbone's maps to primary logits at the head's stride and auxiliary ones at the third map's."""
        return self.primary(maps), self.auxiliary(maps[2])
