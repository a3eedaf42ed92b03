"""Starts test functions in several processes of one gloo group, on the CPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import multiprocessing

from udas_fast.engine.distributed import join, leave


def _enter(rank: int, world: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # What torchrun sets.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    join("cpu")
    function(*args)
    leave()


@pytest.fixture(scope="session")
def processes() -> Callable[..., list[int] | None]:
    """``processes(world, function, *args)`` runs ``function(*args)`` in each; a failure of one is the test's.

    With ``codes=True`` each is waited for and the exit codes are returned.
    """

    def run(world: int, function: Callable[..., Any], *args: Any, codes: bool = False) -> list[int] | None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = multiprocessing.spawn(_enter, (world, port, function, args), nprocs=world, join=not codes)
        if not codes:
            return None
        for process in started.processes:
            process.join(timeout=60)
        return [process.exitcode for process in started.processes]

    return run
