"""Recipes as data: defaults of the papers, YAML and back, and what is said about wrong keys."""

from __future__ import annotations

from dataclasses import fields, make_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from udas_fast import objectives
from udas_fast.data import Geometry
from udas_fast.engine.optim import OptimizerConfig, lr_factor
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig
from udas_fast.objectives import ObjectiveConfig
from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.domain_mixing import DomainMixingConfig
from udas_fast.objectives.mixing import NO_MIXING, MixingConfig
from udas_fast.objectives.rectification import RectificationConfig
from udas_fast.recipes import all_recipes, fda, get_recipe, load_recipe, recipe_from_dict
from udas_fast.recipes.listing import listing


def test_a_copied_file_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    copied = make_dataclass("AdaptationConfig", [], bases=(ObjectiveConfig,))
    monkeypatch.setattr(objectives.fda, "Copied", copied, raising=False)
    assert {copied, AdaptationConfig} < set(objectives.objective_configs())
    monkeypatch.setattr(fda, "COPIED", replace(get_recipe("udas"), summary="mine"), raising=False)
    with pytest.raises(ValueError, match=r"\.py: another recipe has the name 'udas'"):
        all_recipes()


def test_udas_holds_the_published_numbers() -> None:
    adaptation, self_training = get_recipe("udas").stages
    assert adaptation.steps == 150_000
    assert adaptation.objective.auxiliary_weight == 0.1
    assert adaptation.objective.adversarial_weights == (0.001, 0.0002)
    assert (adaptation.objective.kl, adaptation.objective.kl_weight) == ("mean", 0.1)
    assert adaptation.objective.kl_start * adaptation.steps == 15_000
    assert adaptation.objective.mixing.paste == "source"
    assert not adaptation.objective.mixing.replace
    assert (self_training.objective.views, self_training.objective.threshold) == (3, 0.6)
    optimizer = adaptation.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.momentum, optimizer.weight_decay) == (
        "sgd",
        2.5e-4,
        0.9,
        5e-4,
    )
    assert (optimizer.head_lr_mult, optimizer.power, optimizer.horizon) == (10, 0.9, 250 / 150)
    assert (optimizer.discriminator_lr, optimizer.discriminator_betas) == (1e-4, (0.9, 0.99))


def test_ddm_holds_the_published_numbers() -> None:
    stages = get_recipe("ddm").stages
    order = [("region", "region"), ("sample", "sample"), ("student", "student")]
    assert [(s.name.partition("_")[0], s.network) for s in stages] == order * 4
    assert [s.objective.level for s in stages if s.network != "student"] == ["region", "sample"] * 4
    assert all(s.objective.distillation_weight == 0.5 for s in stages if s.network == "student")
    assert all(s.objective.mixing.translate == "lab" for s in stages if s.network != "student")
    # The student's labels join from the second round on.
    assert [s.objective.teachers for s in stages[:6] if s.network == "region"] == [(), ("student",)]
    assert {(s.optimizer.lr, s.optimizer.weight_decay) for s in stages} == {(2.5e-4, 1e-4)}


def test_the_methods_beside_udas_hold_their_published_numbers() -> None:
    def objective(name: str) -> AdaptationConfig:
        return get_recipe(name).stages[0].objective

    assert objective("adaptsegnet").adversarial_weights == (0.001, 0.0002)
    assert objective("adaptsegnet").auxiliary_weight == 0.1
    assert objective("adaptsegnet_single").adversarial_weights == (0.001, 0)
    assert (objective("advent").space, objective("advent").adversarial_weights) == (
        "entropy",
        (0.001, 0.0002),
    )
    assert objective("minent").entropy_weights == (0.001, 0.0002)
    fda = objective("fda")
    assert (fda.entropy_weights[0], fda.entropy_robust, fda.mixing.fda_beta) == (0.005, 2.0, 0.01)
    cycada = get_recipe("cycada").stages[1]
    assert (cycada.objective.adversarial_weights, cycada.objective.gate) == ((0.1, 0), 0.6)
    assert (cycada.objective.discriminator, cycada.objective.discriminator_width) == ("pixel", 512)
    assert lr_factor(0.9, cycada.optimizer) == 1
    with pytest.raises(
        ValueError, match='discriminator_scales: found 3, expected 1 with discriminator "pixel"'
    ):
        AdaptationConfig(discriminator="pixel", discriminator_scales=3)
    first, second = get_recipe("seg_uncertainty").stages
    assert first.objective.kl_start * first.steps == 15_000
    assert first.optimizer.warmup * first.steps == pytest.approx(5_000)
    assert second.objective.scales == (1.0, 1.25)
    # Learning rate at a step of the published schedules: (1 - step / horizon)^0.9 of the base rate.
    for name, steps, horizon in (
        ("adaptsegnet", 150_000, 250_000),
        ("advent", 120_000, 250_000),
        ("fda", 100_000, 150_000),
        ("seg_uncertainty", 25_000, 100_000),
    ):
        stage = get_recipe(name).stages[0]
        assert stage.steps == steps
        assert lr_factor(20_000 / steps, stage.optimizer) == pytest.approx((1 - 20_000 / horizon) ** 0.9)


PLAIN = MixingConfig(translate="none", paste="none", augment=False)
SINGLE = {"auxiliary_weight": 0, "kl_weight": 0}  # one head

# What each stage's objective and optimiser have other than UDAS's and AdaptSegNet's, from the papers and the
# authors' command lines.
DIFFERENCES = {
    ("adaptsegnet", "adaptation"): ({"kl_weight": 0, "mixing": PLAIN}, {}),
    ("adaptsegnet_single", "adaptation"): (
        {**SINGLE, "adversarial_weights": (0.001, 0), "mixing": PLAIN},
        {},
    ),
    ("advent", "adaptation"): (
        {"space": "entropy", "kl_weight": 0, "mixing": PLAIN},
        {"horizon": 250 / 120},
    ),
    ("minent", "adaptation"): (
        {
            "adversarial_weights": (0, 0),
            "entropy_weights": (0.001, 0.0002),
            "kl_weight": 0,
            "mixing": PLAIN,
        },
        {"horizon": 250 / 120},
    ),
    ("fda", "adaptation"): (
        {
            **SINGLE,
            "adversarial_weights": (0, 0),
            "entropy_weights": (0.005, 0),
            "entropy_robust": 2.0,
            "mixing": MixingConfig(translate="fda", fda_beta=0.01, paste="none", augment=False),
        },
        {"horizon": 1.5},
    ),
    ("seg_uncertainty", "adaptation"): (
        {
            "auxiliary_weight": 0.5,
            "adversarial_weights": (0.002, 0.0004),
            "real": "ensemble",
            "gan": "lsgan",
            "discriminator_scales": 3,
            "discriminator_width": 32,
            "kl_start": 0.6,
            "mixing": PLAIN,
        },
        {"lr": 2e-4, "horizon": 4, "warmup": 0.2},
    ),
    ("seg_uncertainty", "rectification"): ({}, {"lr": 1e-4, "horizon": 4, "warmup": 0.2}),
    ("cycada", "source"): ({"auxiliary_weight": 0}, {}),
    ("cycada", "adaptation"): (
        {
            **SINGLE,
            "adversarial_weights": (0.1, 0),
            "space": "score",
            "discriminator": "pixel",
            "discriminator_width": 512,
            "discriminator_stride": 8,
            "gate": 0.6,
            "mixing": PLAIN,
        },
        {"lr": 1e-5, "momentum": 0.99, "head_lr_mult": 1, "power": 0},
    ),
    ("ddm", "region_1"): ({}, {"weight_decay": 1e-4, "horizon": 1}),
    ("ddm", "sample_1"): ({"level": "sample"}, {"weight_decay": 1e-4, "horizon": 1}),
    ("ddm", "student_1"): ({}, {"weight_decay": 1e-4, "horizon": 1}),
    ("ddm", "region_2"): ({"labeller": "student"}, {"weight_decay": 1e-4, "horizon": 1}),
    ("ddm", "sample_4"): ({"level": "sample", "labeller": "student"}, {"weight_decay": 1e-4, "horizon": 1}),
    ("no_adaptation", "source"): ({}, {}),
    ("supervised", "target"): ({"domain": "labelled"}, {}),
    ("udas", "adaptation"): ({}, {}),
    ("udas", "self_training"): ({}, {}),
    ("uda", "adaptation"): ({"mixing": PLAIN}, {}),
}


def _differences(config: Any) -> dict[str, Any]:
    """What of ``config`` is not its class's default."""
    default = type(config)()
    return {
        f.name: value
        for f in fields(config)
        if (value := getattr(config, f.name)) != getattr(default, f.name)
    }


@pytest.mark.parametrize(("name", "stage"), DIFFERENCES)
def test_a_recipe_differs_from_the_defaults_in_what_its_paper_says(name: str, stage: str) -> None:
    (chosen,) = (s for s in get_recipe(name).stages if s.name == stage)
    assert (_differences(chosen.objective), _differences(chosen.optimizer)) == DIFFERENCES[name, stage]


def test_the_defaults_are_those_of_the_papers() -> None:
    assert NO_MIXING == PLAIN
    assert MixingConfig() == MixingConfig(
        translate="lab", fda_beta=0.01, paste="source", alpha=1, augment=True
    )
    assert DomainMixingConfig().mixing == MixingConfig(translate="lab", paste="target", augment=False)
    assert (DomainMixingConfig().auxiliary_weight, DomainMixingConfig().pseudo_share) == (0, 0.5)
    assert RectificationConfig() == RectificationConfig(scales=(1.0, 1.25), auxiliary_weight=0.5)
    assert OptimizerConfig().schedule == "poly"
    # Networks and inputs: ResNet-101, batch 1, and the sizes of AdaptSegNet; but for MRNet and DDM.
    plain = {"name": "deeplabv2", "backbone": "resnet101", "aspp_branches": 4, "dropout": 0.0}
    for name in {name for name, _ in DIFFERENCES}:
        recipe = get_recipe(name)
        norm = "domain" if name in {"udas", "uda"} else "batch"
        dropout = {"dropout": 0.1} if name == "seg_uncertainty" else {}
        assert recipe.model == ModelConfig(**plain | {"norm": norm} | dropout), name
        assert recipe.input.target.size == (512, 1024), name
        assert recipe.input.source.size == (720, 1280), name
        assert recipe.input.batch_size == (2 if name == "seg_uncertainty" else 1), name
    assert get_recipe("ddm").input.source == Geometry(
        size=(720, 1280), crop=(512, 1024)
    )  # regions of one size
    mrnet = Geometry(size=(720, 1280), scale=(0.8, 1.2), crop=(512, 1024), flip=True)
    assert get_recipe("seg_uncertainty").input.source == mrnet


@pytest.mark.parametrize("name", sorted(all_recipes()))
def test_yaml_and_back(name: str, tmp_path: Path) -> None:
    recipe = get_recipe(name)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert load_recipe(path) == recipe


@pytest.mark.parametrize("name", sorted(all_recipes()))
def test_listing_tells_stages_and_needs(name: str) -> None:
    recipe = get_recipe(name)
    text = " ".join(listing([recipe]).split())  # however it is wrapped
    assert text.startswith(f"{name}: {recipe.summary}")
    assert recipe.paper in text
    assert recipe.published in text
    for stage in recipe.stages:
        assert f"{stage.name}" in text
        assert f"{stage.steps:,} steps" in text
    assert ("labelled source" in text) == ("source" in recipe.streams[0])
    assert ("--num-labels" in text) == ("labelled" in recipe.streams[0] | recipe.streams[1])


def test_unknown_keys_of_a_file_are_named_with_the_nearest() -> None:
    data = get_recipe("udas").to_dict()
    data["stages"][1]["objective"]["treshold"] = 0.5
    with pytest.raises(InputError, match=r"key stages\[1\].objective.treshold.*did you mean 'threshold'"):
        recipe_from_dict(data)
    data = get_recipe("udas").to_dict()
    data["input"]["batchsize"] = 2
    with pytest.raises(InputError, match="key input.batchsize.*did you mean 'batch_size'"):
        recipe_from_dict(data)
    data = get_recipe("udas").to_dict()
    data["input"]["rare_classes"] = {"temprature": 0.1}
    with pytest.raises(InputError, match="key input.rare_classes.temprature.*did you mean 'temperature'"):
        recipe_from_dict(data)
    data = get_recipe("udas").to_dict()
    data["stages"][0]["objectve"] = data["stages"][0].pop("objective")
    with pytest.raises(InputError, match=r"key stages\[0\].objectve.*did you mean 'objective'"):
        recipe_from_dict(data)
    data = get_recipe("udas").to_dict()
    data["stages"][0]["objective"]["kind"] = "adaptatoin"
    with pytest.raises(InputError, match=r"stages\[0\].objective.kind.*did you mean 'adaptation'"):
        recipe_from_dict(data)


@pytest.mark.parametrize("name", ["../outside", "a/b", "", "a b"])
def test_a_stage_is_named_like_a_file(name: str) -> None:
    content = get_recipe("no_adaptation").to_dict()
    content["stages"][0]["name"] = name
    with pytest.raises(InputError, match="name: string should match pattern"):
        recipe_from_dict(content)


def test_unknown_recipe_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recipe: found 'uads'.*did you mean 'udas'"):
        get_recipe("uads")
    with pytest.raises(InputError, match="missing.yaml: No such file"):
        load_recipe(tmp_path / "missing.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [1")
    with pytest.raises(InputError, match="broken.yaml: not valid YAML"):
        load_recipe(broken)
    broken.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(InputError, match="broken.yaml: not valid YAML"):
        load_recipe(broken)
