"""The mean teacher: its decay at a step, what it averages, and that it stays a teacher."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from udas_fast.models import MeanTeacher


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 2, 1))


def _change(network: nn.Module, generator: torch.Generator) -> None:
    """Move every weight and statistic, as a training step does."""
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor += torch.rand(tensor.shape, generator=generator)
            else:
                tensor += 1


@pytest.mark.parametrize(("step", "alpha"), [(0, 0.0), (1, 0.5), (99, 0.99), (999, 0.999), (10**6, 0.999)])
def test_alpha_rises_to_the_decay(step: int, alpha: float) -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    teacher = MeanTeacher(network, 0.999)
    teacher.count.fill_(step)
    nn.init.ones_(network.weight)
    teacher.follow(network)
    assert teacher.network.weight.item() == pytest.approx(1 - alpha, rel=1e-5)
    assert teacher.count == step + 1


def test_weights_and_statistics_are_averaged_and_counters_copied() -> None:
    network, generator = _network(), torch.Generator().manual_seed(1)
    teacher = MeanTeacher(network, 0.9)
    expected = {k: v.double() for k, v in network.state_dict().items()}
    for step in range(30):
        _change(network, generator)
        alpha = min(1 - 1 / (step + 1), 0.9)
        for name, value in network.state_dict().items():
            kept = alpha if value.is_floating_point() else 0
            expected[name] = kept * expected[name] + (1 - kept) * value.double()
        teacher.follow(network)
    for name, value in teacher.network.state_dict().items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-6)
    assert teacher.network[1].num_batches_tracked == 30


def test_it_stays_in_evaluation_mode_and_has_no_gradient() -> None:
    network = _network().train()
    teacher = MeanTeacher(network, 0.9)
    holder = nn.ModuleDict({"teacher": teacher}).train()
    assert not any(module.training for module in holder["teacher"].modules())
    image, before = torch.rand(2, 3, 8, 8), copy.deepcopy(teacher.state_dict())
    assert torch.equal(teacher(image), teacher(image))  # no dropout
    assert not teacher(image).requires_grad
    network(image)  # moves the student's statistics alone
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())


def test_a_saved_teacher_goes_on_to_the_same_bits() -> None:
    network, generator = _network(), torch.Generator().manual_seed(1)
    whole, again = MeanTeacher(network, 0.9), MeanTeacher(_network(), 0.9)
    for step in range(8):
        if step == 4:
            again.load_state_dict(copy.deepcopy(whole.state_dict()))
        _change(network, generator)
        whole.follow(network)
        if step >= 4:
            again.follow(network)
    assert whole.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(v, whole.state_dict()[k]) for k, v in again.state_dict().items())


def test_small_changes_count_in_runs_of_16_bits() -> None:
    network = nn.Linear(1, 1, bias=False)
    nn.init.ones_(network.weight)
    teacher = MeanTeacher(network, 0.999)
    teacher.count.fill_(10_000)
    nn.init.constant_(network.weight, 1.01)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(100):  # each moves it by less than bfloat16 can tell at 1
            teacher.follow(network)
    assert teacher.network.weight.item() == pytest.approx(1.01 - 0.01 * 0.999**100, rel=1e-5)
