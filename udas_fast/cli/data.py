"""Commands about datasets: ``check-data``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from udas_fast.cli.options import KINDS, Split
from udas_fast.errors import InputError


def check_data(
    data: Annotated[str, typer.Argument(metavar="KIND:ROOT", help=f"KIND is one of {KINDS}")],
    split: Split = "train",
) -> None:
    """Read every file of a dataset and name what is wrong.

    Damaged images, sizes that differ, ids outside the map; and how often each class occurs.
    """
    from tqdm import tqdm

    from udas_fast.data import check_dataset, open_dataset

    dataset = open_dataset(data, split)
    with tqdm(total=len(dataset), unit="image", leave=False, disable=None) as bar:
        report = check_dataset(dataset, progress=bar.update)
    sizes = ", ".join(f"{count} of {h}x{w}" for (h, w), count in report.sizes.items())
    print(f"{data} {split}: {report.images} images ({sizes}), {report.ignored:,} ignored pixels")
    print("{:<20}{:>16}{:>9}{:>8}".format("class", "pixels", "share", "images"))
    for row in report.rows():
        print("{:<20}{:>16}{:>9}{:>8}".format(*row))
    for problem in report.problems:
        print(f"problem: {problem}", file=sys.stderr)
    if report.problems:
        raise InputError(f"{data} {split}: {len(report.problems)} problems in {report.images} images")
    print("no problems")
