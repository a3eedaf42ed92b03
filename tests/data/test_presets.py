"""Public datasets that are described by files: each reads a made-up tree of its published layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udas_fast.data import CITYSCAPES, check_dataset, has_labels, open_dataset
from udas_fast.data.own_format import PRESETS

Tree = dict[str, tuple[str, str | None, str]]
"""By split: the files of an image and of its label, and the image's id."""


def both(image: str, label: str, name: str) -> Tree:
    """Return files of train and val, from patterns of their split and id."""
    parts = {split: {"split": split, "id": name} for split in ("train", "val")}
    return {split: (image.format(**part), label.format(**part), name) for split, part in parts.items()}


def acdc(kind: str) -> Tree:
    folder = f"{kind}/{{split}}/GOPR0122/{{id}}"
    return both(
        f"rgb_anon/{folder}_rgb_anon.png", f"gt/{folder}_gt_labelTrainIds.png", "GOPR0122_frame_000161"
    )


CITY = "aachen_000000_000019"
TREES: dict[str, Tree] = {
    "acdc": acdc("snow"),
    **{f"acdc-{kind}": acdc(kind) for kind in ("fog", "night", "rain", "snow")},
    "dark-zurich": {
        "train": (
            "rgb_anon/train/night/GOPR0345/GOPR0345_frame_000001_rgb_anon.png",
            None,
            "GOPR0345_frame_000001",
        ),
        "val": (
            "rgb_anon/val/night/GOPR0356/GOPR0356_frame_000321_rgb_anon.png",
            "gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelTrainIds.png",
            "GOPR0356_frame_000321",
        ),
    },
    "bdd100k": both(
        "images/10k/{split}/{id}.jpg", "labels/sem_seg/masks/{split}/{id}.png", "0004a4c0-d4dff0ad"
    ),
    "cityscapes-trainids": both(
        "leftImg8bit/{split}/aachen/{id}_leftImg8bit.png",
        "gtFine/{split}/aachen/{id}_gtFine_labelTrainIds.png",
        CITY,
    ),
    "foggy-cityscapes": both(
        "leftImg8bit_foggy/{split}/aachen/{id}_leftImg8bit_foggy_beta_0.02.png",
        "gtFine/{split}/aachen/{id}_gtFine_labelIds.png",
        CITY,
    ),
    "kitti": {"train": ("training/image_2/000000_10.png", "training/semantic/000000_10.png", "000000_10")},
    "voc": {
        "train": ("JPEGImages/2007_000032.jpg", "SegmentationClass/2007_000032.png", "2007_000032"),
        "val": ("JPEGImages/2007_000033.jpg", "SegmentationClass/2007_000033.png", "2007_000033"),
    },
    "ade20k": {
        split: (f"images/{folder}/{name}.jpg", f"annotations/{folder}/{name}.png", name)
        for split, folder, name in (
            ("train", "training", "ADE_train_00000001"),
            ("val", "validation", "ADE_val_00000001"),
        )
    },
}
# From the published lists: names of some ids; None: ignored.
CITY_IDS = {
    7: "road",
    8: "sidewalk",
    21: "vegetation",
    26: "car",
    33: "bicycle",
    0: None,
    29: None,
    255: None,
}
TRAIN_IDS = {**dict(enumerate(CITYSCAPES.names)), 255: None}
IDS: dict[str, dict[int, str | None]] = {
    "foggy-cityscapes": CITY_IDS,
    "kitti": CITY_IDS,
    "voc": {0: "background", 1: "aeroplane", 7: "car", 15: "person", 20: "tvmonitor", 255: None},
    "ade20k": {0: None, 1: "wall", 13: "person", 21: "car", 137: "traffic light", 150: "flag"},
}


def test_every_preset_has_a_tree() -> None:
    assert set(TREES) == set(PRESETS)


@pytest.mark.parametrize("kind", PRESETS)
def test_a_preset_reads_its_published_layout(tmp_path: Path, kind: str) -> None:
    names = IDS.get(kind, TRAIN_IDS)
    ids = np.array([[*names, *names]], np.uint8)
    for image, label, _ in TREES[kind].values():
        for path, pixels in ((image, ids), (label, ids)):
            if path is not None:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(tmp_path / path)
    if kind == "voc":
        (tmp_path / "ImageSets/Segmentation").mkdir(parents=True)
        for split, (*_, name) in TREES[kind].items():
            (tmp_path / f"ImageSets/Segmentation/{split}.txt").write_text(f"{name}\n")
    for split, (_, label, name) in TREES[kind].items():
        dataset = open_dataset(f"{kind}:{tmp_path}", split, labelled=label is not None)
        assert [sample.id for sample in dataset] == [name]
        assert has_labels(f"{kind}:{tmp_path}", split) == (label is not None)
        if label is None:
            continue
        assert not check_dataset(dataset).problems
        for file_id, train_id in zip(ids[0], dataset[0].label[0], strict=True):
            assert (None if train_id == 255 else dataset.classes.names[train_id]) == names[int(file_id)]
    if kind in ("voc", "ade20k"):
        assert len(dataset.classes) == {"voc": 21, "ade20k": 150}[kind]
    else:
        assert (dataset.classes.names, dataset.classes.palette) == (CITYSCAPES.names, CITYSCAPES.palette)
    if kind == "voc":
        assert dataset.classes.palette[15] == (192, 128, 128)
