"""Training on a real GPU: runs from end to end, steps that never wait, half precision, and a CPU's scores."""

from __future__ import annotations

import copy
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from udas_fast import TrainedModel, Trainer, evaluation
from udas_fast.data import open_dataset
from udas_fast.data.domains import DataConfig
from udas_fast.engine.graph import CudaCapture
from udas_fast.engine.interrupt import Interrupted
from udas_fast.engine.step import TrainStep
from udas_fast.errors import InputError
from udas_fast.objectives import Batches, Losses
from udas_fast.recipes import Recipe, all_recipes, get_recipe, override
from udas_fast.testing import random_phase, tiny
from udas_fast.testing.phases import SIZE

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
GPU = torch.device("cuda", 0)


def tiny_recipe(name: str, *settings: str) -> Recipe:
    return override(tiny(get_recipe(name)), settings)


@pytest.mark.parametrize("precision", ["auto", "fp16"])
@pytest.mark.parametrize("name", [name for name in all_recipes() if name != "cyclegan"])
def test_no_step_waits_and_memory_does_not_grow(name: str, precision: str) -> None:
    recipe = tiny_recipe(name, f"precision={precision}")
    for index, stage in enumerate(recipe.stages):
        phase = random_phase(recipe, index, GPU)
        phase.step.done = stage.steps - 4 if stage.steps > 4 else 0
        losses: Losses = {}
        allocated: list[int] = []
        try:
            for found in phase.steps():
                # From the second step on: the first one loads libraries and makes the optimisers' states.
                torch.cuda.set_sync_debug_mode("error")
                losses = found
                allocated.append(torch.cuda.memory_allocated())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert losses
        assert all(value.isfinite() for value in losses.values())
        assert phase.step.weights_are_finite()
        assert allocated[-1] <= allocated[min(1, len(allocated) - 1)]


def tensors(step: TrainStep) -> dict[str, Tensor]:
    """All floating state of networks and objective."""
    found = {f"model.{k}": v for k, v in step.model.state_dict().items()}
    found |= {f"objective.{k}": v for k, v in step.objective.state_dict().items() if isinstance(v, Tensor)}
    return {k: v.detach().clone() for k, v in found.items() if v.is_floating_point()}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, []) for name in all_recipes() if name != "cyclegan"),
        ("udas", ["memory.checkpointing=all"]),
        ("no_adaptation", ["memory.micro_batch_size=1", "model.norm=frozen"]),
    ],
    ids=str,
)
def test_a_step_by_cuda_graph_is_the_step(name: str, settings: list[str]) -> None:
    # With plain SGD a rounding stays one; dropout tells whether each replay has random numbers of its own.
    dropout = "0" if settings else "0.1"  # which may not run again
    recipe = tiny_recipe(name, "precision=fp32", f"model.dropout={dropout}", *settings)
    torch.backends.cudnn.allow_tf32 = False
    for index, stage in enumerate(recipe.stages[:3]):  # DDM's first round
        plain_sgd = [f"stages.{stage.name}.optimizer.{k}" for k in ("name=sgd", "momentum=0.0", "lr=1e-4")]
        one = override(recipe, [*plain_sgd, f"stages.{stage.name}.steps=12"])
        losses: list[list[Losses]] = []
        moved: list[dict[str, Tensor]] = []
        for capture in (None, CudaCapture(GPU)):
            phase = random_phase(one, index, GPU, capture)
            before = tensors(phase.step)
            losses.append(phase.run())
            moved.append({k: v - before[k] for k, v in tensors(phase.step).items()})
        assert phase.step.graph.replays > 0
        # A rounding of 1e-6 in the weights grows to 2e-6 in losses and 8e-5 in what has moved; gradients of the first
        # replay alone would be 3e-3 off.
        for expected, found in zip(*losses, strict=True):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert (found[name] - value).abs() <= 1e-3 * max(value.abs().item(), 1e-2), name
        for name, value in moved[0].items():
            far = (moved[1][name] - value).nan_to_num().norm()
            # The discriminators' Adam divides small by small.
            tolerance = 1e-3 if name.startswith("model.") else 0.05
            assert far <= tolerance * max(value.nan_to_num().norm().item(), 1e-4), name


def test_dropout_that_runs_again_cannot_be_recorded() -> None:
    recipe = tiny_recipe("cycada", "memory.checkpointing=all")
    recipe = override(recipe, [f"stages.{recipe.stages[1].name}.steps=12"])
    with pytest.raises(InputError, match="cuda_graphs: found a step that cannot be recorded"):
        random_phase(recipe, 1, GPU, CudaCapture(GPU)).run()


def test_replays_do_not_wait_and_follow_fp16s_scale() -> None:
    recipe = tiny_recipe("udas", "precision=fp16", "stages.adaptation.steps=12")
    phase = random_phase(recipe, 0, GPU, CudaCapture(GPU))
    step = phase.step
    allocated: list[int] = []
    skips: list[Tensor] = []
    try:
        for losses in phase.steps():
            if step.graph.replays == 2:
                torch.cuda.set_sync_debug_mode("error")
                step.amp.scaler._scale.fill_(2.0**100)  # the next gradients cannot be finite
            if step.graph.replays >= 2:
                allocated.append(torch.cuda.memory_allocated())
                skips.append(losses["scaler_skips"])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert allocated[-1] <= allocated[1]
    assert skips[1] == skips[0] + 1
    assert step.weights_are_finite()


def test_fp16_from_the_largest_scale_learns() -> None:
    # At 2^24 the first steps have gradients that are not finite; SGD's momentum has to begin after them.
    recipe = tiny_recipe(
        "no_adaptation", "precision=fp16", "stages.source.optimizer.name=sgd", "stages.source.steps=40"
    )
    phase = random_phase(recipe, device=GPU)
    phase.step.amp.scaler._init_scale = 2.0**24
    losses = [found["seg"] for found in phase.run()]
    assert phase.step.amp.skips > 0
    assert phase.step.weights_are_finite()
    assert torch.stack(losses[-5:]).mean() < torch.stack(losses[:5]).mean()


def test_a_run_that_a_cpu_began_goes_on_as_it_would_there() -> None:
    # Contiguous weights and momentum there, channels_last here.
    settings = ["precision=fp32", "stages.source.optimizer.name=sgd", "stages.source.steps=3"]
    recipe = tiny_recipe("no_adaptation", *settings)
    cpu, gpu = random_phase(recipe), random_phase(recipe, device=GPU)
    weights: list[Tensor] = []
    for _ in cpu.steps():
        weights.append(parameters_to_vector(cpu.step.model.parameters()).detach().clone())
        if cpu.step.done == 2:
            gpu.step.load_state_dict(copy.deepcopy(cpu.step.state_dict()))
    torch.backends.cudnn.allow_tf32 = False
    assert len(gpu.run()) == 1
    found = parameters_to_vector(p.contiguous() for p in gpu.step.model.parameters()).cpu()
    _, before, expected = weights
    # A step's rounding, on the way through 20 layers of batch statistics.
    assert (found - expected).norm() < 0.02 * (expected - before).norm()


@pytest.mark.parametrize(
    "settings",
    [[], ["precision=fp16"], ["memory.checkpointing=all"], ["cuda_graphs=true", "ema=0.9"]],
    ids=str,
)
def test_a_run_stops_goes_on_and_scores_as_on_a_cpu(
    settings: list[str], camvid_folder, tmp_path: Path
) -> None:
    root = f"camvid:{camvid_folder('data', train=6, val=3, size=SIZE)}"
    data = DataConfig(root, root, num_labels=2)

    run = tmp_path / "run"
    trainer = Trainer(
        tiny_recipe("udas", *settings), data, run_dir=run, device="cuda", checkpoint_every=3, log_every=2
    )
    original = TrainStep.__call__

    def step(self: TrainStep, batches: Batches) -> Losses:
        if self.name.startswith("self_training") and self.done == 1:
            raise Interrupted("stopped")
        return original(self, batches)

    with patch.object(TrainStep, "__call__", step), pytest.raises(Interrupted):
        trainer.fit()
    scores = Trainer.resume(run, device="cuda").fit()
    assert all(0 <= score.miou <= 1 for score in scores.values())
    here, there = (TrainedModel.load(run, device) for device in ("cpu", "cuda"))
    val = open_dataset(root, "val")
    a, b = (evaluation.evaluate_dataset(m.model, val, "val", SIZE).matrix for m in (here, there))
    assert (a - b).abs().sum() <= 0.002 * a.sum()  # pixels between two classes
    image = val[0].image
    label, confidence = there.predict(image)
    other, sure = here.predict(image)
    assert (label == other).mean() > 0.99
    assert abs(confidence - sure).max() < 0.02
