"""Published learning rates at given iterations, and every parameter in one group once."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from udas_fast.engine.optim import (
    OptimizerConfig,
    build_optimizers,
    load_optimizer,
    lr_factor,
    set_learning_rates,
)
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, build_model


@pytest.mark.parametrize("iteration", [0, 15_000, 75_000, 149_999])
def test_polynomial_decay_of_adaptsegnet(iteration: int) -> None:
    # lr = 2.5e-4 · (1 - i / 250000)^0.9, stopped at 150,000.
    rate = 2.5e-4 * lr_factor(iteration / 150_000, OptimizerConfig())
    assert rate == pytest.approx(2.5e-4 * (1 - iteration / 250_000) ** 0.9, rel=1e-9)


def test_linear_decay_of_cyclegan() -> None:
    # 200 epochs: 2e-4 for 100 of them, then linearly to zero.
    config = OptimizerConfig(schedule="linear")
    rates = [2e-4 * lr_factor(epoch / 200, config) for epoch in (0, 50, 100, 150, 199)]
    assert rates == pytest.approx([2e-4, 2e-4, 2e-4, 1e-4, 2e-6])


def test_adam_takes_its_betas() -> None:
    optimizers = build_optimizers(nn.Linear(2, 2), [], OptimizerConfig(name="adam", betas=(0.5, 0.999)))
    assert type(optimizers["model"]) is torch.optim.Adam
    assert optimizers["model"].param_groups[0]["betas"] == (0.5, 0.999)


def test_warmup_rises_linearly() -> None:
    config = OptimizerConfig(warmup=0.1, power=1.0, horizon=1e9)
    assert [lr_factor(p, config) for p in (0.0, 0.05, 0.1, 0.5)] == pytest.approx([0.0, 0.5, 1.0, 1.0])


@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_every_parameter_is_optimised_once(backbone: str, name: str) -> None:
    model = build_model(ModelConfig(backbone=backbone, width=8), 5)
    discriminators = list(nn.Linear(2, 2).parameters())
    optimizers = build_optimizers(model, discriminators, OptimizerConfig(name=name))
    seen = [id(p) for g in optimizers["model"].param_groups for p in g["params"]]
    assert sorted(seen) == sorted(id(p) for p in model.parameters())
    ids = [id(p) for g in optimizers["discriminators"].param_groups for p in g["params"]]
    assert ids == [id(p) for p in discriminators]


def test_heads_learn_ten_times_faster_and_all_rates_decay_together() -> None:
    model = build_model(ModelConfig(backbone="resnet18", width=8), 5)
    config = replace(OptimizerConfig(), backbone_lr_mult=3)
    optimizers = build_optimizers(model, [nn.Parameter(torch.zeros(1))], config)
    set_learning_rates(optimizers, 0.5, config)
    factor = (1 - 0.5 * 150 / 250) ** 0.9
    rates = {group["name"]: group["lr"] for group in optimizers["model"].param_groups}
    assert rates == pytest.approx({"backbone": 7.5e-4 * factor, "heads": 2.5e-3 * factor})
    assert optimizers["discriminators"].param_groups[0]["lr"] == pytest.approx(1e-4 * factor)


def test_layers_decay_and_norms_do_not() -> None:
    model = build_model(ModelConfig(backbone="dinov2_s", width=12, head="linear"), 5)
    config = OptimizerConfig(
        name="adamw", lr=1.0, weight_decay=0.1, head_lr_mult=2, layer_decay=0.5, decay_norms=False
    )
    groups = {group["name"]: group for group in build_optimizers(model, [], config)["model"].param_groups}
    expected = {"backbone.12": (0.5, 0.1), "backbone.11.no_decay": (0.25, 0.0), "heads": (2.0, 0.1)}
    assert {name: (groups[name]["lr"], groups[name]["weight_decay"]) for name in expected} == expected
    assert sum(len(group["params"]) for group in groups.values()) == len(list(model.parameters()))


def test_apex_is_used_where_its_kernels_are_and_refused_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    config = OptimizerConfig(name="apex_sgd")
    monkeypatch.setitem(sys.modules, "amp_C", None)  # as where the package of PyPI is installed
    monkeypatch.setitem(sys.modules, "apex.optimizers", SimpleNamespace(FusedSGD=torch.optim.SGD))
    with pytest.raises(InputError, match="optimizer apex_sgd: found no compiled NVIDIA Apex"):
        build_optimizers(nn.Linear(2, 2), [], config)
    monkeypatch.setitem(sys.modules, "amp_C", SimpleNamespace())
    group = build_optimizers(nn.Linear(2, 2), [], config)["model"].param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.9, 5e-4, 2.5e-4)


def test_a_parameter_may_have_its_first_gradient_later_than_others() -> None:
    # Such as an auxiliary head that only a term with a later start trains; torch's fused SGD alone fails.
    model = nn.ModuleList([nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)])
    before = [p.item() for p in model.parameters()]
    config = OptimizerConfig(lr=0.1, momentum=0.5, weight_decay=0.0)
    optimizer = build_optimizers(model, [], config)["model"]
    for trained in (model[:1], model):
        optimizer.zero_grad(set_to_none=True)
        sum(part.weight.sum() for part in trained).backward()
        optimizer.step()
    # Gradients of 1: moves of lr · 1 and then lr · (0.5 + 1); the second one's only move is its first.
    moves = [p.item() - b for p, b in zip(model.parameters(), before, strict=True)]
    assert moves == pytest.approx([-0.25, -0.1], rel=1e-5)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_a_state_of_another_layout_is_loaded_by_its_values(name: str) -> None:
    # A run that went from a CPU to a GPU: contiguous before, channels_last there.
    config = OptimizerConfig(name=name, lr=0.1)
    gradients = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    states, weights = [], []
    for layouts in ((torch.contiguous_format,) * 2, (torch.contiguous_format, torch.channels_last)):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3, bias=False)
        for gradient, layout in zip(gradients, layouts, strict=True):
            model = model.to(memory_format=layout)
            optimizer = build_optimizers(model, [], config)["model"]
            if states:
                load_optimizer(optimizer, states.pop())
            model.weight.grad = gradient.contiguous(memory_format=layout)
            optimizer.step()
            states.append(optimizer.state_dict())
        states.clear()
        weights.append(model.weight.detach())
    # Rounding apart: kernels take the numbers in another order.
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-7)
