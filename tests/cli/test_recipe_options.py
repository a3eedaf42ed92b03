"""--size, --steps, --batch-size, --lr and --set change any recipe, with and without --small."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command_words import train_words

from udas_fast.recipes import get_recipe, override

RunCli = Callable[..., tuple[int, str, str]]


def _recipe_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["recipe"]


def _config_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "run.yaml").read_text(encoding="utf-8"))["run"]


@pytest.fixture
def narrow(tmp_path: Path) -> Path:
    """Recipe seg_uncertainty at its published size and length, on a network that a test can train."""
    path = tmp_path / "narrow.yaml"
    settings = ["model.backbone=resnet18", "model.width=4", "stages.*.optimizer.name=adamw"]
    path.write_text(override(get_recipe("seg_uncertainty"), settings).to_yaml(), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_recipe_of_full_size_takes_every_option(
    narrow: Path, camvid_root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    out = tmp_path / "run"
    domains = ("--source", f"camvid:{camvid_root}", "--target", f"camvid:{camvid_root}")
    code, _, stderr = run_cli(
        *("train", "--recipe", narrow, *domains, "-o", out, "--device", "cpu", "--log-every", 1),
        *("--engine", "torch"),
        *("--size", "90x160", "--steps", 2, "--batch-size", "1,unlabelled=2", "--lr", "1e-3"),
        *("--set", "stages.*.optimizer.weight_decay=0.01"),
    )
    assert code == 0, stderr
    recipe = _recipe_of(out)
    assert recipe["input"]["source"]["size"] == recipe["input"]["target"]["size"] == [90, 160]
    for domain in (
        "source",
        "target",
    ):  # both were shown at 512x1024; 90x160 is an eighth of the source's 720x1280
        assert recipe["input"][domain]["crop"] == [64, 128]
    assert [stage["steps"] for stage in recipe["stages"]] == [1, 1]
    assert [stage["optimizer"]["lr"] for stage in recipe["stages"]] == [1e-3, 5e-4]  # 2e-4 and 1e-4
    assert [stage["optimizer"]["weight_decay"] for stage in recipe["stages"]] == [0.01, 0.01]
    assert recipe["input"]["batch_size"] == 1
    sizes = recipe["input"]["stream_batch_size"]
    assert {name: size for name, size in sizes.items() if size} == {"unlabelled": 2}
    assert _config_of(out)["log_every"] == 1
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_small_takes_every_option(camvid_root: Path, tmp_path: Path, run_cli: RunCli) -> None:
    out = tmp_path / "run"
    more = ("--size", "40x56", "--lr", "1e-3", "--engine", "torch")
    code, _, stderr = run_cli(*train_words(camvid_root, out, *more, recipe="udas"))
    assert code == 0, stderr
    recipe = _recipe_of(out)
    assert recipe["model"]["backbone"] == "resnet18"
    assert recipe["input"]["source"]["size"] == recipe["input"]["target"]["size"] == [40, 56]
    assert [(stage["steps"], stage["rounds"]) for stage in recipe["stages"]] == [(4, 1), (1, 2)]
    rates = [stage["optimizer"]["lr"] for stage in recipe["stages"]]
    assert rates == pytest.approx([1e-3, 1e-3 * 1.5 / 4])  # small's 4e-3 and 1.5e-3
    assert _config_of(out)["log_every"] == 20


def test_small_alone_has_a_length(tmp_path: Path, run_cli: RunCli) -> None:
    file = tmp_path / "plan.json"
    words = ("--small", "32x48", "--set", "model.width=4", "--set", "memory.checkpointing=none")
    code, stdout, stderr = run_cli(
        "plan", "adaptsegnet", *words, "--batch-size", "unlabelled=2", "--json", file
    )
    assert code == 0, stderr
    assert "batches of single streams: unlabelled 2\n" in stdout
    document = json.loads(file.read_text())
    assert [stage["steps"] for stage in document["recipe"]["stages"]] == [600]
    assert [row["batch_size"] for row in document["rows"]] == [4]  # that of --small


@pytest.mark.slow
def test_plan_compares_batch_sizes_at_a_size(tmp_path: Path, run_cli: RunCli) -> None:
    def rows(*words: object) -> list[dict[str, Any]]:
        file = tmp_path / "plan.json"
        narrow = ("--set", "model.backbone=resnet18", "--set", "model.width=4")
        fixed = ("--set", "memory.checkpointing=none", "--json", file)
        code, _, stderr = run_cli("plan", "adaptsegnet", *narrow, *fixed, *words)
        assert code == 0, stderr
        return json.loads(file.read_text())["rows"]

    def bytes_of(row: dict[str, Any]) -> int:
        return row["stages"]["adaptation"]["tensors"]

    one, two = rows("--size", "64x96", "--batch-size", "1,2")
    assert (one["batch_size"], two["batch_size"]) == (1, 2)
    (large,) = rows("--size", "128x192", "--batch-size", "1")
    (uneven,) = rows("--size", "64x96", "--batch-size", "1,unlabelled=2")
    assert bytes_of(one) < bytes_of(uneven) <= bytes_of(two) < bytes_of(large)


def test_streams_of_one_batch_size_by_the_stage_that_mixes_them(
    camvid_root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    out = tmp_path / "run"
    code, _, stderr = run_cli(
        *train_words(camvid_root, out, "--batch-size", "source=2,unlabelled=4", recipe="udas")
    )
    expected = "found source 2, unlabelled 4, expected one size, as it combines their images one by one\n"
    assert (code, stderr) == (2, f"udas-fast: batch sizes of stage adaptation: {expected}")
    assert not (out / "run.yaml").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--size", "512"), "--size: found '512', expected HEIGHTxWIDTH, for example 180x240"),
        (("--size", "0x5"), "--size: found '0x5', expected HEIGHTxWIDTH"),
        (("--steps", "2"), "--steps: found 2, expected at least 3, one for each round of udas"),
        (("--lr", "0"), "--lr: found 0.0, expected a number above 0"),
        (("--lr", "nan"), "--lr: found nan, expected a number above 0"),
        (("--batch-size", "0"), "--batch-size: found '0', expected N or STREAM=N"),
        (("--batch-size", "two"), "--batch-size: found 'two', expected N or STREAM=N"),
        (("--batch-size", "1,2"), "--batch-size: found '1,2', expected one number beside"),
        (("--batch-size", "source=1,source=2"), "--batch-size: found 'source=1,source=2', expected N or"),
        (("--batch-size", "target=2"), "--batch-size: stream: found 'target', expected one of labelled"),
        (("--set", "stages.*.optimizer.lrr=1"), "key of stages.*.optimizer: found 'lrr', expected one of"),
        (("--small", "32x48", "--steps", "5"), "--steps: found 5, expected at least 6 for udas"),
    ],
)
def test_what_no_recipe_can_take_is_one_sentence(
    words: tuple[str, ...], sentence: str, camvid_root: Path, tmp_path: Path, run_cli: RunCli
) -> None:
    domains = ("--source", f"camvid:{camvid_root}", "--target", f"camvid:{camvid_root}")
    code, stdout, stderr = run_cli(
        "train", "udas", *domains, "--out", tmp_path / "run", "--device", "cpu", *words
    )
    assert (code, stdout) == (2, "")
    assert len(stderr.splitlines()) == 1
    assert sentence in stderr
    assert not (tmp_path / "run").exists()


def test_a_batch_size_of_a_stream_that_the_recipe_does_not_use_is_refused(run_cli: RunCli) -> None:
    code, _, stderr = run_cli("plan", "no_adaptation", "--batch-size", "unlabelled=2")
    assert code == 2
    expected = "found 'unlabelled', expected one of source"
    assert stderr == f"udas-fast: --batch-size: stream of no_adaptation: {expected}\n"


@pytest.mark.slow
@pytest.mark.parametrize("small", [(), ("--small", "40x40")])
def test_a_translation_takes_every_option(
    small: tuple[str, ...], camvid_folder: Callable[..., Path], tmp_path: Path, run_cli: RunCli
) -> None:
    root, out = camvid_folder("data", size=(40, 56)), tmp_path / "run"
    words = ("--source", f"camvid:{root}", "--target", f"camvid:{root}", "-o", out, "--device", "cpu")
    tiny = [
        w
        for s in ("width=4", "blocks=1", "discriminator_width=4")
        for w in ("--set", f"stages.*.objective.{s}")
    ]
    changes = ("--size", "32x36", "--steps", 1, "--batch-size", 2, "--lr", "1e-3", "--log-every", 1)
    code, stdout, stderr = run_cli("translate", *words, *small, *tiny, *changes)
    assert code == 0, stderr
    assert "4 images translated" in stdout
    recipe = _recipe_of(out)
    for domain in ("source", "target"):
        assert (recipe["input"][domain]["size"], recipe["input"][domain]["crop"]) == ([40, 56], [32, 36])
    (stage,) = recipe["stages"]
    assert (stage["steps"], stage["optimizer"]["lr"], recipe["input"]["batch_size"]) == (1, 1e-3, 2)
    assert _config_of(out)["log_every"] == 1


def test_a_translation_needs_equal_batch_sizes(
    camvid_folder: Callable[..., Path], tmp_path: Path, run_cli: RunCli
) -> None:
    root, out = camvid_folder("data", size=(40, 56)), tmp_path / "run"
    words = ("--source", f"camvid:{root}", "--target", f"camvid:{root}", "-o", out, "--device", "cpu")
    code, _, stderr = run_cli("translate", *words, "--small", "32x32", "--batch-size", "source=2")
    assert code == 2
    assert "batch sizes of stage translation: found source 2, unlabelled 1, expected one size" in stderr
