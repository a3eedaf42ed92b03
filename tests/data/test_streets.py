"""Streets: scenes depend on style, split and index alone, labels agree with images, and the styles differ."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udas_fast.data import CITYSCAPES
from udas_fast.data.streets import Streets
from udas_fast.errors import InputError

SMALL = (48, 96)
SCENES = 300
STYLES = ("sim", "real")
NAMES = {name: i for i, name in enumerate(CITYSCAPES.names)}


def digest(*arrays: np.ndarray) -> str:
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays)).hexdigest()


@pytest.fixture(scope="module")
def scenes() -> dict[str, list]:
    return {style: [Streets(style, "train", SMALL, SCENES)[i] for i in range(SCENES)] for style in STYLES}


def test_a_scene_is_the_same_in_any_order_instance_and_process():
    forward, backward = Streets("real", "train", SMALL, 9), Streets("real", "train", SMALL, 500)
    first = [digest(forward[i].image, forward[i].label) for i in range(6)]
    second = [digest(backward[i].image, backward[i].label) for i in reversed(range(6))][::-1]
    assert first == second
    code = (
        "import hashlib; from udas_fast.data.streets import Streets\n"
        "s = Streets('real', 'train', (48, 96))[4]\n"
        "print(hashlib.sha256(s.image.tobytes() + s.label.tobytes()).hexdigest())"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2]), "PYTHONHASHSEED": "7"}
    other = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == first[4]


def test_writing_into_a_sample_does_not_change_the_next_one():
    streets = Streets("sim", "val", SMALL)
    first = streets[3]
    kept = digest(first.image, first.label)
    first.image[:] = 0
    first.label[:] = 0
    assert digest(streets[3].image, streets[3].label) == kept


def test_styles_and_splits_share_no_scene():
    labels = [
        digest(Streets(style, split, SMALL)[i].label)
        for style in STYLES
        for split in ("train", "val")
        for i in range(40)
    ]
    assert len(set(labels)) == len(labels)


@pytest.mark.parametrize("style", STYLES)
def test_hundreds_of_scenes_are_all_distinct(style, scenes):
    beyond = Streets(style, "train", SMALL, 5000)
    labels = [s.label for s in scenes[style]] + [beyond[i].label for i in range(4800, 5000)]
    assert len({digest(label) for label in labels}) == 500


@pytest.mark.parametrize("style", STYLES)
def test_all_classes_occur_and_nothing_else(style, scenes):
    counts = sum(np.bincount(s.label.ravel(), minlength=256) for s in scenes[style])
    assert (counts[:19] > 0).all()
    assert counts[255] > 0
    assert counts[19:255].sum() == 0
    present = np.stack([np.isin(np.arange(19), s.label) for s in scenes[style]]).mean(0)
    assert present.min() >= 0.05
    assert present[NAMES["train"]] < 0.5


def test_ids_lengths_and_indices():
    streets = Streets("sim", "train", SMALL, 13)
    assert len(streets) == 13
    assert streets[12].id == "streets-sim-train-000012"
    assert streets[-1].id == streets[12].id
    assert streets.classes is CITYSCAPES
    assert streets.unlabelled(0).label is None
    with pytest.raises(IndexError):
        streets[13]


@settings(max_examples=25, deadline=None)
@given(
    style=st.sampled_from(STYLES),
    size=st.tuples(st.integers(32, 160), st.integers(32, 240)),
    index=st.integers(0, 10_000),
)
def test_any_size_gives_a_complete_picture(style, size, index):
    sample = Streets(style, "train", size, 10_001)[index]
    assert sample.image.shape == (*size, 3)
    assert sample.label.shape == size
    assert sample.image.dtype == sample.label.dtype == np.uint8
    assert set(np.unique(sample.label)) <= {*range(19), 255}
    assert sample.image.std() > 3


def test_a_large_picture():
    sample = Streets("real", "val", (720, 1280))[0]
    assert sample.image.shape == (720, 1280, 3)
    assert len(np.unique(sample.label)) > 6


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(("small", "factor"), [((96, 192), 2), ((45, 80), 8)])
def test_the_layout_does_not_depend_on_the_size(style, small, factor):
    little = Streets(style, "val", small)
    big = Streets(style, "val", (small[0] * factor, small[1] * factor))
    for i in range(8):
        middle = slice(factor // 2, None, factor)
        agree = (big[i].label[middle, middle] == little[i].label).mean()
        assert agree > 0.93


@pytest.mark.parametrize("style", STYLES)
def test_the_geometry_is_a_street(style, scenes):
    labels = np.stack([s.label for s in scenes[style]])
    rows = np.arange(SMALL[0])[None, :, None]

    def height(name: str) -> float:
        return float((rows * (labels == NAMES[name])).sum() / (labels == NAMES[name]).sum())

    assert height("sky") < height("building") < height("car") < height("road")
    road, sky = labels == NAMES["road"], labels == NAMES["sky"]
    lowest_sky = np.where(sky, rows, -1).max(1)
    highest_road = np.where(road, rows, SMALL[0]).min(1)
    assert (lowest_sky < highest_road).all()
    assert 0.2 < road.mean() < 0.45
    assert road[:, SMALL[0] * 3 // 4, SMALL[1] // 2].mean() > 0.8
    walk = (labels == NAMES["sidewalk"]).mean((0, 1))
    assert walk[: SMALL[1] // 4].mean() > 3 * walk[SMALL[1] * 2 // 5 : SMALL[1] // 2].mean()


def test_image_and_label_share_their_outlines(scenes):
    """In the flat style, colour steps are far larger across a label boundary than within a region."""
    across, within = [], []
    for sample in scenes["sim"][:100]:
        step = np.abs(np.diff(sample.image.astype(np.int64), axis=1)).sum(2)
        edge = sample.label[:, 1:] != sample.label[:, :-1]
        across.append(step[edge].mean())
        within.append(step[~edge].mean())
    assert np.mean(across) > 5 * np.mean(within)


def test_a_rider_rides():
    """Nearly every scene with a rider shows a motorcycle or a bicycle; a few are occluded."""
    together = alone = 0
    for i in range(60):
        label = Streets("sim", "train", (96, 192))[i].label
        if (label == NAMES["rider"]).sum() > 60:
            found = np.isin(label, (NAMES["motorcycle"], NAMES["bicycle"])).any()
            together, alone = together + found, alone + (not found)
    assert together > 10
    assert alone <= 0.1 * together


def test_the_styles_look_different(scenes):
    """Real scenes are paler and grainier than sim scenes; classes cover about the same share of both."""

    def looks(style: str) -> tuple[float, float, float]:
        images = np.stack([s.image for s in scenes[style]]).astype(np.int64)
        labels = np.stack([s.label for s in scenes[style]])
        saturation = (images.max(3) - images.min(3)).mean()
        step = np.abs(np.diff(images, axis=2)).sum(3)
        return saturation, *(np.median(step[labels[:, :, 1:] == NAMES[n]]) for n in ("road", "building"))

    (sim_colour, *sim_grain), (real_colour, *real_grain) = looks("sim"), looks("real")
    assert sim_colour > 1.5 * real_colour
    assert all(real >= sim + 8 for sim, real in zip(sim_grain, real_grain, strict=True))
    shares = [
        np.bincount(np.concatenate([s.label.ravel() for s in scenes[style]]), minlength=256)[:19]
        for style in STYLES
    ]
    share = [s / s.sum() for s in shares]
    assert np.abs(share[0] - share[1]).sum() < 0.2


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("gta", "train"), "style"),
        (("sim", "test"), "split"),
        (("sim", "train", (16, 96)), "size"),
        (("sim", "train", (96, 192.5)), "size"),
        (("sim", "train", (96, 192), 0), "count"),
    ],
)
def test_wrong_arguments_are_named(arguments, named):
    with pytest.raises(InputError, match=named):
        Streets(*arguments)
