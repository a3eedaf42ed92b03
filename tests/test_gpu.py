"""Training on a real GPU: runs from end to end, steps that never wait, half precision, and a CPU's scores."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from udas_fast import TrainedModel, Trainer, evaluation
from udas_fast.data import Batch, open_dataset
from udas_fast.engine.interrupt import Interrupted
from udas_fast.engine.loop import Loop, Phase
from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.models import build_model
from udas_fast.recipes import Recipe, get_recipe, override, recipes, small
from udas_fast.recipes.domains import DataConfig

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
CLASSES, BATCH, SIZE = 5, 2, (64, 96)
GPU = torch.device("cuda", 0)


class Still:
    """The same batch in every step."""

    global_batch = BATCH

    def __init__(self, seed: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(seed)
        image = torch.randint(0, 256, (BATCH, 3, *SIZE), dtype=torch.uint8, generator=generator)
        label = torch.randint(0, CLASSES, (BATCH, *SIZE), dtype=torch.uint8, generator=generator)
        self.batch = Batch(image, label, [""] * BATCH).to(device)

    def batches(self, start_step: int, device: torch.device) -> Iterator[Batch]:
        while True:
            yield self.batch


def tiny(name: str, *settings: str) -> Recipe:
    return override(small(get_recipe(name), size=SIZE, steps=12, batch_size=BATCH), settings)


def loop_of(recipe: Recipe, index: int = 0, device: torch.device = GPU) -> Loop:
    """A loop of one stage with all streams, from the same weights on every device."""
    stage = recipe.stages[index]
    torch.manual_seed(0)
    model = build_model(recipe.model, CLASSES)
    amp = build_amp(recipe.precision, device)
    model = model.to(device, memory_format=memory_format(amp, model))
    objective = stage.objective.build(CLASSES)
    for module in (model, objective):
        recipe.memory.apply(module)
    objective.networks = {s.network: build_model(recipe.model, CLASSES).to(device) for s in recipe.stages}
    objective.start(model)
    objective.to(device)
    names = (*stage.objective.needs, *stage.objective.uses)
    streams = {name: Still(i, device) for i, name in enumerate(names)}
    phase = Phase(stage.name, stage.steps, stage.optimizer)
    return Loop(phase, model, objective, streams, amp, 0, ema=recipe.ema)


@pytest.mark.parametrize("precision", ["auto", "fp16"])
@pytest.mark.parametrize("name", [name for name in recipes() if name != "cyclegan"])
def test_no_step_waits_and_memory_does_not_grow(name: str, precision: str) -> None:
    recipe = tiny(name, f"precision={precision}")
    for index, stage in enumerate(recipe.stages):
        loop = loop_of(recipe, index)
        loop.done = stage.steps - 4 if stage.steps > 4 else 0
        losses: list[dict[str, Tensor]] = []
        allocated: list[int] = []

        def after_step(found: dict[str, Tensor], losses: list = losses, allocated: list = allocated) -> None:
            # From the second step on: the first one loads libraries and makes the optimisers' states.
            torch.cuda.set_sync_debug_mode("error")
            losses[:] = [found]
            allocated.append(torch.cuda.memory_allocated())

        try:
            loop.run(after_step)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert all(value.isfinite() for value in losses[0].values())
        assert loop.weights_are_finite()
        assert allocated[-1] <= allocated[min(1, len(allocated) - 1)]


def test_fp16_from_the_largest_scale_learns() -> None:
    # At 2^24 the first steps have gradients that are not finite; SGD's momentum has to begin after them.
    recipe = tiny(
        "no_adaptation", "precision=fp16", "stages.source.optimizer.name=sgd", "stages.source.steps=40"
    )
    loop = loop_of(recipe)
    loop.amp.scaler._init_scale = 2.0**24
    losses: list[Tensor] = []
    loop.run(lambda found: losses.append(found["seg"]))
    assert loop.amp.skips > 0
    assert loop.weights_are_finite()
    assert torch.stack(losses[-5:]).mean() < torch.stack(losses[:5]).mean()


def test_a_run_that_a_cpu_began_goes_on_as_it_would_there() -> None:
    # Contiguous weights and momentum there, channels_last here.
    recipe = tiny("no_adaptation", "precision=fp32", "stages.source.optimizer.name=sgd")
    cpu, gpu = loop_of(recipe, device=torch.device("cpu")), loop_of(recipe)
    weights: list[Tensor] = []

    def after_step(_: dict[str, Tensor]) -> None:
        weights.append(parameters_to_vector(cpu.model.parameters()).detach().clone())
        if cpu.done == 2:
            gpu.load_state_dict(copy.deepcopy(cpu.state_dict()))

    cpu.phase = gpu.phase = replace(cpu.phase, steps=3)
    cpu.run(after_step)
    torch.backends.cudnn.allow_tf32 = False
    gpu.run(lambda _: None)
    found = parameters_to_vector(p.contiguous() for p in gpu.model.parameters()).cpu()
    _, before, wanted = weights
    # A step's rounding, on the way through 20 layers of batch statistics.
    assert (found - wanted).norm() < 0.02 * (wanted - before).norm()


@pytest.mark.parametrize("settings", [[], ["precision=fp16"], ["memory.checkpointing=all"]], ids=str)
def test_a_run_stops_goes_on_and_scores_as_on_a_cpu(
    settings: list[str], camvid_folder, tmp_path: Path
) -> None:
    root = f"camvid:{camvid_folder('data', train=6, val=3, size=SIZE)}"
    data = DataConfig(root, root, labels=2)

    run = tmp_path / "run"
    trainer = Trainer(
        None, tiny("udas", *settings), data, run=run, device="cuda", checkpoint_every=3, log_every=2
    )
    original = Loop._step

    def step(self: Loop, batches: dict) -> dict[str, Tensor]:
        if self.phase.name.startswith("self_training") and self.done == 1:
            raise Interrupted("stopped")
        return original(self, batches)

    with patch.object(Loop, "_step", step), pytest.raises(Interrupted):
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
