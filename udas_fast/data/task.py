"""Classes of a task: what a user wants to tell apart, each as one or more classes of the datasets, by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import numpy as np

from udas_fast.data.classes import IGNORE, ClassSet, make_class_set
from udas_fast.data.datasets import FileDataset, Unlabelled
from udas_fast.data.own_format import read_mapping
from udas_fast.data.types import Sample, SegmentationDataset, require_dataset
from udas_fast.errors import bad

TaskClasses: TypeAlias = Mapping[str, tuple[str, ...]]
"""Names of a dataset's classes by the class that they become; other classes are ignored."""


def read_task(path: Path) -> dict[str, tuple[str, ...]]:
    """Read the classes of a task from YAML such as ``vehicle: [car, truck, bus]``.

    Raises:
        InputError: the file cannot be read, or holds something else.
    """
    expected = (
        "classes of the task and the datasets' classes that they are, such as vehicle: [car, truck, bus]"
    )
    document = read_mapping(path, expected)
    task: dict[str, tuple[str, ...]] = {}
    owner: dict[str, str] = {}
    for name, members in document.items():
        names = members if isinstance(members, list) else [members]
        if not isinstance(name, str) or not names or not all(isinstance(member, str) for member in names):
            raise bad(f"{path}: {name}", repr(members)[:60], "names of classes, one or a list")
        for member in names:
            if (other := owner.setdefault(member, name)) != name:
                raise bad(f"{path}: {member}", f"it in {other} and in {name}", "each in one class")
        task[name] = tuple(dict.fromkeys(names))
    make_class_set(str(path), path.stem, tuple(task))
    return task


def unknown_names(task: TaskClasses, known: Iterable[ClassSet]) -> list[str]:
    """Return the names in ``task`` that are no class of any of the datasets, with the nearest that is one."""
    names = list(dict.fromkeys(name for classes in known for name in classes.names))
    found = []
    for member in (member for members in task.values() for member in members if member not in names):
        near = difflib.get_close_matches(member, names, n=1)
        found.append(f"{member!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    return found


def with_classes(dataset: SegmentationDataset, task: TaskClasses | None) -> SegmentationDataset:
    """Return ``dataset`` with the classes of ``task``; itself for None.

    Raises:
        InputError: no class of the dataset is one of the task.
    """
    require_dataset("with_classes", dataset)
    if task is None:
        return dataset
    if isinstance(dataset, Unlabelled):
        return Unlabelled(with_classes(dataset.dataset, task))
    classes, table = _remap(dataset.classes, task)
    if isinstance(dataset, FileDataset):
        spec = dataset.spec
        spec = replace(
            spec,
            classes=classes,
            id_to_train_id={i: int(table[train_id]) for i, train_id in spec.id_to_train_id.items()},
            colour_to_train_id={c: int(table[train_id]) for c, train_id in spec.colour_to_train_id.items()},
        )
        return dataset.with_spec(spec)
    return _Remapped(dataset, classes, table)


def _remap(classes: ClassSet, task: TaskClasses) -> tuple[ClassSet, np.ndarray]:
    """Return the classes of ``task``, and its train id of each train id of ``classes``, uint8 ``[256]``."""
    made = make_class_set("classes of the task", classes.name, tuple(task))
    table, palette = np.full(256, IGNORE, np.uint8), list(made.palette)
    for i, members in enumerate(task.values()):
        known = [classes.names.index(member) for member in members if member in classes.names]
        table[known] = i
        if known:
            palette[i] = classes.palette[known[0]]
    if (table == IGNORE).all():
        names = ", ".join(classes.names)
        raise bad(f"classes of the task in {classes.name}", "none of its own", f"some of {names}")
    return ClassSet(made.name, made.names, tuple(palette)), table


class _Remapped(SegmentationDataset):
    """A dataset without files whose labels are those of a task."""

    def __init__(self, dataset: SegmentationDataset, classes: ClassSet, table: np.ndarray) -> None:
        self.name, self.classes, self.on_disk = dataset.name, classes, dataset.on_disk
        self.dataset, self.table = dataset, table

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self.dataset[index]
        return sample if sample.label is None else replace(sample, label=self.table[sample.label])

    def id(self, index: int) -> str:
        """Return the id of sample ``index``."""
        return self.dataset.id(index)

    def unlabelled(self, index: int) -> Sample:
        """Return sample ``index`` without its label."""
        return self.dataset.unlabelled(index)
