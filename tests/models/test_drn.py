"""DRN: parameter counts of the published code, its names, and its maps against plain convolutions."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udas_fast.errors import InputError
from udas_fast.models import DRN, FrozenBatchNorm2d, ModelConfig, build_model, set_checkpointing
from udas_fast.models.backbones.drn import DRNS
from udas_fast.recipes import get_recipe, override

# Parameters of fyu/drn's networks without their classifiers of 1000 classes (512,000 weights and 1000 biases).
COUNTS = {
    "drn_c_26": 21_126_584,
    "drn_c_42": 31_234_744,
    "drn_d_22": 16_393_752,
    "drn_d_38": 26_501_912,
    "drn_d_54": 35_809_176,
    "drn_d_105": 54_801_304,
}
DILATIONS = {1: 1, 2: 1, 3: 1, 4: 1, 5: 2, 6: 4, 7: 2, 8: 1}


@pytest.mark.parametrize("name", DRNS)
def test_the_published_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        model = DRN(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name] - 513_000
    wide = 4 if name in ("drn_d_54", "drn_d_105") else 1
    assert model.channels == (64 * wide, 128 * wide, 256 * wide, 512)


def _randomised(name: str) -> DRN:
    torch.manual_seed(0)
    model = DRN(name, width=4).double()
    for value in model.state_dict().values():
        if value.dim() == 1:
            value.uniform_(0.5, 1.5)
    return model.eval()


def _reference(model: DRN, x: Tensor, residual_to: int) -> list[Tensor]:
    """The authors' network by its state dict: maps of layer1 to layer8."""
    state = model.state_dict()

    def conv(x: Tensor, weight: str, norm: str, stride: int = 1, dilation: int = 1) -> Tensor:
        kernel = state[f"{weight}.weight"]
        y = F.conv2d(x, kernel, None, stride, dilation * (kernel.shape[-1] // 2), dilation)
        running = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(y, *running, state[f"{norm}.weight"], state[f"{norm}.bias"])

    def block(x: Tensor, name: str, stride: int, dilation: int, residual: bool) -> Tensor:
        last = 3 if f"{name}.conv3.weight" in state else 2
        y = x
        for i in range(1, last + 1):
            strided = i == last - 1  # the only or the last 3x3 convolution before the end
            y = conv(y, f"{name}.conv{i}", f"{name}.bn{i}", stride if strided else 1, dilation)
            y = y.relu() if i < last else y
        short = x
        if f"{name}.downsample.0.weight" in state:
            short = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", stride)
        return ((y + short) if residual else y).relu()

    names = ("conv1", "bn1") if "conv1.weight" in state else ("layer0.0", "layer0.1")
    x = conv(x, *names).relu()
    maps = []
    for layer, dilation in DILATIONS.items():
        stride = 2 if layer in (2, 3, 4) else 1
        if f"layer{layer}.0.weight" in state:
            x = conv(x, f"layer{layer}.0", f"layer{layer}.1", stride, dilation).relu()
        else:
            for i in range(len(getattr(model, f"layer{layer}"))):
                x = block(x, f"layer{layer}.{i}", stride if i == 0 else 1, dilation, layer <= residual_to)
        maps.append(x)
    return maps


@pytest.mark.parametrize("name", ["drn_c_26", "drn_d_22", "drn_d_54"])
@pytest.mark.parametrize("size", [(64, 96), (61, 83)])
def test_the_maps_are_the_authors(name: str, size: tuple[int, int]) -> None:
    model = _randomised(name)
    x = torch.randn(2, 3, *size).double()
    expected = _reference(model, x, residual_to=6)
    for found, layer in zip(model(x), (3, 4, 5, 8), strict=True):
        torch.testing.assert_close(found, expected[layer - 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["drn_c_26", "drn_d_22"])
def test_checkpointing_changes_no_bit_and_every_parameter_has_a_block(name: str) -> None:
    torch.manual_seed(0)
    model = DRN(name, width=4)
    assert {model.block_of(n) for n, _ in model.named_parameters()} == set(range(model.num_blocks + 1))
    x, found = torch.randn(2, 3, 40, 56), []
    for policy in ("none", "layer3", "all"):
        net = copy.deepcopy(model)
        set_checkpointing(net, policy)
        sum(m.square().sum() for m in net(x)).backward()
        assert all(p.grad is not None for p in net.parameters())
        found.append([*(p.grad for p in net.parameters()), *net.buffers()])
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_options() -> None:
    with pytest.raises(InputError, match="output_stride of drn_d_22: found 8, expected none"):
        build_model(ModelConfig(backbone="drn_d_22", output_stride=8), 5)
    with pytest.raises(InputError, match="drop_path of drn_d_22: found 0.1, expected 0"):
        build_model(ModelConfig(backbone="drn_d_22", drop_path=0.1), 5)
    frozen = build_model(ModelConfig(backbone="drn_d_22", width=4, norm="frozen"), 5)
    assert any(isinstance(m, FrozenBatchNorm2d) for m in frozen.modules())
    assert not ModelConfig(backbone="drn_d_22", norm="frozen").batch_statistics
    assert ModelConfig(backbone="drn_d_22").batch_statistics
    with pytest.raises(InputError, match="backbone: found 'drn_d_23'.*did you mean"):
        DRN("drn_d_23")


def test_cycada_runs_on_drn_26_as_published() -> None:
    recipe = override(get_recipe("cycada"), ["model.backbone=drn_c_26", "model.align_corners=true"])
    with torch.device("meta"):
        model = build_model(recipe.model, 19)
    published = [p for n, p in model.named_parameters() if not n.startswith("auxiliary")]
    # jhoffman/cycada_release: the layers of DRN-C-26 and one 1x1 convolution.
    assert sum(p.numel() for p in published) == 21_126_584 - 513_000 + 512 * 19 + 19
