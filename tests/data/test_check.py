"""The check of a whole dataset: counts against numpy, every problem in one pass."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from udas_fast.data import CAMVID, Sample, SegmentationDataset, Unlabelled, check_dataset, open_dataset
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
    dataset.items[0].image.write_bytes(dataset.items[0].image.read_bytes()[:200])
    Image.fromarray(np.full((9, 10), 77, np.uint8)).save(dataset.items[2].label)
    Image.new("L", (3, 3)).save(dataset.items[3].label)
    dataset.items[5].label.unlink()
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


class Own(SegmentationDataset):
    """A user's dataset that gives whatever label it is told to."""

    name, classes = "own", CAMVID

    def __init__(self, label: np.ndarray) -> None:
        self.label = label

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return Sample(np.zeros((4, 5, 3), np.uint8), self.label, "frame")


def test_a_users_own_dataset_is_held_to_the_contract():
    assert check_dataset(Own(np.full((4, 5), 11, np.uint8))).problems == [
        "label of frame: found train id 11, wanted 0 to 10, or 255"
    ]
    assert "found (5, 4)" in check_dataset(Own(np.zeros((5, 4), np.uint8))).problems[0]
