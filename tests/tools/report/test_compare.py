"""The comparison of runs: every number and difference, and the sentences where they cannot be compared."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from udas_fast import cli
from udas_fast.errors import InputError
from udas_fast.evaluation import Scores
from udas_fast.tools.report import compare_runs


def _cells(text: str) -> dict[str, list[str]]:
    lines = [line.strip("| ").split("|") for line in text.splitlines() if line.startswith("|")]
    return {line[0].strip(): [cell.strip() for cell in line[1:]] for line in lines}


def test_scores_and_differences_to_the_first(make_run: Callable[..., Path]) -> None:
    # road: 90 / 100 and 80 / 100; sky: 100 / 110 and 100 / 120.
    text, document = compare_runs([make_run("one"), make_run("two", hits=80, seed=1)])
    table = _cells(text)
    assert table["road, %"] == ["90.0", "80.0 (-10.0)"]
    assert table["sky, %"] == ["90.9", "83.3 (-7.6)"]
    assert table["mIoU, %"] == ["90.5", "81.7 (-8.8)"]
    assert table["pixel accuracy, %"] == ["95.0", "90.0 (-5.0)"]
    assert table["scored after"] == ["train.2", "train.2"]
    assert table["steps"] == ["14", "14"]
    assert table["batch size"] == ["2", "2"]
    assert table["labels"] == ["3", "3"]
    assert table["seed"] == ["0", "1"]
    assert text.splitlines()[-3:] == [
        "The runs have the same number of steps and the same batch size.",
        "mIoU: mean over all 2 classes",
        "Protocol: tiny val, 3 images, 2 classes, input 16x24, labels native, scales 1, corners not aligned, fp32",
    ]
    assert document["same_protocol"]
    assert document["same_budget"]
    two = document["runs"]["two"]
    assert two["difference"]["road"] == pytest.approx(-0.1)
    assert two["scores"]["miou"] == pytest.approx((80 / 100 + 100 / 120) / 2)


def test_other_protocols_and_budgets_are_named(make_run: Callable[..., Path]) -> None:
    runs = [make_run("one"), make_run("two", batch_size=4, input_size=(8, 12), split="test")]
    text, document = compare_runs(runs)
    assert (
        "two was measured under a different protocol from one (split test against val, input_size (8, 12)"
        in text
    )
    assert "cannot be compared" in text
    assert "budgets are not equal" in text
    assert not document["same_protocol"]
    assert not document["same_budget"]


def test_a_batch_size_by_stream_is_another_budget(make_run: Callable[..., Path]) -> None:
    one, two = make_run("one"), make_run("two")
    text = (two / "run.yaml").read_text()
    streams = "stream_batch_size: {source: null, unlabelled: 8}"
    changed = re.sub(r"^( *)batch_size: 2$", rf"\1batch_size: 2\n\1{streams}", text, flags=re.MULTILINE)
    (two / "run.yaml").write_text(changed)
    table, document = compare_runs([one, two])
    assert _cells(table)["batch size"] == ["2", "2 (unlabelled 8)"]
    assert not document["same_budget"]
    assert document["runs"]["two"]["stream_batch_size"] == {"source": None, "unlabelled": 8}


def test_an_unfinished_run_is_compared_as_far_as_it_is(make_run: Callable[..., Path]) -> None:
    one, two = make_run("one"), make_run("two")
    (two / "model.safetensors").unlink()
    scores = json.loads((two / "scores.json").read_text())
    del scores["phases"]["train.2"]
    (two / "scores.json").write_text(json.dumps(scores))
    text, document = compare_runs([one, two])
    assert "two is not finished; its scores are from the end of train.1." in text
    assert _cells(text)["steps"] == ["14", "14 of 14"]
    assert not document["runs"]["two"]["finished"]


def test_a_class_that_does_not_occur_has_no_difference(make_run: Callable[..., Path]) -> None:
    one, two = make_run("one"), make_run("two")
    scores = json.loads((two / "scores.json").read_text())
    last = Scores.from_dict(scores["phases"]["train.2"])
    only_sky = Scores(torch.tensor([[0, 0], [0, 100]]), last.classes, last.protocol)
    (two / "scores.json").write_text(json.dumps({"phases": {"train.2": only_sky.to_dict()}}))
    text, document = compare_runs([one, two])
    assert _cells(text)["road, %"] == ["90.0", "–"]
    assert json.loads(json.dumps(document, allow_nan=False))["runs"]["two"]["difference"]["road"] is None


def test_runs_that_cannot_be_compared(make_run: Callable[..., Path], tmp_path: Path) -> None:
    one, other, empty = make_run("one"), make_run("other"), make_run("empty")
    text = (other / "scores.json").read_text()
    (other / "scores.json").write_text(text.replace('"sky"', '"tree"'))
    (empty / "scores.json").unlink()
    for paths, words in (
        ([one], "runs to compare: found 1, expected two or more"),
        ([one, other], r"classes of other: found 2 \(road, tree\), expected those of one: 2 \(road, sky\)"),
        ([one, empty], "run empty: found no scores, expected a run with validation data"),
        ([one, tmp_path / "none"], "no run"),
    ):
        with pytest.raises(InputError, match=words):
            compare_runs(paths)


def test_the_command_prints_and_writes_json(
    make_run: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    file = tmp_path / "comparison.json"
    arguments = ["compare", make_run("one"), make_run("two"), "--json", file]
    monkeypatch.setattr("sys.argv", ["udas-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "mIoU" in capsys.readouterr().out
    assert list(json.loads(file.read_text())["runs"]) == ["one", "two"]
