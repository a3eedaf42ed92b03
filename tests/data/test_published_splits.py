"""The lists in udas_fast/data/splits: halves in time, nothing shared, and the nested labelled subsets that runs use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udas_fast.data import open_dataset, subset
from udas_fast.data.factory import published_ids
from udas_fast.errors import InputError

CAMVID = Path(__file__).resolve().parents[2] / "../shared/data/camvid"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """Return a small CamVid with every published name: labels, and empty image files, which are not opened here."""
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    blank = tmp_path / "blank.png"
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(blank)
    for name in published_ids("camvid-labels.txt"):
        (tmp_path / "images/train" / f"{name}.jpg").touch()
        (tmp_path / "labels/train" / f"{name}.png").hardlink_to(blank)
    return tmp_path


def _ids(root: Path, kind: str, split: str = "train") -> list[str]:
    dataset = open_dataset(f"{kind}:{root}", split)
    return [dataset.files(i).id for i in range(len(dataset))]


def test_day_and_dusk_divide_camvid(listed: Path) -> None:
    day, pool, val = (
        _ids(listed, "camvid-day"),
        _ids(listed, "camvid-dusk"),
        _ids(listed, "camvid-dusk", "val"),
    )
    assert (len(day), len(pool), len(val)) == (305, 31, 31)
    assert sorted([*day, *pool, *val]) == _ids(listed, "camvid")
    assert {name[:6] for name in day} == {"0006R0", "0016E5"}
    assert {name[:6] for name in (*pool, *val)} == {"0001TP"}
    assert max(pool) < min(val)  # halves in time: the frame's number is in the name


def test_no_drive_is_in_training_and_validation(listed: Path) -> None:
    for kind, ending in (("images", "jpg"), ("labels", "png")):
        (listed / kind / "val").mkdir()
        (listed / kind / "val" / f"0016E5_07959.{ending}").hardlink_to(listed / "blank.png")
    train = _ids(listed, "camvid-drives")
    assert {name[:6] for name in train} == {"0001TP", "0006R0"}
    assert train == [name for name in _ids(listed, "camvid") if not name.startswith("0016E5")]
    assert _ids(listed, "camvid-drives", "val") == ["0016E5_07959"]


@pytest.mark.parametrize("kind", ["camvid", "camvid-dusk", "camvid-drives"])
def test_labelled_subsets_are_the_published_order_and_nested(kind: str, listed: Path) -> None:
    order = published_ids(f"{kind}-labels.txt")
    pool = open_dataset(f"{kind}:{listed}", "train")
    assert sorted(order) == [pool.files(i).id for i in range(len(pool))]
    for n in (1, 10, 20, len(pool)):
        chosen = subset(pool, n)
        assert sorted(order[:n]) == [chosen.files(i).id for i in range(n)]


def test_a_listed_image_that_is_missing_is_named(listed: Path) -> None:
    missing = published_ids("camvid-dusk-val.txt")[3]
    (listed / "images/train" / f"{missing}.jpg").unlink()
    with pytest.raises(InputError, match=rf"camvid-dusk-val.*no {missing} \(1 of 31 missing\)"):
        open_dataset(f"camvid-dusk:{listed}", "val")
    assert len(open_dataset(f"camvid-dusk:{listed}", "train")) == 31


@pytest.mark.skipif(not CAMVID.is_dir(), reason="CamVid is not here")
def test_the_lists_are_camvids_training_images() -> None:
    names = {path.stem for path in (CAMVID / "images/train").iterdir()}
    assert names == set(published_ids("camvid-labels.txt"))
