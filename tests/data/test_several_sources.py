"""Several sources in one run: the shares of their images among the draws, what is read, and errors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from udas_fast.data import CAMVID, Geometry, TrainLoader, check_dataset
from udas_fast.data.classes import make_class_set
from udas_fast.data.datasets import Joined
from udas_fast.data.domains import DataConfig
from udas_fast.data.sampler import Sampler
from udas_fast.data.streets import Streets
from udas_fast.data.types import Sample, SegmentationDataset
from udas_fast.errors import InputError

LENGTHS, SHARES = (5, 7, 3), (3.0, 1.0, 2.0)


class Numbered(SegmentationDataset):
    """``length`` images of one value each, which is also their label."""

    def __init__(self, name: str, length: int, value: int) -> None:
        self.name, self.length, self.value, self.classes = name, length, value, CAMVID

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Sample:
        image = np.full((4, 6, 3), self.value, np.uint8)
        return Sample(image, image[..., 0].copy(), f"{self.name}-{index}")


@pytest.fixture
def joined() -> Joined:
    return Joined([Numbered("abc"[i], n, i) for i, n in enumerate(LENGTHS)], SHARES)


def _sampler(**changes: int) -> Sampler:
    values = {"length": sum(LENGTHS), "batch_size": 4, "seed": 0, "name": "source", **changes}
    return Sampler(**values, parts=tuple(zip(LENGTHS, SHARES, strict=True)))


def test_every_part_gets_its_share_of_any_number_of_draws() -> None:
    sampler = _sampler()
    parts = np.repeat(range(3), LENGTHS)
    drawn = parts[[sampler.image_index(draw) for draw in range(500)]]
    counts = np.stack([(drawn == part).cumsum() for part in range(3)], 1)
    expected = np.arange(1, 501)[:, None] * np.array(SHARES) / sum(SHARES)
    assert np.abs(counts - expected).max() < 2


def test_the_images_of_a_part_come_once_a_round() -> None:
    sampler = _sampler()
    drawn = [sampler.image_index(draw) for draw in range(600)]
    for first, last in ((0, 5), (5, 12), (12, 15)):
        own = [index for index in drawn if first <= index < last]
        rounds = [own[i : i + last - first] for i in range(0, len(own) - (last - first), last - first)]
        assert all(sorted(one) == list(range(first, last)) for one in rounds)
        assert len({tuple(one) for one in rounds}) > 1  # in another order


def test_processes_share_the_same_draws() -> None:
    whole = _sampler(batch_size=4)
    halves = [_sampler(batch_size=2, rank=rank, world_size=2) for rank in range(2)]
    for step in range(20):
        together = [h.image_index(draw) for h in halves for draw in h.draws(step)]
        assert together == [whole.image_index(draw) for draw in whole.draws(step)]


def test_a_loader_draws_by_the_shares(joined: Joined) -> None:
    loader = TrainLoader(joined, Geometry(size=(4, 6)), 6, 0, "source")
    batches = loader.batches()
    drawn = Counter(name[0] for _ in range(10) for name in next(batches).ids)
    assert drawn == {"a": 30, "b": 10, "c": 20}
    resumed = next(loader.batches(start_step=10))
    assert next(batches).ids == resumed.ids


def test_the_images_are_those_of_the_parts(joined: Joined) -> None:
    assert len(joined) == 15
    assert joined.name == "a + b + c"
    assert [joined.id(i) for i in (0, 4, 5, 11, 12, 14)] == ["a-0", "a-4", "b-0", "b-6", "c-0", "c-2"]
    assert [joined[i].label.max() for i in (4, 5, 14)] == [0, 1, 2]
    assert joined.unlabelled(5).label is None
    assert len(list(joined)) == 15
    assert check_dataset(joined).counts.tolist()[:3] == [24 * n for n in LENGTHS]


def test_names_with_shares(tmp_path: Path) -> None:
    several = DataConfig(source=("gta5:a", f"synthia:{tmp_path}=0.5", "folder:x=y"))
    assert several.sources == {"gta5:a": 1.0, f"synthia:{tmp_path}": 0.5, "folder:x=y": 1.0}
    again = several.absolute()
    assert again.source[1] == f"synthia:{tmp_path}=0.5"
    assert list(again.sources.values()) == [1.0, 0.5, 1.0]
    assert again.absolute() == again
    assert DataConfig(source="folder:a=2").sources == {"folder:a=2": 1.0}  # the folder a=2
    with pytest.raises(InputError, match="--source: found gta5:a, gta5:a=2, expected different datasets"):
        _ = DataConfig(source=("gta5:a", "gta5:a=2")).sources


def test_other_classes_and_shares_are_refused() -> None:
    other = Numbered("b", 2, 0)
    other.classes = make_class_set("classes", "other", ("road", "sky"))
    with pytest.raises(InputError, match=r"classes of source b: found .*--classes FILE makes them of both"):
        Joined([Numbered("a", 2, 0), other], (1, 1))
    for share in (0, -1, float("nan"), float("inf")):
        with pytest.raises(
            InputError, match="share of source streets-sim: found .*, expected a number above 0"
        ):
            Joined([Streets("sim", "train")], (share,))
