"""Class sets: the names and colours of a dataset's classes, and the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from udas_fast.errors import bad

IGNORE = 255
"""Train id of pixels that are neither trained on nor scored."""


@dataclass(frozen=True)
class ClassSet:
    """The classes of a dataset; train id i is ``names[i]`` and is drawn in ``palette[i]`` (8-bit RGB).

    Raises:
        InputError: ``palette`` does not hold one such colour for each class.
    """

    name: str
    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]

    def __post_init__(self) -> None:
        thing = f"palette of {self.name}"
        if len(self.names) != len(self.palette):
            raise bad(thing, f"{len(self.palette)} colours", f"{len(self.names)}, one for each class")
        for colour in self.palette:
            if len(colour) != 3 or not all(0 <= part <= 255 for part in colour):
                raise bad(thing, f"colour {colour}", "three numbers from 0 to 255")

    def __len__(self) -> int:
        return len(self.names)

    def first_difference(self, other: ClassSet) -> str | None:
        """Describe the first train id that has another name in ``other``; None if the names are equal."""
        for number, (here, there) in enumerate(zip_longest(self.names, other.names)):
            if here != there:
                return f"number {number} is {here!r} and {there!r}"
        return None


def make_class_set(where: str, name: str, names: Sequence[str]) -> ClassSet:
    """Return the class set ``name`` of ``names``, with distinct colours; error messages begin with ``where``.

    Raises:
        InputError: not 2 to 255 different, printable names.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise bad(where, repr(names)[:80], "a sequence of class names")
    if not 2 <= len(names) <= 255:
        raise bad(where, f"{len(names)} names", "2 to 255 class names, one per line")
    if "" in names:
        raise bad(where, f"no name in line {names.index('') + 1}", "one class name per line")
    if unprintable := [name for name in names if not name.isprintable()]:
        raise bad(where, repr(unprintable[0]), "class names of printable characters")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise bad(where, f"the class {twice!r} twice", "different class names")
    return ClassSet(name, tuple(names), _colours(len(names)))


def _colours(count: int) -> tuple[tuple[int, int, int], ...]:
    """Return distinct colours: the bits of id + 1, spread over the high bits of red, green and blue."""

    def colour(i: int) -> tuple[int, int, int]:
        channels = [0, 0, 0]
        for bit in range(8):
            channels[bit % 3] |= (i >> bit & 1) << (7 - bit // 3)
        return channels[0], channels[1], channels[2]

    return tuple(colour(i + 1) for i in range(count))


CITYSCAPES = ClassSet(
    "cityscapes",
    (
        "road",
        "sidewalk",
        "building",
        "wall",
        "fence",
        "pole",
        "traffic light",
        "traffic sign",
        "vegetation",
        "terrain",
        "sky",
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ),
    (
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (102, 102, 156),
        (190, 153, 153),
        (153, 153, 153),
        (250, 170, 30),
        (220, 220, 0),
        (107, 142, 35),
        (152, 251, 152),
        (70, 130, 180),
        (220, 20, 60),
        (255, 0, 0),
        (0, 0, 142),
        (0, 0, 70),
        (0, 60, 100),
        (0, 80, 100),
        (0, 0, 230),
        (119, 11, 32),
    ),
)

CAMVID = ClassSet(
    "camvid",
    (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "bicyclist",
    ),
    (
        (128, 128, 128),
        (128, 0, 0),
        (192, 192, 128),
        (128, 64, 128),
        (60, 40, 222),
        (128, 128, 0),
        (192, 128, 128),
        (64, 64, 128),
        (64, 0, 128),
        (64, 64, 0),
        (0, 128, 192),
    ),
)
