"""A run knows its data: roots that open from anywhere, and the files that its checkpoint was made with."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from PIL import Image

from udas_fast import DataConfig, Trainer
from udas_fast.data import Unlabelled, open_dataset
from udas_fast.data.identity import absolute, compare_files, list_files
from udas_fast.data.specs import DATASETS
from udas_fast.engine.checkpoint import CheckpointFolder, read_state
from udas_fast.errors import InputError
from udas_fast.recipes import Recipe, get_recipe, override, small

STEPS = 4


def recipe() -> Recipe:
    chosen = small(get_recipe("no_adaptation"), size=(24, 32), steps=STEPS, batch_size=1)
    return override(chosen, ["model.width=4"])


def begin(root: str, run: Path, **options: object) -> Trainer:
    data = DataConfig(f"camvid:{root}", f"camvid:{root}", engine="torch", **options)
    return Trainer(recipe(), data, run_dir=run, device="cpu", checkpoint_every=2)


def unfinished(root: Path, run: Path, **options: object) -> None:
    """Leave a run in ``run`` whose newest checkpoint is of step 2."""
    begin(str(root), run, **options).fit()
    (run / "model.safetensors").unlink()
    newest = CheckpointFolder(run / "checkpoints").newest()
    assert newest is not None
    newest.unlink()


def test_names_become_absolute() -> None:
    here = os.getcwd()
    assert absolute("gta5:a/../b") == f"gta5:{here}/b"
    assert absolute("folder:~/x") == f"folder:{Path.home()}/x"
    assert [absolute(name) for name in ("streets:sim", "nothing", "folder:")] == [
        "streets:sim",
        "nothing",
        "folder:",
    ]


def test_files_are_compared_by_name_and_size(camvid_folder: Callable[..., Path]) -> None:
    root = camvid_folder("data")
    before = list_files(open_dataset(f"camvid:{root}", "train"))
    size = (root / "images/train/0002.png").stat().st_size
    label = (root / "labels/train/0002.png").stat().st_size
    assert before["0002"] == f"0002.png {size} bytes, 0002.png {label} bytes"
    unlabelled = list_files(Unlabelled(open_dataset(f"camvid:{root}", "train")))
    assert unlabelled["0002"] == f"0002.png {size} bytes"
    for kind in ("images", "labels"):
        (root / kind / "train/0000.png").rename(root / kind / "train/0009.png")
        (root / kind / "train/0003.png").unlink()
    (root / "labels/train/0002.png").write_bytes(b"")
    now = list_files(open_dataset(f"camvid:{root}", "train"))
    (difference,) = compare_files({"source": before, "val": {}}, {"source": now})
    assert str(difference) == ("source: 2 (0000, 0003) gone, 1 (0009) new, 1 (0002) of another name or size")
    assert compare_files({"source": now}, {"source": now}) == []
    task = {"way": ("road",), "other": ("sky", "car")}
    mapped = list_files(open_dataset(f"camvid:{root}", "train", classes=task))
    (difference,) = compare_files({"source": now}, {"source": mapped})
    assert str(difference) == "source: other classes, ids, colours or bit depth of its files"
    assert list_files(open_dataset("streets:sim", "val")) is None
    assert compare_files({"source": now}, {"source": None}) == []


def test_a_run_goes_on_from_another_folder(
    camvid_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = camvid_folder("data"), tmp_path / "run"
    monkeypatch.chdir(root.parent)
    unfinished(Path("data"), run)
    data = yaml.safe_load((run / "run.yaml").read_text())["run"]["data"]
    assert (data["source"], data["target"]) == (f"camvid:{root}", f"camvid:{root}")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert Trainer.resume(run, device="cpu").fit()
    whole = (run / "metrics.jsonl").read_text()
    begin(str(root), tmp_path / "whole").fit()
    assert (tmp_path / "whole/metrics.jsonl").read_text() == whole


def test_labels_that_mean_something_else_are_refused(
    camvid_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, run = camvid_folder("data"), tmp_path / "run"
    unfinished(root, run)
    spec = DATASETS["camvid"]
    other = {**spec.id_to_train_id, 0: 1, 1: 0}
    monkeypatch.setitem(DATASETS, "camvid", replace(spec, id_to_train_id=other))
    with pytest.raises(InputError, match="source: other classes, ids, colours or bit depth of its files"):
        Trainer.resume(run, device="cpu").fit()
    assert Trainer.resume(run, device="cpu", allow_other_data=True).fit()


def test_a_missing_folder_names_run_yaml_and_the_working_folder(
    camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root, run = camvid_folder("data"), tmp_path / "run"
    unfinished(root, run)
    root.rename(tmp_path / "moved")
    with pytest.raises(InputError) as caught:
        Trainer.resume(run, device="cpu")
    assert f"no folder {root}" in str(caught.value)
    assert str(caught.value).endswith(f"({run}/run.yaml; working folder {Path.cwd()})")
    text = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(text.replace(str(root), str(tmp_path / "moved")))
    assert Trainer.resume(run, device="cpu").fit()  # moved files are the same


def test_other_files_are_named_and_refused_unless_they_are_allowed(
    camvid_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = camvid_folder("data"), tmp_path / "run"
    unfinished(root, run)
    Image.open(root / "images/train/0002.png").resize((33, 24)).save(root / "images/train/0002.png")
    Image.open(root / "labels/train/0002.png").resize((33, 24), 0).save(root / "labels/train/0002.png")
    for kind in ("images", "labels"):
        (root / kind / "val/0001.png").unlink()
    told = "source: 1 (0002) of another name or size; val: 1 (0001) gone"
    sentence = f"data of run {run}: found {told}, expected the files of its checkpoint, or --allow-other-data"
    with pytest.raises(InputError, match=re.escape(sentence)):
        Trainer.resume(run, device="cpu").fit()
    assert not (run / "model.safetensors").exists()
    capsys.readouterr()
    assert Trainer.resume(run, allow_other_data=True, device="cpu").fit()
    assert f"data has changed since the checkpoint: {told}\n" in capsys.readouterr().err
    newest = CheckpointFolder(run / "checkpoints").newest()
    assert newest is not None
    assert "0001" not in read_state(newest)["files"]["val"]


def test_files_that_may_turn_bad_may_change(
    camvid_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = camvid_folder("data"), tmp_path / "run"
    unfinished(root, run)
    path = root / "labels/train/0002.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(InputError, match=r"source: 1 \(0002\) of another name or size"):
        Trainer.resume(run, device="cpu").fit()
    assert Trainer.resume(run, max_bad_files=1, device="cpu").fit()
    assert "data has changed since the checkpoint: source: 1 (0002)" in capsys.readouterr().err
