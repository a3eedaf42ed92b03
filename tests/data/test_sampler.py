"""Order of images: epochs, processes, rare classes, subsets; all are functions of the draw."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from udas_fast.data import CAMVID, Geometry, RareClasses, TrainLoader, check_dataset, open_dataset
from udas_fast.data.sampler import Sampler, labelled_subset
from udas_fast.errors import InputError


@settings(max_examples=60, deadline=None)
@given(
    length=st.integers(1, 40),
    batch=st.integers(1, 5),
    world=st.integers(1, 4),
    seed=st.integers(0, 99),
    start=st.integers(0, 30),
)
def test_processes_divide_the_draws_of_one(length, batch, world, seed, start):
    alone = Sampler(length, batch * world, seed, "s")
    ranks = [Sampler(length, batch, seed, "s", rank, world) for rank in range(world)]
    for step in range(start, start + 4):
        parts = [[r.image_index(n) for n in r.draws(step)] for r in ranks]
        assert list(itertools.chain(*parts)) == [alone.image_index(n) for n in alone.draws(step)]
        assert all(len(part) == batch for part in parts)
        assert {r.global_batch for r in ranks} == {alone.global_batch}


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 60), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_an_epoch_holds_each_image_once(length, seed, epoch):
    sampler = Sampler(length, 1, seed, "s")
    drawn = [sampler.image_index(n) for n in range(epoch * length, (epoch + 1) * length)]
    assert sorted(drawn) == list(range(length))
    if length > 20:
        assert drawn != [sampler.image_index(n) for n in range((epoch + 1) * length, (epoch + 2) * length)]


def test_draws_are_pinned():
    # A change here changes every published run.
    sampler = Sampler(6, 2, 7, "source")
    assert [sampler.image_index(n) for n in range(6)] == [3, 1, 0, 2, 4, 5]
    assert labelled_subset(10, 4, 0).tolist() == labelled_subset(10, 9, 0)[:4].tolist()


def test_wrong_numbers():
    for numbers, message in (
        ((0, 1, 0, "s"), "data of s: found no images"),
        ((5, 0, 0, "s"), "batch size of s: found 0"),
        ((5, 1, 0, "s", 2, 2), "rank of s: found 2, expected 0 to 1"),
    ):
        with pytest.raises(InputError, match=message):
            Sampler(*numbers)


PIXELS = np.array([[900, 100, 0, 0], [800, 0, 50, 3], [950, 0, 0, 2], [700, 200, 60, 0]], np.int64)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_rare_classes_have_the_frequencies_of_daformer(temperature):
    # Equations 5 and 6 of DAFormer; class 3 never has 10 pixels and is omitted.
    share = PIXELS.sum(0)[:3] / PIXELS.sum()
    expected = np.exp((1 - share) / temperature) / np.exp((1 - share) / temperature).sum()
    images = np.zeros(4)
    for c, shown in enumerate(([0, 1, 2, 3], [0, 3], [1, 3])):
        images[shown] += expected[c] / len(shown)
    n = 4000
    sampler = Sampler(4, 1, 0, "rare", rare_classes=RareClasses(PIXELS, temperature, min_pixels=10))
    drawn = np.array([sampler.image_index(draw) for draw in range(n)])
    found = np.bincount(drawn, minlength=4)
    assert (np.abs(found - n * images) <= 4.5 * np.sqrt(n * images * (1 - images)) + 1).all()
    assert [sampler.image_index(draw) for draw in range(50, 60)] == drawn[50:60].tolist()


def test_rare_classes_of_a_dataset(make_dataset):
    ids = [np.full((8, 8), 3, np.uint8) for _ in range(6)]
    ids[4][:4] = 10
    root, *_ = make_dataset("camvid", ids)
    dataset = open_dataset(f"camvid:{root}", "train")
    report = check_dataset(dataset)
    assert report.pixels.shape == (6, 11)
    assert report.pixels[4, [3, 10]].tolist() == [32, 32]
    loader = TrainLoader(
        dataset, Geometry(size=(8, 8)), 2, 0, "s", rare_classes=RareClasses(report.pixels, 0.01, 16)
    )
    drawn = Counter(i for batch in itertools.islice(loader.batches(), 30) for i in batch.ids)
    assert drawn[dataset.samples[4].id] == 60  # at this temperature only the rare class is drawn
    with pytest.raises(InputError, match="rare-class sampling: found no labelled pixel in any image"):
        RareClasses(0 * report.pixels)
    with pytest.raises(InputError, match="temperature of rare-class sampling: found 0"):
        RareClasses(report.pixels, 0)


def test_no_image_is_dropped_where_none_shows_a_class_often_enough(make_dataset):
    ids = [np.full((8, 8), 3, np.uint8) for _ in range(4)]
    ids[1][:4] = 10
    ids[2][:3] = 5
    ids[3][:] = 11  # void
    root, *_ = make_dataset("camvid", ids)
    report = check_dataset(open_dataset(f"camvid:{root}", "train"))
    for options in ({}, {"min_pixels": 65}, {"min_pixels": 40}):  # 64 pixels, where DAFormer asks for 3000
        rare = RareClasses(report.pixels, 1.0, **options)
        assert {index for images in rare.images for index in images} == {0, 1, 2}
    names = CAMVID.names
    assert rare.notices(names) == [
        "classes that are never drawn: sky (in no label), building (in no label), pole (in no label), "
        "pavement (in no label), tree (at most 24 of the 40 pixels that an image needs), sign (in no label), "
        "fence (in no label), car (in no label), pedestrian (in no label), bicyclist (at most 32 of the 40 pixels "
        "that an image needs)",
        "images that are never drawn, as they have no labelled pixel: 1",
    ]


@pytest.mark.parametrize(("size", "factor"), [((1052, 1914), 1.0), ((526, 957), 0.25), ((360, 480), 0.0858)])
def test_daformers_numbers_scale_with_the_area_from_those_of_gta5(size, factor):
    least = 3000 * size[0] * size[1] / (1052 * 1914)
    assert least == pytest.approx(3000 * factor, rel=1e-3)
    pixels = np.array([[size[0] * size[1], math.ceil(least)], [size[0] * size[1], math.ceil(least) - 1]])
    area = np.array([size[0] * size[1]] * 2)
    rare = RareClasses(pixels, areas=area, size=(720, 1280))
    assert [images.tolist() for images in rare.images] == [[0, 1], [0]]
    assert rare.min_in_crop == 1500  # DAFormer's, of images resized to 720 x 1280
    hrda = RareClasses(pixels, areas=area, size=(1440, 2560))
    assert hrda.min_in_crop == 3000 * 2.0  # HRDA's code sets min_crop_ratio to 2 for four times the area


def test_crops_are_drawn_until_they_show_the_rare_class():
    # DAFormer's loop: up to ten more crops, the first with more than ratio * min_pixels of the class wins.
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, (4, 6, 8), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    pixels = np.stack([(labels == c).sum((1, 2)) for c in range(3)], 1)
    rare = RareClasses(pixels, temperature=1.0, min_pixels=40, min_crop_ratio=1.5)
    geometry = Geometry(size=(24, 32), scale=(0.5, 2.0), crop=(10, 12), flip=True)
    sampler, anyhow = Sampler(4, 1, 0, "rare", rare_classes=rare), Sampler(4, 1, 0, "rare")
    assert sampler.needs_labels(geometry)
    tries = []
    for draw in range(200):
        index = sampler.image_index(draw)
        c, again = rare.draw(sampler.generator("rare class", draw))
        assert again == index
        crops, numbers = [], sampler.generator("augment", draw)
        for _ in range(11):
            crops.append(geometry.sample(numbers))
            shown = crops[-1].apply(np.zeros((24, 32, 3), np.uint8), labels[index])[1]
            if (shown == c).sum() > 60:
                break
        assert sampler.sample_geometry(geometry, draw, labels[index]) == crops[-1]
        assert sampler.sample_geometry(geometry, draw, labels[index]) == crops[-1]  # no state
        assert anyhow.sample_geometry(geometry, draw, labels[index]) == crops[0]
        tries.append(len(crops))
    assert {1, 2, 11} <= set(tries)


def test_crops_stay_as_they_are_without_a_crop_or_a_ratio():
    whole, cut = Geometry(size=(8, 8)), Geometry(size=(8, 8), crop=(4, 4))
    rare = {ratio: RareClasses(PIXELS, min_pixels=10, min_crop_ratio=ratio) for ratio in (0, 0.5)}
    looks = {
        (ratio, geometry.crop): Sampler(4, 1, 0, "s", rare_classes=rare[ratio]).needs_labels(geometry)
        for ratio in rare
        for geometry in (whole, cut)
    }
    assert looks == {(0, None): False, (0, (4, 4)): False, (0.5, None): False, (0.5, (4, 4)): True}
    with pytest.raises(
        InputError, match="min_crop_ratio of rare-class sampling: found -1, expected 0 or more"
    ):
        RareClasses(PIXELS, min_crop_ratio=-1)
