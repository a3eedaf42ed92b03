"""Each stage alone, from the folder of the one before; complete runs; and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from udas_fast import TrainedModel, Trainer
from udas_fast.data import open_dataset
from udas_fast.data.domains import Domains
from udas_fast.engine.step import TrainStep
from udas_fast.errors import InputError
from udas_fast.recipes import Recipe, get_recipe, override, select_stages, small

SIZE = (32, 48)


def _recipe(*settings: str, name: str = "udas") -> Recipe:
    recipe = small(get_recipe(name), size=SIZE, steps=9, batch_size=2)
    return override(recipe, ["model.width=4", "stages.self_training.rounds=1", *settings])


def _domains(root: Path) -> Domains:
    train, val = (open_dataset(f"camvid:{root}", split) for split in ("train", "val"))
    return Domains(source=train, labelled=train, unlabelled=train, val=val)


def _fit(recipe: Recipe, root: Path, run: Path, **options: object) -> Trainer:
    trainer = Trainer(recipe, _domains(root), run_dir=run, device="cpu", **options)
    trainer.fit()
    return trainer


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


@pytest.fixture(scope="module")
def adapted(camvid_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the first stage."""
    run = tmp_path_factory.mktemp("runs") / "adaptation"
    _fit(select_stages(_recipe("ema=0.9"), ["adaptation"]), camvid_root, run)
    return run


@pytest.mark.slow
def test_stages_one_by_one_are_the_whole_run_to_the_bit(
    adapted: Path, camvid_root: Path, tmp_path: Path
) -> None:
    whole = _fit(_recipe("ema=0.9"), camvid_root, tmp_path / "whole")
    alone = _fit(
        select_stages(_recipe("ema=0.9"), ["self_training"]),
        camvid_root,
        tmp_path / "alone",
        start=str(adapted),
    )
    weights = _weights(tmp_path / "alone")
    for name, value in _weights(tmp_path / "whole").items():
        assert torch.equal(value, weights[name]), name
    assert list(alone.scores) == ["self_training"]
    assert torch.equal(alone.scores["self_training"].matrix, whole.scores["self_training"].matrix)
    written = yaml.safe_load((tmp_path / "alone/run.yaml").read_text())
    assert written["run"]["start"] == str(adapted)
    assert [stage["name"] for stage in written["recipe"]["stages"]] == ["self_training"]


def test_a_complete_run_does_nothing(adapted: Path, camvid_root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in adapted.rglob("*") if path.is_file()}
    again = Trainer.resume(adapted, data=_domains(camvid_root), device="cpu")
    assert again.complete
    scores = again.fit()
    assert list(scores) == ["adaptation"]
    assert {path: path.stat().st_mtime_ns for path in adapted.rglob("*") if path.is_file()} == before
    for name, value in _weights(adapted).items():
        assert torch.equal(value, again.model.state_dict()[name])
    with pytest.raises(InputError, match="an earlier run, expected a new folder"):
        _fit(_recipe(), camvid_root, adapted)


def test_a_complete_run_without_its_model_file_writes_it_again(
    adapted: Path, camvid_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one from before that file: it has its last checkpoint, its scores and another file of the model."""
    run = tmp_path / "old"
    shutil.copytree(adapted, run)
    (run / "model.safetensors").rename(run / "model.pt")

    def never(*_: object) -> None:
        raise AssertionError("a training step was made")

    monkeypatch.setattr(TrainStep, "__call__", never)
    again = Trainer.resume(run, data=_domains(camvid_root), device="cpu")
    assert not again.complete
    again.fit()
    for name in ("model.safetensors", "scores.json", "metrics.jsonl"):
        assert (run / name).read_bytes() == (adapted / name).read_bytes(), name


def test_a_start_that_does_not_fit_is_refused(adapted: Path, camvid_root: Path, tmp_path: Path) -> None:
    def start(path: Path, *settings: str) -> None:
        recipe = select_stages(_recipe(*settings), ["self_training"])
        Trainer(recipe, _domains(camvid_root), run_dir=tmp_path / "run", device="cpu", start=str(path))

    with pytest.raises(InputError, match="missing: found no such file"):
        start(tmp_path / "missing")
    (tmp_path / "stopped").mkdir()
    (tmp_path / "stopped/run.yaml").write_text("")
    with pytest.raises(InputError, match=r"stopped: found no model.safetensors, as it is not finished"):
        start(tmp_path / "stopped")
    with pytest.raises(InputError, match="network of .*: found width 4, expected width 6"):
        start(adapted, "model.width=6")
    other = TrainedModel.load(adapted)
    other.classes = replace(other.classes, names=("sea", *other.classes.names[1:]))
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(
        InputError, match=r"classes of .*other.safetensors: found 11 \(sea, .* expected 11 \(sky"
    ):
        start(tmp_path / "other.safetensors")
    assert not (tmp_path / "run").exists()
    start(adapted, "model.norm=batch")  # the target's statistics are an ordinary network's


def test_unknown_stages_are_named() -> None:
    with pytest.raises(
        InputError, match=r"stage of udas: found 'selftraining'.*did you mean 'self_training'"
    ):
        select_stages(_recipe(), ["adaptation", "selftraining"])
