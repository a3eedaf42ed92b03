"""Checkpoints: everything that a run needs to go on, written so that a kill or a full disk never leaves half a file."""

from __future__ import annotations

import re
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from udas_fast.atomic import make_folder, replacing
from udas_fast.errors import InputError, bad, first_line

KEEP = 2  # the newest and the one before it


def atomic_save(state: dict[str, Any], path: Path) -> None:
    """Save ``state`` to a temporary file, fsync and rename: ``path`` is the old file or the complete new one."""
    with replacing(path) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None  # the system's error, which torch replaces by one of its own
            raise


def read_state(path: Path) -> dict[str, Any]:
    """Read a dictionary written by :func:`atomic_save` onto the CPU; only tensors and plain data are unpickled.

    Every byte is compared with the checksums (CRC-32) that ``torch.save`` writes and ``torch.load`` ignores.

    Raises:
        InputError: no such file, or not a readable checkpoint.
    """
    if not path.is_file():
        raise InputError(f"checkpoint {path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        state = None if damaged else torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes raise about anything in zipfile and torch.load
        raise InputError(f"checkpoint {path}: cannot be read ({first_line(error)})") from error
    if damaged:
        raise InputError(f"checkpoint {path}: cannot be read (another checksum in {damaged})")
    if not isinstance(state, dict):
        raise bad(f"checkpoint {path}", type(state).__name__, "a dictionary")
    return state


class CheckpointFolder:
    """``checkpoints/step-NNNNNNNN.pt`` of a run.

    The newest :data:`KEEP` are kept, and every milestone, ``step-NNNNNNNN.NAME.pt``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any], step: int, milestone: str | None = None) -> Path:
        """Write the state after ``step`` optimisation steps of the run and delete old checkpoints.

        Later ones are deleted as well: they are damaged, or :meth:`load` would have returned them.
        """
        make_folder(self.folder)
        path = self.folder / f"step-{step:08d}{f'.{milestone}' if milestone else ''}.pt"
        for torn in self.folder.glob("step-*.pt.tmp"):  # of a kill at another step; its space is needed
            if torn.name != f"{path.name}.tmp":
                torn.unlink()
        atomic_save(state, path)
        steps = {p: int(p.name[5:13]) for p in self._all()}
        kept = [p for p in steps if steps[p] <= step][-KEEP:]
        for other in steps:
            is_milestone = other.name.count(".") > 1
            if steps[other] > step or (other not in kept and not is_milestone):
                other.unlink()
        return path

    def load(self) -> dict[str, Any] | None:
        """Return the state in the newest intact checkpoint, or None where there is none yet.

        A damaged one is named on stderr, and the one before it is used.

        Raises:
            InputError: there are checkpoints, and all are damaged.
        """
        damaged: list[InputError] = []
        for path in reversed(self._all()):
            try:
                state = read_state(path)
            except InputError as error:
                damaged.append(error)
                continue
            for problem in damaged:
                tqdm.write(f"{problem}; going on from {path.name}", file=sys.stderr)
            return state
        if damaged:
            raise bad(
                f"checkpoints in {self.folder}", f"{len(damaged)}, all damaged; {damaged[0]}", "a whole one"
            )
        return None

    def newest(self) -> Path | None:
        """Return the newest checkpoint, or None where there is none yet."""
        return paths[-1] if (paths := self._all()) else None

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(p for p in self.folder.iterdir() if re.fullmatch(r"step-\d{8}(\..+)?\.pt", p.name))
