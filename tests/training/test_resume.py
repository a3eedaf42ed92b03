"""A run that is killed and resumed gives the same numbers as one that was not."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from udas_fast.cli import main
from udas_fast.data.domains import DataConfig
from udas_fast.engine.checkpoint import read_state
from udas_fast.errors import InputError
from udas_fast.recipes import get_recipe
from udas_fast.training.environment import write_environment
from udas_fast.training.run_folder import RunConfig, write_run_file
from udas_fast.training.trainer import Trainer

pytestmark = pytest.mark.slow

STEPS = 18  # adaptation 12, then two rounds of self-training of 3


# Runs are forked from a process that has imported the package (tests/conftest.py), which would take most of their time.
FORKS = multiprocessing.get_context("forkserver")


def _command(root: Path, out: Path, engine: str, steps: int = STEPS, every: int = 2) -> list[str]:
    spec = f"camvid:{root}"
    return [
        *("train", "udas", "--source", spec, "--target", spec, "--num-labels", "2", "--out", str(out)),
        *("--small", "32x48", "--steps", str(steps), "--device", "cpu"),
        *("--engine", engine, "--workers", "0" if engine == "torch" else "2"),
        *("--checkpoint-every", str(every), "--set", "model.width=4", "--set", "input.batch_size=2"),
        *("--evaluate-every", "5", "--keep-best"),
    ]


def _resumption(out: Path) -> list[str]:
    return ["train", "--resume", str(out), "--device", "cpu"]


def _log(command: list[str]) -> Path:
    """Where the output of a run goes."""
    return Path(command[command.index("--out" if "--out" in command else "--resume") + 1]).with_suffix(".log")


def _run(command: list[str]) -> None:
    """Run ``udas-fast`` with the arguments of ``command`` in a process of its own."""
    with open(_log(command), "w") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    torch.set_num_threads(1)
    sys.argv = ["udas-fast", *command]
    main()


def _start(command: list[str]) -> ForkServerProcess:
    process = FORKS.Process(target=_run, args=(command,))
    process.start()
    return process


def _finish(command: list[str]) -> None:
    process = _start(command)
    process.join(300)
    assert process.exitcode == 0, _log(command).read_text()


def _wait_for_checkpoint(out: Path, process: ForkServerProcess, after: str = "") -> str:
    """Until there is a checkpoint later than the file ``after``, or the process has ended; the newest one's name."""
    deadline = time.monotonic() + 300
    newest = after
    while newest <= after and process.exitcode is None:
        assert time.monotonic() < deadline, "no checkpoint within five minutes"
        time.sleep(0.002)
        newest = max((path.name for path in (out / "checkpoints").glob("step-*.pt")), default="")
    return newest


def _assert_same(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    for name in ("scores.json", "scores.jsonl"):
        assert (one / name).read_text() == (other / name).read_text()
    assert (one / "best.safetensors").read_bytes() == (other / "best.safetensors").read_bytes()
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def uninterrupted(
    request: pytest.FixtureRequest, camvid_root: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run from start to end, with the engine of the parameter."""
    out = tmp_path_factory.mktemp("run") / "whole"
    _finish(_command(camvid_root, out, request.param))
    assert len((out / "metrics.jsonl").read_text().splitlines()) == STEPS
    return out


def test_killed_at_twenty_random_moments(camvid_root: Path, tmp_path: Path) -> None:
    # A checkpoint a step: a good part of the moments is in the midst of one's write.
    whole, killed = (_command(camvid_root, tmp_path / name, "torch", 150, 1) for name in ("whole", "killed"))
    _finish(whole)
    newest, rng, out = "", random.Random(0), tmp_path / "killed"
    for kill in range(20):
        process = _start(_resumption(out) if kill else killed)
        newest = _wait_for_checkpoint(out, process, newest)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"the run was over before kill {kill + 1}"
    _finish(_resumption(out))
    _assert_same(tmp_path / "whole", out)


@pytest.mark.parametrize("uninterrupted", [pytest.param("dali", marks=pytest.mark.dali)], indirect=True)
def test_killed_at_a_random_moment(uninterrupted: Path, camvid_root: Path, tmp_path: Path) -> None:
    out = tmp_path / "killed"
    process = _start(_command(camvid_root, out, "dali"))
    _wait_for_checkpoint(out, process)
    time.sleep(random.Random(0).uniform(0, 0.5))
    process.kill()
    process.join()
    _finish(_resumption(out))
    _assert_same(uninterrupted, out)


@pytest.mark.parametrize("uninterrupted", ["torch"], indirect=True)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_cleanly(
    uninterrupted: Path, camvid_root: Path, tmp_path: Path, number: signal.Signals
) -> None:
    out = tmp_path / "stopped"
    process = _start(_command(camvid_root, out, "torch"))
    _wait_for_checkpoint(out, process)
    assert process.pid is not None
    os.kill(process.pid, number)
    process.join(300)
    if process.exitcode != 0:  # 0: the run was over before the signal came
        assert process.exitcode == 130
        assert f"--resume {out}" in _log(_resumption(out)).read_text()
    _finish(_resumption(out))
    _assert_same(uninterrupted, out)


def test_going_on_with_other_threads_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    write_environment(tmp_path, "cpu", "fp32")
    write_environment(tmp_path, "cpu", "fp32")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 1)
    write_environment(tmp_path, "cpu", "bf16")
    told = capsys.readouterr().err
    assert f"goes on with threads {threads + 1} ({threads} before), precision bf16 (fp32 before)" in told


@pytest.mark.parametrize("content", ["[1]", "{", "null"])
def test_an_unreadable_record_of_the_attempt_before_stops_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "environment.json").write_text(content)
    write_environment(tmp_path, "cpu", "fp32")
    assert json.loads((tmp_path / "environment.json").read_text())["device"] == "cpu"


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no run to go on with \(run.yaml: No such file"):
        Trainer.resume(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "checkpoint_evry: 500",
            "run: key checkpoint_evry: found 'checkpoint_evry'.*mean 'checkpoint_every'",
        ),
        ("checkpoint_every: 0", r"run: checkpoint_every: .* greater than or equal to 1 \(found 0\)"),
        ("checkpoint_every: [", r"damaged \("),
    ],
)
def test_what_was_edited_wrongly_is_named(tmp_path: Path, text: str, words: str) -> None:
    write_run_file(tmp_path, get_recipe("no_adaptation"), RunConfig(DataConfig("streets:sim")))
    file = tmp_path / "run.yaml"
    file.write_text(file.read_text().replace("checkpoint_every: 500", text))
    with pytest.raises(InputError, match=f"run.yaml: {words}"):
        Trainer.resume(tmp_path, device="cpu")


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "step-00000004.pt"
    torch.save({"model": {"weight": torch.zeros(500)}}, damaged)
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(InputError, match="step-00000004.pt: cannot be read"):
        read_state(damaged)
