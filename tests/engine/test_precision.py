"""Layouts by device and precision: fast where it is safe, and the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.models import ModelConfig, build_model

CPU = torch.device("cpu")


def network(width: int) -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(backbone="resnet18", width=width), 11)


@pytest.mark.parametrize(
    ("precision", "width", "wanted"),
    [
        ("bf16", 16, torch.channels_last),
        ("bf16", 8, torch.contiguous_format),  # 8 channels crash, 24 give NaN
        ("bf16", 24, torch.contiguous_format),
        ("fp32", 16, torch.contiguous_format),
    ],
)
def test_a_cpu_takes_channels_last_for_safe_bf16_networks_only(
    precision: str, width: int, wanted: torch.memory_format
) -> None:
    assert memory_format(build_amp(precision, CPU), network(width)) is wanted


def test_bf16_in_channels_last_gives_the_gradients_of_fp32() -> None:
    plain, half = network(16), network(16)
    half = copy.deepcopy(plain).to(memory_format=torch.channels_last)
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    gradients = []
    for precision, model in (("fp32", plain), ("bf16", half)):
        with build_amp(precision, CPU).autocast():
            primary, auxiliary = model(image)
        (primary.float().square().mean() + auxiliary.float().square().mean()).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    reference, found = gradients
    # bf16 keeps 8 bits: 0.4 % a rounding, a few of them on the way through 20 layers of batch statistics.
    assert (found - reference).norm() < 0.1 * reference.norm()
