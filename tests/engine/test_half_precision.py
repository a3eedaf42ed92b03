"""float16: losses at extreme logits, and steps that the loss scaler leaves out."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from udas_fast import ops
from udas_fast.data import Batch
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.engine.precision import Amp, build_amp
from udas_fast.engine.step import TrainStep
from udas_fast.models import SegmentationOutput
from udas_fast.objectives import Batches, Losses, PrepareContext
from udas_fast.objectives.adversary import AdversaryConfig, OutputAdversary
from udas_fast.objectives.losses import agreement_loss, entropy_loss, rectified_loss
from udas_fast.objectives.self_training import SelfTrainingConfig
from udas_fast.objectives.supervised import SupervisedConfig

SIZE, STEPS = (40, 48), 5
IMAGES = Batch(torch.zeros(2, 3, *SIZE, dtype=torch.uint8), None, ["a", "b"])
LARGE = 3e4  # the heads' ensemble, one and a half of it, is still a number in float16


def extreme(seed: int) -> Tensor:
    """float16 logits [2, 4, 5, 6] of 0 and ±LARGE."""
    signs = torch.randint(-1, 2, (2, 4, 5, 6), generator=torch.Generator().manual_seed(seed))
    return (LARGE * signs).half().requires_grad_()


def extreme_output(first: int) -> SegmentationOutput:
    return SegmentationOutput(extreme(first), extreme(first + 1))


def assert_finite(loss: Tensor, *inputs: Tensor) -> None:
    assert loss.isfinite()
    assert loss.dtype == torch.float32
    loss.backward()
    for x in inputs:
        assert x.grad is not None
        assert x.grad.isfinite().all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"space": "entropy"},
        {"real": "ensemble"},
        {"gan": "lsgan", "scales": 2},
        {"gate": 0.6},
    ],
    ids=str,
)
def test_adversarial_losses_are_finite_at_extreme_logits(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    adversary = OutputAdversary((4, 4), AdversaryConfig(width=4, **options))
    source, target = extreme_output(0), extreme_output(2)
    with torch.autocast("cpu", torch.float16):
        fooled = adversary.generator_loss(target, IMAGES)
    assert_finite(fooled, target.primary, target.auxiliary)
    with torch.autocast("cpu", torch.float16):
        told_apart = adversary.discriminator_loss(source, IMAGES, target, IMAGES)
    assert_finite(told_apart, *adversary.parameters())


@pytest.mark.parametrize("answer", [-6e4, 0.0, 6e4])
def test_a_discriminator_that_is_too_sure_still_has_a_loss(answer: float) -> None:
    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.half() * 0 + answer

    for gan in ("bce", "lsgan"):
        adversary = OutputAdversary((4, 4), AdversaryConfig(width=4, gan=gan))
        adversary.primary = adversary.auxiliary = Sure()
        target = extreme_output(0)
        assert adversary.generator_loss(target, IMAGES).isfinite()
        assert adversary.discriminator_loss(target, IMAGES, target, IMAGES).isfinite()


LOSSES: dict[str, Callable[[SegmentationOutput], Tensor]] = {
    "kl of the heads": lambda out: agreement_loss(out, SIZE, "mean"),
    "symmetric kl": lambda out: agreement_loss(out, SIZE, "symmetric"),
    "distillation": lambda out: (
        ops.distillation_kl(out.primary, [out.auxiliary.detach()], SIZE, temperature=0.5)
        + 0 * out.auxiliary.float().sum()
    ),
    "soft cross-entropy": lambda out: (
        ops.soft_cross_entropy(out.primary, out.auxiliary.detach().softmax(1), SIZE)
        + 0 * out.auxiliary.float().sum()
    ),
    "squared error": lambda out: (
        ops.squared_error(out.primary, out.auxiliary.detach().softmax(1), SIZE)
        + 0 * out.auxiliary.float().sum()
    ),
    "entropy": lambda out: entropy_loss(out, SIZE, (1.0, 1.0)),
    "robust entropy": lambda out: entropy_loss(out, SIZE, (1.0, 1.0), 2.0),
    "rectified": lambda out: rectified_loss(out, torch.ones(2, *SIZE, dtype=torch.uint8), 0.5),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_finite_at_extreme_logits(loss: str) -> None:
    output = extreme_output(0)
    assert_finite(LOSSES[loss](output), output.primary, output.auxiliary)


def scaled() -> Amp:
    """fp32 on the CPU with the scaler that fp16 has on a GPU."""
    plain = build_amp("fp32", torch.device("cpu"))
    return Amp(plain.device, "fp32", torch.amp.GradScaler("cpu", init_scale=2.0**10), plain.skips)


def build_step(model: nn.Module, amp: Amp) -> TrainStep:
    config = OptimizerConfig(name="sgd", lr=0.01)
    return TrainStep("source", STEPS, model, SupervisedConfig().build(4), config, amp, seed=0)


def train(
    step: TrainStep, batches: Batches, after_step: Callable[[Losses], None] = lambda losses: None
) -> None:
    """Take the steps that are left, all with the same batch."""
    step.model.train()
    while step.done < step.steps:
        after_step(step(batches))


def test_skipped_steps_are_counted_and_leave_the_weights(tiny_net: nn.Module, batches: Batches) -> None:
    steps = iter(range(5))
    tiny_net.body.register_forward_hook(
        lambda _, __, y: y.register_hook(lambda g: g * torch.inf if next(steps) in (1, 3) else g) and None
    )
    step = build_step(tiny_net, scaled())
    counts, weights = [], []

    def after_step(losses: Losses) -> None:
        counts.append(int(losses["scaler_skips"]))
        weights.append(tiny_net.body.weight.detach().clone())

    train(step, batches, after_step)
    assert counts == [0, 1, 1, 2, 2]
    still = [torch.equal(a, b) for a, b in pairwise(weights)]
    assert still == [True, False, True, False]

    again = build_step(tiny_net, scaled())
    again.load_state_dict(step.state_dict())
    assert int(again.amp.skips) == 2
    assert again.amp.scaler.get_scale() == 2.0**8  # halved twice


def test_without_a_scaler_nothing_is_counted(tiny_net: nn.Module, batches: Batches) -> None:
    seen: list[set[str]] = []
    step = build_step(tiny_net, build_amp("fp32", torch.device("cpu")))
    train(step, batches, lambda losses: seen.append(set(losses)))
    assert seen == [{"seg"}] * STEPS


def test_a_teacher_looks_in_half_precision_and_keeps_no_graph(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective, ctx = SelfTrainingConfig().build(4), make_step()
    objective.on_round_start(tiny_net)
    with torch.autocast("cpu", torch.bfloat16):
        photometric = objective.labeller.photometric_views(batches.unlabelled, ctx.augment)
        views, _ = objective.labeller.views(photometric, ctx.normalize)
    assert len(views) == 3
    for logits in (logits for view in views for logits in (view.primary, view.auxiliary)):
        assert logits.dtype == torch.bfloat16
        assert not logits.requires_grad
    assert not objective.teacher.training


def test_momentum_begins_at_zero_where_the_first_step_is_left_out(
    tiny_net: nn.Module, batches: Batches, monkeypatch: pytest.MonkeyPatch
) -> None:
    # fp16 mostly begins so, at a scale of 65,536. What torch leaves uninitialised is NaN here.
    monkeypatch.setattr(torch, "empty_like", lambda x, **options: torch.full_like(x, torch.nan, **options))
    first = iter([True])
    tiny_net.body.register_forward_hook(
        lambda _, __, y: y.register_hook(lambda g: g * torch.inf if next(first, False) else g) and None
    )
    before = tiny_net.body.weight.detach().clone()
    step = build_step(tiny_net, scaled())
    train(step, batches)
    assert int(step.amp.skips) == 1
    assert tiny_net.body.weight.isfinite().all()
    assert not torch.equal(tiny_net.body.weight, before)


def test_a_run_goes_on_in_another_precision(tiny_net: nn.Module, batches: Batches) -> None:
    # A GPU without bf16 goes on with what one that has it began, and the other way round.
    plain = build_amp("fp32", torch.device("cpu"))
    for began, goes_on in ((plain, scaled()), (scaled(), plain)):
        step = build_step(tiny_net, goes_on)
        step.load_state_dict(build_step(tiny_net, began).state_dict())
        train(step, batches)
        assert step.done == STEPS
