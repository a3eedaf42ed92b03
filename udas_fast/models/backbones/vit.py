"""Plain vision transformers of DINOv2 (Oquab et al., TMLR 2024) and DINOv3 (Siméoni et al. 2025)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.errors import bad, unknown
from udas_fast.models.backbones.base import Backbone, DropPath, Maps, drop_path_rates, fit_to_multiple
from udas_fast.models.checkpointing import run_blocks


@dataclass(frozen=True)
class Shape:
    """Dimensions of one size of a vision transformer."""

    width: int
    depth: int
    heads: int
    patch: int = 14
    registers: int = 0
    grid: int = 37  # sides of the learned positions' grid; 0: rotary positions


SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16)}
SHAPES = {
    **{f"dinov2_{size}": Shape(*numbers) for size, numbers in SIZES.items()},
    **{f"dinov2_{size}_reg": Shape(*numbers, registers=4) for size, numbers in SIZES.items()},
    **{f"dinov3_{size}": Shape(*numbers, patch=16, registers=4, grid=0) for size, numbers in SIZES.items()},
}
ROTARY_BASE = 100.0


class VisionTransformer(Backbone):
    """Vision transformer whose four maps are those of a quarter, a half, three quarters and all of its blocks.

    The last norm is applied to every map. An image whose sides are not multiples of the patch is resized to the
    nearest ones. Parameters are named as in the authors' checkpoints; position embeddings are interpolated from their
    own grid to the image's.

    DINOv3's positions are rotary: they turn queries and keys, and training does not draw them anew.

    The mask token, which stands for hidden patches, is that of the pretraining and is not trained; zero where the
    weights have none.

    name: dinov2_s, dinov2_b or dinov2_l, with ``_reg`` the form with registers, or dinov3_s, dinov3_b, dinov3_l;
    width: channels of the tokens; drop_path: rate of the last block. Raises InputError for unknown names and numbers
    outside their range.
    """

    not_needed = ("head.", "classifier.")
    mask_token: Tensor

    def __init__(self, name: str = "dinov2_s", *, width: int | None = None, drop_path: float = 0.0) -> None:
        super().__init__()
        if name not in SHAPES:
            raise unknown("backbone", name, SHAPES)
        shape = SHAPES[name]
        width = shape.width if width is None else width
        rotary = shape.grid == 0
        unit = (4 if rotary else 1) * shape.heads
        if width < 1 or width % unit:
            raise bad(f"width of {name}", width, f"a multiple of {unit}, as it has {shape.heads} heads")
        self.scale = width / shape.width
        self.multiple = self.patch = shape.patch
        self.grid = shape.grid
        self.depth = shape.depth
        self.channels = (width,) * 4
        self.strides = (shape.patch,) * 4
        self.antialias = shape.registers > 0  # of the positions' interpolation, as the authors have it
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, shape.patch, shape.patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = None if rotary else nn.Parameter(torch.zeros(1, 1 + shape.grid**2, width))
        self.register_tokens = (
            nn.Parameter(torch.zeros(1, shape.registers, width)) if shape.registers else None
        )
        self.register_buffer("mask_token", torch.zeros(1, width))
        eps = 1e-5 if rotary else 1e-6
        self.blocks = nn.ModuleList(
            Block(width, shape.heads, rate, eps=eps, key_bias=not rotary)
            for rate in drop_path_rates(drop_path, shape.depth)
        )
        self.norm = nn.LayerNorm(width, eps=eps)
        self.head_width = width // shape.heads

        self.apply(_initialize)
        if self.pos_embed is not None:
            nn.init.normal_(self.pos_embed, std=0.02)
        for token in (self.cls_token, self.register_tokens):
            if token is not None:
                nn.init.normal_(token, std=1e-6)

    def stages(self, x: Tensor, hidden: Tensor | None = None) -> Maps:
        """Return the four maps, all at the stride of the patch.

        hidden: bool [N, 1, h, w], patches whose embedding is the mask token; their positions stay.
        """
        x = self.patch_embed["proj"](fit_to_multiple(x, self.patch))
        if hidden is not None:
            x = torch.where(hidden, self.mask_token[..., None, None].to(x.dtype), x)
        height, width = x.shape[-2:]
        tokens = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1)
        rotation: tuple[Tensor, ...] = ()
        if self.pos_embed is None:
            rotation = self.rotation(height, width, tokens)
        else:
            tokens = tokens + self.positions(self.pos_embed, height, width)
        if self.register_tokens is not None:
            registers = self.register_tokens.expand(x.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], 1)
        maps = []
        for layer in range(1, 5):
            first, last = (self.depth * end // 4 for end in (layer - 1, layer))
            checkpointed = f"layer{layer}" in self.checkpointed
            tokens = run_blocks(self.blocks[first:last], tokens, *rotation, checkpointed=checkpointed)
            patches = self.norm(tokens)[:, -height * width :]
            maps.append(patches.unflatten(1, (height, width)).permute(0, 3, 1, 2))
        first_map, second, third, fourth = maps
        return first_map, second, third, fourth

    def positions(self, pos_embed: Tensor, height: int, width: int) -> Tensor:
        """Return the learned positions [1, 1 + height·width, channels] for a grid of patches."""
        side = self.grid
        if not torch.compiler.is_exporting() and (height, width) == (side, side):
            return pos_embed
        device = pos_embed.device.type
        if not torch.is_autocast_enabled(device):
            return _interpolate(pos_embed, side, height, width, antialias=self.antialias)
        with torch.autocast(device, enabled=False):  # half types have too few digits for positions
            return _interpolate(pos_embed, side, height, width, antialias=self.antialias)

    def rotation(self, height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines [height·width, head's channels] of the patches' places, from -1 to 1 each way."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        exponents = torch.arange(0, 1, 4 / self.head_width, dtype=dtype, device=like.device)
        y, x = ((torch.arange(n, dtype=dtype, device=like.device) + 0.5) * 2 / n - 1 for n in (height, width))
        places = torch.stack(torch.meshgrid(y, x, indexing="ij"), -1).view(height * width, 2, 1)
        angles = (2 * math.pi * places * ROTARY_BASE**-exponents).flatten(1).tile(2)
        return angles.cos(), angles.sin()

    @property
    def num_blocks(self) -> int:
        """Number of attention blocks."""
        return self.depth

    def block_of(self, name: str) -> int:
        """Return the number of the block of the parameter ``name``; 0: embeddings; the last norm: the last block's."""
        found = re.match(r"blocks\.(\d+)\.", name)
        if found is not None:
            return int(found[1]) + 1
        return self.depth if name.startswith("norm.") else 0


class Block(nn.Module):
    """Attention and a feed-forward layer, each scaled by channel and beside a shortcut, on tokens [N, L, C]."""

    def __init__(self, channels: int, heads: int, drop_path: float, *, eps: float, key_bias: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=eps)
        self.attn = Attention(channels, heads, key_bias=key_bias)
        self.ls1 = LayerScale(channels)
        self.norm2 = nn.LayerNorm(channels, eps=eps)
        self.mlp = MLP(channels, 4 * channels)
        self.ls2 = LayerScale(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, *rotation: Tensor) -> Tensor:
        """Return the block's tokens, of the shape of ``x``; ``rotation``: as :class:`Attention` takes it."""
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), *rotation)))
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x))))


class Attention(nn.Module):
    """Multi-head self-attention on tokens [N, L, C]; DINOv3's keys have no bias."""

    def __init__(self, channels: int, heads: int, *, key_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels, bias=key_bias)
        self.q_bias = None if key_bias else nn.Parameter(torch.zeros(channels))
        self.v_bias = None if key_bias else nn.Parameter(torch.zeros(channels))
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, *rotation: Tensor) -> Tensor:
        """Return the attended tokens, of the shape of ``x``.

        rotation: (cosines, sines), [patches, channels of a head] each, for queries and keys of the last tokens.
        """
        bias: Tensor | None = self.qkv.bias
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if rotation:
            query, key = (rotate(t, *rotation) for t in (query, key))
        y = F.scaled_dot_product_attention(query, key, value)
        return self.proj(y.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turn the last tokens of ``x`` [N, heads, L, C] by angles [patches, C]; those before them are no patches."""
    others, patches = x[..., : -cosines.shape[0], :], x[..., -cosines.shape[0] :, :]
    first, second = patches.chunk(2, -1)
    turned = patches * cosines + torch.cat([-second, first], -1) * sines
    return torch.cat([others, turned.to(x.dtype)], -2)


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, inner)
        self.fc2 = nn.Linear(inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens of the shape of ``x``."""
        return self.fc2(F.gelu(self.fc1(x)))


class LayerScale(nn.Module):
    """Learned factor of each channel (Touvron et al. 2021)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Scale the tokens ``x`` [N, L, C]."""
        return x * self.gamma


def resize_positions(pos_embed: Tensor, side: int, target: int) -> Tensor:
    """Interpolate position embeddings [1, 1 + side², channels] to a grid of ``target`` x ``target`` patches."""
    return _interpolate(pos_embed.float(), side, target, target, antialias=target < side)


def _interpolate(pos_embed: Tensor, side: int, height: int, width: int, *, antialias: bool) -> Tensor:
    """Return the positions [1, 1 + height·width, channels] by bicubic interpolation.

    A product with two matrices: the gradient of torch's own interpolation is not the same twice on a GPU.
    """
    first, grid = pos_embed[:, :1], pos_embed[0, 1:].view(side, side, -1)
    rows, columns = (_bicubic(side, n, grid, antialias=antialias) for n in (height, width))
    grid = torch.einsum("ha,abc,wb->hwc", rows, grid, columns)
    return torch.cat([first, grid.reshape(1, height * width, -1)], 1)


def _bicubic(inputs: int, outputs: int, like: Tensor, *, antialias: bool) -> Tensor:
    """Return the matrix [outputs, inputs] of bicubic interpolation along one axis."""
    identity = torch.eye(inputs, dtype=like.dtype, device=like.device)[None, None]
    matrix = F.interpolate(
        identity, (outputs, inputs), mode="bicubic", align_corners=False, antialias=antialias
    )
    return matrix[0, 0]


def _initialize(module: nn.Module) -> None:
    """Draw weights as the authors do; norms keep torch's ones and zeros."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        # A patch embedding is a linear layer of its patch.
        bound = 1 / math.sqrt(module.weight[0].numel())
        for parameter in module.parameters():
            nn.init.uniform_(parameter, -bound, bound)
