"""What a whole step does: which images are seen, who learns, and when a term begins."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

from udas_fast.data.style import match_fda, match_lab
from udas_fast.models import ModelConfig, build_model
from udas_fast.objectives import Batches, PrepareContext
from udas_fast.objectives.adaptation import AdaptationConfig, AgreementConfig
from udas_fast.objectives.adversary import AdversaryConfig
from udas_fast.objectives.mixing import MixingConfig
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig
from udas_fast.objectives.self_training import SelfTrainingConfig
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes import all_recipes, get_recipe
from udas_fast.testing import take_step

PLAIN = MixingConfig(augment="none")
# Without translation and augmentation.
UDAS = AdaptationConfig(mixing=PLAIN, adversary=AdversaryConfig(width=4), agreement=AgreementConfig())


def test_no_adaptation_sees_source_images_only(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    config = SupervisedConfig(domain="source")
    assert config.requirements.streams == ("source",)
    assert config.requirements.optional_streams == ()
    take_step(config.build(4), tiny_net, batches, make_step())
    assert len(tiny_net.inputs) == 1
    torch.testing.assert_close(tiny_net.inputs[0], batches.source.image.float() / 255)


@pytest.mark.parametrize(("translate", "translated"), [("lab", match_lab), ("fda", match_fda)])
def test_supervised_on_translated_source_sees_it_in_the_targets_look(
    tiny_net: nn.Module,
    batches: Batches,
    make_step: Callable[..., PrepareContext],
    translate: str,
    translated: Callable[..., torch.Tensor],
) -> None:
    config = SupervisedConfig(translate=translate)
    assert config.requirements.streams == ("source", "unlabelled")
    take_step(config.build(4), tiny_net, batches, make_step())
    (seen,) = tiny_net.inputs  # the target itself is never trained on
    beta = (config.fda_beta,) if translate == "fda" else ()
    expected = translated(batches.source.image, batches.unlabelled.image, *beta)
    torch.testing.assert_close(seen, expected.float() / 255)
    expected_words = f'translate: found {translate}, expected "none", or domain "source" or "both"'
    with pytest.raises(ValueError, match=expected_words):
        SupervisedConfig(domain="labelled", translate=translate)


@pytest.mark.parametrize(
    ("domain", "streams"),
    [("source", ["source"]), ("labelled", ["labelled"]), ("both", ["source", "labelled"])],
)
def test_baselines_see_augmented_images_where_that_is_asked_for(
    tiny_net: nn.Module,
    batches: Batches,
    make_step: Callable[..., PrepareContext],
    domain: str,
    streams: list[str],
) -> None:
    config = SupervisedConfig(domain=domain, augment=True)
    assert [*config.requirements.streams] == streams
    losses = take_step(config.build(4), tiny_net, batches, make_step())
    assert list(losses) == ["seg", "seg_labelled"][: len(streams)]
    same = make_step()
    expected = [same.augment(batches.get(stream).image) for stream in streams]
    assert len(tiny_net.inputs) == len(expected)
    for seen, image in zip(tiny_net.inputs, expected, strict=True):
        torch.testing.assert_close(seen, image.float() / 255)


def test_ignored_pixels_teach_nothing(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    batches.source.label[:] = 255
    losses = take_step(SupervisedConfig().build(4), tiny_net, batches, make_step())
    assert losses["seg"] == 0
    assert all(p.grad is None or not p.grad.any() for p in tiny_net.parameters())


def test_adaptation_updates_network_and_discriminators(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = UDAS.build(4)
    losses = take_step(objective, tiny_net, batches, make_step())
    assert set(losses) == {"seg_mixed", "adv", "kl", "dis"}
    assert all(not loss.requires_grad for loss in losses.values())
    assert all(p.grad is not None for p in objective.discriminator_parameters())
    assert {id(p) for p in objective.discriminator_parameters()} == {
        id(p) for p in objective.adversary.parameters()
    }
    # Mixed and target, each forward on its own.
    assert [len(x) for x in tiny_net.inputs] == [2, 2]
    torch.testing.assert_close(tiny_net.inputs[1], batches.unlabelled.image.float() / 255)


@pytest.mark.parametrize(("stride", "seen"), [(1, (64, 97)), (2, (32, 49))])
def test_discriminators_see_predictions_at_their_stride(
    tiny_net: nn.Module,
    batches: Batches,
    make_step: Callable[..., PrepareContext],
    stride: int,
    seen: tuple[int, int],
) -> None:
    objective = replace(UDAS, adversary=AdversaryConfig(width=4, stride=stride)).build(4)
    image, label = torch.zeros(2, 3, 64, 97, dtype=torch.uint8), torch.zeros(2, 64, 97, dtype=torch.uint8)
    black = {
        name: replace(batch, image=image, label=None if batch.label is None else label)
        for name, batch in batches
    }
    sizes = []
    for discriminator in (objective.adversary.primary, objective.adversary.auxiliary):
        discriminator.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    take_step(objective, tiny_net, Batches(**black), make_step())
    assert sizes == [seen] * 6  # two levels, each sees target, source and target


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("adaptsegnet", {"seg", "adv", "dis"}),
        ("adaptsegnet_single", {"seg", "adv", "dis"}),
        ("advent", {"seg", "adv", "dis"}),
        ("minent", {"seg", "ent"}),
        ("fda", {"seg", "ent"}),
        ("seg_uncertainty", {"seg", "adv", "kl", "dis"}),
    ],
)
def test_recipes_of_adaptation_have_their_terms_and_no_other(
    tiny_net: nn.Module,
    batches: Batches,
    make_step: Callable[..., PrepareContext],
    name: str,
    terms: set[str],
) -> None:
    config = get_recipe(name).stages[0].objective
    if config.adversary is not None:
        config = replace(config, adversary=replace(config.adversary, width=4))
    assert "labelled" not in config.requirements.optional_streams
    objective = config.build(4)
    losses = take_step(objective, tiny_net, batches, make_step(progress=0.7))
    assert set(losses) == terms
    assert len(tiny_net.inputs) == 2  # source and target
    assert bool(objective.discriminator_parameters()) == ("dis" in terms)
    assert all(p.grad is not None for p in objective.discriminator_parameters())
    # A single-level method leaves the auxiliary head alone.
    single = name in ("adaptsegnet_single", "fda")
    assert (tiny_net.auxiliary.weight.grad is None) == single


@pytest.mark.slow
@pytest.mark.parametrize("network", ["deeplabv3plus", "fcn"])
@pytest.mark.parametrize(
    ("recipe", "stage"),
    [
        (r.name, i)
        for r in all_recipes().values()
        if r.trains == "segmentation"
        for i in range(min(len(r.stages), 4))  # DDM's further rounds are as its second
        if r.stages[i].objective.requirements.tokens is None
    ],
)
def test_every_objective_takes_every_network(
    batches: Batches, make_step: Callable[..., PrepareContext], network: str, recipe: str, stage: int
) -> None:
    torch.manual_seed(0)
    model = build_model(ModelConfig(head=network, backbone="resnet18", width=4), 4).train()
    config = get_recipe(recipe).stages[stage].objective
    if config.requirements.whole_images:  # labelled before the round
        target = replace(batches.unlabelled, label=batches.labelled.label)
        batches = Batches(source=batches.source, labelled=batches.labelled, unlabelled=target)
    built = config.build(4)
    built.networks = {name: copy.deepcopy(model) for name in config.requirements.networks}
    built.on_round_start(model)
    losses = take_step(built, model, batches, make_step(progress=0.7))
    assert all(loss.isfinite() for loss in losses.values())
    assert model.primary[-1].weight.grad.any()


def test_agreement_begins_at_its_share_of_the_stage(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = replace(UDAS, agreement=AgreementConfig(start=0.1)).build(4)
    assert "kl" not in take_step(objective, tiny_net, batches, make_step(progress=0.0999, steps=10_000))
    assert "kl" in take_step(objective, tiny_net, batches, make_step(progress=0.1))


def test_teacher_is_frozen_and_labels_what_it_is_sure_of(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    image = batches.unlabelled.image
    with torch.no_grad():
        logits = tiny_net.eval()(image.float() / 255)[0]
    probability = nn.functional.interpolate(logits, (32, 48), mode="bilinear").softmax(1)
    confidence, label = probability.max(1)
    threshold = confidence.median().item()

    labels = PseudoLabelConfig(views=("identity",), threshold=threshold)
    objective = SelfTrainingConfig(
        pseudo_labels=labels, mixing=replace(PLAIN, replace=False), consistency=None
    ).build(4)
    objective.on_round_start(tiny_net)
    before = {k: v.clone() for k, v in objective.teacher.state_dict().items()}
    losses = take_step(objective, tiny_net.train(), batches, make_step())
    views = {"views_source", "views_target"}
    assert set(losses) == {"pseudo", "kept", "seg", "seg_mixed", "seg_labelled"} | views
    assert all(torch.equal(v, before[k]) for k, v in objective.teacher.state_dict().items())
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert objective.discriminator_parameters() == ()

    label[confidence < threshold] = 255
    away = (confidence - threshold).abs() > 1e-5
    assert away.float().mean() > 0.9
    step = make_step()
    labeller = objective.labeller
    views = labeller.views([batches.unlabelled.image], step.normalize)
    assert torch.equal(labeller.label(*views, (32, 48), threshold).label[away].long(), label[away])


def test_a_round_replaces_the_teacher_by_the_student(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = SelfTrainingConfig().build(4)
    objective.on_round_start(tiny_net)
    with torch.no_grad():
        tiny_net.body.weight.add_(1.0)
    assert not torch.equal(objective.teacher.body.weight, tiny_net.body.weight)
    objective.on_round_start(tiny_net)
    assert torch.equal(objective.teacher.body.weight, tiny_net.body.weight)
    assert objective.teacher.body.weight is not tiny_net.body.weight


def test_the_same_step_draws_the_same_numbers(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    objective = SelfTrainingConfig(translate="lab", mixing=MixingConfig()).build(4)
    objective.on_round_start(tiny_net)
    state = {k: v.clone() for k, v in tiny_net.state_dict().items()}
    runs = []
    for seed in (7, 7, 8):
        tiny_net.load_state_dict(state)
        tiny_net.zero_grad()
        take_step(objective, tiny_net, batches, make_step(seed=seed))
        runs.append(tiny_net.body.weight.grad.clone())
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_balanced_rounds_start_without_a_past(
    tiny_net: nn.Module, batches: Batches, make_step: Callable[..., PrepareContext]
) -> None:
    labels = PseudoLabelConfig(threshold="balanced")
    objective = SelfTrainingConfig(pseudo_labels=labels, mixing=PLAIN).build(4)
    objective.on_round_start(tiny_net)
    first = take_step(objective, tiny_net, batches, make_step())
    second = take_step(objective, tiny_net, batches, make_step())
    assert first["kept"] < second["kept"]
    assert objective.state_dict()["labeller.histogram"].sum() == 2 * 2 * 32 * 48
