"""Identity of a run's data: dataset names that open from any folder, and the files that a run was begun with."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from udas_fast.data.check import listed
from udas_fast.data.datasets import Joined
from udas_fast.data.types import SegmentationDataset

FileList: TypeAlias = dict[str, str] | None
"""Names and sizes of the files of each image by its id, and a checksum of how they are read by :data:`FORMAT`.

Where several datasets are one, names begin with the dataset's number and a slash.

None for a dataset without files.
"""
FORMAT = ""  # which is no id


def absolute(name: str) -> str:
    """Return ``KIND:ROOT`` with an absolute root, so that it opens from any folder; ``streets:STYLE`` as it is."""
    kind, colon, root = name.partition(":")
    return name if kind == "streets" or not (colon and root) else f"{kind}:{absolute_path(root)}"


def absolute_path(path: str) -> str:
    """Return ``path`` as an absolute one; links stay as they are."""
    return os.path.abspath(os.path.expanduser(path))


def existing_path(path: str) -> str:
    """Return ``path`` as an absolute one where it exists, else as it is, for whoever names it in a message."""
    return absolute_path(path) if os.path.exists(absolute_path(path)) else path


def list_files(dataset: SegmentationDataset) -> FileList:
    """Return names and sizes in bytes of all files of ``dataset``, without reading them, and how they are read."""
    if isinstance(dataset, Joined):
        lists = {f"{number}/": list_files(part) or {} for number, part in enumerate(dataset.parts)}
        return {place + name: files for place, part in lists.items() for name, files in part.items()}
    if (spec := dataset.spec) is None:
        return None
    meaning = (spec.classes.names, spec.id_to_train_id, spec.colour_to_train_id, spec.bit_depth)
    found = {FORMAT: f"{zlib.crc32(repr(meaning).encode()):08x}"}
    for index in range(len(dataset)):
        files = dataset.files(index)
        paths = [files.image] if files.label is None else [files.image, files.label]
        found[files.id] = ", ".join(f"{path.name} {_size(path)}" for path in paths)
    return found


def _is_format(name: str) -> bool:
    """Return whether the entry ``name`` is :data:`FORMAT`, of a dataset or of one of several."""
    return name == FORMAT or name.endswith("/")


def _size(path: Path) -> str:
    try:
        return f"{path.stat().st_size} bytes"
    except OSError:
        return "missing"


@dataclass(frozen=True)
class Difference:
    """Ids of the images of one role that are ``gone`` or ``new``, or whose files have ``changed`` in name or size.

    ``format``: whether their classes, ids, colours or bit depth are others.
    """

    role: str
    gone: list[str]
    new: list[str]
    changed: list[str]
    format: bool = False

    def __str__(self) -> str:
        parts = {"gone": self.gone, "new": self.new, "of another name or size": self.changed}
        found = [f"{listed(ids)} {what}" for what, ids in parts.items() if ids]
        found += ["other classes, ids, colours or bit depth of its files"] * self.format
        return f"{self.role}: {', '.join(found)}"


def compare_files(before: Mapping[str, FileList], now: Mapping[str, FileList]) -> list[Difference]:
    """Return how the files of each role differ from those before; roles without a difference or files are left out."""
    found = []
    for role in dict.fromkeys([*before, *now]):
        old, new = before.get(role, {}), now.get(role, {})
        if old is None or new is None:
            continue
        shared = [name for name in old if name in new]
        changed = [name for name in shared if old[name] != new[name]]
        difference = Difference(
            role,
            gone=[name for name in old if name not in new and not _is_format(name)],
            new=[name for name in new if name not in old and not _is_format(name)],
            changed=[name for name in changed if not _is_format(name)],
            format=any(map(_is_format, changed)),
        )
        if difference != Difference(role, [], [], []):
            found.append(difference)
    return found
