"""Meta pseudo labels against a float64 computation of its equations: the feedback, its sign, and who learns what."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.objectives import Batches
from udas_fast.objectives.meta_pseudo_labels import MetaPseudoLabels, MetaPseudoLabelsConfig
from udas_fast.recipes import get_recipe, override, small
from udas_fast.testing import (
    TinyNetwork,
    assert_resumes,
    assert_rolls_back,
    assert_same_gradients,
    backward_passes,
    gradients,
    make_context,
    random_phase,
    take_step,
    tiny,
)

CLASSES, SIZE = 4, (32, 48)


def _up(logits: Tensor) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def _started(
    config: MetaPseudoLabelsConfig, model: nn.Module
) -> tuple[MetaPseudoLabels, nn.Module, nn.Module]:
    """The objective with a teacher that is not its student, and both networks in float64."""
    objective = config.build(CLASSES)
    objective.on_round_start(model)
    with torch.no_grad():
        objective.teacher.primary.weight.mul_(5)
        model.primary.bias.add_(torch.tensor([0.3, 0.0, -0.3, 0.0]))
    return objective, copy.deepcopy(model).double(), copy.deepcopy(objective.teacher).double()


def _seg(output: tuple[Tensor, Tensor], label: Tensor, auxiliary: float) -> Tensor:
    losses = [F.cross_entropy(_up(logits), label.long(), ignore_index=255) for logits in output]
    return losses[0] + auxiliary * losses[1] if auxiliary else losses[0]


def _dot(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> Tensor:
    pairs = zip(one, other, strict=True)
    return torch.stack([(a * b).sum() for a, b in pairs if a is not None and b is not None]).sum()


def _of(loss: Tensor, network: nn.Module) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss, list(network.parameters()), retain_graph=True, allow_unused=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sign": "google", "auxiliary_weight": 0.3},
        {"domain": "both", "feedback_weight": 50.0, "rise": 0.0, "weight": 0.5},
        {"domain": "source", "temperature": 1.0},
    ],
)
def test_mpl_is_its_equations(options: dict[str, Any], batches: Batches, tiny_net: TinyNetwork) -> None:
    config = MetaPseudoLabelsConfig(**{"rise": 0.8, "threshold": 0.5, "feedback_weight": 20.0, **options})
    objective, student, teacher = _started(config, tiny_net)
    context = replace(make_context(progress=0.2, seed=3), lr=0.05)
    augmented = make_context(seed=3).augment(batches.unlabelled.image).double() / 255
    passes = backward_passes(objective, tiny_net, batches, context)
    auxiliary = config.auxiliary_weight

    with torch.no_grad():
        weak = _up(teacher(batches.unlabelled.image.double() / 255)[0])
    strong = _up(teacher(augmented)[0])
    label = strong.argmax(1)
    loss = _seg(student(augmented), label, auxiliary)
    expected = [gradients(loss, {"model": student})]

    streams = {"labelled": ["labelled"], "source": ["source"], "both": ["source", "labelled"]}[config.domain]
    labelled = [batches.get(name) for name in streams]
    step = _of(loss, student)
    student.eval()
    measured = _seg(student(labelled[-1].image.double() / 255), labelled[-1].label, auxiliary)
    h = 0.05 * _dot(_of(measured, student), step)
    assert h.abs() > 1e-4
    h = -h if config.sign == "google" else h

    p = weak.softmax(1)
    q = p ** (1 / config.temperature)
    q = q / q.sum(1, keepdim=True)
    sure = p.amax(1) >= 0.5
    assert 0.1 < sure.double().mean() < 0.9
    uda = (sure * (q * (q.log() - strong.log_softmax(1))).sum(1)).mean()
    risen = config.weight * (0.2 / 0.8 if config.rise else 1.0)
    total = risen * uda + config.feedback_weight * h * F.cross_entropy(strong, label)
    expected.append(gradients(total, {"objective.teacher": teacher}))
    for batch in labelled:
        loss = _seg(teacher(batch.image.double() / 255), batch.label, auxiliary)
        expected.append(gradients(loss, {"objective.teacher": teacher}))
    # The student keeps the gradients of its own pass while its teacher's are taken.
    assert_same_gradients(passes, expected)


def test_the_feedback_is_the_fall_of_the_students_loss(batches: Batches, tiny_net: TinyNetwork) -> None:
    """s_old − s_new of a step at a small rate, positive where the teacher's labels help."""
    objective, student, _ = _started(MetaPseudoLabelsConfig(), tiny_net.eval())
    objective.teacher.eval()
    rate, label = 1e-4, batches.labelled.label
    truth = replace(batches.labelled, image=batches.unlabelled.image)
    for images in (batches.labelled, truth):
        made = Batches(labelled=images, unlabelled=batches.unlabelled)
        net = copy.deepcopy(tiny_net)
        losses = take_step(objective, net, made, replace(make_context(seed=3), lr=rate))
        moved = copy.deepcopy(student).eval()
        before = _seg(moved(images.image.double() / 255), label, 0.0)
        with torch.no_grad():
            for weight, trained in zip(moved.parameters(), net.parameters(), strict=True):
                if trained.grad is not None:
                    weight.sub_(rate * trained.grad.double())
        fall = before - _seg(moved(images.image.double() / 255), label, 0.0)
        torch.testing.assert_close(losses["feedback"].double(), fall.detach(), rtol=0.01, atol=1e-9)


def test_good_labels_are_strengthened_and_bad_ones_weakened(batches: Batches, tiny_net: TinyNetwork) -> None:
    """The paper's sign: labels whose step lowers the student's loss become surer; Google's code does the opposite."""
    for sign in ("paper", "google"):
        for helps in (True, False):
            config = MetaPseudoLabelsConfig(sign=sign, weight=0.0, feedback_weight=1e3)
            net = copy.deepcopy(tiny_net)
            objective = config.build(CLASSES)
            objective.on_round_start(net)
            plain = replace(make_context(seed=3), lr=0.1)
            view = plain.augment(batches.unlabelled.image)
            with torch.no_grad():
                label = _up(objective.teacher(view / 255)[0]).argmax(1)
            # Labelled images are the same view, with the teacher's labels or others.
            given = label if helps else (label + 1) % CLASSES
            labelled = replace(batches.labelled, image=view, label=given.to(torch.uint8))
            made = Batches(labelled=labelled, unlabelled=batches.unlabelled)
            passes: list[Tensor] = []

            def backward(
                loss: Tensor, objective: MetaPseudoLabels = objective, passes: list = passes
            ) -> None:
                objective.teacher.zero_grad()
                loss.backward()
                grad = objective.teacher.primary.bias.grad
                passes.append(torch.zeros(CLASSES) if grad is None else grad.clone())

            losses = take_step(objective, net, made, replace(make_context(seed=3), lr=0.1, backward=backward))
            assert (losses["feedback"] > 0) == helps
            teacher = copy.deepcopy(objective.teacher)
            teacher.zero_grad()
            F.cross_entropy(_up(teacher(view / 255)[0]), label).backward()
            direction = (passes[1] * teacher.primary.bias.grad).sum()
            assert (direction > 0) == (helps == (sign == "paper"))


def test_gradients_that_mixed_precision_scales_give_the_same_feedback(
    batches: Batches, tiny_net: TinyNetwork
) -> None:
    found = []
    for scale in (1.0, 1024.0):
        net = copy.deepcopy(tiny_net)
        objective, *_ = _started(MetaPseudoLabelsConfig(), net)
        context = replace(make_context(seed=3), backward=lambda loss, scale=scale: (scale * loss).backward())
        found.append(take_step(objective, net, batches, context)["feedback"])
    torch.testing.assert_close(*found)


def test_statistics_are_moved_by_the_passes_that_learn(batches: Batches, tiny_net: TinyNetwork) -> None:
    objective, *_ = _started(MetaPseudoLabelsConfig(), tiny_net)
    student, teacher = copy.deepcopy(tiny_net), copy.deepcopy(objective.teacher)
    take_step(objective, tiny_net, batches, make_context(seed=3))
    context = make_context(seed=3)
    augmented = context.normalize(context.augment(batches.unlabelled.image))
    student(augmented)
    teacher(augmented)
    teacher(context.normalize(batches.labelled.image))
    for found, expected in ((tiny_net, student), (objective.teacher, teacher)):
        assert torch.equal(found.norm.running_mean, expected.norm.running_mean)
        assert torch.equal(found.norm.running_var, expected.norm.running_var)
        assert found.training


def test_both_networks_learn_by_their_own_optimiser_and_the_last_twentieth_is_finetuning() -> None:
    recipe = get_recipe("meta_pseudo_labels")
    steps = [stage.steps for stage in recipe.stages]
    assert steps[-1] == 0.05 * sum(steps)
    assert steps[0] == 0.1 * sum(steps)
    assert recipe.stages[-1].optimizer.lr == pytest.approx(recipe.stages[0].optimizer.lr / 10)
    assert [s.steps for s in small(recipe, size=(32, 48), steps=100).stages] == [10, 85, 5]
    phase = random_phase(tiny(recipe), 1)
    assert list(phase.step.optimizers) == ["model", "teacher"]
    before = copy.deepcopy(phase.step.state_dict())
    for _ in range(2):  # the first one of a warm-up changes nothing
        phase.take_step()
    after = phase.step.state_dict()
    name = "primary.branches.0.weight"
    assert not torch.equal(after["model"][name], before["model"][name])
    assert not torch.equal(after["objective"][f"teacher.{name}"], before["objective"][f"teacher.{name}"])
    rates = {o.param_groups[0]["lr"] for o in phase.step.optimizers.values()}
    assert len(rates) == 1


@pytest.mark.slow
@pytest.mark.parametrize("domain", ["labelled", "both"])
def test_the_recipe_resumes_and_skips_steps(domain: str) -> None:
    settings = [f"stages.meta.objective.domain={domain}", "stages.meta.objective.threshold=0.21"]
    recipe = override(tiny(get_recipe("meta_pseudo_labels"), 4), settings)
    assert_resumes(recipe)
    assert_rolls_back(recipe)
