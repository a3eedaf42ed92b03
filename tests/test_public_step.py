"""The benchmark's re-statement of the public step gives the package's losses and gradients."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from udas_fast.data import Batch
from udas_fast.objectives import Objective, Step
from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.self_training import SelfTrainingConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from public_step import PublicAdaptation, PublicSelfTraining

PAIRS = {
    "adaptation": (AdaptationConfig(discriminator_width=4), PublicAdaptation),
    "self_training": (SelfTrainingConfig(threshold=0.3), PublicSelfTraining),
}


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("stage", PAIRS)
def test_same_losses_and_gradients(
    stage: str, labelled: bool, tiny_net: nn.Module, batches: dict[str, Batch], make_step: Callable[..., Step]
) -> None:
    if not labelled:
        del batches["labelled"]
    config, public = PAIRS[stage]
    torch.manual_seed(0)
    ours = config.build(4)
    theirs = public(config, 4)
    theirs.load_state_dict(ours.state_dict())

    def run(objective: Objective) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        objective.start(tiny_net)
        tiny_net.train().zero_grad()
        losses = objective.step(tiny_net, batches, make_step(seed=3))
        parameters = (*tiny_net.parameters(), *objective.optimized())
        return losses, torch.cat([p.grad.flatten() for p in parameters])

    losses, gradient = run(ours)
    public_losses, public_gradient = run(theirs)
    assert public_losses.keys() == losses.keys() - {"kept"}
    # float32 on both sides: the order of the sums differs.
    for name, loss in public_losses.items():
        assert loss.item() == pytest.approx(losses[name].item(), rel=1e-4), name
    assert (public_gradient - gradient).norm() <= 1e-4 * gradient.norm()
    assert gradient.norm() > 0
