"""The package's face: what ``import udas_fast as uf`` shows, and what it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import udas_fast as uf
from udas_fast.errors import InputError
from udas_fast.recipes import override, small

NAMES = {
    "Trainer",
    "TrainedModel",
    "load",
    "DataConfig",
    "Recipe",
    "Stage",
    "get_recipe",
    "list_recipes",
    "Callback",
    "ops",
    "nn",
    "models",
    "data",
    "objectives",
    "recipes",
}


def test_the_face_shows_every_name_and_nothing_private() -> None:
    assert set(dir(uf)) >= NAMES
    assert all(getattr(uf, name) is not None for name in dir(uf))
    assert not [name for name in dir(uf) if name.startswith("_") and name != "__version__"]
    with pytest.raises(AttributeError, match="module 'udas_fast' has no attribute 'Trainr'"):
        uf.Trainr  # noqa: B018


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, udas_fast; dir(udas_fast); print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_the_ten_lines_of_the_readme(camvid_root: Path, tmp_path: Path) -> None:
    """A run by names, its model read back; ``predict`` takes an array, a Pillow image and a path."""
    recipe = override(small(uf.get_recipe("udas"), size=(32, 48), steps=9, batch_size=2), ["model.width=4"])
    data = uf.DataConfig(source=f"camvid:{camvid_root}", target=f"camvid:{camvid_root}", num_labels=2)
    scores = uf.Trainer(recipe, data, run_dir=tmp_path / "run", device="cpu").fit()
    assert 0 <= scores["self_training.2"].miou <= 1
    model = uf.load(tmp_path / "run")
    path = camvid_root / "images/val/0000.png"
    with Image.open(path) as image:
        label, confidence = model.predict(image)
        same, _ = model.predict(np.array(image))
    again, _ = model.predict(path)
    assert label.shape == confidence.shape == (24, 32)
    assert np.array_equal(label, same)
    assert np.array_equal(label, again)


def test_a_recipe_may_be_named(camvid_root: Path, tmp_path: Path) -> None:
    data = uf.DataConfig(source=f"camvid:{camvid_root}")
    trainer = uf.Trainer("no_adaptation", data, run_dir=tmp_path / "run", device="cpu")
    assert trainer.recipe == uf.get_recipe("no_adaptation")
    with pytest.raises(InputError, match="recipe: found 'no_adaption', expected one of .*did you mean"):
        uf.Trainer("no_adaption", data, run_dir=tmp_path / "other")


def test_arguments_of_the_wrong_kind_are_named(tmp_path: Path) -> None:
    network, data = uf.models.ModelConfig, uf.DataConfig()
    with pytest.raises(
        InputError, match="Trainer: recipe: found ABCMeta|type, expected a Recipe or the name"
    ):
        uf.Trainer(network, data, run_dir=tmp_path)
    with pytest.raises(InputError, match="Trainer: data: found str, expected a DataConfig"):
        uf.Trainer("udas", "gta5:DATA", run_dir=tmp_path)
    with pytest.raises(InputError, match="Trainer: model: found str, expected a torch.nn.Module"):
        uf.Trainer("udas", data, "resnet", run_dir=tmp_path)
