"""Training steps recorded and replayed, by a tape in the place of a CUDA graph: the same run to the bit."""

from __future__ import annotations

import copy
import gc
import re
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

from udas_fast import Trainer, distributed
from udas_fast.data import Batch, open_dataset
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.engine.graph import WARM_UP, CudaCapture, StepGraph, check_graphs, flatten
from udas_fast.errors import InputError
from udas_fast.objectives import Losses, StepContext
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.objectives.supervised import Supervised
from udas_fast.ops import _check
from udas_fast.recipes import Recipe, all_recipes, get_recipe, override, small
from udas_fast.testing import TapeCapture, assert_equal, assert_replays, assert_resumes, random_phase, tiny
from udas_fast.training import fit, networks

STEPS, FEW = 12, 7  # a few replays tell as much of each recipe


def every_step(name: str, steps: int = STEPS) -> Recipe:
    return tiny(get_recipe(name), steps)


# A delayed term is in all steps but the first ones.
DELAYED = {"udas_tuned", "udas_mrnet", "seg_uncertainty", "mrnet"}


# What `small` leaves out.
LEFT_OUT = [
    ("daformer", ["stages.mixed.objective.feature_distance={weight: 1}"]),
    (
        "vfm_uda",
        ["model.backbone=dinov2_s", "model.width=12", "stages.mixed.objective.masked.patch=token"],
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"), [*((name, []) for name in all_recipes() if name != "cyclegan"), *LEFT_OUT]
)
def test_every_recipe_runs_as_it_does_without(name: str, settings: list[str]) -> None:
    steps = STEPS if name in DELAYED else FEW
    recipe = override(every_step(name, steps), settings)
    if name == "ddm":  # its first two rounds have every kind of stage
        recipe = replace(recipe, stages=recipe.stages[:6])
    replays = [steps - WARM_UP] * len(recipe.stages)
    if name in DELAYED:
        replays[0] -= min(WARM_UP, ceil(recipe.stages[0].objective.agreement.start * steps))
    assert_replays(recipe, *replays)


ADAPTATION, SELF_TRAINING = "stages.adaptation.objective", "stages.self_training.objective"


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ["memory.checkpointing=all", "ema=0.9", "precision=bf16"],
        ["memory.micro_batch_size=1", "model.norm=frozen", f"{SELF_TRAINING}.consistency={{weight: 1}}"],
        [
            "model.head=deeplabv3plus",
            "model.dropout=0.3",
            f"{ADAPTATION}.adversary.discriminator=pixel",
            f"{ADAPTATION}.adversary.gate=0.5",
            f"{ADAPTATION}.translate=fda",
            f"{SELF_TRAINING}.pseudo_labels.threshold=balanced",
            f"{SELF_TRAINING}.pseudo_labels.flip_view=true",
            f"{SELF_TRAINING}.pseudo_labels.scales=[1.25]",
        ],
    ],
    ids=lambda settings: settings[0],
)
def test_options_run_as_they_do_without(settings: list[str]) -> None:
    assert_replays(override(every_step("udas", FEW), settings), FEW - WARM_UP, FEW - WARM_UP)


def test_dropout_that_runs_again_cannot_be_recorded() -> None:
    # As CUDA's random state cannot be read meanwhile. The discriminators are CyCADA's.
    settings = [f"{ADAPTATION}.adversary.discriminator=pixel", "memory.checkpointing=all"]
    with pytest.raises(RuntimeError, match="current_seed"):
        random_phase(override(every_step("udas"), settings), capture=TapeCapture()).run()


@pytest.mark.slow
def test_another_term_is_recorded_anew() -> None:
    # The first steps' graph has five replays less the three that warm it up, and so has the last ones'.
    assert_replays(override(every_step("uda"), [f"{ADAPTATION}.agreement.start=0.5"]), STEPS - 2 * WARM_UP)


@pytest.mark.slow
def test_a_run_goes_on_from_the_middle_of_a_stage() -> None:
    assert_resumes(override(every_step("udas"), ["ema=0.9", "model.dropout=0.5"]))


@pytest.mark.slow
def test_a_run_goes_on_from_the_middle_of_replays() -> None:
    recipe = override(every_step("udas"), ["ema=0.9", "model.dropout=0.5"])
    whole, states = random_phase(recipe, capture=TapeCapture()), []

    def keep(losses: Losses) -> None:
        if whole.step.done == 8:
            states.append(copy.deepcopy(whole.step.state_dict()))

    whole.run(keep)
    again = random_phase(recipe, capture=TapeCapture())
    again.step.load_state_dict(states[0])
    assert len(again.run()) == STEPS - 8
    assert_equal(again.step.state_dict(), whole.step.state_dict(), "udas")


def changed(line: str) -> Callable[..., Losses]:
    """Supervised's step with ``line`` of its loss, and of how often the host was asked for one."""
    asked = []

    def training_step(
        self: Supervised, model: nn.Module, batches: dict[str, Batch], ctx: StepContext
    ) -> Losses:
        asked.append(0)
        batch = batches["seg"]
        loss = segmentation_loss(ctx.forward(model, batch.image), batch.label, 0.0)
        loss = eval(line, {"loss": loss, "count": len(asked), "batch": batch, "ctx": ctx})
        ctx.backward(loss)
        return {"seg": loss.detach()}

    return training_step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("loss", None),
        ("loss * count", "source"),  # the host's number is that of the recording
        ("loss * float(loss)", "_local_scalar_dense waits"),
        ("loss * batch.label.unique().numel()", "_unique2 waits"),
        ("loss * ctx.progress", "no attribute 'progress'"),
    ],
)
def test_a_step_that_a_graph_cannot_stand_for_is_seen(line: str, told: str | None) -> None:
    plain, recorded = changed(line), changed(line)

    def both() -> None:
        with patch.object(Supervised, "training_step", plain):
            expected = random_phase(every_step("no_adaptation")).run()
        with patch.object(Supervised, "training_step", recorded):
            found = random_phase(every_step("no_adaptation"), capture=TapeCapture()).run()
        assert_equal(found, expected, "source")

    if told is None:
        both()
    else:
        with pytest.raises((AssertionError, RuntimeError, AttributeError), match=told):
            both()


def test_inputs_of_another_outline_are_recorded_anew_and_losses_are_the_callers() -> None:
    weight = nn.Parameter(torch.tensor(2.0))

    def training_step(inputs: dict[str, Any]) -> Losses:
        loss = (weight * inputs["x"].image.float()).mean() * (2 if inputs["twice"] else 1)
        loss.backward()
        return {"loss": loss.detach()}

    graph = StepGraph([weight], TapeCapture())
    seen = []
    shapes = [(2, 2)] * 6 + [(3, 2)] * 5 + [(2, 2), (3, 2)] * 4
    for i, shape in enumerate(shapes):
        weight.grad = None
        batch = Batch(torch.full(shape, i, dtype=torch.uint8), None, [str(i)])
        seen.append(graph.step(training_step, {"x": batch, "twice": i == 5})["loss"])
        assert weight.grad.item() == pytest.approx(i * (2 if i == 5 else 1))
    expected = [2.0 * i * (2 if i == 5 else 1) for i in range(len(shapes))]
    assert [x.item() for x in seen] == pytest.approx(expected)
    # Of the first six, two after three to warm up and one with another value; of the next five, two; then none.
    assert graph.replays == 4


@pytest.mark.slow
def test_a_recorded_step_dies_with_its_last_name() -> None:
    # Left to the garbage collector a graph might die while the next one is recorded, which ends that.
    recipe = every_step("no_adaptation")
    random_phase(
        recipe
    )  # a process's first optimiser lets torch import what keeps the callers' frames for a while
    gc.collect()
    gc.disable()
    try:
        phase = random_phase(recipe, capture=TapeCapture())
        phase.run()
        assert phase.step.graph.replays > 0
        phase.step.finish()
        assert all(p.grad is None for p in phase.step.model.parameters())
        gone = weakref.ref(phase.step)
        del phase
        assert gone() is None
    finally:
        gc.enable()


def test_an_outline_is_of_shapes_and_values_but_not_of_ids() -> None:
    def inputs(ids: list[str], size: int, kind: torch.dtype, flag: bool) -> dict[str, Any]:
        image = torch.zeros(1, 3, size, size, dtype=kind)
        return {"a": Batch(image, None, ids), "b": [image, {"c": (image,)}], "flag": flag}

    base = ["x"], 4, torch.uint8, True
    outline, tensors = flatten(inputs(*base))
    assert len(tensors) == 3
    others = inputs(*base)
    others["b"][0] = others["b"][0].clone()  # no longer the batch's own image
    assert flatten(others)[0] != outline
    assert flatten(inputs(["y"], *base[1:]))[0] == outline
    others = (["x"], 5, *base[2:]), (*base[:2], torch.float32, True), (*base[:3], False)
    assert all(flatten(inputs(*other))[0] != outline for other in others)


def test_what_has_no_graphs_is_told(camvid_root: Path, tmp_path: Path) -> None:
    data = Domains(source=open_dataset(f"camvid:{camvid_root}", "train"))
    recipe = override(small(get_recipe("no_adaptation"), size=(32, 48), steps=2), ["cuda_graphs=true"])
    with pytest.raises(
        InputError, match="cuda_graphs: found device cpu, expected a CUDA device, or cuda_graphs"
    ):
        Trainer(recipe, data, run_dir=tmp_path / "run", device="cpu")
    with (
        patch.object(distributed, "get_world_size", lambda: 2),
        pytest.raises(InputError, match="cuda_graphs: found 2 processes, expected one process"),
    ):
        check_graphs(torch.device("cuda"))
    for name in ("cuda_graphs", "compile"):
        with pytest.raises(InputError, match=f"{name}: found true for a translation, expected false"):
            override(get_recipe("cyclegan"), [f"{name}=true"])


@pytest.mark.slow
def test_a_whole_run_has_the_losses_and_scores_of_one_without(
    camvid_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "CudaCapture", lambda device: TapeCapture())
    monkeypatch.setattr(networks, "check_graphs", lambda device: None)
    monkeypatch.setattr(_check, "on_host", lambda value: False)  # as a GPU's values are
    root = f"camvid:{camvid_root}"
    recipe = small(get_recipe("udas"), size=(32, 48), steps=24, batch_size=2)
    for graphs in ("false", "true"):
        settings = [f"cuda_graphs={graphs}", "model.width=4", "ema=0.9"]
        data = DataConfig(root, root, num_labels=2)
        Trainer(override(recipe, settings), data, run_dir=tmp_path / graphs, device="cpu").fit()
    told = dict(re.findall(r"(\w\S*): (\d+ of \d+) steps replayed a CUDA graph", capsys.readouterr().err))
    assert told == {"adaptation": "13 of 16", "self_training.1": "1 of 4", "self_training.2": "1 of 4"}
    for name in ("metrics.jsonl", "scores.json"):
        found, expected = ((tmp_path / graphs / name).read_text() for graphs in ("true", "false"))
        assert found == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            RuntimeError("Cannot call CUDAGeneratorImpl::current_seed\nmore"),
            "that cannot be recorded .Cannot call",
        ),
        (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
        (InputError("label: found 7"), "label: found 7"),
        (AttributeError("no attribute"), "no attribute"),
    ],
)
def test_why_a_step_cannot_be_recorded_is_told(error: Exception, told: str) -> None:
    @contextmanager
    def graph(*_: object, **__: object) -> Iterator[None]:
        try:
            yield
        finally:  # as torch does
            raise RuntimeError("operation failed due to a previous error during capture")

    def training_step() -> None:
        raise error

    capture = CudaCapture.__new__(CudaCapture)
    capture._stream = SimpleNamespace(device=None)
    with (
        patch.object(torch.cuda, "CUDAGraph", object),
        patch.object(torch.cuda, "graph", graph),
        patch.object(torch.cuda, "current_stream", lambda device: None),
        pytest.raises((InputError, torch.OutOfMemoryError, AttributeError), match=told),
    ):
        capture.record(training_step)
