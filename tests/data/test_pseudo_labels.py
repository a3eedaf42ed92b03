"""Pseudo-labels on disk: thresholds of the whole set, files that are kept, and the labels that training reads."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from udas_fast.data import (
    Geometry,
    PseudoLabelDataset,
    PseudoLabelFolder,
    TrainLoader,
    Unlabelled,
    open_dataset,
    with_labels,
)
from udas_fast.data.pseudo_labels import label_path, read_summary
from udas_fast.errors import InputError

CLASSES, SHAPE = 11, (24, 32)


def _maps(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [
        (rng.integers(0, CLASSES - 1, SHAPE, dtype=np.uint8), rng.random(SHAPE).astype(np.float32))
        for _ in range(count)
    ]


def _half(histogram: np.ndarray) -> np.ndarray:
    """Return thresholds that depend on the whole set; one is not a multiple of a 256th."""
    middle = histogram * (np.arange(64) + 0.5) / 64
    return np.where(histogram.sum(1) > 0, middle.sum(1) / histogram.sum(1).clip(1), 0.9)


def _fill(folder: PseudoLabelFolder, maps: list[tuple[np.ndarray, np.ndarray]]) -> list[int]:
    missing = folder.missing()
    for index in missing:
        folder.add(index, *maps[index])
    folder.finish(_half)
    return missing


def test_thresholds_are_those_of_all_images(camvid_root: Path, tmp_path: Path) -> None:
    dataset, maps = open_dataset(f"camvid:{camvid_root}", "train", labelled=False), _maps(4)
    _fill(folder := PseudoLabelFolder(tmp_path / "labels", dataset, "key"), maps)
    assert folder.complete
    assert not folder.raw.exists()
    labels, confidences = (np.stack(part) for part in zip(*maps, strict=True))
    found = np.stack([PseudoLabelDataset(dataset, tmp_path / "labels").label(i) for i in range(4)])
    summary = read_summary(tmp_path / "labels")
    for c in range(CLASSES):
        mine = labels == c
        bins = np.floor(64 * confidences[mine].astype(float)) if mine.any() else np.zeros(0)
        threshold = ((bins + 0.5) / 64).mean() if mine.any() else 0.9
        threshold = np.ceil(256 * threshold) / 256
        assert summary["threshold"][c] == threshold
        kept = mine & (confidences >= threshold)
        assert (found[kept] == c).all()
        assert (found[mine & ~kept] == 255).all()
        histogram = np.array(summary["histogram"][c])
        assert histogram[0].sum() == kept.sum()
        assert (histogram.sum(0) == np.bincount(bins.astype(int), minlength=64)).all()


def test_readable_files_are_kept_and_others_written_again(camvid_root: Path, tmp_path: Path) -> None:
    dataset, maps = open_dataset(f"camvid:{camvid_root}", "train", labelled=False), _maps(4)
    _fill(PseudoLabelFolder(tmp_path / "whole", dataset, "key"), maps)
    stopped = PseudoLabelFolder(tmp_path / "stopped", dataset, "key")
    for index in stopped.missing()[:3]:
        stopped.add(index, *maps[index])
    damaged = label_path(stopped.raw, 1)
    damaged.write_bytes(damaged.read_bytes()[:-30])
    assert not stopped.complete
    assert _fill(PseudoLabelFolder(tmp_path / "stopped", dataset, "key"), maps) == [1, 3]
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "stopped" / path.name).read_bytes()
    assert not PseudoLabelFolder(tmp_path / "stopped", dataset, "other").complete
    assert PseudoLabelFolder(tmp_path / "stopped", dataset, "other").missing() == [0, 1, 2, 3]


def test_no_flipped_bit_gives_other_labels(camvid_root: Path, tmp_path: Path) -> None:
    """Of the files of an interrupted round, which Pillow reads without their checksums."""
    dataset, maps = open_dataset(f"camvid:{camvid_root}", "train", labelled=False), _maps(4)
    _fill(PseudoLabelFolder(tmp_path / "whole", dataset, "key"), maps)
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    rng = np.random.default_rng(0)
    for _ in range(60):
        stopped = PseudoLabelFolder(tmp_path / "stopped", dataset, "key")
        for index in stopped.missing():
            stopped.add(index, *maps[index])
        path = rng.choice(sorted(stopped.raw.iterdir()))
        data = bytearray(path.read_bytes())
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        _fill(PseudoLabelFolder(tmp_path / "stopped", dataset, "key"), maps)
        assert whole == {path.name: path.read_bytes() for path in (tmp_path / "stopped").iterdir()}
        shutil.rmtree(tmp_path / "stopped")


def test_a_damaged_summary_is_no_traceback(camvid_root: Path, tmp_path: Path) -> None:
    dataset, maps = open_dataset(f"camvid:{camvid_root}", "train", labelled=False), _maps(4)
    folder = PseudoLabelFolder(tmp_path / "labels", dataset, "key")
    _fill(folder, maps)
    path = tmp_path / "labels/summary.json"
    data = path.read_bytes()
    for damaged in (
        b"",
        b"[]",
        b"{}",
        b"\xff" + data,
        data.replace(b'"images": 4', b'"images": 5'),
        b"[" * 9**5,
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="summary.json"):
            read_summary(tmp_path / "labels")
        assert not folder.complete
    assert _fill(folder, maps) == [0, 1, 2, 3]
    assert path.read_bytes() == data


@pytest.mark.parametrize("engine", ["torch", pytest.param("dali", marks=pytest.mark.dali)])
def test_labels_take_the_geometry_of_their_image(
    engine: str, camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = camvid_folder("data")
    dataset = Unlabelled(open_dataset(f"camvid:{root}", "train"))
    coded = []  # the red channel encodes the label
    for index in range(4):
        label = np.asarray(Image.open(root / f"labels/train/{index:04d}.png"))
        coded.append(
            (np.where(label < CLASSES, label, 0).astype(np.uint8), (label < CLASSES).astype(np.float32))
        )
    folder = PseudoLabelFolder(tmp_path / "pseudo", dataset, "key")
    for index in folder.missing():
        folder.add(index, *coded[index])
    folder.finish(lambda _: np.full(CLASSES, 0.5))
    loader = TrainLoader(
        PseudoLabelDataset(dataset, tmp_path / "pseudo"),
        Geometry(size=(48, 64), crop=(40, 72), flip=True),  # twice the size, cut and padded
        batch_size=2,
        seed=0,
        name="pseudo",
        engine=engine,
    )
    for batch in itertools.islice(loader.batches(), 4):
        known = batch.label != 255
        # bilinear: the middle of each block of eight pixels is its colour, give or take DALI's rounding
        agree = (batch.image[:, 0].int() - 20 * batch.label.int()).abs() <= 1
        assert agree[known].float().mean() > 0.5
        assert (batch.image.sum(1)[~known] == 0).any()  # the padding
        truth = [PseudoLabelDataset(dataset, tmp_path / "pseudo")[int(i)].label for i in batch.ids]
        for label, native, geometry in zip(batch.label, truth, batch.geometries, strict=True):
            _, expected = geometry.apply(np.zeros((*SHAPE, 3), np.uint8), native)
            assert torch.equal(label, torch.from_numpy(expected))


def test_hidden_labels_are_for_reports_alone(camvid_root: Path) -> None:
    labelled = open_dataset(f"camvid:{camvid_root}", "train")
    hidden = Unlabelled(labelled)
    assert hidden[0].label is None
    assert hidden.unlabelled(1).label is None
    assert hidden.files(0).label is None
    assert with_labels(hidden) is labelled
    assert with_labels(open_dataset(f"camvid:{camvid_root}", "train", labelled=False)) is None
