"""Dilated residual networks, with their authors' parameter names (Yu et al., CVPR 2017, arXiv 1705.09914)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from torch import Tensor, nn

from udas_fast.errors import bad, unknown
from udas_fast.models.backbones.base import Backbone, Maps
from udas_fast.models.backbones.resnet import BasicBlock, Bottleneck
from udas_fast.models.checkpointing import run_blocks
from udas_fast.models.norm import NORMS, ConvNorm, Norm, conv_norm


class PlainBlock(BasicBlock):
    """Two 3x3 convolutions without a shortcut, against the gridding of dilated ones (DRN-C)."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, inputs, H, W] to the block's channels."""
        y = self.relu(conv_norm(self.conv1, self.bn1, x))
        return self.relu(conv_norm(self.conv2, self.bn2, y))


class StridedBottleneck(Bottleneck):
    """Bottleneck with the stride on its 3x3 convolution."""

    def __init__(self, inputs: int, width: int, norm: Norm, stride: int = 1, dilation: int = 1) -> None:
        super().__init__(inputs, width, norm, stride, dilation)
        self.conv1.stride, self.conv2.stride = (1, 1), (stride, stride)


#: Block of layer3 to layer6, their depths, and whether layer1, 2, 7 and 8 are blocks (C) or single convolutions (D).
DRNS: dict[str, tuple[type[BasicBlock] | type[StridedBottleneck], tuple[int, int, int, int], bool]] = {
    "drn_c_26": (BasicBlock, (2, 2, 2, 2), True),
    "drn_c_42": (BasicBlock, (3, 4, 6, 3), True),
    "drn_d_22": (BasicBlock, (2, 2, 2, 2), False),
    "drn_d_38": (BasicBlock, (3, 4, 6, 3), False),
    "drn_d_54": (StridedBottleneck, (3, 4, 6, 3), False),
    "drn_d_105": (StridedBottleneck, (3, 4, 23, 3), False),
}
WIDTH = 16  # channels of the published networks' first layer
WIDTHS = (1, 2, 4, 8, 16, 32, 32, 32)  # of layer1 to layer8, times that
STRIDES = (1, 2, 2, 2, 1, 1, 1, 1)
DILATIONS = (1, 1, 1, 1, 2, 4, 2, 1)


class DRN(Backbone):
    """DRN-C and DRN-D without classifier: no pooling, stride 8 from layer4 on, dilation and its undoing after it.

    Parameters are named as in the authors' code, whose ImageNet state dicts load by name. The maps are those of layer3
    (stride 4), layer4, layer5 and layer8; checkpointing policies name what leads to each of them ``layer1`` to
    ``layer4``, and layer0 to layer2 the stem. With its classifier of 1000 classes, DRN-D-22 has 16,393,752
    parameters, DRN-D-54 35,809,176 and DRN-D-105 54,801,304, DRN-C-26 21,126,584.

    name: "drn_c_26" (CyCADA's DRN-26), "drn_c_42", "drn_d_22", "drn_d_38", "drn_d_54" or "drn_d_105". width: channels
    of the first layer, 16 in the published networks. norm: "batch", "frozen", "domain" or "sync"
    (:mod:`udas_fast.models.norm`).

    Raises:
        InputError: another name or norm, or a width below 1.
    """

    not_needed = ("fc.",)
    strides = (4, 8, 8, 8)

    layer0: nn.Sequential
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    layer5: nn.Sequential
    layer6: nn.Sequential
    layer7: nn.Sequential
    layer8: nn.Sequential

    def __init__(self, name: str = "drn_d_22", *, width: int = WIDTH, norm: str = "batch") -> None:
        super().__init__()
        if name not in DRNS:
            raise unknown("backbone", name, DRNS)
        if norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        if width < 1:
            raise bad("width", width, "at least 1")
        block, depths, blocks = DRNS[name]
        make_norm = NORMS[norm]
        first = nn.Conv2d(3, width, 7, 1, 3, bias=False), make_norm(width), nn.ReLU(inplace=True)
        if blocks:
            self.conv1, self.bn1, self.relu = first
        else:
            self.layer0 = ConvNorm(*first)

        inputs, ends = width, []
        for i, (times, stride, dilation) in enumerate(zip(WIDTHS, STRIDES, DILATIONS, strict=True)):
            inner = width * times
            layer: nn.Module
            if 2 <= i < 6:
                layer, inputs = _stack(block, depths[i - 2], inputs, inner, make_norm, stride, dilation)
            elif blocks:
                layer = nn.Sequential(
                    (PlainBlock if i > 5 else BasicBlock)(inputs, inner, make_norm, stride, dilation)
                )
                inputs = inner
            else:
                conv = nn.Conv2d(inputs, inner, 3, stride, dilation, dilation, bias=False)
                layer, inputs = ConvNorm(conv, make_norm(inner), nn.ReLU(inplace=True)), inner
            setattr(self, f"layer{i + 1}", layer)
            ends.append(inputs)
        self.channels = ends[2], ends[3], ends[4], ends[7]
        self.scale = width / WIDTH
        self._depths = (*(1,) * 2, *depths, *(1,) * 2)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Tensor) -> Maps:
        """Map a normalised image [N, 3, H, W] to the maps of ``layer3``, ``layer4``, ``layer5`` and ``layer8``."""
        start = ConvNorm(self.conv1, self.bn1, self.relu) if hasattr(self, "conv1") else self.layer0
        x = run_blocks([start, self.layer1, self.layer2], x, checkpointed="stem" in self.checkpointed)
        first = self._run("layer1", x, self.layer3)
        second = self._run("layer2", first, self.layer4)
        third = self._run("layer3", second, self.layer5)
        return first, second, third, self._run("layer4", third, [*self.layer6, self.layer7, self.layer8])

    @property
    def num_blocks(self) -> int:
        """Number of blocks, and of single convolutions after the first one."""
        return sum(self._depths)

    def block_of(self, name: str) -> int:
        """Return the number of the block of the parameter ``name``; 0: the first convolution."""
        found = re.match(r"layer([1-8])\.(\d+)\.", name)
        if found is None:
            return 0
        layer = int(found[1])
        return 1 + sum(self._depths[: layer - 1]) + min(int(found[2]), self._depths[layer - 1] - 1)

    def _run(self, stage: str, x: Tensor, blocks: Iterable[nn.Module]) -> Tensor:
        return run_blocks(blocks, x, checkpointed=stage in self.checkpointed)


def _stack(
    block: Callable[..., BasicBlock | Bottleneck],
    depth: int,
    inputs: int,
    inner: int,
    norm: Norm,
    stride: int,
    dilation: int,
) -> tuple[nn.Sequential, int]:
    """Return ``depth`` blocks, the first of which has the stride, and their number of channels."""
    outputs = inner * (BasicBlock.expansion if block is BasicBlock else Bottleneck.expansion)
    first = block(inputs, inner, norm, stride, dilation)
    return nn.Sequential(
        first, *(block(outputs, inner, norm, 1, dilation) for _ in range(depth - 1))
    ), outputs
