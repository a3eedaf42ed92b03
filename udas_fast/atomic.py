"""Atomic writing of files: a kill or a full disk never leaves an incomplete one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from udas_fast.errors import InputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Convert an OSError while writing ``path`` (a full disk, a quota, no permission) to an InputError."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{path}: cannot be written ({reason}); earlier files are intact") from error


def make_folder(path: Path) -> None:
    """Make ``path`` and the folders above it unless they exist; raise InputError as :func:`writing`."""
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a temporary file that replaces ``path`` once it is complete on disk.

    Raises:
        InputError: the file cannot be written.
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
                temporary.unlink(missing_ok=True)  # it would occupy space on a full disk
            raise


def atomic_write(content: str | bytes, path: Path) -> None:
    """Write text, in UTF-8, or bytes with :func:`replacing`."""
    with replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)
