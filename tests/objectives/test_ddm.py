"""DDM's teachers and student against the paper's formulas in float64, who learns, and what joins when."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from udas_fast import ops
from udas_fast.models import MeanNetwork
from udas_fast.objectives import Batches, PrepareContext
from udas_fast.objectives.ddm import DistillationConfig, DomainMixingConfig
from udas_fast.objectives.mixing import MixingConfig
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig, balanced_thresholds
from udas_fast.recipes import get_recipe
from udas_fast.testing import take_step

SIZE = (32, 48)
PLAIN = {"translate": "none", "mixing": MixingConfig(augment="none")}


def _up(logits: torch.Tensor) -> torch.Tensor:
    return F.interpolate(logits.double(), SIZE, mode="bilinear", align_corners=False)


def _cross_entropy(net: nn.Module, image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(_up(net(image.float() / 255)[0]), label.long(), ignore_index=255)


def _teachers(net: nn.Module) -> dict[str, nn.Module]:
    """Two networks that differ from ``net`` and from each other."""
    teachers = {}
    for i, name in enumerate(("region", "sample")):
        teachers[name] = copy.deepcopy(net)
        with torch.no_grad():
            teachers[name].primary.weight.mul_(5.0).add_(torch.randn(4, 8, 1, 1) * (i + 1))
    return teachers


def test_sample_teacher_learns_both_domains_one_to_one(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = DomainMixingConfig(level="sample", **PLAIN).build(4)
    reference = copy.deepcopy(tiny_net)
    losses = take_step(objective, tiny_net, batches, make_step())
    source, target = (
        _cross_entropy(reference, batch.image, batch.label) for batch in (batches.source, batches.labelled)
    )
    torch.testing.assert_close(losses["seg"].double(), source, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(losses["seg_target"].double(), target, rtol=1e-5, atol=1e-7)
    (source + target).backward()
    torch.testing.assert_close(tiny_net.body.weight.grad, reference.body.weight.grad, rtol=1e-4, atol=1e-7)
    assert tiny_net.auxiliary.weight.grad is None


def test_region_teacher_sees_a_rectangle_of_the_target_in_the_source(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = DomainMixingConfig(level="region", **PLAIN).build(4)
    batches.source.image.zero_()
    batches.labelled.image.fill_(255)
    batches.source.label.zero_()
    batches.labelled.label.fill_(3)
    reference = copy.deepcopy(tiny_net)
    loss = take_step(objective, tiny_net, batches, make_step(seed=3))["seg_mixed"]
    (image,) = tiny_net.inputs
    inside = image[:, 0] == 1
    for rectangle in inside:
        rows, columns = rectangle.any(1).sum(), rectangle.any(0).sum()
        assert rectangle.sum() == rows * columns
    want = _cross_entropy(reference, 255 * image, 3 * inside)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_pseudo_labels_of_the_student_join_the_labelled_target_images(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext], share: float
) -> None:
    config = DomainMixingConfig(level="sample", labeller="student", pseudo_share=share, **PLAIN)
    assert config.requirements.networks == ("student",)
    objective = config.build(4)
    student = _teachers(tiny_net)["region"]
    objective.networks = {"student": student}
    objective.on_round_start(tiny_net)
    before = {k: v.clone() for k, v in student.state_dict().items()}
    for _ in range(2):  # thresholds are those of the confidences so far
        seen = objective.labeller.histogram.clone()
        tiny_net.inputs.clear()
        take_step(objective, tiny_net, batches, make_step())
    image = (batches.unlabelled if share else batches.labelled).image
    torch.testing.assert_close(tiny_net.inputs[1], image.float() / 255)
    assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())
    if share:
        with torch.no_grad():
            logits = student.eval()(make_step().normalize(image))[0]
        want = ops.pseudo_label([logits], SIZE, threshold=balanced_thresholds(seen.sum(1)))
        objective.labeller.histogram.copy_(seen)
        assert torch.equal(objective.prepare_batch(batches, make_step())["seg_target"].label, want.label)
    assert objective.labeller.histogram.sum() == share * 2 * 2 * SIZE[0] * SIZE[1]


def test_pseudo_labels_from_disk_are_taken_as_they_are(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    labels = PseudoLabelConfig(views=("identity",), threshold="balanced", labels="disk")
    config = DomainMixingConfig(
        level="sample", labeller="student", pseudo_share=1, pseudo_labels=labels, **PLAIN
    )
    objective = config.build(4)
    objective.networks = {"student": _teachers(tiny_net)["region"]}
    objective.on_round_start(tiny_net)
    read = replace(batches.unlabelled, label=batches.labelled.label)
    reference = copy.deepcopy(tiny_net)
    disk = Batches(source=batches.source, labelled=batches.labelled, unlabelled=read)
    losses = take_step(objective, tiny_net, disk, make_step())
    want = _cross_entropy(reference, read.image, read.label)
    torch.testing.assert_close(losses["seg_target"].double(), want, rtol=1e-5, atol=1e-7)
    assert not objective.labeller.histogram.any()


def test_student_loss_is_half_the_kl_of_the_teachers_mean_plus_labelled_cross_entropy(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    torch.manual_seed(1)
    objective = DistillationConfig().build(4)
    objective.networks = _teachers(tiny_net)
    reference = copy.deepcopy(tiny_net)
    losses = take_step(objective, tiny_net, batches, make_step())
    image = batches.unlabelled.image.float() / 255
    with torch.no_grad():
        mean = sum(_up(t.eval()(image)[0]).softmax(1) for t in objective.networks.values()) / 2
    student = _up(reference(image)[0]).log_softmax(1)
    kl = (mean * (mean.log() - student)).sum(1).mean()
    cross_entropy = _cross_entropy(reference, batches.labelled.image, batches.labelled.label)
    torch.testing.assert_close(losses["distilled"].double(), kl, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(losses["seg"].double(), cross_entropy, rtol=1e-5, atol=1e-7)
    (0.5 * kl + cross_entropy).backward()
    torch.testing.assert_close(tiny_net.body.weight.grad, reference.body.weight.grad, rtol=1e-3, atol=1e-6)
    assert all(p.grad is None for teacher in objective.networks.values() for p in teacher.parameters())
    ((name, ensemble),) = objective.scored().items()
    assert name == "teachers"
    mean = sum(t(image)[0].double().softmax(1) for t in objective.networks.values()) / 2
    torch.testing.assert_close(ensemble(image).primary.double().softmax(1), mean, rtol=1e-4, atol=1e-6)


def test_mean_network_averages_probabilities(tiny_net: nn.Module, batches: Batches) -> None:
    networks = [network.eval() for network in _teachers(tiny_net).values()]
    image = batches.source.image.float() / 255
    want = sum(network(image)[0].double().softmax(1) for network in networks) / 2
    torch.testing.assert_close(
        MeanNetwork(networks)(image).primary.double().softmax(1), want, rtol=1e-4, atol=1e-6
    )


def test_the_same_step_draws_the_same_numbers(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    config = replace(DomainMixingConfig(), labeller="student")
    gradients = []
    for seed in (7, 7, 8):
        net, objective = copy.deepcopy(tiny_net), config.build(4)
        objective.networks = {"student": copy.deepcopy(tiny_net)}
        objective.on_round_start(net)
        take_step(objective, net, batches, make_step(seed=seed))
        gradients.append(net.body.weight.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert not torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize(("labelled", "unlabelled"), [(100, 2875), (2975, 2975)])
def test_pseudo_labelled_images_join_in_proportion(
    tiny_net: nn.Module,
    batches: Batches,
    make_step: Callable[..., PrepareContext],
    labelled: int,
    unlabelled: int,
) -> None:
    """The student's labels turn unlabelled images into labelled ones: a step draws from the union."""
    objective = DomainMixingConfig(level="sample", labeller="student", **PLAIN).build(4)
    objective.networks = {"student": copy.deepcopy(tiny_net)}
    objective.images = {"labelled": labelled, "unlabelled": unlabelled}
    objective.on_round_start(tiny_net)
    steps = [objective.prepare_batch(batches, make_step(seed=seed)) for seed in range(300)]
    joined = sum(step["seg_target"].image is batches.unlabelled.image for step in steps) / len(steps)
    assert joined == pytest.approx(unlabelled / (labelled + unlabelled), abs=0.08)


def test_labelled_and_pseudo_labelled_target_images_have_one_scale() -> None:
    recipe = get_recipe("ddm")
    geometries = recipe.geometries(recipe.stages[3])
    assert geometries["unlabelled"] == geometries["labelled"] == geometries["source"]
