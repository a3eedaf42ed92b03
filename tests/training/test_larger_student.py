"""Runs whose networks differ in architecture: a student that is larger than its teacher (Noisy Student)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import udas_fast as uf
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, build_model
from udas_fast.recipes import Recipe, get_recipe, override, recipe_from_dict, select_stages, small
from udas_fast.testing import TinyNetwork

WIDER = (
    "stages.student.network=student",
    "stages.student.model={backbone: resnet18, width: 12, output_stride: 4}",
    "stages.student.rounds=1",
    "stages.student.objective.teacher=main",
)


def _recipe(*settings: str) -> Recipe:
    recipe = small(get_recipe("noisy_student"), size=(32, 48), steps=8, batch_size=2)
    return override(recipe, ["model.width=4", *settings])


def _data(root: Path) -> uf.DataConfig:
    return uf.DataConfig(target=f"camvid:{root}", num_labels=2, engine="torch")


def _count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def test_a_larger_student_learns_from_a_smaller_teacher(camvid_root: Path, tmp_path: Path) -> None:
    recipe = _recipe(*WIDER)
    assert recipe_from_dict(recipe.to_dict()) == recipe
    trainer = uf.Trainer(
        recipe, _data(camvid_root), run_dir=tmp_path / "run", device="cpu", checkpoint_every=1
    )
    assert trainer.model is trainer.networks["student"]
    assert _count(trainer.networks["student"]) > 2 * _count(trainer.networks["main"])
    scores = trainer.fit()
    assert list(scores) == ["teacher", "student"]
    loaded = uf.load(tmp_path / "run")
    assert loaded.config == recipe.stages[1].model
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, loaded.model.state_dict()[name])


def test_a_model_adapts_without_source_and_labels(camvid_root: Path, tmp_path: Path) -> None:
    recipe = _recipe("stages.student.rounds=1")
    first = select_stages(recipe, ["teacher"])
    uf.Trainer(first, _data(camvid_root), run_dir=tmp_path / "first", device="cpu").fit()
    data = uf.DataConfig(target=f"camvid:{camvid_root}", engine="torch")
    alone = select_stages(recipe, ["student"])
    trainer = uf.Trainer(alone, data, run_dir=tmp_path / "run", start=str(tmp_path / "first"), device="cpu")
    assert list(trainer.fit()) == ["student"]
    assert {"pseudo", "kept"} <= set(json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0]))


def test_teacher_and_student_of_one_network_are_one_architecture() -> None:
    with pytest.raises(InputError, match="model of stages with network 'main': found several, expected one"):
        _recipe("stages.student.model={backbone: resnet18}")
    recipe = get_recipe("noisy_student")
    assert recipe.model_of("main") == recipe.model
    own = ModelConfig(backbone="resnet50")
    stages = (recipe.stages[0], replace(recipe.stages[1], network="student", model=own))
    assert replace(recipe, stages=stages).model_of("student") == own


def test_a_network_of_the_users_own_has_no_other_beside_it(camvid_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="model of a stage: found one beside a network of the user's own"):
        uf.Trainer(
            _recipe(*WIDER), _data(camvid_root), TinyNetwork(11), run_dir=tmp_path / "run", device="cpu"
        )


def test_weights_are_for_the_recipes_own_architecture(camvid_root: Path, tmp_path: Path) -> None:
    recipe = _recipe(*WIDER)
    torch.save(build_model(recipe.model, 11).state_dict(), tmp_path / "weights.pt")
    trainer = uf.Trainer(
        recipe,
        _data(camvid_root),
        run_dir=tmp_path / "run",
        device="cpu",
        weights=str(tmp_path / "weights.pt"),
    )
    given = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(torch.equal(v, given[k]) for k, v in trainer.networks["main"].state_dict().items())
