"""One training step: what the first one of a method is checked for, and steps that leave no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from udas_fast.engine.faults import BadSteps
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.engine.precision import build_amp
from udas_fast.engine.step import TrainStep
from udas_fast.errors import InputError
from udas_fast.objectives import Batches, Losses, Objective, PrepareContext, StepContext
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.testing import TinyNetwork

# The first step


class Returns(Objective):
    """A step that returns something of its own making, from the loss that went backward (or did not)."""

    def __init__(self, result: Callable[[Tensor], Any], backward: bool = True) -> None:
        super().__init__()
        self.result, self.goes_backward = result, backward

    def training_step(self, model: nn.Module, batch: Batches, ctx: StepContext) -> Any:
        output = ctx.forward(model, batch.source.image, domain="source")
        loss = segmentation_loss(output, batch.source.required_label, 0.1)
        if self.goes_backward:
            ctx.backward(loss)
        return self.result(loss)


def _train_step(objective: Objective, bad_steps: BadSteps | None = None, **options: Any) -> TrainStep:
    torch.manual_seed(0)
    model = TinyNetwork().train()
    objective.on_round_start(model)
    amp = build_amp("fp32", torch.device("cpu"))
    optimizer = OptimizerConfig(**{"lr": 0.1, "weight_decay": 0.0, "head_lr_mult": 1.0, **options})
    return TrainStep("train", 10, model, objective, optimizer, amp, seed=0, bad_steps=bad_steps)


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (
            lambda loss: None,
            "losses of .*step: found none, expected a dict of detached scalar tensors by name",
        ),
        (lambda loss: {}, "losses of .*step: found none, expected a dict"),
        (lambda loss: loss.detach(), "losses of .*step: found Tensor, expected a dict"),
        (
            lambda loss: {"seg": 1.5},
            "loss 'seg' of .*step: found float, expected a scalar tensor, on the device",
        ),
        (
            lambda loss: {"seg": loss.detach()[None]},
            r"loss 'seg' of .*step: found a tensor \[1\], expected a sc",
        ),
        (
            lambda loss: {"good": loss.detach(), "seg": loss},
            r"loss 'seg' of Returns.training_step: found one with a gradient history, expected seg.detach\(\)",
        ),
    ],
)
def test_losses_are_detached_scalars_by_name(
    result: Callable[[Tensor], Any], sentence: str, batches: Batches
) -> None:
    step = _train_step(Returns(result))
    before = copy.deepcopy(step.model.state_dict())
    with pytest.raises(InputError, match=sentence):
        step(batches)
    weights = dict(step.model.named_parameters())
    assert all(torch.equal(weights[name], before[name]) for name in weights)  # it ended before the optimiser


def test_a_step_that_never_goes_backward_ends_the_run(batches: Batches) -> None:
    step = _train_step(Returns(lambda loss: {"seg": loss.detach()}, backward=False))
    sentence = (
        r"Returns.training_step: found no call of ctx.backward\(loss\), expected one a forward; losses that are "
        "returned are logged, not minimised"
    )
    with pytest.raises(InputError, match=sentence):
        step(batches)


def test_a_good_first_step_is_not_looked_at_again(batches: Batches) -> None:
    objective = Returns(lambda loss: {"seg": loss.detach()})
    step = _train_step(objective)
    assert set(step(batches)) == {"seg"}
    objective.goes_backward = False  # a term whose weight is 0 from now on, say
    assert set(step(batches)) == {"seg"}


# Skipped steps


@dataclass
class Prepared:
    """A batch of the methods below."""

    images: Batches
    spoilt: bool


class MeanTeacher(Objective):
    """A teacher that moves within the step, a counter, and a follower of the finished steps."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.followed: list[int] = []
        self.spoilt: set[int] = set()

    def on_round_start(self, model: nn.Module) -> None:
        self.teacher = copy.deepcopy(model).requires_grad_(False)

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> Prepared:
        return Prepared(batch, ctx.step in self.spoilt)

    def training_step(self, model: nn.Module, batch: Prepared, ctx: StepContext) -> Losses:
        self.seen += 1
        with torch.no_grad():
            for mean, new in zip(self.teacher.parameters(), model.parameters(), strict=True):
                mean.lerp_(new + 1, 0.5)
        self.teacher.train()(ctx.normalize(batch.images.source.image))  # moves its batch statistics as well
        output = ctx.forward(model, batch.images.source.image, domain="source")
        loss = segmentation_loss(output, batch.images.source.required_label, 0.1)
        loss = loss * (float("nan") if batch.spoilt else 1.0)
        ctx.backward(loss)
        return {"seg": loss.detach()}

    def after_step(self, model: nn.Module) -> None:
        self.followed.append(int(self.seen))


def _state(step: TrainStep) -> dict[str, Tensor]:
    modules = {"model": step.model, "objective": step.objective}
    return {f"{part}.{k}": v.clone() for part, m in modules.items() for k, v in m.state_dict().items()}


def test_a_skipped_step_leaves_no_trace_in_model_teacher_or_counters(batches: Batches) -> None:
    objective = MeanTeacher()
    objective.spoilt = {1}
    bad_steps = BadSteps(limit=1)
    step = _train_step(objective, bad_steps)
    start = _state(step)
    step(batches)
    before = _state(step)
    moved = {name for name, value in before.items() if not torch.equal(value, start[name])}
    assert moved >= {"objective.seen", "objective.teacher.body.weight", "objective.teacher.norm.running_mean"}
    assert moved >= {"model.body.weight", "model.norm.running_mean"}

    assert step(batches)["seg"].isnan()
    assert (step.skipped, bad_steps.found) == (True, 1)
    after = _state(step)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert objective.followed == [1]  # after_step is of steps that were taken

    step(batches)
    assert (step.skipped, step.done, objective.followed) == (False, 3, [1, 2])
    assert not torch.equal(step.objective.teacher.body.weight, before["objective.teacher.body.weight"])


# Gradient clipping


@pytest.mark.parametrize("max_norm", [1e-3, 1e3])
def test_gradients_are_clipped_together(batches: Batches, max_norm: float) -> None:
    """Plain SGD moves the weights by lr times the gradient."""
    moves = []
    for limit in (None, max_norm):
        step = _train_step(Returns(lambda loss: {"seg": loss.detach()}), momentum=0, max_norm=limit)
        before = [p.detach().clone() for p in step.parameters()]
        step(batches)
        moved = [p.detach() - b for p, b in zip(step.parameters(), before, strict=True)]
        moves.append(torch.cat([m.flatten() for m in moved]))
    free, clipped = moves
    norm = free.norm() / 0.1
    assert 1e-3 < norm < 1e3
    torch.testing.assert_close(clipped, free * min(1.0, max_norm / norm.item()), rtol=1e-3, atol=1e-7)
