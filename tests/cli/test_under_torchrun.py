"""The command line under torchrun: what is shared, what is refused, and how processes end."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from command_words import train_words

from udas_fast import cli
from udas_fast.distributed import ProcessLost


@pytest.mark.parametrize("rank", [0, 1])
def test_what_torchrun_would_do_several_times_is_refused_once(
    rank: int, run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("WORLD_SIZE", 2), ("RANK", rank), ("TORCHELASTIC_RUN_ID", "run")):
        monkeypatch.setenv(name, str(value))
    for command in ("study", "demo", "predict", "export", "report", "recipes", "check-data"):
        expected = "one: start it without torchrun, as only train, translate and evaluate share their work"
        refused = f"udas-fast: {command}: found 2 processes (WORLD_SIZE), expected {expected}\n"
        assert run_cli(command) == ((2, "", refused) if rank == 0 else (0, "", ""))
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_heard_where_torchrun_has_not_started_the_process(
    run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")  # as in a shell of a cluster's job
    code, _, stderr = run_cli("recipes")
    assert code == 2
    assert "recipes: found 2 processes (WORLD_SIZE)" in stderr
    for value in ("", "two", "-1"):
        monkeypatch.setenv("WORLD_SIZE", value)
        for command in ("recipes", "train"):
            refused = f"udas-fast: WORLD_SIZE: found {value!r}, expected the number of processes, as torchrun sets it\n"
            assert run_cli(command) == (2, "", refused)


def test_variables_of_torchrun_that_are_missing_are_named(
    run_cli: Callable[..., tuple[int, str, str]],
    camvid_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    code, _, stderr = run_cli(*train_words(camvid_root, tmp_path / "run"))
    assert code == 2
    assert re.fullmatch(
        r"udas-fast: torch.distributed: found .*RANK.*, expected RANK, .* sets them\n", stderr
    )


@pytest.mark.parametrize(("interrupted", "expected"), [(True, 130), (False, 1)])
def test_processes_end_as_the_one_that_stopped_first(
    interrupted: bool,
    expected: int,
    run_cli: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(**_: object) -> None:
        raise ProcessLost("process 1 stopped", interrupted)

    monkeypatch.setattr(cli, "app", lost)
    assert run_cli("train")[0] == expected


def test_processes_that_torchrun_restarts_go_on_with_their_run(
    camvid_root: Path,
    tmp_path: Path,
    run_cli: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = train_words(camvid_root, tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run_cli(*arguments)[0] == 0  # the first attempt had failed before there was a run
    code, output, _ = run_cli(*arguments)
    assert code == 0
    assert "already complete" in output
