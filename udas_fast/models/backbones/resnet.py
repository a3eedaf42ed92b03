"""ResNet backbones, dilated, with torchvision's parameter names."""

from __future__ import annotations

import re

from torch import Tensor, nn

from udas_fast.errors import bad, unknown
from udas_fast.models.backbones.base import Backbone, Maps
from udas_fast.models.checkpointing import run_blocks
from udas_fast.models.norm import NORMS, ConvNorm, Norm, conv_norm


class BasicBlock(nn.Module):
    """Residual block of two 3x3 convolutions (ResNet-18)."""

    expansion = 1

    def __init__(self, inputs: int, width: int, norm: Norm, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, dilation, dilation, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, width, norm, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to the block's channels and stride."""
        y = self.relu(conv_norm(self.conv1, self.bn1, x))
        y = conv_norm(self.conv2, self.bn2, y)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """Residual block of 1x1, 3x3 and 1x1 convolutions, the stride on the first as in Caffe (ResNet-50, -101)."""

    expansion = 4

    def __init__(self, inputs: int, width: int, norm: Norm, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, stride, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = norm(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, outputs, norm, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to the block's channels and stride."""
        y = self.relu(conv_norm(self.conv1, self.bn1, x))
        y = self.relu(conv_norm(self.conv2, self.bn2, y))
        y = conv_norm(self.conv3, self.bn3, y)
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def _shortcut(inputs: int, outputs: int, norm: Norm, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return ConvNorm(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))


RESNETS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


#: Strides and dilations of the four layers by output stride.
LAYERS = {
    4: ((1, 2, 1, 1), (1, 1, 2, 4)),  # without the max-pool
    8: ((1, 2, 1, 1), (1, 1, 2, 4)),
    16: ((1, 2, 2, 1), (1, 1, 1, 2)),
    32: ((1, 2, 2, 2), (1, 1, 1, 1)),
}
WIDTH = 64  # channels of the published networks' stem


class ResNet(Backbone):
    """ResNet without classifier, dilated to output stride 8 (DeepLabV2-ResNet101; He et al. 2016).

    Parameters are named as in torchvision's ResNet, so its state dicts load by name. Stem and layers are
    attributes (``stem()``, ``layer1`` … ``layer4``), so that a caller can run or checkpoint them one by one.
    Convolutions start from He initialisation.

    name: "resnet18", "resnet50" or "resnet101". width: channels of the stem, 64 in the published networks;
    16 or 32 makes networks a quarter or half as wide for small machines, which no published weights fit.
    output_stride: of the last two layers, 8, or 4 without the max-pool, for images too small for logits at an eighth of
    their size; 16 and 32 for heads that read a pyramid. norm: "batch", "frozen", "domain" or "sync"
    (:mod:`udas_fast.models.norm`).

    Raises:
        InputError: another name, norm or stride, or a width below 1.
    """

    not_needed = ("fc.", "classifier.")

    def __init__(
        self, name: str = "resnet101", *, width: int = WIDTH, norm: str = "batch", output_stride: int = 8
    ) -> None:
        super().__init__()
        if name not in RESNETS:
            raise unknown("backbone", name, RESNETS)
        if norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        if width < 1:
            raise bad("width", width, "at least 1")
        if output_stride not in LAYERS:
            raise bad(f"output_stride of {name}", output_stride, "4, 8, 16 or 32")
        block, depths = RESNETS[name]
        make_norm = NORMS[norm]

        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = make_norm(width)
        self.relu = nn.ReLU(inplace=True)
        pools = output_stride != 4
        self.maxpool = nn.MaxPool2d(3, 2, 1, ceil_mode=True) if pools else nn.Identity()
        layers, ends, inputs, stride = [], [], width, 4 if pools else 2
        for i, (depth, step, dilation) in enumerate(zip(depths, *LAYERS[output_stride], strict=True)):
            inner = width * 2**i
            first = block(inputs, inner, make_norm, step, dilation)
            inputs, stride = inner * block.expansion, stride * step
            others = (block(inputs, inner, make_norm, 1, dilation) for _ in range(depth - 1))
            layers.append(nn.Sequential(first, *others))
            ends.append((inputs, stride))
        self.layer1, self.layer2, self.layer3, self.layer4 = layers
        (c1, s1), (c2, s2), (c3, s3), (c4, s4) = ends
        self.channels, self.strides = (c1, c2, c3, c4), (s1, s2, s3, s4)
        self.scale = width / WIDTH
        self._depths = depths

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, x: Tensor) -> Tensor:
        """Map an image [N, 3, H, W] to the input of ``layer1``, at half the output stride."""
        block = ConvNorm(self.conv1, self.bn1, self.relu, self.maxpool)
        return run_blocks([block], x, checkpointed="stem" in self.checkpointed)

    def stages(self, x: Tensor) -> Maps:
        """Map a normalised image [N, 3, H, W] to the maps of ``layer1`` … ``layer4``."""
        first = self._layer("layer1", self.stem(x))
        second = self._layer("layer2", first)
        third = self._layer("layer3", second)
        return first, second, third, self._layer("layer4", third)

    @property
    def num_blocks(self) -> int:
        """Number of residual blocks."""
        return sum(self._depths)

    def block_of(self, name: str) -> int:
        """Return the number of the block of the parameter ``name``; 0: the stem."""
        found = re.match(r"layer(\d)\.(\d+)\.", name)
        return 0 if found is None else 1 + sum(self._depths[: int(found[1]) - 1]) + int(found[2])

    def _layer(self, name: str, x: Tensor) -> Tensor:
        return run_blocks(getattr(self, name), x, checkpointed=name in self.checkpointed)
