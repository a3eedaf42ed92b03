"""One process at a time in a run's folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from udas_fast.atomic import make_folder, writing
from udas_fast.errors import bad


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder``'s lock file, which is freed when the process ends, however it ends.

    Raises:
        InputError: another process holds it, or the folder cannot be written.
    """
    path = folder / "lock"
    make_folder(folder)
    with writing(path):
        file = path.open("ab")
    with file:
        lock(file, folder)
        yield


def lock(file: BinaryIO, folder: Path) -> None:
    """Lock ``file`` in the run folder for as long as it is open here or in a process that inherited it.

    Raises:
        InputError: another process holds it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise bad(
            f"run folder {folder}", "a process that trains there", "to wait for it or to stop it"
        ) from None
    except OSError:  # a network file system that has no locks
        pass
