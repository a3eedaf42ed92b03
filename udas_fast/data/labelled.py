"""Choice of the labelled target images of a run: the images that have a label, and those of them that it may see."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Literal, TypeAlias

from udas_fast import distributed
from udas_fast.data.check import listed
from udas_fast.data.classes import IGNORE
from udas_fast.data.datasets import FileDataset, Subset
from udas_fast.data.factory import names_of, unmatched_labels
from udas_fast.data.sampler import labelled_subset
from udas_fast.data.types import SegmentationDataset
from udas_fast.errors import InputError, bad

NumLabels: TypeAlias = int | Literal["all"] | str
"""Labelled images of a run: a number of them, ``all``, or the path of a list of ids, one a line."""


def with_label(dataset: SegmentationDataset) -> list[int]:
    """Return the indices of the images that have a label file; all indices of a dataset without files."""
    if dataset.spec is None:
        return list(range(len(dataset)))
    return [index for index in range(len(dataset)) if dataset.files(index).label is not None]


def choose_labelled(
    dataset: SegmentationDataset, num_labels: NumLabels, seed: int = 0
) -> tuple[list[int], list[str]]:
    """Return the indices of the labelled images that a run may see, and the ids that are left out as void.

    A number takes the first images of one permutation of those that have a label, so 20 ⊂ 50 ⊂ all. A label without
    a labelled pixel counts as none: the next image takes its place. Reads the labels that are chosen.

    Raises:
        InputError: fewer labels than asked for, or a list that cannot be read or names other images.
    """
    candidates = with_label(dataset)
    if isinstance(num_labels, int):
        order = labelled_subset(len(candidates), len(candidates), seed).tolist()
        queue, count = [candidates[i] for i in order], num_labels
    elif num_labels == "all":
        queue, count = candidates, len(candidates)
    else:
        queue = find_ids(dataset, read_id_list(Path(num_labels)), f"id in {num_labels}")
        count = len(queue)
    taken, void = _take(dataset, queue, count)
    if not taken or (isinstance(num_labels, int) and len(taken) < num_labels):
        found = num_labels if isinstance(num_labels, int) else "none"
        expected = f"1 to {len(taken)}, the images with a label" if taken else "images with a label"
        without = f"; labels without a labelled pixel count as none: {listed(void)}" if void else ""
        raise bad(f"labelled images of {dataset.name}", found, expected + without)
    return taken, void


def _take(dataset: SegmentationDataset, queue: Sequence[int], count: int) -> tuple[list[int], list[str]]:
    """Return the first ``count`` indices of ``queue`` whose label is not void, and the ids of those passed over."""
    taken: list[int] = []
    void: list[str] = []
    left = iter(queue)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while part := list(islice(left, count - len(taken))):
            for index, is_void in zip(part, pool.map(lambda i: _is_void(dataset, i), part), strict=True):
                if is_void:
                    void.append(dataset.id(index))
                else:
                    taken.append(index)
    return taken, void


def _is_void(dataset: SegmentationDataset, index: int) -> bool:
    """Return whether no pixel of a label file is labelled; False for one that cannot be read, which a check reports."""
    if not isinstance(dataset, FileDataset):
        return False
    try:
        label = dataset.label(index)
    except InputError:
        return False
    return label is None or bool((label == IGNORE).all())


def read_id_list(path: Path) -> list[str]:
    """Read a list of ids or image files, one a line (:func:`find_ids`); empty lines are left out.

    Raises:
        InputError: the file cannot be read, or holds no id.
    """
    try:
        lines = path.expanduser().read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        expected = "'all', a number, or the file of a list of ids, one a line"
        raise bad("--num-labels", f"{path} ({reason})", expected) from error
    ids = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not ids:
        raise bad(f"list of ids {path}", "no id", "ids of labelled images, one a line")
    return ids


def find_ids(dataset: SegmentationDataset, ids: Sequence[str], thing: str) -> list[int]:
    """Return the indices of the images ``ids`` of ``dataset``, in their order; ``thing`` names an id in messages.

    An id may also be an image file, with a path before it and a label behind it as in the lists of UniMatch and ST++.

    Raises:
        InputError: there is no such image, or it has no label.
    """
    indices = {dataset.id(index): index for index in range(len(dataset))}
    if dataset.spec is not None:
        by_file = {dataset.files(index).image.name: name for name, index in indices.items()}
        named = (name if name in indices else by_file.get(Path(name.split()[0]).name, name) for name in ids)
        ids = list(dict.fromkeys(named))
    if unknown := [name for name in ids if name not in indices]:
        near = difflib.get_close_matches(unknown[0], indices, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        found = f"{unknown[0]!r} ({len(unknown)} of {len(ids)} are not there)"
        raise bad(thing, found, f"ids of the {len(indices)} images of {dataset.name}{hint}")
    labelled = set(with_label(dataset))
    if without := [name for name in ids if indices[name] not in labelled]:
        found = f"{without[0]!r}, which has no label ({len(without)} of {len(ids)} have none)"
        raise bad(thing, found, "ids of labelled images")
    return [indices[name] for name in ids]


def select_labelled(
    pool: SegmentationDataset, name: str, num_labels: NumLabels, ids: Sequence[str] | None
) -> tuple[Subset, list[str]]:
    """Return the labelled images of a run, and notices about them (collective).

    Args:
        pool: dataset of which some images have labels.
        name: its name, ``KIND:ROOT``.
        num_labels: labels that the run may see.
        ids: labelled images that the run has chosen before, in place of a new choice.

    Raises:
        InputError: no labels as asked for, or images of ``ids`` that are gone.
    """
    paths = unmatched_labels(name, "train")
    strays = [str(path) for path in paths]
    if strays and not with_label(pool):
        expected = f"names of images{names_of(paths, pool)}"
        raise bad(f"labels of {name}", f"none of an image, but {listed(strays, most=1)}", expected)
    indices, notices = distributed.on_main(partial(_choose_or_find, pool, num_labels, ids))
    if strays:
        notices.append(f"labels of {pool.name} without an image: {listed(strays)}")
    return Subset(pool, indices), notices


def _choose_or_find(
    dataset: SegmentationDataset, num_labels: NumLabels, ids: Sequence[str] | None
) -> tuple[list[int], list[str]]:
    """Return the indices of the labelled images of a run, and notices about them."""
    if ids is not None:
        taken = find_ids(dataset, ids, "labelled image in run.yaml")
        more = len(with_label(dataset)) - len(taken)
        notice = f"labels of {dataset.name} that the run does not use, as they are void or newer than the run: {more}"
        return taken, [notice] if num_labels == "all" and more else []
    taken, void = choose_labelled(dataset, num_labels)
    notice = f"labels of {dataset.name} without a labelled pixel, which count as none: {listed(void)}"
    return taken, [notice] if void else []
