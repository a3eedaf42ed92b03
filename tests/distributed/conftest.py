"""Starts test functions in several processes of one gloo group, on the CPU."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
from process import enter
from torch import multiprocessing


@pytest.fixture(scope="session")
def processes() -> Callable[..., list[int] | None]:
    """``processes(world, function, *args)`` runs ``function(*args)`` in each; a failure of one is the test's.

    With ``codes=True`` each is waited for and the exit codes are returned.
    """

    def run(world: int, function: Callable[..., Any], *args: Any, codes: bool = False) -> list[int] | None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        # Forked from a process that has imported torch (tests/conftest.py), which takes longer than most functions.
        started = multiprocessing.start_processes(
            enter, (world, port, function, args), world, join=not codes, start_method="forkserver"
        )
        if not codes:
            return None
        for process in started.processes:
            process.join(timeout=300)
        return [process.exitcode for process in started.processes]

    return run
