"""Losses that end a run, and a disk that is full while they are recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from udas_fast.engine.faults import check_losses
from udas_fast.engine.optim import OptimizerConfig
from udas_fast.engine.precision import build_amp
from udas_fast.engine.recorder import Recorder
from udas_fast.engine.step import TrainStep
from udas_fast.errors import InputError
from udas_fast.objectives.supervised import SupervisedConfig
from udas_fast.testing import TinyNetwork

RECORD = {"step": 12, "phase": "adaptation", "lr": 0.1}
SAMPLES = {"source": ["a", "b"], "unlabelled": ["c"]}


@pytest.mark.parametrize(("value", "word"), [(float("nan"), "nan"), (float("-inf"), "-inf"), (1e9, 1e9)])
def test_the_term_and_the_images_are_told(tmp_path: Path, value: float, word: object) -> None:
    with pytest.raises(
        InputError, match=r"loss 'kl' is .* at step 12 \(adaptation\), on source a, b; "
    ) as caught:
        check_losses(tmp_path, RECORD, {"seg": 0.5, "kl": value}, SAMPLES)
    assert f"--resume {tmp_path}" in str(caught.value)
    assert "\n" not in str(caught.value)
    fault = json.loads((tmp_path / "fault.json").read_text())
    assert fault == {**RECORD, "term": "kl", "losses": {"seg": 0.5, "kl": word}, "samples": SAMPLES}


def test_large_and_negative_losses_are_no_faults(tmp_path: Path) -> None:
    check_losses(tmp_path, RECORD, {"sum": 6e6, "critic": -4.0}, SAMPLES)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")  # every write finds no space left
    recorder = Recorder(tmp_path, first=0, total=1, every=5)
    recorder.step(0, "source", 0.1, {"seg": torch.tensor(0.5)}, SAMPLES, 0.0)
    with pytest.raises(InputError, match=r"metrics.jsonl: cannot be written \(no space left on device\)"):
        recorder.flush()
    recorder.close()


def test_a_weight_that_is_not_finite_is_seen() -> None:
    amp, objective = build_amp("fp32", torch.device("cpu")), SupervisedConfig().build(4)
    step = TrainStep("source", 1, TinyNetwork(), objective, OptimizerConfig(), amp, seed=0)
    assert step.weights_are_finite()
    step.model.body.weight.data[1, 0, 0, 0] = float("inf")
    assert not step.weights_are_finite()
