"""EfficientNet-Lite: EfficientNet without squeeze-excite, with ReLU6 (TensorFlow's efficientnet/lite, Apache 2.0)."""

from __future__ import annotations

import math
import re

import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.errors import bad, unknown
from udas_fast.models.backbones.base import Backbone, DropPath, Maps, drop_path_rates
from udas_fast.models.checkpointing import run_blocks
from udas_fast.models.norm import NORMS, ConvNorm, conv_norm
from udas_fast.models.normalization import TENSORFLOW

#: Width and depth multipliers.
SCALES = {
    "efficientnet_lite0": (1.0, 1.0),
    "efficientnet_lite1": (1.0, 1.1),
    "efficientnet_lite2": (1.1, 1.2),
}
#: Blocks, kernel, stride, expansion and channels of the seven groups (Tan and Le 2019, table 1).
GROUPS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32  # channels, the same in every size
LAYERS = {"layer1": (1,), "layer2": (2,), "layer3": (3, 4), "layer4": (5, 6)}  # groups of the four stages


class EfficientNetLite(Backbone):
    """EfficientNet-Lite without its 1280-channel top and classifier.

    Parameters are named as in timm's ``tf_efficientnet_lite0``. Convolutions start from He initialisation.

    name: efficientnet_lite0, -1 or -2; width: channels of the stem, 32 as published; output_stride: of the last
    stage, 8, 16 or 32: strides beyond it become dilation; drop_path: rate of the last block. Raises InputError for
    unknown names and numbers outside their range.
    """

    normalization = TENSORFLOW
    not_needed = (
        *("conv_head.", "bn2.", "classifier."),  # timm
        *("_conv_head.", "_bn1.", "_fc."),  # efficientnet-lite-pytorch
    )

    def __init__(
        self,
        name: str = "efficientnet_lite0",
        *,
        width: int = STEM,
        norm: str = "batch",
        output_stride: int = 16,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if name not in SCALES:
            raise unknown("backbone", name, SCALES)
        if norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        if width < 1:
            raise bad("width", width, "at least 1")
        if output_stride not in (8, 16, 32):
            raise bad(f"output_stride of {name}", output_stride, "8, 16 or 32")
        wider, deeper = SCALES[name]
        fixed = (0, len(GROUPS) - 1)  # groups whose depth is not scaled
        depths = [group[0] if i in fixed else math.ceil(group[0] * deeper) for i, group in enumerate(GROUPS)]
        rates = iter(drop_path_rates(drop_path, sum(depths)))

        self.conv_stem = nn.Conv2d(3, width, 3, 2, bias=False)
        self.bn1 = _norm(norm, width)
        inputs, stride, dilation = width, 2, 1
        groups, ends = [], []
        for depth, (_, kernel, step, expansion, channels) in zip(depths, GROUPS, strict=True):
            outputs = _rounded(channels * wider * width / STEM)
            grown = step if stride * step > output_stride else 1  # a stride that becomes dilation
            step //= grown
            blocks = [MBConv(inputs, outputs, kernel, step, dilation, expansion, norm, next(rates))]
            dilation *= grown
            blocks += [
                MBConv(outputs, outputs, kernel, 1, dilation, expansion, norm, next(rates))
                for _ in range(depth - 1)
            ]
            inputs, stride = outputs, stride * step
            groups.append(nn.Sequential(*blocks))
            ends.append((outputs, stride))
        self.blocks = nn.Sequential(*groups)
        self._depths = depths
        self.scale = width / STEM
        (c1, s1), (c2, s2), (c3, s3), (c4, s4) = (ends[last] for *_, last in LAYERS.values())
        self.channels, self.strides = (c1, c2, c3, c4), (s1, s2, s3, s4)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    def stages(self, x: Tensor) -> Maps:
        """Return the maps of the groups that end at stride 4, 8, 16 and 32, as far as they have one."""
        stem = ConvNorm(self.conv_stem, self.bn1, nn.ReLU6())
        x = pad_same(x, self.conv_stem)
        x = run_blocks([stem, *self._group(0)], x, checkpointed="stem" in self.checkpointed)
        maps = []
        for layer, groups in LAYERS.items():
            blocks = [block for i in groups for block in self._group(i)]
            x = run_blocks(blocks, x, checkpointed=layer in self.checkpointed)
            maps.append(x)
        first, second, third, fourth = maps
        return first, second, third, fourth

    def _group(self, index: int) -> list[nn.Module]:
        return list(self.blocks[index].children())

    @property
    def num_blocks(self) -> int:
        """Number of inverted residual blocks."""
        return sum(self._depths)

    def block_of(self, name: str) -> int:
        """Return the number of the block of the parameter ``name``; 0: the stem."""
        found = re.match(r"blocks\.(\d+)\.(\d+)\.", name)
        return 0 if found is None else 1 + sum(self._depths[: int(found[1])]) + int(found[2])


class MBConv(nn.Module):
    """Inverted residual block: expand 1x1, depthwise, project 1x1 (MobileNetV2, Sandler et al. 2018)."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int,
        dilation: int,
        expansion: int,
        norm: str,
        drop_path: float,
    ) -> None:
        super().__init__()
        inner = inputs * expansion
        self.expands = expansion != 1
        padding = dilation * (kernel // 2) if stride == 1 else 0
        depthwise = nn.Conv2d(inner, inner, kernel, stride, padding, dilation, inner, bias=False)
        # timm numbers the norms by their place and names the last convolution by whether there is a first.
        if self.expands:
            self.conv_pw = nn.Conv2d(inputs, inner, 1, bias=False)
            self.bn1 = _norm(norm, inner)
            self.conv_dw = depthwise
            self.bn2 = _norm(norm, inner)
            self.conv_pwl = nn.Conv2d(inner, outputs, 1, bias=False)
            self.bn3 = _norm(norm, outputs)
        else:
            self.conv_dw = depthwise
            self.bn1 = _norm(norm, inner)
            self.conv_pw = nn.Conv2d(inner, outputs, 1, bias=False)
            self.bn2 = _norm(norm, outputs)
        self.act = nn.ReLU6(inplace=True)
        self.drop_path = DropPath(drop_path) if stride == 1 and inputs == outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output [N, outputs, h, w]."""
        if self.expands:
            y = self.act(conv_norm(self.conv_pw, self.bn1, x))
            y = self.act(conv_norm(self.conv_dw, self.bn2, pad_same(y, self.conv_dw)))
            y = conv_norm(self.conv_pwl, self.bn3, y)
        else:
            y = self.act(conv_norm(self.conv_dw, self.bn1, pad_same(x, self.conv_dw)))
            y = conv_norm(self.conv_pw, self.bn2, y)
        return y if self.drop_path is None else x + self.drop_path(y)


def pad_same(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Pad ``x`` with zeros as TensorFlow's SAME does for ``conv`` of stride 2: the output's sides are rounded up.

    An image of even sides is padded by one row less in front than behind. A convolution of stride 1 pads by itself.
    """
    if conv.stride == (1, 1):
        return x
    half = conv.kernel_size[0] // 2
    sides = []
    for size in reversed(x.shape[-2:]):
        even = (size + 1) % 2
        sides += [half - even, half + even]  # one more behind than is read: the sum is free of the parity
    return F.pad(x, sides)


def _norm(norm: str, channels: int) -> nn.Module:
    """Return a normalisation with TensorFlow's epsilon and momentum."""
    module = NORMS[norm](channels)
    module.eps, module.momentum = 1e-3, 0.01
    return module


def _rounded(channels: float) -> int:
    """Round to a multiple of 8 that is not below nine tenths of ``channels``."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded
