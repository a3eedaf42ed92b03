"""Mix Transformer, SegFormer's hierarchical encoder (Xie et al., NeurIPS 2021)."""

from __future__ import annotations

import math
import re

import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.errors import bad, unknown
from udas_fast.models.backbones.base import Backbone, DropPath, Maps, drop_path_rates
from udas_fast.models.checkpointing import run_blocks

#: Channels of the first stage and blocks of the four (table 6 of the paper).
SIZES = {
    "mit_b0": (32, (2, 2, 2, 2)),
    "mit_b1": (64, (2, 2, 2, 2)),
    "mit_b2": (64, (3, 4, 6, 3)),
    "mit_b3": (64, (3, 4, 18, 3)),
    "mit_b4": (64, (3, 8, 27, 3)),
    "mit_b5": (64, (3, 6, 40, 3)),
}
HEADS = (1, 2, 5, 8)  # of the four stages; channels are the same multiples of the first stage's
REDUCTIONS = (8, 4, 2, 1)  # sides of the cells whose keys and values are one
STRIDES = (4, 8, 16, 32)
SMALLEST = 4 * REDUCTIONS[0]  # pixels: below, the first stage has no keys
EPS = 1e-6  # of the blocks' and stages' norms


class MixTransformer(Backbone):
    """Mix Transformer B0 to B5 without classifier.

    Maps are at strides 4, 8, 16 and 32, sides rounded up; sides of an image are at least 32. Parameters are named as
    in the authors' checkpoints (``patch_embed1``, ``block1``, ``norm1``, …).

    name: mit_b0 to mit_b5; width: channels of the first stage; drop_path: rate of the last block, 0.1 in SegFormer.
    Raises InputError for unknown names and numbers outside their range.
    """

    strides = STRIDES
    not_needed = ("head.", "classifier.")

    def __init__(self, name: str = "mit_b0", *, width: int | None = None, drop_path: float = 0.0) -> None:
        super().__init__()
        if name not in SIZES:
            raise unknown("backbone", name, SIZES)
        published, self.depths = SIZES[name]
        width = published if width is None else width
        if width < 1:
            raise bad("width", width, "at least 1")
        self.scale = width / published
        c1, c2, c3, c4 = (width * heads for heads in HEADS)
        self.channels = (c1, c2, c3, c4)
        rates = iter(drop_path_rates(drop_path, sum(self.depths)))
        inputs = 3
        for stage, depth in enumerate(self.depths):
            kernel, stride = (7, 4) if stage == 0 else (3, 2)
            outputs = self.channels[stage]
            blocks = (
                Block(outputs, HEADS[stage], REDUCTIONS[stage], drop_path=next(rates)) for _ in range(depth)
            )
            setattr(self, f"patch_embed{stage + 1}", PatchEmbedding(inputs, outputs, kernel, stride))
            setattr(self, f"block{stage + 1}", nn.ModuleList(blocks))
            setattr(self, f"norm{stage + 1}", nn.LayerNorm(outputs, eps=EPS))
            inputs = outputs
        self.apply(_initialize)

    def stages(self, x: Tensor) -> Maps:
        """Return the maps of the four stages. Raises InputError for a side below 32 pixels."""
        if min(x.shape[-2:]) < SMALLEST:
            raise bad("image", list(x.shape), f"sides of at least {SMALLEST}, as a Mix Transformer needs")
        maps = []
        for stage in range(1, 5):
            checkpointed = f"layer{stage}" in self.checkpointed
            x = run_blocks(
                [getattr(self, f"patch_embed{stage}")],
                x,
                checkpointed="stem" in self.checkpointed if stage == 1 else checkpointed,
            )
            x = run_blocks(getattr(self, f"block{stage}"), x, checkpointed=checkpointed)
            x = getattr(self, f"norm{stage}")(x).permute(0, 3, 1, 2)
            maps.append(x)
        first, second, third, fourth = maps
        return first, second, third, fourth

    @property
    def num_blocks(self) -> int:
        """Number of attention blocks."""
        return sum(self.depths)

    def block_of(self, name: str) -> int:
        """Return the number of the block of the parameter ``name``; 0: the first patch embedding.

        Later patch embeddings count to the block after them, a stage's norm to the block before it.
        """
        found = re.match(r"(patch_embed|block|norm)(\d)\.(\d+)?", name)
        if found is None:
            return 0
        part, stage = found[1], int(found[2])
        before = sum(self.depths[: stage - 1])
        if part == "block":
            return before + int(found[3]) + 1
        if part == "norm":
            return before + self.depths[stage - 1]
        return before + 1 if stage > 1 else 0


class PatchEmbedding(nn.Module):
    """Strided convolution of overlapping patches, [N, C, H, W] to normalised [N, h, w, channels]."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2)
        self.norm = nn.LayerNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens of ``x`` [N, C, H, W]."""
        return self.norm(self.proj(x).permute(0, 2, 3, 1))


class Block(nn.Module):
    """Attention and a feed-forward layer with a depthwise convolution, each beside a shortcut, on [N, h, w, C]."""

    def __init__(self, channels: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=EPS)
        self.attn = Attention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=EPS)
        self.mlp = MixFFN(channels, 4 * channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's tokens, of the shape of ``x``."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Attention(nn.Module):
    """Attention whose keys and values are those of cells of ``reduction`` x ``reduction`` tokens."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.reduces = reduction > 1
        if self.reduces:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended tokens [N, h, w, C] of ``x``, of the same shape."""
        n, height, width, channels = x.shape
        cells = self.norm(self.sr(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)) if self.reduces else x
        query = self.q(x).view(n, height * width, self.heads, -1).transpose(1, 2)
        key, value = self.kv(cells).view(n, -1, 2, self.heads, channels // self.heads).unbind(2)
        y = F.scaled_dot_product_attention(query, key.transpose(1, 2), value.transpose(1, 2))
        return self.proj(y.transpose(1, 2).reshape(n, height, width, channels))


class MixFFN(nn.Module):
    """Linear, depthwise 3x3 convolution (which tells a token's place), GELU, linear."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, inner)
        self.dwconv = nn.ModuleDict({"dwconv": nn.Conv2d(inner, inner, 3, 1, 1, groups=inner)})
        self.fc2 = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape of ``x`` [N, h, w, C]."""
        y = self.dwconv["dwconv"](self.fc1(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.fc2(F.gelu(y))


def _initialize(module: nn.Module) -> None:
    """Draw weights as the authors do; norms keep torch's ones and zeros."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)  # truncated at 100 deviations by the authors: not at all
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
