"""Segmentation networks, discriminators and CycleGAN's networks; their outputs, weights and parameter groups."""

from udas_fast.models.adapter import MeanNetwork, SegmentationOutput, to_output
from udas_fast.models.backbones import (
    BACKBONES,
    DRN,
    Backbone,
    EfficientNetLite,
    MixTransformer,
    ResNet,
    VisionTransformer,
    build_backbone,
)
from udas_fast.models.checkpointing import (
    CHECKPOINTING,
    has_dropout,
    set_checkpointing,
    set_micro_batch_size,
)
from udas_fast.models.config import ModelConfig, build_model
from udas_fast.models.cyclegan import (
    SHORTEST_PATCH,
    CycleGenerators,
    Generator,
    PatchDiscriminator,
    to_signed,
    to_uint8,
)
from udas_fast.models.deeplab import ASPP, DeepLabV2
from udas_fast.models.deeplabv3plus import DeepLabV3Plus
from udas_fast.models.discriminator import (
    Discriminator,
    MultiScaleDiscriminator,
    PixelDiscriminator,
    shortest_side,
)
from udas_fast.models.fcn import FCN
from udas_fast.models.groups import parameter_groups
from udas_fast.models.hf import load_pretrained
from udas_fast.models.mean_teacher import MeanTeacher
from udas_fast.models.norm import DomainBatchNorm2d, FrozenBatchNorm2d, keep_statistics, set_domain
from udas_fast.models.normalization import (
    IMAGENET,
    MEAN,
    STD,
    NetworkInput,
    Normalization,
    normalization_of,
    normalize,
    normalize_signed,
)
from udas_fast.models.own import NetworkFunction, OwnNetwork, build_network, import_network
from udas_fast.models.pspnet import PSPNet
from udas_fast.models.segmentation import BackboneNetwork, require_backbone, require_tokens
from udas_fast.models.weights import WeightsReport, load_weights, require_finite

__all__ = [
    "ASPP",
    "BACKBONES",
    "CHECKPOINTING",
    "DRN",
    "FCN",
    "IMAGENET",
    "MEAN",
    "SHORTEST_PATCH",
    "STD",
    "Backbone",
    "BackboneNetwork",
    "CycleGenerators",
    "DeepLabV2",
    "DeepLabV3Plus",
    "Discriminator",
    "DomainBatchNorm2d",
    "EfficientNetLite",
    "FrozenBatchNorm2d",
    "Generator",
    "MeanNetwork",
    "MeanTeacher",
    "MixTransformer",
    "ModelConfig",
    "MultiScaleDiscriminator",
    "NetworkFunction",
    "NetworkInput",
    "Normalization",
    "OwnNetwork",
    "PSPNet",
    "PatchDiscriminator",
    "PixelDiscriminator",
    "ResNet",
    "SegmentationOutput",
    "VisionTransformer",
    "WeightsReport",
    "build_backbone",
    "build_model",
    "build_network",
    "has_dropout",
    "import_network",
    "keep_statistics",
    "load_pretrained",
    "load_weights",
    "normalization_of",
    "normalize",
    "normalize_signed",
    "parameter_groups",
    "require_backbone",
    "require_finite",
    "require_tokens",
    "set_checkpointing",
    "set_domain",
    "set_micro_batch_size",
    "shortest_side",
    "to_output",
    "to_signed",
    "to_uint8",
]
