"""Layouts by device and precision: fast where it is safe, and the same numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from udas_fast.distributed import join, resolve_device
from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.models import ModelConfig, build_model

CPU = torch.device("cpu")


def network(width: int, backbone: str = "resnet18") -> nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig(backbone=backbone, width=width), 11)


@pytest.mark.parametrize(
    ("precision", "backbone", "width", "expected"),
    [
        ("bf16", "resnet18", 16, torch.channels_last),
        ("bf16", "resnet18", 8, torch.contiguous_format),  # 8 channels crash, 24 give NaN
        ("bf16", "resnet18", 24, torch.contiguous_format),
        ("fp32", "resnet18", 16, torch.contiguous_format),  # no gain
        ("bf16", "efficientnet_lite0", 32, torch.contiguous_format),  # has 24 and 40 channels
        ("fp32", "efficientnet_lite0", 32, torch.channels_last),
        ("fp32", "efficientnet_lite0", 8, torch.contiguous_format),  # 8 channels and fewer
    ],
)
def test_a_cpu_takes_channels_last_where_it_is_faster_and_safe(
    precision: str, backbone: str, width: int, expected: torch.memory_format
) -> None:
    assert memory_format(build_amp(precision, CPU), network(width, backbone)) is expected


def test_a_few_depthwise_convolutions_gain_nothing() -> None:
    model = build_model(ModelConfig(backbone="resnet18", head="daformer"), 11)
    assert any(m.groups > 1 for m in model.modules() if isinstance(m, nn.Conv2d))
    assert memory_format(build_amp("fp32", CPU), model) is torch.contiguous_format


def test_depthwise_convolutions_in_channels_last_give_the_same_gradients() -> None:
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        model = network(32, "efficientnet_lite0").to(memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks it
        primary, _ = model(image.contiguous(memory_format=layout))
        primary.square().mean().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
        )
    reference, found = gradients
    # torch's batch norm sums less precisely in channels_last, and the kinks of ReLU6 at random weights do the rest.
    assert (found - reference).norm() < 0.05 * reference.norm()


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


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """As if there were two GPUs; the list has those that were made the current one."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    return chosen


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:1"])
def test_float32_is_float32_on_a_gpu(name: str, gpu: list[torch.device]) -> None:
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        assert resolve_device(name).type == "cuda"
        # By both of torch's names; set by the newer one, the older raises where anybody reads it.
        assert torch.backends.cudnn.allow_tf32 is False
        assert torch.backends.cudnn.conv.fp32_precision != "tf32"
        assert torch.backends.cuda.matmul.allow_tf32 is False
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_a_chosen_gpu_is_the_current_one(gpu: list[torch.device], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    assert [join(name) for name in ("cuda", "cuda:1", "cpu")] == [
        *map(torch.device, ("cuda", "cuda:1", "cpu"))
    ]
    assert gpu == [torch.device("cuda", 1)]


@pytest.mark.parametrize(
    ("capability", "expected"), [((6, 1), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_is_bf16_where_the_card_computes_in_it(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch, "zeros", lambda *_, **__: None)  # on a device that is not here
    amp = build_amp("auto", torch.device("cuda"))
    assert amp.name == expected
