"""A method of one's own: its registration, its requirements, and the sentences about what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from udas_fast import DataConfig, Trainer
from udas_fast.config import config_dataclass
from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig
from udas_fast.objectives import (
    Batches,
    Losses,
    Objective,
    ObjectiveConfig,
    PrepareContext,
    Requirements,
    StepContext,
    objective_kinds,
)
from udas_fast.objectives.adaptation import AdaptationConfig
from udas_fast.objectives.base import build_objective
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.recipes import Recipe, Stage, recipe_from_dict

SOURCE = Requirements(("source",))


class Plain(Objective):
    """The least that a method is: cross-entropy of the source."""

    def training_step(self, model: nn.Module, batch: Batches, ctx: StepContext) -> Losses:
        output = ctx.forward(model, batch.source.image, domain="source")
        loss = segmentation_loss(output, batch.source.required_label, 0.1)
        ctx.backward(loss)
        return {"seg": loss.detach()}


def _stage(objective: Any) -> Stage:
    return Stage("train", objective, steps=2)


# Registration


@pytest.mark.usefixtures("own_methods")
def test_a_class_registers_itself_by_its_kind() -> None:
    @config_dataclass
    class OwnConfig(ObjectiveConfig, kind="own"):
        weight: float = 0.5

        @property
        def requirements(self) -> Requirements:
            return SOURCE

        def build(self, num_classes: int) -> Objective:
            return Plain()

    assert objective_kinds()["own"] is OwnConfig
    assert OwnConfig.kind == "own"
    recipe = Recipe("mine", "a method of this file", stages=(_stage(OwnConfig(weight=0.25)),))
    data = recipe.to_dict()
    assert data["stages"][0]["objective"] == {"kind": "own", "weight": 0.25}
    assert recipe_from_dict(data) == recipe
    data["stages"][0]["objective"] = {"kind": "own", "wieght": 1}
    with pytest.raises(InputError, match=r"stages\[0\].objective: key wieght.*did you mean 'weight'"):
        recipe_from_dict(data)


@pytest.mark.usefixtures("own_methods")
def test_a_kind_of_another_class_is_refused_and_stays_the_others() -> None:
    sentence = (
        r"kind of .*Copied in .*test_base.py: found 'adaptation', expected another name, "
        r"as AdaptationConfig in .*adaptation.py is registered under this one"
    )
    with pytest.raises(InputError, match=sentence):

        class Copied(ObjectiveConfig, kind="adaptation"):
            pass

    assert objective_kinds()["adaptation"] is AdaptationConfig


@pytest.mark.usefixtures("own_methods")
def test_the_same_class_may_be_defined_again() -> None:
    def define() -> type[ObjectiveConfig]:  # as a notebook's cell does that is run twice
        @config_dataclass
        class AgainConfig(ObjectiveConfig, kind="again"):
            pass

        return AgainConfig

    define()
    second = define()
    assert objective_kinds()["again"] is second


@pytest.mark.usefixtures("own_methods")
def test_what_a_configuration_lacks_is_said_before_it_is_used() -> None:
    @config_dataclass
    class Nameless(SupervisedConfig):
        weight: float = 1.0

    class Undecorated(SupervisedConfig, kind="undecorated"):
        weight: float = 1.0

    class Bare(ObjectiveConfig, kind="bare"):
        pass

    @config_dataclass
    class Needless(ObjectiveConfig, kind="needless"):
        def build(self, num_classes: int) -> Objective:
            return Plain()

    @config_dataclass
    class Unbuilt(ObjectiveConfig, kind="unbuilt"):
        @property
        def requirements(self) -> Requirements:
            return SOURCE

    @config_dataclass
    class Streams(ObjectiveConfig, kind="streams"):
        @property
        def requirements(self) -> Requirements:
            return ("source",)

        def build(self, num_classes: int) -> Objective:
            return Plain()

    decorator = "found a plain class, expected one with the decorator @udas_fast.config.config_dataclass"
    for config, sentence in (
        (
            Nameless(),
            r'objective Nameless: found no kind of its own, expected class Nameless\(SupervisedConfig, kind="NAME"\)',
        ),
        (Undecorated(), f"objective Undecorated: {decorator}"),
        (Bare(), f"objective Bare: {decorator}"),
        (Needless(), "objective Needless: found no requirements, expected a method or property requirements"),
        (Unbuilt(), "objective Unbuilt: found no build, expected a method or property build"),
        (Streams(), r"requirements of Streams: found tuple, expected a Requirements\(streams=…\)"),
        (
            Plain(),
            r"objective: found Plain, expected a configuration such as AdaptationConfig\(\)",
        ),
    ):
        with pytest.raises(InputError, match=sentence):
            _stage(config)


# Requirements and batches


@pytest.mark.parametrize("field", ["streams", "optional_streams", "paired", "equal_sizes"])
def test_a_stream_that_does_not_exist_is_refused(field: str) -> None:
    values: dict[str, Any] = {"streams": ("source",), field: ("sorce",)}
    sentence = (
        "stream in a method's requirements: found 'sorce', expected one of source, labelled, unlabelled"
    )
    with pytest.raises(InputError, match=sentence):
        Requirements(**values)


def test_labelled_target_images_have_the_sources_size_where_both_are_read() -> None:
    assert Requirements(("source", "labelled")).geometry("labelled") == "source"
    assert Requirements(("labelled",)).geometry("labelled") == "target"
    assert Requirements(("source", "unlabelled")).geometry("unlabelled") == "target"


def test_batches_give_what_is_required_and_name_what_is_missing(batches: Batches) -> None:
    assert [name for name, _ in batches] == ["source", "labelled", "unlabelled"]
    some = Batches(source=batches.source, unlabelled=batches.unlabelled)
    assert some.source is batches.source
    assert some.get("unlabelled") is batches.unlabelled
    assert some.get("labelled") is None
    assert [name for name, _ in some] == ["source", "unlabelled"]
    sentence = (
        "streams of the step: found source, unlabelled, expected 'labelled': name it in the method's req"
    )
    with pytest.raises(InputError, match=sentence):
        _ = some.labelled
    with pytest.raises(InputError, match="streams of the step: found none, expected 'source'"):
        _ = Batches().source


def test_progress_is_the_share_of_the_steps_that_are_done(make_step: Callable[..., PrepareContext]) -> None:
    assert make_step(progress=0.25, steps=8).step == 2
    assert make_step(progress=0.25, steps=8).progress == 0.25
    assert make_step(progress=0.0).progress == 0.0


# Objectives


class Stepless(Objective):
    """Everything but a training_step."""

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> Batches:
        return batch


def _config_of(built: object) -> ObjectiveConfig:
    """A configuration that builds what it is given."""

    @config_dataclass
    class BuildsConfig(ObjectiveConfig, kind="builds"):
        @property
        def requirements(self) -> Requirements:
            return SOURCE

        def build(self, num_classes: int) -> Any:
            return built

    return BuildsConfig()


@pytest.mark.usefixtures("own_methods")
@pytest.mark.parametrize(
    ("built", "sentence"),
    [
        (
            Stepless(),
            r"objective Stepless: found no training_step, expected training_step\(self, model, batch, ctx\)",
        ),
        (
            nn.Conv2d(3, 4, 1),
            r"BuildsConfig.build\(\): found Conv2d, expected an udas_fast.objectives.Objective",
        ),
        (None, r"BuildsConfig.build\(\): found NoneType"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_method_that_cannot_take_a_step_is_refused_before_any_work(
    built: object, sentence: str, camvid_root: Path, tmp_path: Path
) -> None:
    config = _config_of(built)
    with pytest.raises(InputError, match=sentence):
        build_objective(config, 4)
    size = Geometry(size=(24, 32))
    recipe = Recipe(
        "mine",
        "a method that lacks something",
        stages=(_stage(SupervisedConfig()), Stage("later", config, steps=2)),
        model=ModelConfig(backbone="resnet18", width=4),
        input=InputConfig(source=size, target=size),
    )
    with pytest.raises(InputError, match=sentence):
        Trainer(recipe, DataConfig(f"camvid:{camvid_root}"), run_dir=tmp_path / "run", device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_labeller_is_saved_and_moved_with_its_method() -> None:
    class Labelling(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.labeller = nn.BatchNorm1d(2)

    assert Plain().labeller is None
    assert "labeller.running_mean" in Labelling().state_dict()
    assert isinstance(Labelling().labeller, nn.BatchNorm1d)
