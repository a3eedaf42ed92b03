"""CycleGAN by two processes: the pools take the images of both, and every image is translated once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from udas_fast.data.domains import DataConfig
from udas_fast.engine.checkpoint import CheckpointFolder, read_state
from udas_fast.recipes import get_recipe, override
from udas_fast.recipes.cyclegan import small_cyclegan
from udas_fast.training.translation import Translation, TranslationConfig, at_native_size
from udas_fast.training.translation.write import is_complete

IMAGES = 5
# SGD carries rounding on as it is; the third step shows the discriminators images of the ones before.
SETTINGS = ["objective.width=4", "objective.blocks=1", "objective.discriminator_width=4", "objective.pool=2"]
SETTINGS += ["optimizer.name=sgd", "optimizer.lr=1e-2", "optimizer.discriminator_lr=1e-6"]


def translate(root: Path, run: Path) -> None:
    data = DataConfig(f"camvid:{root}", f"camvid:{root}", engine="torch")
    recipe = small_cyclegan(get_recipe("cyclegan"), crop=(32, 36), steps=3)
    recipe = at_native_size(recipe, data)
    recipe = override(recipe, ["input.batch_size=2", *(f"stages.translation.{s}" for s in SETTINGS)])
    config = TranslationConfig(data, log_every=1)
    assert Translation(recipe, config, run_dir=run, device="cpu").fit() == IMAGES


@pytest.mark.slow
def test_two_processes_translate_as_one_does(
    camvid_folder: Callable[..., Path], tmp_path: Path, processes: Callable[..., None]
) -> None:
    root, one, two = camvid_folder("data", train=IMAGES, size=(40, 52)), tmp_path / "one", tmp_path / "two"
    translate(root, one)
    processes(2, translate, root, two)
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (one, two)]
    for a, b in zip(*lines, strict=True):
        first, second = json.loads(a), json.loads(b)
        assert first.pop("phase") == second.pop("phase")
        assert second == pytest.approx(first, rel=1e-5)  # float32 sums in another order
    states = [read_state(CheckpointFolder(run / "checkpoints").newest())["step"] for run in (one, two)]
    pools = [state["objective"]["pools.target._extra_state"]["images"] for state in states]
    assert len(pools[0]) == len(pools[1]) == 2
    for a, b in zip(*pools, strict=True):
        assert (a - b).abs().max() < 1e-4  # of colours in -1 to 1
    assert is_complete(two, threads=1)
