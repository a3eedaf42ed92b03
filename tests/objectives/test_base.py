"""A method of one's own: its registration, its requirements, and the sentences about what it lacks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from udas_fast import DataConfig, Trainer
from udas_fast.config import config_dataclass
from udas_fast.data import Geometry
from udas_fast.data.domains import InputConfig
from udas_fast.engine.faults import BadSteps
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.engine.precision import build_amp
from udas_fast.engine.step import TrainStep
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
from udas_fast.testing import TinyNetwork

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
        (Plain(), r"objective: the method: found Plain, expected a configuration such as AdaptationConfig\(\)"),
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


# The first step


class Returns(Plain):
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


def _train_step(objective: Objective, bad_steps: BadSteps | None = None) -> TrainStep:
    torch.manual_seed(0)
    model = TinyNetwork().train()
    objective.on_round_start(model)
    amp = build_amp("fp32", torch.device("cpu"))
    optimizer = OptimizerConfig(lr=0.1)
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


class MeanTeacher(Plain):
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
