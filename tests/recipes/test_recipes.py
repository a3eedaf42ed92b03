"""Recipes as data: defaults of the papers, YAML and back, and what is said about wrong keys."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from udas_fast.data import Geometry
from udas_fast.engine.optim import OptimizerConfig, lr_factor
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig
from udas_fast.objectives.adaptation import AdaptationConfig, AgreementConfig, EntropyConfig
from udas_fast.objectives.adversary import AdversaryConfig
from udas_fast.objectives.ddm import DistillationConfig, DomainMixingConfig
from udas_fast.objectives.mixing import MixingConfig
from udas_fast.objectives.pseudo_labels import PseudoLabelConfig
from udas_fast.objectives.rectification import RectificationConfig
from udas_fast.objectives.self_training import ConsistencyConfig, SelfTrainingConfig
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes import all_recipes, fda, get_recipe, load_recipe, recipe_from_dict
from udas_fast.recipes.listing import listing
from udas_fast.recipes.translation import translation_of


def test_a_copied_recipe_hides_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fda, "COPIED", replace(get_recipe("udas"), summary="mine"), raising=False)
    sentence = r"recipe 'udas' in \w+\.py: found another recipe's name, expected one of its own"
    with pytest.raises(InputError, match=sentence):
        all_recipes()


def test_udas_holds_the_published_numbers() -> None:
    adaptation, self_training = get_recipe("udas").stages
    assert adaptation.steps == 150_000
    assert adaptation.objective.auxiliary_weight == 0.1
    assert adaptation.objective.adversary.weights == (0.001, 0.0002)
    agreement = adaptation.objective.agreement
    # L_total = L_seg + L_adv + L_kl, L_kl as printed in 3.3, from the first step on.
    assert (agreement.kl, agreement.weight, agreement.start) == ("cross_entropy", 1, 0)
    # 3.4: the box of the source is filled with the target, "instead of the source image"; AutoAugment on it.
    for stage in (adaptation, self_training):
        mixing = stage.objective.mixing
        assert (mixing.paste, mixing.replace, mixing.augment) == ("target", True, "full")
        assert not mixing.augmented_source  # "without labelled target it works as UDA as in 3.3"
    # 3.5 and 4.2.5: K = 3, from a confidence of 0.6, another student, consistency on all images.
    labels = self_training.objective.pseudo_labels
    assert (len(labels.views), labels.threshold, labels.reduce) == (3, 0.6, "max")
    assert self_training.objective.student == "fresh"
    assert self_training.objective.consistency is not None
    assert self_training.objective.label_consistency_weight > 0
    assert get_recipe("udas").model.norm == get_recipe("uda").model.norm == "batch"
    # 3.2: images that CycleGAN has translated stand for the source.
    assert translation_of(get_recipe("udas")) == ("cyclegan",)
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
    assert all(s.objective.translate == "lab" for s in stages if s.network != "student")
    # The student's labels join from the second round on.
    networks = [s.objective.requirements.networks for s in stages[:6] if s.network == "region"]
    assert networks == [(), ("student",)]
    assert {(s.optimizer.lr, s.optimizer.weight_decay) for s in stages} == {(2.5e-4, 1e-4)}


def test_the_methods_beside_udas_hold_their_published_numbers() -> None:
    def objective(name: str) -> AdaptationConfig:
        return get_recipe(name).stages[0].objective

    assert objective("adaptsegnet").adversary.weights == (0.001, 0.0002)
    assert objective("adaptsegnet").auxiliary_weight == 0.1
    assert objective("adaptsegnet_single").adversary.weights == (0.001, 0)
    advent = objective("advent").adversary
    assert (advent.space, advent.weights) == ("entropy", (0.001, 0.0002))
    assert objective("minent").entropy.weights == (0.001, 0.0002)
    fda = objective("fda")
    assert (fda.entropy.weights[0], fda.entropy.robust, fda.fda_beta) == (0.005, 2.0, 0.01)
    cycada = get_recipe("cycada").stages[1]
    adversary = cycada.objective.adversary
    assert (adversary.weights, adversary.gate) == ((0.1, 0), 0.6)
    assert (adversary.discriminator, adversary.width) == ("pixel", 512)
    assert lr_factor(0.9, cycada.optimizer) == 1
    first, second = get_recipe("seg_uncertainty").stages
    assert first.objective.agreement.start * first.steps == 15_000
    assert first.optimizer.warmup * first.steps == pytest.approx(5_000)
    labels = second.objective.pseudo_labels
    assert (labels.scales, labels.flip_view) == ((1.25,), True)  # beside the image itself
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


# What each stage's objective and optimiser have other than the defaults, from the papers and the authors' command
# lines; a component that is not named is absent.
DIFFERENCES = {
    ("adaptsegnet", "adaptation"): ({"adversary": {}}, {}),
    ("adaptsegnet_single", "adaptation"): (
        {"auxiliary_weight": 0, "adversary": {"weights": (0.001, 0)}},
        {},
    ),
    ("advent", "adaptation"): ({"adversary": {"space": "entropy"}}, {"horizon": 250 / 120}),
    ("minent", "adaptation"): ({"entropy": {}}, {"horizon": 250 / 120}),
    ("fda", "adaptation"): (
        {
            "auxiliary_weight": 0,
            "translate": "fda",
            "entropy": {"weights": (0.005, 0), "robust": 2.0},
        },
        {"horizon": 1.5},
    ),
    ("seg_uncertainty", "adaptation"): (
        {
            "auxiliary_weight": 0.5,
            "adversary": {
                "weights": (0.002, 0.0004),
                "real": "ensemble",
                "gan": "lsgan",
                "scales": 3,
                "width": 32,
            },
            "agreement": {"kl": "mean", "weight": 0.1, "start": 0.6},
        },
        {"lr": 2e-4, "horizon": 4, "warmup": 0.2},
    ),
    ("seg_uncertainty", "rectification"): ({}, {"lr": 1e-4, "horizon": 4, "warmup": 0.2}),
    ("cycada", "source"): ({"auxiliary_weight": 0}, {}),
    ("cycada", "adaptation"): (
        {
            "auxiliary_weight": 0,
            "adversary": {
                "weights": (0.1, 0),
                "space": "score",
                "discriminator": "pixel",
                "width": 512,
                "stride": 8,
                "gate": 0.6,
            },
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
    ("joint", "joint"): ({"domain": "both"}, {}),
    ("udas", "adaptation"): ({"mixing": {}, "adversary": {}, "agreement": {}}, {}),
    ("udas", "self_training"): ({"mixing": {}}, {}),
    ("uda", "adaptation"): ({"adversary": {}, "agreement": {}}, {}),
}


def _differences(config: Any) -> dict[str, Any]:
    """What of ``config`` is not its class's default; of a component likewise."""
    default = type(config)()
    return {
        f.name: _differences(value) if is_dataclass(value) else value
        for f in fields(config)
        if (value := getattr(config, f.name)) != getattr(default, f.name)
    }


@pytest.mark.parametrize(("name", "stage"), DIFFERENCES)
def test_a_recipe_differs_from_the_defaults_in_what_its_paper_says(name: str, stage: str) -> None:
    (chosen,) = (s for s in get_recipe(name).stages if s.name == stage)
    assert (_differences(chosen.objective), _differences(chosen.optimizer)) == DIFFERENCES[name, stage]


def test_the_defaults_are_those_of_the_papers() -> None:
    assert SupervisedConfig() == SupervisedConfig(domain="source", auxiliary_weight=0.1, translate="none")
    assert AdaptationConfig() == AdaptationConfig(
        auxiliary_weight=0.1,
        translate="none",
        fda_beta=0.01,
        mixing=None,
        adversary=None,
        entropy=None,
        agreement=None,
    )
    assert AdversaryConfig() == AdversaryConfig(
        weights=(0.001, 0.0002),
        real="primary",
        space="probability",
        gan="bce",
        discriminator="patch",
        scales=1,
        width=64,
        stride=1,
        gate=None,
    )
    assert EntropyConfig() == EntropyConfig(weights=(0.001, 0.0002), robust=None)
    assert AgreementConfig() == AgreementConfig(kl="cross_entropy", weight=1, start=0)
    assert MixingConfig() == MixingConfig(
        paste="target", fit=False, alpha=1, replace=True, augment="full", augmented_source=False
    )
    assert PseudoLabelConfig() == PseudoLabelConfig(
        views=("identity", "strong", "strong"),
        temperature=1,
        flip_view=False,
        scales=(),
        antialias=True,
        heads="primary",
        reduce="max",
        threshold=0.6,
        portion=0.5,
        cap=0.9,
        labels="online",
    )
    assert SelfTrainingConfig() == SelfTrainingConfig(
        pseudo_labels=PseudoLabelConfig(),
        pseudo_weight=1,
        auxiliary_weight=0.1,
        student="fresh",
        augment=True,
        consistency=ConsistencyConfig(),
        label_consistency_weight=1,
        translate="none",
        mixing=None,
    )
    assert ConsistencyConfig() == ConsistencyConfig(weight=1, temperature=1)
    assert DomainMixingConfig() == DomainMixingConfig(
        level="region",
        translate="lab",
        fda_beta=0.01,
        mixing=MixingConfig(augment="none"),
        auxiliary_weight=0,
        labeller=None,
        pseudo_share="proportional",
        pseudo_labels=PseudoLabelConfig(views=("identity",), threshold="balanced", portion=0.5, cap=0.9),
    )
    assert DistillationConfig() == DistillationConfig(
        teachers=("region", "sample"), distillation_weight=0.5, auxiliary_weight=0
    )
    mrnet_labels = PseudoLabelConfig(
        views=("identity",),
        flip_view=True,
        scales=(1.25,),
        antialias=False,
        heads="ensemble",
        reduce="mean",
        threshold=0,
    )
    assert RectificationConfig() == RectificationConfig(pseudo_labels=mrnet_labels, auxiliary_weight=0.5)
    assert OptimizerConfig().schedule == "poly"
    # Networks and inputs: ResNet-101, batch 1, and the sizes of AdaptSegNet; but for MRNet and DDM.
    plain = {"head": None, "backbone": "resnet101", "aspp_branches": 4, "dropout": 0.0}
    for name in {name for name, _ in DIFFERENCES}:
        recipe = get_recipe(name)
        dropout = {"dropout": 0.1} if name == "seg_uncertainty" else {}
        assert recipe.model == ModelConfig(**plain | {"norm": "batch"} | dropout), name
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
    data["stages"][1]["objective"]["pseudo_labels"]["treshold"] = 0.5
    sentence = r"stages\[1\].objective: key pseudo_labels.treshold.*did you mean 'threshold'"
    with pytest.raises(InputError, match=sentence):
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
