"""`udas-fast evaluate` and what says that a model was selected: tables, exports, predictions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from command_words import train_words

RunCli = Callable[..., tuple[int, str, str]]


def test_a_selected_model_is_said_to_be_one(run_cli: RunCli, camvid_root: Path, tmp_path: Path) -> None:
    out, scores = tmp_path / "run", tmp_path / "scores.json"
    code, _, stderr = run_cli(*train_words(camvid_root, out, "--evaluate-every", 2, "--keep-best"))
    assert code == 0, stderr
    steps = [json.loads(line)["step"] for line in (out / "scores.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]
    assert "source: mIoU" in stderr

    best, data = out / "best.safetensors", f"camvid:{camvid_root}"
    code, stdout, stderr = run_cli("evaluate", best, "--data", data, "--json", scores, "--workers", 1)
    assert code == 0, stderr
    assert "selected: best on val at step" in stdout
    assert "best on val at step" in json.loads(scores.read_text())["protocol"]["selected"]
    code, _, stderr = run_cli("predict", best, camvid_root / "images/val", "--out", tmp_path / "labels")
    assert code == 0, stderr
    assert f"NOTICE: {best} is not the last model of its run: best on val at step" in stderr
    code, stdout, stderr = run_cli("evaluate", out, "--data", data)
    assert code == 0, stderr
    assert "selected" not in stdout + stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--keep-best",), "keep_best: found no evaluate_every, expected"),
        (("--evaluate-every", 0), "Invalid value for '--evaluate-every'"),
    ],
)
def test_wrong_options(
    run_cli: RunCli, camvid_root: Path, tmp_path: Path, words: tuple[object, ...], message: str
) -> None:
    code, _, stderr = run_cli(*train_words(camvid_root, tmp_path / "run", *words))
    assert code == 2
    assert message in stderr
