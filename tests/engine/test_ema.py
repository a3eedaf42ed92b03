"""The average of the weights: its formula, and that it takes the model's place when a phase ends."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from udas_fast.engine.ema import WeightAverage
from udas_fast.engine.loop import Loop, Phase

from udas_fast.data import Geometry, TrainLoader, open_dataset
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.engine.precision import build_amp
from udas_fast.errors import InputError
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes import get_recipe, override

DECAY = 0.7


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 11, 1))


def test_average_is_the_recurrence_in_float64() -> None:
    model = _network()
    average = WeightAverage(model, DECAY)
    expected: dict[str, torch.Tensor] = {}
    for step in range(1, 9):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(torch.randn(value.shape) if value.is_floating_point() else 1)
        average.update(model, step)
        decay = min(DECAY, 1 - 1 / step)  # 0, 1/2, 2/3, then 0.7: the mean of the first three
        for name, value in model.state_dict().items():
            old = expected.get(name, torch.zeros(()))
            expected[name] = (
                decay * old + (1 - decay) * value.double() if value.is_floating_point() else value.clone()
            )
    for name, value in average.model.state_dict().items():
        # float32 sums of eight terms of about 1: a few rounding errors of 6e-8
        torch.testing.assert_close(value, expected[name].to(value.dtype), rtol=1e-6, atol=1e-6)


def _loop(root: Path, steps: int, ema: float | None) -> Loop:
    stream = TrainLoader(open_dataset(f"camvid:{root}", "train"), Geometry(size=(16, 24)), 2, 0, "source")
    phase = Phase("source", steps, OptimizerConfig(lr=0.05))
    amp = build_amp("fp32", torch.device("cpu"))
    objective = SupervisedConfig().build(11)
    return Loop(phase, _network(), objective, {"source": stream}, amp, 0, ema=ema)


def test_the_average_takes_the_models_place_and_resumes_to_the_bit(camvid_root: Path) -> None:
    states: list[dict] = []
    whole = _loop(camvid_root, 5, DECAY)
    whole.run(lambda _: states.append(copy.deepcopy(whole.state_dict())))
    plain = _loop(camvid_root, 5, None)
    plain.run(lambda _: None)
    last = states[-1]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, last["average"][name])
        assert torch.equal(plain.model.state_dict()[name], last["model"][name])  # training is as without
    assert not torch.equal(last["average"]["0.weight"], last["model"]["0.weight"])
    for stopped in (2, 5):
        resumed = _loop(camvid_root, 5, DECAY)
        resumed.load_state_dict(states[stopped - 1])
        resumed.run(lambda _: None)
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name])


def test_decays_that_are_none_are_refused() -> None:
    assert override(get_recipe("udas"), ["ema=0.99"]).ema == 0.99
    for wrong in ("0", "1", "-0.5"):
        with pytest.raises(InputError, match="--set: ema: input should be"):
            override(get_recipe("udas"), [f"ema={wrong}"])
