"""Heads against transformers' SegFormer decoder and Depth Anything neck, published counts and plain formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.models.heads import (
    DAFormerHead,
    DPTHead,
    FPNHead,
    LinearHead,
    SegFormerHead,
    UpscalingHead,
)

PYRAMID = (8, 12, 16, 24)
MIT = (64, 128, 320, 512)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def pyramid(channels: tuple[int, ...] = PYRAMID, sides: tuple[int, ...] = (24, 12, 6, 3)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(2, c, side, side + 2, dtype=torch.float64, generator=generator)
        for c, side in zip(channels, sides, strict=True)
    ]


def randomize(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.dim() > 1:
            tensor.normal_(generator=generator).div_(math.sqrt(tensor[0].numel()))
        elif tensor.is_floating_point():
            low, high = (0.5, 1.5) if name.endswith(("weight", "running_var")) else (-0.5, 0.5)
            tensor.uniform_(low, high, generator=generator)


def agree(found: Tensor, expected: Tensor, rtol: float = 1e-12) -> None:
    assert found.shape == expected.shape
    assert (found - expected).norm() <= rtol * expected.norm()


def conv_norm_relu(unit: nn.Sequential, x: Tensor) -> Tensor:
    conv, norm, _ = unit
    y = conv(x)
    shape = (1, -1, 1, 1)
    y = (y - norm.running_mean.view(shape)) / (norm.running_var.view(shape) + norm.eps).sqrt()
    return F.relu(y * norm.weight.view(shape) + norm.bias.view(shape))


def up(x: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


def test_segformer_head_is_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

    config = transformers.SegformerConfig(hidden_sizes=list(PYRAMID), decoder_hidden_size=10, num_labels=5)
    reference = SegformerDecodeHead(config).double().eval()
    randomize(reference)
    head = SegFormerHead(PYRAMID, 5, inner=10, norm="batch", dropout=0.1).double().eval()
    names = {"fuse": "linear_fuse", "norm": "batch_norm", "classifier": "classifier"}
    names |= {f"project.{i}": f"linear_projections.{i}.proj" for i in range(4)}
    state = reference.state_dict()
    head.load_state_dict(
        {
            name: state[names[name.rpartition(".")[0]] + "." + name.rpartition(".")[2]].reshape(tensor.shape)
            for name, tensor in head.state_dict().items()
        }
    )
    maps = pyramid()
    agree(head(maps), reference(maps))


@pytest.mark.parametrize(("number", "inner"), [(0, 256), (5, 768)])
def test_segformer_has_transformers_parameters(number: int, inner: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

    channels = (32, 64, 160, 256) if number == 0 else MIT
    config = transformers.SegformerConfig(
        hidden_sizes=list(channels), decoder_hidden_size=inner, num_labels=19
    )
    with torch.device("meta"):
        reference = SegformerDecodeHead(config)
        head = SegFormerHead(channels, 19, inner=inner, norm="batch", dropout=0.0)
    assert count(head) == count(reference)


def test_dpt_head_is_transformers_depth_anything() -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.depth_anything.modeling_depth_anything import DepthAnythingNeck

    width, inner = 24, 4
    config = transformers.DepthAnythingConfig(
        reassemble_hidden_size=width, neck_hidden_sizes=[3, 6, 12, 24], fusion_hidden_size=inner
    )
    neck = DepthAnythingNeck(config).double().eval()
    randomize(neck)
    head = DPTHead((width,) * 4, 5, dropout=0.0).double().eval()
    renames = {
        "reassemble_stage.layers.": "",
        "convs.": "reduce.",
        "fusion_stage.layers.": "fuse.",
        "residual_layer": "unit",
        "convolution": "conv",
    }
    state = {}
    for key, tensor in neck.state_dict().items():
        name = key
        for old, new in renames.items():
            name = name.replace(old, new)
        parts = name.split(".")
        if key.startswith("reassemble"):  # layers.0.projection.weight
            name = ".".join([{"projection": "project"}.get(parts[1], parts[1]), parts[0], *parts[2:]])
        elif key.startswith("fusion"):
            parts[1] = str(3 - int(parts[1]))
            name = ".".join(parts).replace("projection", "project")
        state[name] = tensor
    assert count(head) == count(neck) - sum(
        t.numel() for n, t in state.items() if n.startswith("fuse.3.unit1.")
    ) + count(head.smooth) + count(head.classifier)
    state = {n: t for n, t in state.items() if not n.startswith("fuse.3.unit1.")}  # nothing is added there
    missing, unexpected = head.load_state_dict(state, strict=False)
    assert not unexpected
    assert {name.split(".")[0] for name in missing} == {"smooth", "classifier"}

    maps = pyramid((width,) * 4, (5, 5, 5, 5))
    tokens = [F.pad(m.flatten(2).transpose(1, 2), (0, 0, 1, 0)) for m in maps]  # with a class token
    fused = neck(tokens, 5, 7)[-1]
    logits = head(maps)
    assert logits.shape == (2, 5, 40, 56)
    agree(logits, head.classifier(head.smooth(fused).relu()))


def test_dpt_has_unimatchs_size() -> None:
    with torch.device("meta"):
        sizes = {width: count(DPTHead((width,) * 4, 19, dropout=0.0)) for width in (384, 768, 1024)}
    unused = {64: 2 * (64 * 64 * 9 + 64)}  # a residual unit of UniMatch V2 that nothing goes through
    assert sizes[384] + unused[64] == pytest.approx(2.7e6, rel=0.02)  # its logs: 2.7 M
    assert sizes[384] < sizes[768] < sizes[1024]


def test_daformer_head_layer_by_layer() -> None:
    with torch.device("meta"):
        head = DAFormerHead(MIT, 19, norm="batch", dropout=0.1)
    inner, norm = 256, 2 * 256
    embed = sum(c * inner + inner for c in MIT)
    wide = 4 * inner
    separable = (wide * 9 + 2 * wide) + (wide * inner + norm)
    aspp = (wide * inner + norm) + 3 * separable + (wide * inner * 9 + norm)
    assert count(head) == embed + aspp + inner * 19 + 19
    assert count(head) == pytest.approx(3.7e6, rel=0.01)  # table 7 of the paper
    rates = [branch[0][0].dilation[0] for branch in head.branches[1:]]
    assert rates == [6, 12, 18]


def test_daformer_head_fuses_all_maps_at_the_finest_size() -> None:
    head = DAFormerHead(PYRAMID, 5, inner=6, norm="batch", dropout=0.1).double().eval()
    randomize(head)
    maps = pyramid()
    size = maps[0].shape[-2:]
    embedded = [
        up(torch.einsum("oi,nihw->nohw", p.weight[:, :, 0, 0], m) + p.bias[:, None, None], size)
        for p, m in zip(head.project, maps, strict=True)
    ]
    x = torch.cat(embedded, 1)
    branches = [conv_norm_relu(head.branches[0], x)]
    branches += [conv_norm_relu(b[1], conv_norm_relu(b[0], x)) for b in head.branches[1:]]
    agree(head(maps), head.classifier(conv_norm_relu(head.bottleneck, torch.cat(branches, 1))))


def test_fpn_adds_coarser_maps_to_finer_ones() -> None:
    head = FPNHead(PYRAMID, 5, norm="batch", dropout=0.1).double().eval()
    randomize(head)
    maps = pyramid()
    levels = [conv_norm_relu(unit, m) for unit, m in zip(head.laterals, maps, strict=True)]
    y = levels[3]
    for finer in (levels[2], levels[1], levels[0]):
        y = finer + up(y, finer.shape[-2:])
    assert y.shape[1] == 128
    agree(head(maps), head.classifier(conv_norm_relu(head.smooth, y)))


def test_light_heads_of_vision_transformers() -> None:
    maps = pyramid((24,) * 4, (5, 5, 5, 5))
    linear = LinearHead((24,) * 4, 5, dropout=0.0).double()
    agree(
        linear(maps),
        torch.einsum("oc,nchw->nohw", linear.classifier.weight[:, :, 0, 0], maps[3])
        + linear.classifier.bias[:, None, None],
    )
    upscaling = UpscalingHead((24,) * 4, 5, dropout=0.0).double()
    assert upscaling(maps).shape == (2, 5, 20, 28)
    w = 24
    convolutions = w * w // 2 * 4 + w // 2 * w // 4 * 4 + (w // 4) ** 2 * 9 + w // 4 * 5
    assert count(upscaling) == convolutions + 2 * (w // 2 + w // 4 + w // 4)
    # Each cell of the first transposed convolution makes four; their channels have mean 0 and deviation 1.
    normed = upscaling.upscale[1](upscaling.upscale[0](maps[3]))
    agree(normed.std(1, correction=0), torch.ones_like(normed[:, 0]), 1e-4)
    assert normed.mean(1).abs().max() < 1e-12


HEADS = {
    "fpn": lambda: FPNHead(PYRAMID, 5, norm="batch", dropout=0.5),
    "segformer": lambda: SegFormerHead(PYRAMID, 5, inner=8, norm="batch", dropout=0.5),
    "daformer": lambda: DAFormerHead(PYRAMID, 5, inner=8, norm="batch", dropout=0.5),
    "linear": lambda: LinearHead(PYRAMID, 5, dropout=0.5),
    "upscaling": lambda: UpscalingHead(PYRAMID, 5, dropout=0.5),
    "dpt": lambda: DPTHead(PYRAMID, 5, dropout=0.5),
}


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_learns_and_dropout_hides_in_training_only(name: str) -> None:
    torch.manual_seed(0)
    head = HEADS[name]().double()
    maps = pyramid(sides=(8, 8, 8, 8))
    head(maps).square().sum().backward()
    assert [n for n, p in head.named_parameters() if p.grad is None] == []
    assert not torch.equal(head(maps), head(maps))
    head.eval()
    assert torch.equal(head(maps), head(maps))
