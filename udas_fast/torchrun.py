"""What torchrun tells a process by environment variables; without torch, so that the command line can ask at once."""

from __future__ import annotations

import os

from udas_fast.errors import bad


def processes() -> int:
    """How many processes are to share the work: WORLD_SIZE, 1 where it is not set.

    Raises:
        InputError: it is not a number.
    """
    found = os.environ.get("WORLD_SIZE", "1")
    if not found.isdecimal():
        raise bad("WORLD_SIZE", repr(found), "the number of processes, as torchrun sets it")
    return int(found)
