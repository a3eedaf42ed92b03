"""What is of a wrong type is refused in a sentence, by datasets and whatever takes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from udas_fast.data import (
    CAMVID,
    Geometry,
    Sample,
    SegmentationDataset,
    Subset,
    TrainLoader,
    Unlabelled,
    check_dataset,
    evaluation_batches,
    has_labels,
    open_dataset,
    read_image,
    subset,
)
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.errors import InputError


class Returns(SegmentationDataset):
    """A user's dataset that returns ``sample``."""

    name, classes = "mine", CAMVID

    def __init__(self, sample: Any) -> None:
        self.sample = sample

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Sample:
        return self.sample


class Nameless(Returns):
    name = None


class Classless(Returns):
    classes = ("road", "car")


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda _: open_dataset(5, "train"), "dataset: found int, expected text, such as"),
        (lambda _: open_dataset(Path("folder:x"), "train"), "dataset: found PosixPath, expected text"),
        (
            lambda _: open_dataset("streets:sim", "train", bit_depth=40),
            "bit_depth: found 40, expected 8 to 16",
        ),
        (lambda _: read_image("x.png", bit_depth="12"), "bit_depth: found '12', expected 8 to 16, or None"),
        (lambda _: open_dataset("streets:sim", 1), "split: found int, expected text"),
        (lambda _: has_labels(None, "val"), "dataset: found NoneType, expected text"),
        (lambda _: read_image(5), "image: found int, expected a path or a Pillow image"),
        (lambda d: d["0000"], "index of camvid: found '0000', expected a whole number"),
        (lambda d: d[0:2], r"index of camvid: found slice\(0, 2, None\), expected a whole number"),
        (lambda d: Subset(d, [0, 1])[1.0], "index of camvid: found 1.0, expected a whole number"),
        (lambda d: Unlabelled(d)[None], "index of camvid: found None, expected a whole number"),
        (lambda d: Subset(d, "01"), "indices of camvid: found str, expected a sequence of numbers"),
        (lambda d: Subset(d, 2), "indices of camvid: found int, expected a sequence of numbers"),
        (lambda d: Subset(d, [0.5]), "index of camvid: found 0.5, expected a whole number"),
        (lambda d: Subset(d, [0, 4]), "indices of camvid: found 4, expected 0 to 3"),
        (lambda d: subset(d, "all"), "number of labelled images of camvid: found 'all', expected a whole"),
        (lambda _: subset("camvid:x", 2), "subset: found str, expected a SegmentationDataset, as open_dat"),
        (lambda _: Subset([1, 2], [0]), "Subset: found list, expected a SegmentationDataset"),
        (lambda _: Unlabelled(None), "Unlabelled: found NoneType, expected a SegmentationDataset"),
        (lambda _: check_dataset("camvid:x"), "check_dataset: found str, expected a SegmentationDataset"),
        (lambda _: TrainLoader([], Geometry((4, 4)), 1, 0, "s"), "data of s: found list, expected a Seg"),
        (lambda _: evaluation_batches(5), "evaluation data: found int, expected a SegmentationDataset"),
        (lambda _: check_dataset(Returns((1, 2))).require_clean(), "sample 0 of mine: found tuple, expe"),
        (lambda _: next(evaluation_batches(Returns(None))), "sample 0 of mine: found NoneType, expected"),
        (lambda _: next(TrainLoader(Returns(5), Geometry((4, 4)), 1, 0, "s").batches()), "found int, exp"),
        (lambda _: Domains(source=Nameless(None)), "data 'source': name: found NoneType, expected a str"),
        (lambda _: Domains(val=Classless(None)), "data 'val': classes: found tuple, expected a ClassSet"),
        (lambda _: Domains(source="camvid:x"), "data 'source': found str, expected a SegmentationDataset"),
        (lambda _: DataConfig(source=5), "DataConfig: source: .* string .found 5"),
        (lambda _: DataConfig(num_labels=[3]), r"DataConfig: num_labels: .* \(found \[3\]"),
        (lambda _: DataConfig(num_labels=-1), r"DataConfig: num_labels: .*greater than or equal to 0 .*-1"),
    ],
)
def test_a_wrong_type_is_told_in_a_sentence(
    call: Callable[[SegmentationDataset], object], sentence: str, camvid_root: Path
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        call(open_dataset(f"camvid:{camvid_root}", "train"))
    assert "\n" not in str(caught.value)


def test_every_kind_of_whole_number_is_an_index(camvid_root: Path) -> None:
    dataset = open_dataset(f"camvid:{camvid_root}", "train")
    assert dataset[np.int64(2)].id == Subset(dataset, np.array([0, 2]))[np.uint8(1)].id == "0002"
    assert [sample.id for sample in dataset] == ["0000", "0001", "0002", "0003"]  # ends by IndexError
