"""A run that is killed and resumed gives the same numbers as one that was not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from udas_fast.engine.checkpoint import read_state
from udas_fast.errors import InputError
from udas_fast.trainer import Trainer

STEPS = 18  # adaptation 12, then two rounds of self-training of 3


def _command(root: Path, out: Path, engine: str) -> list[str]:
    spec = f"camvid:{root}"
    return [
        *(sys.executable, "-m", "udas_fast.cli", "train", "udas", "--source", spec, "--target", spec),
        *("--labels", "2", "--out", str(out), "--small", "32x48", "--steps", str(STEPS), "--device", "cpu"),
        *("--engine", engine, "--workers", "0" if engine == "torch" else "2"),
        *("--checkpoint-every", "2", "--set", "model.width=4", "--set", "input.batch_size=2"),
    ]


def _start(command: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _finish(command: list[str]) -> None:
    process = _start(command)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors


def _resume(out: Path) -> None:
    _finish([sys.executable, "-m", "udas_fast.cli", "train", "--resume", str(out), "--device", "cpu"])


def _wait_for_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not list((out / "checkpoints").glob("step-*.pt")) and process.poll() is None:
        assert time.monotonic() < deadline, "no checkpoint within a minute"
        time.sleep(0.002)


def _assert_same(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert (one / "scores.json").read_text() == (other / "scores.json").read_text()
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


ENGINES = ["torch", pytest.param("dali", marks=pytest.mark.dali)]


@pytest.fixture(scope="module")
def uninterrupted(
    request: pytest.FixtureRequest, camvid_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run from start to end, with the engine of the parameter."""
    out = tmp_path_factory.mktemp("run") / "whole"
    _finish(_command(camvid_root, out, request.param))
    assert len((out / "metrics.jsonl").read_text().splitlines()) == STEPS
    return out


@pytest.mark.slow
@pytest.mark.parametrize("uninterrupted", ENGINES, indirect=True)
@pytest.mark.parametrize("attempt", range(2))
def test_killed_at_a_random_moment(
    uninterrupted: Path, camvid_root: Path, tmp_path: Path, attempt: int, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "killed"
    engine = request.node.callspec.params["uninterrupted"]
    process = _start(_command(camvid_root, out, engine))
    _wait_for_checkpoint(out, process)
    time.sleep(random.Random(attempt).uniform(0, 0.5))
    process.kill()
    process.communicate()
    _resume(out)
    _assert_same(uninterrupted, out)


@pytest.mark.slow
@pytest.mark.parametrize("uninterrupted", ["torch"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_cleanly(
    uninterrupted: Path, camvid_root: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "stopped"
    process = _start(_command(camvid_root, out, "torch"))
    _wait_for_checkpoint(out, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if process.returncode != 0:  # 0: the run was over before the signal came
        assert process.returncode == 130
        assert f"--resume {out}" in errors
    _resume(out)
    _assert_same(uninterrupted, out)


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run to go on with \(run.yaml: No such file"):
        Trainer.resume(tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "step-00000004.pt"
    torch.save({"model": {"weight": torch.zeros(500)}}, damaged)
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(InputError, match="step-00000004.pt: cannot be read"):
        read_state(damaged)
