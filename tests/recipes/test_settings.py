"""KEY=VALUE settings of a recipe: which places a key reaches, and what is said about keys that reach none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, build_model
from udas_fast.objectives.adaptation import EntropyConfig
from udas_fast.recipes import get_recipe, has_key, override, small


def test_override_reaches_every_level() -> None:
    recipe = override(
        get_recipe("udas"),
        [
            "model.width=32",
            "stages.self_training.objective.pseudo_labels.threshold=0.7",
            "input.source.size=[90, 160]",
        ],
    )
    assert recipe.model.width == 32
    assert recipe.stages[1].objective.pseudo_labels.threshold == 0.7
    assert recipe.input.source.size == (90, 160)


@pytest.mark.parametrize("backbone", ["efficientnet_lite0", "mit_b0", "dinov2_s", "dinov3_s"])
def test_another_kind_of_backbone_has_its_own_width_and_stride(backbone: str) -> None:
    narrow = small(get_recipe("udas"), size=(56, 70))
    model = override(narrow, [f"model.backbone={backbone}"]).model
    assert (model.width, model.output_stride) == (None, None)
    with torch.device("meta"):
        found, published = (build_model(m, 5) for m in (model, ModelConfig(backbone=backbone)))
    assert [p.shape for p in found.parameters()] == [p.shape for p in published.parameters()]
    named = override(narrow, ["model.width=24", f"model.backbone={backbone}"]).model
    assert (named.width, named.output_stride) == (24, None)


def test_the_same_kind_of_backbone_keeps_its_width_and_stride() -> None:
    narrow = small(get_recipe("udas"), size=(56, 70))
    model = override(narrow, ["model.backbone=resnet50", "model.norm=frozen"]).model
    assert (model.width, model.output_stride) == (8, 4)
    transformers = override(narrow, ["model.name=hf", "model.hf=folder"]).model
    assert (transformers.width, transformers.output_stride) == (None, None)


def test_components_are_added_and_left_out() -> None:
    udas = override(
        get_recipe("udas"),
        ["stages.adaptation.objective.entropy={}", "stages.adaptation.objective.adversary=null"],
    )
    before = get_recipe("udas").stages[0].objective
    assert udas.stages[0].objective == replace(before, entropy=EntropyConfig(), adversary=None)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("model.widht=3", "key of model: found 'widht'.*did you mean 'width'"),
        (
            "stages.self_trainnig.steps=3",
            "key of stages: found 'self_trainnig'.*did you mean 'self_training'",
        ),
        (
            "stages.adaptation.objective.agreement.kl=max",
            "stages.*objective: agreement.kl.*'symmetric' or 'mean'",
        ),
        ("stages.adaptation.steps=0", "stages.*steps.*greater than 0"),
        ("stages.adaptation.objective.auxiliary_weight=-1", "auxiliary_weight.*greater than or equal to 0"),
        ("stages.adaptation.objective.agreement.weight=0", "agreement.weight.*greater than 0"),
        ("stages.adaptation.objective.fda_beta=0.5", "fda_beta.*less than 0.5"),
        (
            "stages.adaptation.objective.adversary.weights=[0, 0]",
            r"weights: found \[0.0, 0.0\], expected one above 0, or adversary: null",
        ),
        (
            "stages.adaptation.objective.entropy.robust=2",
            "found stages.adaptation.objective.entropy, which has no keys, expected stages.adaptation.obj",
        ),
        ("model.width", "found 'model.width', expected KEY=VALUE"),
        (
            "input.source.size.0=9",
            "found input.source.size, which has no keys, expected input.source.size=VALUE",
        ),
        (
            "input.rare_classes.min_pixels=9",
            "found input.rare_classes, which has no keys, expected input.rare_cl",
        ),
        ("precision=fp8", "precision.*found 'fp8'"),
    ],
)
def test_wrong_settings_are_named(setting: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        override(get_recipe("udas"), [setting])


def test_a_star_reaches_every_stage_that_has_the_key() -> None:
    ddm = override(get_recipe("ddm"), ["stages.*.optimizer.lr=1e-4", "stages.*.objective.level=sample"])
    assert {stage.optimizer.lr for stage in ddm.stages} == {1e-4}
    levels = {stage.objective.level for stage in ddm.stages if stage.network != "student"}
    assert levels == {"sample"}  # students have no level and are left alone
    unchanged = get_recipe("ddm").stages[2].objective
    assert ddm.stages[2].objective == unchanged


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        (
            "stages.*.objective.pseudo_labels.tresholdd=1",
            r"key of stages\.\*\.objective\.pseudo_labels: found 'tresholdd'.*mean 'threshold'",
        ),
        ("stages.*.optimiser.lr=1", r"key of stages\.\*: found 'optimiser'.*mean 'optimizer'"),
        ("stages.*.steps.rounds=1", r"found stages\.\*\.steps, which has no keys"),
        ("stages.*=1", "found a whole stage, expected a key inside it"),
        ("*.width=1", r"key of recipe: found '\*'"),
    ],
)
def test_a_star_that_reaches_no_stage_is_refused(setting: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        override(get_recipe("udas"), [setting])


@pytest.mark.parametrize(
    ("key", "recipes"),
    [
        ("model.width", {"udas", "ddm", "cyclegan"}),
        ("stages.self_training.steps", {"udas"}),
        ("stages.*.objective.level", {"ddm"}),
        ("stages.*.optimizer.lr", {"udas", "ddm", "cyclegan"}),
        ("stages.*.optimizer", {"udas", "ddm", "cyclegan"}),
        ("input.rare_classes.min_pixels", set()),  # absent in all three
        ("", set()),
    ],
)
def test_has_key_is_true_where_override_would_set_it(key: str, recipes: set[str]) -> None:
    assert {name for name in ("udas", "ddm", "cyclegan") if has_key(get_recipe(name), key)} == recipes
