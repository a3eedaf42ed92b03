"""Rare-class sampling of a run: source and, where asked for, labelled target images, with DAFormer's numbers scaled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udas_fast import DataConfig, Trainer
from udas_fast.data import UserLoader
from udas_fast.data.domains import Domains
from udas_fast.errors import InputError
from udas_fast.recipes import Recipe, get_recipe, override, small


def recipe(*settings: str) -> Recipe:
    chosen = small(get_recipe("udas"), size=(32, 48), steps=6, batch_size=2)
    return override(chosen, ["model.width=4", *settings])


def loaders(trainer: Trainer) -> dict[str, object]:
    stage = trainer.recipe.stages[0]
    geometries = trainer.recipe.geometries(stage)
    return trainer.domains.loaders(geometries, trainer.recipe.input, seed=0, phase="p")


@pytest.mark.parametrize("labelled", [False, True])
def test_every_image_and_class_of_small_data_can_be_drawn_with_daformers_numbers(
    labelled: bool, camvid_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"camvid:{camvid_folder('data')}"  # of 24 x 32 pixels, fewer than 3000
    chosen = recipe(f"input.rare_classes={{labelled: {str(labelled).lower()}}}")
    trainer = Trainer(chosen, DataConfig(name, name, 3), run_dir=tmp_path / "run", device="cpu")
    samplers = {name: loader.sampler for name, loader in loaders(trainer).items()}
    assert samplers["unlabelled"].rare_classes is None
    assert (samplers["labelled"].rare_classes is not None) == labelled
    for role in ("source", *(("labelled",) if labelled else ())):
        rare, dataset = samplers[role].rare_classes, getattr(trainer.domains, role)
        assert {int(i) for images in rare.images for i in images} == set(range(len(dataset)))
        counts = np.stack([np.bincount(dataset[i].label.ravel(), minlength=256) for i in range(len(dataset))])
        assert rare.classes.tolist() == np.flatnonzero(counts[:, :11].any(0)).tolist()
        assert rare.min_in_crop == 0.5 * 3000 * 32 * 48 / (720 * 1280)
    assert "never drawn" not in capsys.readouterr().err


def test_classes_that_cannot_be_drawn_are_told_before_training(
    camvid_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = camvid_folder("data")
    for path in (root / "labels/train").glob("*.png"):
        label = np.array(Image.open(path))
        label[label == 8] = 11
        Image.fromarray(label).save(path)
    name = f"camvid:{root}"
    Trainer(recipe("input.rare_classes={}"), DataConfig(name, name), run_dir=tmp_path / "run", device="cpu")
    told = "NOTICE: rare classes of source: classes that are never drawn: car (in no label)\n"
    assert told in capsys.readouterr().err


def test_labelled_batches_of_a_users_loader_cannot_be_drawn_by_class(
    camvid_root: Path, tmp_path: Path
) -> None:
    domains = Trainer(
        recipe(),
        DataConfig(f"camvid:{camvid_root}", f"camvid:{camvid_root}", 2),
        run_dir=tmp_path / "a",
        device="cpu",
    ).domains
    data = Domains(domains.source, UserLoader([], domains.classes()), domains.unlabelled)
    with pytest.raises(InputError, match=r"input\.rare_classes: found labelled images of a UserLoader"):
        Trainer(recipe("input.rare_classes={labelled: true}"), data, run_dir=tmp_path / "b", device="cpu")
