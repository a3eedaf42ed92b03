"""Noisy Student's step against a float64 computation, and self-training without a source."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.errors import InputError
from udas_fast.models import Normalization
from udas_fast.objectives import Batches
from udas_fast.objectives.cutout import CutOutConfig
from udas_fast.objectives.mixing import MixingConfig
from udas_fast.objectives.self_training import SelfTrainingConfig
from udas_fast.recipes import get_recipe, override
from udas_fast.testing import (
    TinyNetwork,
    assert_resumes,
    assert_rolls_back,
    assert_same_gradients,
    backward_passes,
    gradients,
    make_context,
    take_step,
    tiny,
)

CLASSES, SIZE = 4, (32, 48)
STUDENT = replace(get_recipe("noisy_student").stages[1].objective, cut_out=CutOutConfig(probability=1.0))


def _up(logits: Tensor) -> Tensor:
    return F.interpolate(logits, SIZE, mode="bilinear", align_corners=False)


def _labelled(batches: Batches, label: Tensor) -> Batches:
    """``batches`` with the labels that a teacher made of the unlabelled images before the round."""
    target = replace(batches.unlabelled, label=label)
    return Batches(source=batches.source, labelled=batches.labelled, unlabelled=target)


def _mirrored_mean(net: nn.Module, image: Tensor) -> Tensor:
    """Labels of the mean of an image and its mirror image, without noise."""
    x = image.double() / 255
    with torch.no_grad():
        p = _up(net(x)[0]).softmax(1) + _up(net(x.flip(-1))[0]).softmax(1).flip(-1)
    return p.argmax(1).to(torch.uint8)


def _decide(net: TinyNetwork) -> None:
    """Let ``net`` see several classes."""
    with torch.no_grad():
        net.primary.weight.mul_(20)
        net.primary.bias.zero_()


def test_the_student_learns_the_teachers_labels_under_noise(batches: Batches, tiny_net: TinyNetwork) -> None:
    _decide(tiny_net)
    objective = STUDENT.build(CLASSES)
    objective.on_round_start(tiny_net)
    teacher = copy.deepcopy(objective.teacher).double().eval()
    image = batches.unlabelled.image
    label = _mirrored_mean(teacher, image)
    assert len(label.unique()) > 1
    views, flips = objective.labeller.views([image], make_context().normalize)
    assert torch.equal(objective.labeller.label(views, flips, SIZE, 0.0).label, label)

    reference = copy.deepcopy(tiny_net).double()
    made = objective.prepare_batch(_labelled(batches, label), make_context(seed=4))
    passes = backward_passes(objective, tiny_net, _labelled(batches, label), make_context(seed=4))
    again = make_context(seed=4)
    expected = []
    for name, images, given in (
        ("target", batches.unlabelled, label),
        ("labelled", batches.labelled, batches.labelled.label),
    ):
        visible = made.visible[name]
        assert 0.05 < (~visible).float().mean() < 0.5
        logits = reference(again.augment(images.image).double() / 255 * visible)[0]
        counted = torch.where(visible[:, 0], given, 255).long()
        expected.append(F.cross_entropy(_up(logits), counted, ignore_index=255))
    assert_same_gradients(passes, [gradients(loss, {"model": reference}) for loss in expected])


def test_another_network_labels(batches: Batches, tiny_net: TinyNetwork) -> None:
    torch.manual_seed(5)
    teacher = TinyNetwork()
    _decide(teacher)
    config = replace(
        STUDENT, teacher="first", pseudo_labels=replace(STUDENT.pseudo_labels, labels="online"), cut_out=None
    )
    assert config.requirements.networks == ("first",)
    objective = config.build(CLASSES)
    objective.networks = {"first": teacher}
    objective.on_round_start(tiny_net)
    assert not list(objective.parameters())  # the run keeps it
    losses = take_step(objective, tiny_net, batches, make_context(seed=4))
    label = _mirrored_mean(copy.deepcopy(teacher).double().eval(), batches.unlabelled.image)
    assert len(label.unique()) > 1
    logits = copy.deepcopy(tiny_net)(make_context(seed=4).augment(batches.unlabelled.image) / 255)[0]
    torch.testing.assert_close(losses["pseudo"], F.cross_entropy(_up(logits), label.long()).detach())
    teacher.normalization = Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    with pytest.raises(
        InputError, match="normalization of teacher 'first': found .*0.5.*expected its student's"
    ):
        objective.on_round_start(tiny_net)


def test_without_a_source_labelled_target_images_are_used_where_there_are_some(
    batches: Batches, tiny_net: TinyNetwork
) -> None:
    config = SelfTrainingConfig(source=False)
    assert config.requirements.streams == ("unlabelled",)
    assert config.requirements.optional_streams == ("labelled",)
    objective = config.build(CLASSES)
    objective.on_round_start(tiny_net)
    losses = take_step(objective, tiny_net, batches, make_context())
    assert {"pseudo", "seg_labelled", "views_target"} <= losses.keys()
    assert not {"seg", "views_source"} & losses.keys()
    losses = take_step(objective, tiny_net, Batches(unlabelled=batches.unlabelled), make_context())
    assert losses.keys() == {"pseudo", "consistency", "kept"}


def test_wrong_combinations_are_refused() -> None:
    with pytest.raises(InputError, match="source: found false with translate or mixing"):
        SelfTrainingConfig(source=False, mixing=MixingConfig())
    with pytest.raises(InputError, match="consistency: found one with cut_out"):
        SelfTrainingConfig(cut_out=CutOutConfig())


def test_the_recipe_resumes_and_skips_steps() -> None:
    recipe = override(tiny(get_recipe("noisy_student")), ["model.dropout=0.3"])
    assert_resumes(recipe)
    assert_rolls_back(recipe)
