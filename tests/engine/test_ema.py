"""The average of the weights takes the model's place when a phase ends."""

from __future__ import annotations

import copy
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from udas_fast.data import Geometry, TrainLoader, open_dataset
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.engine.precision import build_amp
from udas_fast.engine.step import TrainStep
from udas_fast.errors import InputError
from udas_fast.objectives import Batches
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes import get_recipe, override

DECAY, STEPS = 0.7, 5


def _network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 11, 1))


def _step(ema: float | None) -> TrainStep:
    amp, objective = build_amp("fp32", torch.device("cpu")), SupervisedConfig().build(11)
    return TrainStep("source", STEPS, _network(), objective, OptimizerConfig(lr=0.05), amp, 0, ema=ema)


def _train(step: TrainStep, root: Path) -> list[dict]:
    """Take the steps that are left and end the phase; return the state after each of them."""
    loader = TrainLoader(open_dataset(f"camvid:{root}", "train"), Geometry(size=(16, 24)), 2, 0, "source")
    states = []
    step.model.train()
    for batch in islice(loader.batches(step.done), STEPS - step.done):
        step(Batches(source=batch))
        states.append(copy.deepcopy(step.state_dict()))
    step.finish()
    return states


def test_the_average_takes_the_models_place_and_resumes_to_the_bit(camvid_root: Path) -> None:
    whole, plain = _step(DECAY), _step(None)
    states = _train(whole, camvid_root)
    _train(plain, camvid_root)
    last = states[-1]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, last["average"][f"network.{name}"])
        assert torch.equal(plain.model.state_dict()[name], last["model"][name])  # training is as without
    assert not torch.equal(last["average"]["network.0.weight"], last["model"]["0.weight"])
    for stopped in (2, STEPS):
        resumed = _step(DECAY)
        resumed.load_state_dict(states[stopped - 1])
        assert len(_train(resumed, camvid_root)) == STEPS - stopped
        for name, value in whole.model.state_dict().items():
            assert torch.equal(value, resumed.model.state_dict()[name])


def test_decays_that_are_none_are_refused() -> None:
    assert override(get_recipe("udas"), ["ema=0.99"]).ema == 0.99
    for wrong in ("0", "1", "-0.5"):
        with pytest.raises(InputError, match="--set: ema: input should be"):
            override(get_recipe("udas"), [f"ema={wrong}"])
