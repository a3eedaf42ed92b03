"""Construction of a backbone by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from udas_fast.errors import bad, unknown
from udas_fast.models.backbones.base import Backbone
from udas_fast.models.backbones.drn import DRN, DRNS
from udas_fast.models.backbones.efficientnet import SCALES, EfficientNetLite
from udas_fast.models.backbones.mit import SIZES, MixTransformer
from udas_fast.models.backbones.resnet import RESNETS, ResNet
from udas_fast.models.backbones.vit import SHAPES, VisionTransformer

BACKBONES: dict[str, Callable[..., Backbone]] = {
    **dict.fromkeys(RESNETS, ResNet),
    **dict.fromkeys(DRNS, DRN),
    **dict.fromkeys(SCALES, EfficientNetLite),
    **dict.fromkeys(SIZES, MixTransformer),
    **dict.fromkeys(SHAPES, VisionTransformer),
}


def build_backbone(
    name: str,
    *,
    width: int | None = None,
    norm: str = "batch",
    output_stride: int | None = None,
    drop_path: float = 0.0,
) -> Backbone:
    """Build the backbone ``name`` with random weights; None: the backbone's own default.

    Strides: ``output_stride`` is that of a convolutional backbone's last stage, strides beyond it become dilation; a
    Mix Transformer's maps are at 4, 8, 16 and 32, those of a DRN at 4, 8, 8 and 8, all maps of a vision transformer at
    the stride of its patch.

    Args:
        name: one of :data:`BACKBONES`.
        width: channels of the stem, of the first stage or of the tokens.
        norm: of batch norms (:mod:`udas_fast.models.norm`); layer norms stay as they are.
        output_stride: of a ResNet (4, 8, 16, 32; default 8) or EfficientNet-Lite (8, 16, 32; default 16).
        drop_path: rate of stochastic depth in the last block of every backbone but ResNets and DRNs.

    Raises:
        InputError: an unknown name, or an option that the backbone does not have.
    """
    if name not in BACKBONES:
        raise unknown("backbone", name, BACKBONES)
    kind = BACKBONES[name]
    options: dict[str, Any] = {} if width is None else {"width": width}
    if kind in (ResNet, DRN, EfficientNetLite):
        options["norm"] = norm
    if kind in (ResNet, EfficientNetLite):
        if output_stride is not None:
            options["output_stride"] = output_stride
    elif output_stride is not None:
        fixed = {MixTransformer: "4, 8, 16 and 32", DRN: "4, 8, 8 and 8"}
        maps = fixed[kind] if kind in fixed else f"that of its patch, {SHAPES[name].patch}"
        raise bad(f"output_stride of {name}", output_stride, f"none, as the strides of its maps are {maps}")
    if kind not in (ResNet, DRN):
        options["drop_path"] = drop_path
    elif drop_path:
        raise bad(f"drop_path of {name}", drop_path, "0, as ResNets and DRNs have none")
    return kind(name, **options)
