"""Files that are written whole or not at all: a kill or a full disk never leaves half of one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from udas_fast.errors import InputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system has against writing ``path`` (a full disk, a quota, no permission) as one sentence."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"{path}: cannot be written ({reason}); what was written before is intact"
        ) from error


def make_folder(path: Path) -> None:
    """``path`` and the folders above it, where they are not there yet. Raises InputError as :func:`writing`."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file that takes the place of ``path`` when all is on the disk: the old one or the whole new one.

    Raises:
        InputError: it cannot be written.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)  # on a full disk its space is expected
            raise


def atomic_write(content: str | bytes, path: Path) -> None:
    """Write text, in UTF-8, or bytes by :func:`replacing`."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
