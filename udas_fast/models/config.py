"""Configuration of a network, and its construction."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError
from torch import nn

from udas_fast.config import Channels, config_dataclass
from udas_fast.errors import InputError, bad
from udas_fast.models.backbones import BACKBONES, Backbone, build_backbone
from udas_fast.models.backbones.hf import TransformersBackbone, describe, read_configuration
from udas_fast.models.deeplab import ASPP_RATES, DeepLabV2
from udas_fast.models.deeplabv3plus import DeepLabV3Plus
from udas_fast.models.fcn import FCN, FCNHead
from udas_fast.models.heads import (
    DAFormerHead,
    DPTHead,
    FPNHead,
    LinearHead,
    SegFormerHead,
    UpscalingHead,
)
from udas_fast.models.hf import TransformersNetwork, read_normalization
from udas_fast.models.normalization import Normalization
from udas_fast.models.pspnet import PSPNet
from udas_fast.models.segmentation import HeadNetwork, SegmentationNetwork

HeadName: TypeAlias = Literal[
    "deeplabv2",
    "deeplabv3plus",
    "pspnet",
    "fcn",
    "fpn",
    "segformer",
    "daformer",
    "linear",
    "upscaling",
    "dpt",
]
#: Head that a backbone has where none is named, by the beginning of its name.
DEFAULT_HEADS: dict[str, HeadName] = {
    "resnet": "deeplabv2",
    "drn": "linear",
    "efficientnet": "fpn",
    "mit": "segformer",
    "dinov": "dpt",
}
WITHOUT_NORMS = ("deeplabv2", "linear", "upscaling", "dpt")  # heads, their auxiliary ones too


def _known(backbone: str) -> str:
    """Return a known name; the error tells the families in place of two dozen names."""
    if backbone not in BACKBONES:
        near = difflib.get_close_matches(backbone, BACKBONES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        families = (
            "resnet18|50|101, drn_c_26|42, drn_d_22|38|54|105, efficientnet_lite0|1|2, mit_b0|…|5, "
            "dinov2_s|b|l[_reg], dinov3_s|b|l"
        )
        raise PydanticCustomError(
            "backbone", "expected {families}{hint}", {"families": families, "hint": hint}
        )
    return backbone


@config_dataclass
class ModelConfig:
    """Network of a recipe: a backbone with a head."""

    name: Literal["udas_fast", "hf"] = "udas_fast"  # hf: of an installed transformers, `hf` says which
    backbone: Annotated[str, AfterValidator(_known)] = (
        "resnet101"  # UDAS and DDM: ResNet-101; not with name hf
    )
    # None: deeplabv2 on ResNets, linear on DRNs, fpn on EfficientNet-Lite, segformer on MiT, dpt on vision
    # transformers; with name hf the head of a segmentation network, or dpt or fpn on a backbone.
    head: HeadName | None = None
    # Channels of the stem, fewer for small machines; None: as published.
    width: Channels | None = None
    norm: Literal["batch", "frozen", "domain", "sync"] = "batch"  # of batch norms; layer norms stay
    # Of the last stage: ResNet 4 (no max-pool, for small images), 8 (its default), 16, 32; EfficientNet-Lite 8, 16 (its
    # default), 32.
    output_stride: Literal[4, 8, 16, 32] | None = None
    # Of DeepLabV2; 2: AdaptSegNet's checkpoints.
    aspp_branches: Annotated[int, Field(ge=1, le=len(ASPP_RATES))] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # before the heads' last layers; 0.1 in MRNet
    drop_path: Annotated[float, Field(ge=0, lt=1)] = (
        0.0  # stochastic depth of the last block; 0.1 in SegFormer
    )
    align_corners: bool = False  # of every upsampling of the logits; True: AdaptSegNet's checkpoints
    hf: str | None = None  # with name hf: a folder, or OWNER/NAME on the hub
    # Of the model `hf` and its images, read from there when a run begins: JSON, mean and deviation.
    hf_configuration: str | None = None
    normalization: Normalization | None = (
        None  # of images; None: what the backbone's published weights expect
    )

    @property
    def batch_statistics(self) -> bool:
        """True if training normalises an image by the others of its batch."""
        # The norms in heads are never frozen; networks of transformers may have any.
        plain = self.name == "udas_fast" and not self.backbone.startswith(("resnet", "drn", "efficientnet"))
        return not ((plain or self.norm == "frozen") and self.head_name in WITHOUT_NORMS) or self.name == "hf"

    @property
    def head_name(self) -> HeadName | None:
        """Name of the head; None: transformers decides."""
        if self.head is not None or self.name == "hf":
            return self.head
        return next(head for start, head in DEFAULT_HEADS.items() if self.backbone.startswith(start))

    def resolved(self) -> ModelConfig:
        """Return the configuration with what has to be read from ``hf``, after which that is not needed any more.

        Raises:
            InputError: ``hf`` is missing or out of place, or cannot be read.
        """
        if self.name != "hf":
            if self.hf is not None:
                raise bad("model.hf", self.hf, "none without model.name hf")
            return self
        if self.hf is None:
            raise InputError("model.name hf: found no model.hf, expected a folder, or OWNER/NAME on the hub")
        if self.hf_configuration is not None:
            return self
        return replace(
            self,
            hf_configuration=read_configuration(self.hf),
            normalization=self.normalization or read_normalization(self.hf),
        )


def build_model(config: ModelConfig, num_classes: int) -> SegmentationNetwork:
    """Build the network of ``config`` on the default device, with ``num_classes`` outputs per head.

    Raises:
        InputError: ``num_classes`` is not 2 to 255, or an option that backbone or head does not have.
    """
    config = config.resolved()
    head = config.head_name
    if head != "deeplabv2" and config.aspp_branches != len(ASPP_RATES):
        raise bad(f"aspp_branches of {head}", config.aspp_branches, f"{len(ASPP_RATES)}, its default")
    if config.hf_configuration is not None:
        network = _of_transformers(config, config.hf_configuration, num_classes)
    else:
        backbone = build_backbone(
            config.backbone,
            width=config.width,
            norm=config.norm,
            output_stride=config.output_stride,
            drop_path=config.drop_path,
        )
        network = _with_head(config, head, backbone, num_classes)
    network.align_corners = config.align_corners
    if config.normalization is not None:
        network.normalization = config.normalization
    return network


def _of_transformers(config: ModelConfig, configuration: str, num_classes: int) -> SegmentationNetwork:
    """Return the segmentation network of transformers, or its backbone with a head of this package."""
    for option in ("width", "output_stride"):
        if (value := getattr(config, option)) is not None:
            raise bad(f"model.{option}", value, "none with model.name hf, where the configuration sets it")
    kinds = describe(configuration)
    if config.head is None and "segmentation" in kinds:
        if config.drop_path:
            raise bad("model.drop_path", config.drop_path, "0 with a segmentation network of transformers")
        return TransformersNetwork(configuration, num_classes, norm=config.norm, dropout=config.dropout)
    backbone = TransformersBackbone(configuration, drop_path=config.drop_path)
    head = config.head or ("dpt" if len(set(backbone.strides)) == 1 else "fpn")
    return _with_head(config, head, backbone, num_classes)


def _with_head(
    config: ModelConfig, head: HeadName | None, backbone: Backbone, num_classes: int
) -> SegmentationNetwork:
    dropout, norm, channels = config.dropout, config.norm, backbone.channels
    if head == "deeplabv2":
        branches = config.aspp_branches
        return DeepLabV2(num_classes, backbone=backbone, norm=norm, dropout=dropout, aspp_branches=branches)
    networks: dict[str | None, Callable[..., SegmentationNetwork]] = {
        "deeplabv3plus": DeepLabV3Plus,
        "pspnet": PSPNet,
        "fcn": FCN,
    }
    if head in networks:
        return networks[head](num_classes, backbone=backbone, norm=norm, dropout=dropout)

    def inner(published: int) -> int:
        return max(1, int(published * backbone.scale))

    wide = config.name == "udas_fast" and config.backbone in ("mit_b2", "mit_b3", "mit_b4", "mit_b5")
    heads: dict[str, Callable[[], nn.Module]] = {
        "fpn": lambda: FPNHead(channels, num_classes, inner=inner(128), norm=norm, dropout=dropout),
        "segformer": lambda: SegFormerHead(
            channels, num_classes, inner=inner(768 if wide else 256), norm=norm, dropout=dropout
        ),
        "daformer": lambda: DAFormerHead(channels, num_classes, inner=inner(256), norm=norm, dropout=dropout),
        "linear": lambda: LinearHead(channels, num_classes, dropout=dropout),
        "upscaling": lambda: UpscalingHead(channels, num_classes, dropout=dropout),
        "dpt": lambda: DPTHead(channels, num_classes, dropout=dropout),
    }
    primary = heads[head or "fpn"]()
    auxiliary: nn.Module = FCNHead(channels[2], num_classes, norm, dropout)
    if head in WITHOUT_NORMS:
        auxiliary = nn.Sequential(nn.Dropout2d(dropout), nn.Conv2d(channels[2], num_classes, 1))
    return HeadNetwork(num_classes, backbone, primary, auxiliary)
