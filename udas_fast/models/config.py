"""The model as a recipe names it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import nn

from udas_fast.models.deeplab import ASPP_RATES, DeepLabV2


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class ModelConfig:
    """Which network to build. Unknown keys and values are refused by pydantic."""

    name: Literal["deeplabv2"] = "deeplabv2"
    backbone: Literal["resnet18", "resnet50", "resnet101"] = "resnet101"  # UDAS and DDM: ResNet-101
    width: Annotated[int, Field(ge=1)] = 64  # channels of the stem; less is for small machines
    norm: Literal["batch", "frozen", "domain", "sync"] = "batch"
    output_stride: Literal[4, 8] = 8  # 4: no max-pool, for small images
    aspp_branches: Annotated[int, Field(ge=1, le=len(ASPP_RATES))] = 4  # 2: checkpoints of AdaptSegNet's code
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # before the heads' last layers; 0.1 in MRNet


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """The network that ``config`` describes, on the default device, with ``num_classes`` outputs per head.

    Raises InputError where ``num_classes`` is not 2 to 255.
    """
    return DeepLabV2(
        num_classes,
        backbone=config.backbone,
        width=config.width,
        norm=config.norm,
        aspp_branches=config.aspp_branches,
        output_stride=config.output_stride,
        dropout=config.dropout,
    )
