"""Classes of a task: merged and ignored by name, in both domains, whatever their own classes are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from udas_fast.data import CAMVID, Geometry, TrainLoader, open_dataset, read_task, unknown_names, with_classes
from udas_fast.data.domains import DataConfig, Domains
from udas_fast.errors import InputError
from udas_fast.recipes import InputConfig

TASK = {"way": ("road", "pavement", "sidewalk"), "thing": ("car", "pole"), "rider": ("bicyclist", "rider")}
INPUTS = InputConfig(source=Geometry(size=(32, 48)), target=Geometry(size=(32, 48)))


def mapped(label: np.ndarray) -> np.ndarray:
    table = np.full(256, 255, np.uint8)
    for i, members in enumerate(TASK.values()):
        for member in members:
            if member in CAMVID.names:
                table[CAMVID.names.index(member)] = i
    return table[label]


@pytest.mark.parametrize("engine", ["torch", pytest.param("dali", marks=pytest.mark.dali)])
def test_classes_are_merged_and_others_ignored(camvid_root: Path, engine: str) -> None:
    own = open_dataset(f"camvid:{camvid_root}", "train")
    dataset = open_dataset(f"camvid:{camvid_root}", "train", classes=TASK)
    assert dataset.classes.names == ("way", "thing", "rider")
    assert dataset.classes.palette[0] == CAMVID.palette[CAMVID.names.index("road")]
    assert all(np.array_equal(a.label, mapped(b.label)) for a, b in zip(dataset, own, strict=True))
    loader = TrainLoader(dataset, Geometry(size=(24, 32)), 1, 0, "x", engine=engine)
    batch = next(iter(loader.batches()))
    (index,) = [i for i in range(len(own)) if own.id(i) == batch.ids[0]]
    assert np.array_equal(batch.label[0], dataset[index].label)


def test_datasets_without_files_take_them() -> None:
    streets = open_dataset("streets:sim", "val", size=(32, 48), classes=TASK)
    own = open_dataset("streets:sim", "val", size=(32, 48))
    road = own.classes.names.index("road")
    assert ((streets[0].label == 0) >= (own[0].label == road)).all()
    assert streets.unlabelled(0).label is None
    assert streets.id(1) == own.id(1)


def test_domains_of_other_classes_train_together(camvid_root: Path) -> None:
    def opened(classes: dict[str, tuple[str, ...]] | None) -> Domains:
        config = DataConfig("streets:sim", f"camvid:{camvid_root}", classes=classes)
        return Domains.open(config, INPUTS, needed={"source", "unlabelled"}, optional=set(), recipe="udas")

    domains = opened(TASK)
    assert domains.classes().names == tuple(TASK)
    with pytest.raises(InputError, match="--classes FILE makes them of both by name"):
        opened(None).classes()
    wrong = {**TASK, "thing": ("caar", "pole")}
    with pytest.raises(InputError) as refused:
        opened(wrong)
    assert str(refused.value) == (
        "classes of the task: found 'caar' (did you mean 'car'?), expected classes of one of the domains"
    )


def test_a_dataset_with_none_of_the_classes_is_refused(camvid_root: Path) -> None:
    with pytest.raises(
        InputError, match="classes of the task in camvid: found none of its own, expected some of sky"
    ):
        with_classes(open_dataset(f"camvid:{camvid_root}", "train"), {"a": ("x",), "b": ("y",)})
    assert unknown_names({"a": ("x", "sky")}, [CAMVID]) == ["'x'"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vehicle: [car, bus]\nway: road", None),
        ("- car", "found list, expected classes of the task"),
        ("vehicle: []\nb: x", "vehicle: found \\[\\], expected names of classes, one or a list"),
        ("vehicle: 3\nb: x", "vehicle: found 3, expected names"),
        ("vehicle: car\nb: car", "car: found it in vehicle and in b, expected each in one class"),
        ("vehicle: car", "found 1 names, expected 2 to 255"),
        (None, "task.yaml: found no such file"),
    ],
)
def test_a_task_file(tmp_path: Path, text: str | None, message: str | None) -> None:
    path = tmp_path / "task.yaml"
    if text is not None:
        path.write_text(text)
    if message is None:
        assert read_task(path) == {"vehicle": ("car", "bus"), "way": ("road",)}
        return
    with pytest.raises(InputError, match=message):
        read_task(path)
