"""Commands about datasets: ``check-data`` and ``kinds``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from udas_fast.cli.options import KINDS, BitDepth, Split, TaskFile
from udas_fast.errors import InputError


def check_data(
    data: Annotated[str, typer.Argument(metavar="KIND:ROOT", help=f"KIND is one of {KINDS}")],
    split: Split = "train",
    bit_depth: BitDepth = None,
    classes: TaskFile = None,
) -> None:
    """Read every file of a dataset and name what is wrong.

    Damaged images, sizes that differ, ids outside the map; how often each class occurs, and labels that can be read and
    yet are probably wrong. Images may have no label, as in a target of which some are labelled.
    """
    from tqdm import tqdm

    from udas_fast.data import (
        check_dataset,
        listed,
        names_of,
        open_dataset,
        read_task,
        unknown_names,
        unmatched_labels,
        with_classes,
    )

    dataset = open_dataset(data, split, labelled="some", bit_depth=bit_depth)
    task = None if classes is None else read_task(classes)
    unknown = [] if task is None else unknown_names(task, [dataset.classes])
    dataset = with_classes(dataset, task)
    strays = unmatched_labels(data, split)
    with tqdm(total=len(dataset), unit="image", leave=False, disable=None) as bar:
        report = check_dataset(dataset, progress=bar.update)
    sizes = ", ".join(f"{count} of {h}x{w}" for (h, w), count in report.sizes.items())
    labelled = f"{report.labelled} labelled, {report.images - report.labelled} unlabelled"
    print(f"{data} {split}: {report.images} images ({sizes}), {labelled}, {report.ignored:,} ignored pixels")
    if report.labelled:
        print("{:<20}{:>16}{:>9}{:>8}".format("class", "pixels", "share", "images"))
    for row in report.rows() if report.labelled else ():
        print("{:<20}{:>16}{:>9}{:>8}".format(*row))
    for problem in report.problems:
        print(f"problem: {problem}", file=sys.stderr)
    if report.problems:
        raise InputError(f"{data} {split}: {len(report.problems)} problems in {report.images} images")
    notices = report.notices()
    if unknown:
        notices.append(f"classes of {classes} that the data does not have: {', '.join(unknown)}")
    if report.labelled < report.images:
        notices.insert(0, "a source needs a label for every image; of a target some suffice")
    if strays:
        names = listed([str(path) for path in strays])
        notices.append(f"label files without an image: {names}{names_of(strays, dataset)}")
    for notice in notices:
        print(f"NOTICE: {notice}", file=sys.stderr)
    print(f"no damaged files; notices: {len(notices)}" if notices else "no problems")


def kinds() -> None:
    """List the kinds of datasets, and where their files are.

    Any other is a folder: its dataset.yaml says what is where.
    """
    from udas_fast.cli.lists import stored_list

    print(stored_list("kinds"), end="")
