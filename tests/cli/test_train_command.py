"""`udas-fast train`, `evaluate` and `predict` on tiny data, and one sentence for each bad input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_words import TINY, train_words
from PIL import Image

from udas_fast.data import CAMVID


@pytest.mark.slow
def test_train_evaluate_predict(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root, out = camvid_folder("data", size=(40, 56)), tmp_path / "run"
    code, stdout, stderr = run_cli(*train_words(root, out, "--num-labels", 2, recipe="udas"))
    assert code == 0, stderr
    assert "mIoU" in stdout
    for name in (
        "run.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "scores.json",
        "model.safetensors",
        "pictures",
    ):
        assert (out / name).exists(), name
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores["phases"]) == ["adaptation", "self_training.1", "self_training.2"]
    protocol = scores["phases"]["adaptation"]["protocol"]
    assert protocol["input_size"] == [32, 48]
    assert protocol["images"] == 2
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 6  # 4 + 1 + 1 steps

    code, stdout, stderr = run_cli(
        "evaluate", out, "--data", f"camvid:{root}", "--json", tmp_path / "scores.json"
    )
    assert code == 0, stderr
    last = scores["phases"]["self_training.2"]
    assert json.loads((tmp_path / "scores.json").read_text())["confusion_matrix"] == last["confusion_matrix"]
    nowhere = tmp_path / "missing/scores.json"
    code, stdout, stderr = run_cli("evaluate", out, "--data", f"camvid:{root}", "--json", nowhere)
    assert code == 2
    assert "mIoU" in stdout  # what took the time is told
    assert stderr.startswith(f"udas-fast: {nowhere}: cannot be written (no such file or directory)")

    (root / "classes.txt").write_text("\n".join(["building", "sky", *CAMVID.names[2:]]))
    code, _, stderr = run_cli("evaluate", out, "--data", f"folder:{root}")
    assert code == 2
    assert "found 11 classes for the model's 11, number 0 is 'building' and 'sky', expected" in stderr

    code, stdout, stderr = run_cli("predict", out, root / "images/val", "--out", tmp_path / "labels")
    assert code == 0, stderr
    ids = np.asarray(Image.open(tmp_path / "labels/0000_ids.png"))
    assert ids.shape == (40, 56)
    assert ids.max() < 11
    assert np.asarray(Image.open(tmp_path / "labels/0000_colour.png")).shape == (40, 56, 3)


def _no_folder(root: Path) -> None:
    shutil.rmtree(root)


def _empty_folder(root: Path) -> None:
    for file in (root / "images/train").iterdir():
        file.unlink()


def _no_label(root: Path) -> None:
    (root / "labels/train/0002.png").unlink()


def _wrong_id(root: Path) -> None:
    Image.fromarray(np.full((24, 32), 40, np.uint8)).save(root / "labels/train/0003.png")


def _truncated(root: Path) -> None:
    file = root / "images/train/0001.png"
    file.write_bytes(file.read_bytes()[:60])


def _other_size(root: Path) -> None:
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(root / "labels/train/0000.png")


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (_no_folder, ["data"]),
        (_empty_folder, ["images/train"]),
        (_no_label, ["0002"]),
        (_wrong_id, ["0003.png", "40"]),
        (_truncated, ["0001.png"]),
        (_other_size, ["0000.png", "24", "30"]),
    ],
)
def test_bad_data_ends_before_training_with_one_sentence(
    run_cli: Callable[..., tuple[int, str, str]],
    camvid_folder: Callable[..., Path],
    tmp_path: Path,
    damage: Callable[[Path], None],
    names: list[str],
) -> None:
    root, out = camvid_folder("data"), tmp_path / "run"
    damage(root)
    code, stdout, stderr = run_cli(*train_words(root, out))
    assert code == 2
    assert stdout == ""
    lines = stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("udas-fast: ")
    for name in names:
        assert name in lines[0]
    assert not (out / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "model.wdth=3"), ["wdth", "width"]),
        (("--weights", "missing.pth"), ["missing.pth"]),
        (("--device", "cuda:99"), ["cuda:99"]),
        (("--num-labels", "3"), ["--num-labels", "no_adaptation"]),
        (("--num-labels", "-1"), ["--num-labels: found -1, expected all, a number from 0, or the file"]),
        (("--small", "²x32"), ["--small", "²x32", "HEIGHTxWIDTH"]),
        (("--resume", "run"), ["--resume", "recipe", "run.yaml"]),
        (("--set", "input.source.crop=512,512"), ["input.source.crop", "[512, 512]"]),
        (("--recipe", "recipe.yaml"), ["both", "--recipe FILE"]),
    ],
)
def test_bad_settings_end_with_one_sentence(
    run_cli: Callable[..., tuple[int, str, str]],
    camvid_folder: Callable[..., Path],
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: list[str],
) -> None:
    code, _, stderr = run_cli(*train_words(camvid_folder("data"), tmp_path / "run", *arguments))
    assert code == 2
    assert len(stderr.strip().splitlines()) == 1
    for word in words:
        assert word in stderr


@pytest.mark.parametrize(
    "option",
    ["--seed=-1", "--workers=-1", "--checkpoint-every=0", "--log-every=0", "--steps=0"],
)
def test_numbers_out_of_range_are_refused_by_their_option(
    option: str, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, stderr = run_cli("train", "udas", option)
    assert code == 2
    assert f"Invalid value for '{option.partition('=')[0]}'" in stderr


def test_only_what_a_run_can_take_up_stands_beside_resume(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for command in ("train", "translate"):
        code, _, stderr = run_cli(command, "--resume", tmp_path, "--seed", 3, "--device", "cpu")
        assert code == 2
        assert stderr.startswith("udas-fast: --resume: found --seed beside it, expected --")
        assert "no run to go on with" in run_cli(command, "--resume", tmp_path, "--device", "cpu")[2]
    assert "no run" in run_cli("train", "--resume", tmp_path, "--max-bad-files", 1, "--device", "cpu")[2]


@pytest.mark.slow
@pytest.mark.parametrize("images", [True, False])
def test_a_target_without_val_labels_trains_and_is_not_scored(
    images: bool,
    run_cli: Callable[..., tuple[int, str, str]],
    camvid_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source, target = camvid_folder("sim"), camvid_folder("real")
    shutil.rmtree(target / "labels")
    if not images:
        shutil.rmtree(target / "images/val")
    code, stdout, stderr = run_cli(
        *("train", "udas", "--source", f"camvid:{source}", "--target", f"camvid:{target}"),
        *(
            "--out",
            tmp_path / "run",
            "--small",
            "32x48",
            "--steps",
            6,
            "--device",
            "cpu",
            *TINY,
            "--engine",
            "torch",
        ),
    )
    assert code == 0, stderr
    assert "no labelled val images, so no scores" in stdout
    assert "mIoU" not in stdout
    assert (tmp_path / "run/model.safetensors").is_file()


def test_more_labels_than_images(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    code, _, stderr = run_cli(
        *train_words(camvid_folder("data"), tmp_path / "run", "--num-labels", 9, recipe="udas")
    )
    assert code == 2
    assert "found 9" in stderr
    assert "4" in stderr


def test_checkpoint_of_other_classes_is_refused(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from udas_fast.models import ModelConfig, build_model

    model = build_model(ModelConfig(backbone="resnet18", width=4, norm="batch"), 19)
    torch.save(model.state_dict(), tmp_path / "other.pth")
    root = camvid_folder("data")
    code, _, stderr = run_cli(*train_words(root, tmp_path / "run", "--weights", tmp_path / "other.pth"))
    assert code == 2
    assert len(stderr.strip().splitlines()) == 1
    assert "19" in stderr
    assert "11" in stderr


def test_a_run_folder_is_not_overwritten(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root, out = camvid_folder("data"), tmp_path / "run"
    assert run_cli(*train_words(root, out))[0] == 0
    before = (out / "metrics.jsonl").read_text()
    code, _, stderr = run_cli(*train_words(root, out))
    assert code == 2
    assert "--resume" in stderr
    assert (out / "metrics.jsonl").read_text() == before


def test_recipe_from_a_file(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from udas_fast.recipes import get_recipe, small

    root, path = camvid_folder("data"), tmp_path / "recipe.yaml"
    recipe = small(get_recipe("supervised"), size=(32, 48), steps=2, batch_size=2)
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    code, _, stderr = run_cli(
        *(
            "train",
            "--recipe",
            path,
            "--target",
            f"camvid:{root}",
            "--num-labels",
            2,
            "--out",
            tmp_path / "run",
        ),
        *("--device", "cpu", "--set", "model.width=4"),
    )
    assert code == 0, stderr
    written = yaml.safe_load((tmp_path / "run/run.yaml").read_text())
    assert written["recipe"]["model"]["width"] == 4
    assert written["recipe"]["name"] == "supervised"
