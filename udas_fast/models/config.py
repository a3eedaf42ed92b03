"""Configuration of a network, and its construction."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from udas_fast.config import config_dataclass
from udas_fast.errors import bad
from udas_fast.models.deeplab import ASPP_RATES, DeepLabV2
from udas_fast.models.deeplabv3plus import DeepLabV3Plus
from udas_fast.models.fcn import FCN

NETWORKS = {"deeplabv2": DeepLabV2, "deeplabv3plus": DeepLabV3Plus, "fcn": FCN}


@config_dataclass
class ModelConfig:
    """Network of a recipe."""

    name: Literal["deeplabv2", "deeplabv3plus", "fcn"] = "deeplabv2"
    backbone: Literal["resnet18", "resnet50", "resnet101"] = "resnet101"  # UDAS and DDM: ResNet-101
    width: Annotated[int, Field(ge=1)] = 64  # channels of the stem; fewer for small machines
    norm: Literal["batch", "frozen", "domain", "sync"] = "batch"
    output_stride: Literal[4, 8] = 8  # 4: no max-pool, for small images
    # Of DeepLabV2; 2: AdaptSegNet's checkpoints.
    aspp_branches: Annotated[int, Field(ge=1, le=len(ASPP_RATES))] = 4
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0  # before the heads' last layers; 0.1 in MRNet
    align_corners: bool = False  # of every upsampling of the logits; True: AdaptSegNet's checkpoints

    @property
    def batch_statistics(self) -> bool:
        """True if training normalises an image by the others of its batch."""
        # The norms in the heads of the other networks are never frozen.
        return self.norm != "frozen" or self.name != "deeplabv2"


def build_model(config: ModelConfig, num_classes: int) -> nn.Module:
    """Build the network of ``config`` on the default device, with ``num_classes`` outputs per head.

    Raises:
        InputError: ``num_classes`` is not 2 to 255, or ``aspp_branches`` is set for a network other than DeepLabV2.
    """
    options = {key: getattr(config, key) for key in ("backbone", "width", "norm", "output_stride", "dropout")}
    if config.name == "deeplabv2":
        options["aspp_branches"] = config.aspp_branches
    elif config.aspp_branches != len(ASPP_RATES):
        raise bad(f"aspp_branches of {config.name}", config.aspp_branches, f"{len(ASPP_RATES)}, its default")
    network = NETWORKS[config.name](num_classes, **options)
    network.align_corners = config.align_corners
    return network
