"""Checkpoints: everything that a run needs to go on, written so that a kill never leaves half a file."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch

from udas_fast.errors import InputError

KEEP = 2  # the newest and the one before it


def atomic_save(state: dict[str, Any], path: Path) -> None:
    """``torch.save`` to a temporary file, fsync, rename: ``path`` is the old file or the whole new one."""
    with _replacing(path) as file:
        torch.save(state, file)


def atomic_write(content: str | bytes, path: Path) -> None:
    """The same for a file of text, in UTF-8, or of bytes."""
    with _replacing(path) as file:
        file.write(content.encode("utf-8") if isinstance(content, str) else content)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read_state(path: Path) -> dict[str, Any]:
    """A dictionary written by :func:`atomic_save`, on the CPU; only tensors and plain data are unpickled.

    Raises:
        InputError: no such file, or not a readable checkpoint.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path}: no such file")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"checkpoint {path}: cannot be read ({reason})") from error


class CheckpointFolder:
    """``checkpoints/step-NNNNNNNN.pt`` of a run, the newest :data:`KEEP` kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write the state after ``step`` optimisation steps in all and drop what is too old."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:08d}.pt"
        atomic_save(state, path)
        for old in self._all()[:-KEEP]:
            old.unlink()
        return path

    def newest(self) -> Path | None:
        """The newest checkpoint, or None where there is none yet."""
        return paths[-1] if (paths := self._all()) else None

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if re.fullmatch(r"step-\d{8}\.pt", p.name))
