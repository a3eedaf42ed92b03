"""What each process of a test does first; a module of its own, as every folder has a conftest."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from udas_fast.distributed import join, leave


def enter(rank: int, world: int, port: int, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    # What torchrun sets.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    join("cpu")
    function(*args)
    leave()
