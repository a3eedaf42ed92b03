"""Check of a whole dataset: counts against numpy, every problem in one pass."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from udas_fast.data import (
    CAMVID,
    Geometry,
    Sample,
    SegmentationDataset,
    TrainLoader,
    Unlabelled,
    check_dataset,
    evaluation_batches,
    open_dataset,
    unmatched_labels,
)
from udas_fast.errors import InputError


@pytest.fixture
def labels() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 12, (9, 10 + i % 2), dtype=np.uint8) for i in range(6)]


def test_counts(make_dataset, labels):
    labels[0][:] = 3
    root, *_ = make_dataset("camvid", labels)
    ticks: list[int] = []
    report = check_dataset(open_dataset(f"camvid:{root}", "train"), progress=ticks.append)
    every = np.concatenate([label.ravel() for label in labels])
    assert report.counts.dtype == np.int64
    assert report.counts.tolist() == [int((every == c).sum()) for c in range(11)]
    assert report.images_with.tolist() == [
        sum(bool((label == c).any()) for label in labels) for c in range(11)
    ]
    assert report.ignored == (every == 11).sum()
    assert report.sizes == {(9, 10): 3, (9, 11): 3}
    assert (report.images, report.labelled, report.problems, ticks) == (6, 6, [], [1] * 6)
    report.require_clean()
    road = report.rows()[3]
    assert road[:2] == ("road", str((every == 3).sum()))
    assert road[2] == f"{(every == 3).sum() / (every != 11).sum():.2%}"
    table = report.table()
    assert "camvid: 6 images, 6 labelled (3 of 10x9, 3 of 11x9)" in table
    assert all(name in table for name in CAMVID.names)


def test_every_problem_is_collected(make_dataset, labels):
    root, *_ = make_dataset("camvid", labels)
    dataset = open_dataset(f"camvid:{root}", "train")
    dataset.samples[0].image.write_bytes(dataset.samples[0].image.read_bytes()[:200])
    Image.fromarray(np.full((9, 10), 77, np.uint8)).save(dataset.samples[2].label)
    Image.new("L", (3, 3)).save(dataset.samples[3].label)
    dataset.samples[5].label.unlink()
    report = check_dataset(dataset)
    assert len(report.problems) == 4
    for problem, name, reason in zip(
        report.problems,
        ("0000.png", "0002.png", "0003.png", "0005.png"),
        ("", "id 77", "3x3 pixels", "no such file"),
        strict=True,
    ):
        assert name in problem
        assert reason in problem
    assert (report.images, report.labelled, sum(report.sizes.values())) == (6, 2, 2)
    assert report.counts.sum() + report.ignored == labels[1].size + labels[4].size
    with pytest.raises(InputError, match=r"0000\.png.*\(and 3 more\)"):
        report.require_clean()


def test_without_labels_only_images_count(make_dataset, labels):
    root, *_ = make_dataset("camvid", labels)
    report = check_dataset(Unlabelled(open_dataset(f"camvid:{root}", "train")))
    assert (report.images, report.labelled, report.counts.sum()) == (6, 0, 0)
    assert "road" not in report.table()


def test_nothing_is_noted_of_labels_that_are_right(make_dataset, labels):
    root, *_ = make_dataset("camvid", [np.concatenate([label, label % 11], 1) for label in labels])
    assert check_dataset(open_dataset(f"camvid:{root}", "train")).notices() == []
    assert check_dataset(Unlabelled(open_dataset(f"camvid:{root}", "train"))).notices() == []


def test_classes_that_no_label_shows_void_labels_and_a_high_ignored_share_are_noted(make_dataset, labels):
    labels[2][:] = labels[4][:] = 11
    for label in labels:
        label[label > 8] = 11
    root, *_ = make_dataset("camvid", labels)
    report = check_dataset(open_dataset(f"camvid:{root}", "train"))
    every = np.concatenate([label.ravel() for label in labels])
    assert report.void == ["0002", "0004"]
    assert report.ignored == (every == 11).sum() > every.size / 3
    assert report.areas.tolist() == [label.size for label in labels]
    assert report.notices() == [
        "labels without a labelled pixel: 2 of 6 (0002, 0004)",
        "classes that no label shows: 2 of 11 (pedestrian, bicyclist)",
        f"{(every == 11).mean():.0%} of the pixels of labels are ignored",
    ]
    for i, label in enumerate(labels):
        Image.fromarray(np.full_like(label, 11)).save(root / f"labels/train/{i:04d}.png")
    report = check_dataset(open_dataset(f"camvid:{root}", "train"))
    assert report.notices() == ["no label has a labelled pixel: all 6 are void"]


def test_an_object_of_id_255_is_noted(tmp_path):
    for kind, value in (("images", 9), ("labels", 0)):
        (tmp_path / kind / "train").mkdir(parents=True)
        pixels = np.full((6, 8), value, np.uint8)
        pixels[2:4, 2:5] = 255
        Image.fromarray(pixels).save(tmp_path / kind / "train/0.png")
    (tmp_path / "classes.txt").write_text("background\nobject\n")
    (notice,) = check_dataset(open_dataset(f"folder:{tmp_path}", "train")).notices()
    assert notice.startswith("the only ids are 0 (background) and 255, which is ignored: no other class")
    assert notice.endswith(
        "if 255 is a class, name it in dataset.yaml: `classes: {background: 0, NAME: 255}`"
    )


def test_train_ids_under_the_names_of_label_ids_are_noted(make_dataset):
    rng = np.random.default_rng(0)
    train_ids = rng.integers(0, 19, (16, 20), dtype=np.uint8)
    label_ids = rng.choice([7, 8, 11, 21, 23, 24, 26, 33], (16, 20)).astype(np.uint8)
    hint = ": no id reaches 19, so they may be train ids, where gta5 has label ids"
    for ids, expected in ((train_ids, True), (label_ids, False)):
        root, *_ = make_dataset("gta5", [ids])
        notices = check_dataset(open_dataset(f"gta5:{root}", "train")).notices()
        assert any(notice.endswith(hint) for notice in notices) == expected


def test_label_files_without_an_image_are_found(make_dataset, labels):
    for kind in ("camvid", "cityscapes"):
        root, *_ = make_dataset(kind, labels)
        assert unmatched_labels(f"{kind}:{root}", "train") == []
        image = next(root.glob("*/train/**/*0003*.png")) if kind == "camvid" else None
        image = image or next(root.glob("leftImg8bit/train/*/*000003*.png"))
        image.unlink()
        (path,) = unmatched_labels(f"{kind}:{root}", "train")
        assert "0003" in path.name
    assert unmatched_labels("streets:sim", "train") == []


class Own(SegmentationDataset):
    """A user's dataset that returns the given arrays."""

    name, classes = "own", CAMVID

    def __init__(self, label: object, image: object = np.zeros((4, 5, 3), np.uint8)) -> None:
        self.label, self.image = label, image

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(self.image, self.label, "frame")


def test_a_users_own_dataset_is_held_to_the_contract():
    assert check_dataset(Own(np.full((4, 5), 11, np.uint8))).problems == [
        "label of frame: found train id 11, expected 0 to 10, or 255"
    ]
    for label, found in (
        (np.zeros((5, 4), np.uint8), r"found uint8 \[5, 4\]"),
        (np.zeros((4, 5), np.int64), r"found int64 \[4, 5\]"),
        ([[0] * 5] * 4, "found list"),
    ):
        sentence = rf"label of frame: {found}, expected uint8 \[4, 5\], the size of its image"
        with pytest.raises(InputError, match=sentence):
            check_dataset(Own(label)).require_clean()
        with pytest.raises(InputError, match=sentence):
            next(TrainLoader(Own(label), Geometry(size=(4, 5)), 1, 0, "s").batches())
        with pytest.raises(InputError, match=sentence):
            next(evaluation_batches(Own(label)))
    with pytest.raises(InputError, match=r"image of frame: found float64 \[4, 5, 3\], expected uint8"):
        check_dataset(Own(None, np.zeros((4, 5, 3)))).require_clean()


def test_images_with_negative_strides_are_accepted():
    image = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)[..., ::-1]  # OpenCV's BGR to RGB
    dataset = Own(np.zeros((4, 5), np.uint8)[::-1], image)
    (batch,) = evaluation_batches(dataset)
    assert np.array_equal(batch.image[0].permute(1, 2, 0).numpy(), image)
    for size in ((4, 5), (8, 10)):
        batch = next(TrainLoader(dataset, Geometry(size=size), 1, 0, "s").batches())
        assert batch.image.shape == (1, 3, *size)
