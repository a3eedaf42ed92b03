"""DALI engine against the torch engine: the same images, geometry, labels and views; resuming of both."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from udas_fast.data import (
    BadFile,
    Batch,
    Geometry,
    RareClasses,
    TrainLoader,
    Unlabelled,
    augment,
    check_dataset,
    choose_engine,
    open_dataset,
)
from udas_fast.data.augment import PHOTOMETRIC
from udas_fast.data.domains import Domains
from udas_fast.data.labels import IdMap
from udas_fast.data.sampler import Sampler
from udas_fast.errors import InputError
from udas_fast.recipes import InputConfig

pytestmark = pytest.mark.dali

GEOMETRY = Geometry(size=(60, 80), scale=(0.5, 2.0), crop=(50, 90), flip=True)
SHARED = Path(__file__).resolve().parents[2] / "../shared/data/rendered"


def smooth(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    small = rng.integers(0, 256, (size[0] // 8 + 2, size[1] // 8 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


@pytest.fixture
def make(make_dataset):
    """Return ``make(kind)``, which writes nine images of different sizes with ids that the kind declares."""

    def build(kind: str, highest: int = 11):
        rng = np.random.default_rng(0)
        sizes = [(int(h), int(w)) for h, w in rng.integers(30, 120, (9, 2))]
        root, *_ = make_dataset(kind, [rng.integers(0, highest, size, dtype=np.uint8) for size in sizes])
        dataset = open_dataset(f"{kind}:{root}", "train")
        for sample in dataset.samples:
            size = np.asarray(Image.open(sample.image)).shape[:2]
            Image.fromarray(smooth(rng, size)).save(sample.image)
        return dataset

    return build


def take(dataset, engine: str, count: int, start: int = 0, *, batch: int = 2, workers: int = 0, **options):
    geometry = options.pop("geometry", GEOMETRY)
    loader = TrainLoader(dataset, geometry, batch, 3, "parity", workers, engine=engine, **options)
    return list(itertools.islice(loader.batches(start), count))


def equal(a: Batch, b: Batch) -> bool:
    same = [torch.equal(x, y) for x, y in zip(a.tensors(), b.tensors(), strict=True)]
    return a.ids == b.ids and a.geometries == b.geometries and all(same)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "highest"), [("camvid", 12), ("gta5", 35), ("synthia", 23), ("cityscapes", 34)]
)
def test_labels_are_identical_in_every_format_and_geometry(make, kind, highest):
    dataset = make(kind, highest)
    for geometry in (GEOMETRY, Geometry(size=(45, 64), flip=True), Geometry(size=(200, 31))):
        for a, b in zip(*(take(dataset, e, 9, geometry=geometry) for e in ("torch", "dali")), strict=True):
            assert a.ids == b.ids
            assert a.geometries == b.geometries
            assert b.label.dtype == torch.uint8
            assert torch.equal(a.label, b.label)


def test_gta5_labels_of_another_size_are_resized_in_both_engines(make):
    """As downloaded, some of GTA5's labels differ in size from their image, and every public loader resizes both."""
    dataset = make("gta5", 35)
    sample = dataset.samples[0]
    whole = Image.open(sample.label)
    height, width = dataset[0].image.shape[:2]
    smaller = whole.resize((width - 7, height - 3), Image.Resampling.NEAREST)
    smaller.save(sample.label)
    wanted = np.asarray(smaller.resize((width, height), Image.Resampling.NEAREST))
    assert np.array_equal(dataset[0].label, dataset.id_map.table[wanted])
    report = check_dataset(dataset)
    report.require_clean()
    notice = f"labels of another size than their image, to which they are resized: 1 ({sample.id})"
    assert notice in report.notices()
    for geometry in (GEOMETRY, Geometry(size=(45, 64), flip=True), Geometry(size=(height, width))):
        for a, b in zip(*(take(dataset, e, 9, geometry=geometry) for e in ("torch", "dali")), strict=True):
            assert torch.equal(a.label, b.label)


def test_images_are_identical_on_a_cpu(make):
    dataset = make("camvid")
    crop = Geometry(size=(60, 80), crop=(40, 100), flip=True)
    for geometry in (crop, GEOMETRY):
        a, b = (take(dataset, engine, 12, geometry=geometry, batch=1) for engine in ("torch", "dali"))
        assert all(x.image.is_contiguous() and equal(x, y) for x, y in zip(b, a, strict=True))


def test_without_a_change_of_size_images_are_identical(make):
    dataset = make("camvid")
    sample = dataset.samples[0]
    size = dataset[0].image.shape[:2]
    for save in (
        {"format": "JPEG", "quality": 60},
        {"format": "JPEG", "quality": 95, "subsampling": 0},
        {"format": "PNG"},
    ):
        Image.open(sample.image).convert("RGB").copy().save(sample.image, **save)
        alone = dataset.__class__(dataset.spec, [sample])
        geometry = Geometry(size=size, crop=(33, 140), flip=True)
        a, b = (take(alone, engine, 3, geometry=geometry) for engine in ("torch", "dali"))
        assert all(equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.skipif(not SHARED.is_dir(), reason="the rendered street scenes are not here")
def test_real_images_at_the_size_of_training():
    dataset = open_dataset(f"camvid:{SHARED}", "train")
    geometry = Geometry(size=(180, 240), flip=True)
    for a, b in zip(*(take(dataset, e, 3, geometry=geometry) for e in ("torch", "dali")), strict=True):
        assert torch.equal(a.label, b.label)
        assert torch.equal(a.image, b.image)


@pytest.mark.parametrize("engine", ["torch", "dali"])
def test_views_share_geometry_and_are_strong(make, engine):
    dataset = Unlabelled(make("camvid"))
    batches = take(dataset, engine, 20, views=("strong", "strong"))
    changed = 0
    for batch in batches:
        assert batch.label is None
        assert batch.views.shape == (2, 2, 3, 50, 90)
        for image, views, geometry in zip(batch.image, batch.views, batch.geometries, strict=True):
            drawn = [v for v in views if not torch.equal(v, image)]
            changed += len(drawn)
            assert geometry.crop == (50, 90)
    assert changed > 40
    # One decode, one geometry: without views the images are the same.
    assert all(torch.equal(a.image, b.image) for a, b in zip(batches, take(dataset, engine, 20), strict=True))


def test_views_go_through_the_same_operations_in_both_engines(make):
    dataset = make("camvid")
    # Pillow's equalisation divides by whole numbers, which shows in small images.
    geometry = Geometry(size=(200, 260), crop=(180, 280), flip=True)
    pairs = zip(
        *(take(dataset, e, 25, views=("strong", "strong"), geometry=geometry) for e in ("torch", "dali")),
        strict=True,
    )
    sampler = Sampler(len(dataset), 2, 3, "parity")
    for step, (a, b) in enumerate(pairs):
        for i, draw in enumerate(sampler.draws(step)):
            rng = sampler.generator("views", draw)
            for k in range(2):
                names = [name for name, _ in augment.draw(rng)]
                inner = (slice(None), slice(1, -1), slice(1, -1))
                difference = (a.views[i, k].float() - b.views[i, k].float()).abs()[inner]
                # Operations with a step function magnify rounding; the mean stays.
                bound = 2 if "equalize" in names else 1.3
                assert difference.mean() <= bound, names


def outcomes() -> dict[augment.Operations, float]:
    """Return every sequence of operations that the policy allows, and its probability."""
    found: Counter[augment.Operations] = Counter()
    for sub in PHOTOMETRIC:
        for happens in itertools.product([True, False], repeat=len(sub)):
            chance = 1 / len(PHOTOMETRIC)
            for (_, p, _), yes in zip(sub, happens, strict=True):
                chance *= p if yes else 1 - p
            found[tuple((n, m) for (n, _, m), yes in zip(sub, happens, strict=True) if yes)] += chance
    return {operations: p for operations, p in found.items() if p > 0}


def test_every_operation_of_the_policy_is_the_same_in_both_engines(make_dataset, monkeypatch):
    root, *_ = make_dataset("camvid", [np.zeros((96, 128), np.uint8)] * 2)
    dataset = open_dataset(f"camvid:{root}", "train")
    dull = smooth(np.random.default_rng(2), (96, 128)) // 2 + 40
    flat = dull.copy()
    flat[..., 1] = 200  # no contrast to stretch
    for sample, picture in zip(dataset.samples, (dull, flat), strict=True):
        Image.fromarray(picture).save(sample.image, "PNG")
    single = [((name, level),) for sub in PHOTOMETRIC for name, _, level in sub]
    operations = [done for done in dict.fromkeys([*single, *outcomes()]) for _ in dataset.samples]
    views = []
    for engine in ("torch", "dali"):
        drawn = iter(operations)
        monkeypatch.setattr(augment, "draw", lambda rng, kind, drawn=drawn: next(drawn, ()))
        geometry = Geometry(size=(96, 128))
        batch = take(dataset, engine, 1, views=("strong",), batch=len(operations), geometry=geometry)[0]
        views.append(batch.views[:, 0, :, 1:-1, 1:-1].float())
    for done, ours, dalis in zip(operations, *views, strict=True):
        difference = (ours - dalis).abs()
        # Each rounds by up to one grey level, which a second operation may magnify if it is a step
        # function. Pillow's equalisation divides by whole numbers, of which a small image has few.
        names = [name for name, _ in done]
        assert difference.mean() <= (4 if "equalize" in names else len(names)), done
        if names == ["autocontrast"]:
            assert difference.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "dali"])
def test_frequencies_magnitudes_and_independence_measured_on_images(make_dataset, engine):
    rng = np.random.default_rng(1)
    root, *_ = make_dataset("camvid", [np.zeros((96, 128), np.uint8)])
    dataset = open_dataset(f"camvid:{root}", "train")
    # Dull colours between 30 and 180: every operation at every level leaves its own mark.
    picture = (smooth(rng, (96, 128)) * 0.55 + 30 + rng.integers(0, 12, (96, 128, 3))).astype(np.uint8)
    Image.fromarray(picture).save(dataset.samples[0].image)
    image = torch.from_numpy(picture).permute(2, 0, 1)

    chances = outcomes()
    marks = augment.apply_each(image.expand(len(chances), -1, -1, -1), list(chances))
    marks = marks.flatten(1).float()
    # Outcomes that look alike count as one: equalising twice is equalising once.
    alike = (torch.cdist(marks, marks, p=1) < 6 * image.numel()).numpy()
    for _ in chances:
        alike = alike @ alike
    groups, group_of = np.unique(alike.argmax(1), return_inverse=True)
    expected = np.bincount(group_of, list(chances.values()))
    assert len(groups) >= 12

    geometry = Geometry(size=(96, 128))
    batches = take(dataset, engine, 12, views=("strong", "strong"), batch=40, geometry=geometry)
    views = torch.cat([batch.views for batch in batches]).flatten(2).float()
    distance = torch.cdist(views, marks, p=1) / image.numel()
    found = group_of[distance.argmin(-1).numpy()]
    assert distance.amin(-1).max() < 4  # every view is one of the outcomes

    n = found.size
    for j, probability in enumerate(expected):
        spread = np.sqrt(n * probability * (1 - probability))
        assert abs((found == j).sum() - n * probability) <= 4.5 * spread + 1, j
    for j in np.argsort(expected)[-4:]:
        shown = (found == j).astype(float)
        bound = 4 / np.sqrt(len(shown))
        assert abs(np.corrcoef(shown[:, 0], shown[:, 1])[0, 1]) < bound  # views of one image
        assert abs(np.corrcoef(shown[1:, 0], shown[:-1, 0])[0, 1]) < bound  # neighbours in a batch
        assert abs(np.corrcoef(shown[40:, 0], shown[:-40, 0])[0, 1]) < bound  # the same place of two batches


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["torch", "dali"])
@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_at_any_step_gives_the_same_bits(make, engine, workers):
    dataset = make("gta5", 35)
    whole = take(dataset, engine, 11, views=("strong",))
    for start in (1, 4, 5, 9):
        again = take(dataset, engine, 11 - start, start, views=("strong",), workers=workers)
        assert all(equal(a, b) for a, b in zip(whole[start:], again, strict=True))


@pytest.mark.parametrize(("kind", "highest"), [("gta5", 35), ("synthia", 23)])
def test_crops_that_show_rare_classes_are_the_same_ones(make, kind, highest):
    dataset = make(kind, highest)
    pixels = check_dataset(dataset).pixels
    rare, plain = (RareClasses(pixels, 1.0, min_pixels=60, min_crop_ratio=ratio) for ratio in (2.5, 0))
    a, b = (take(dataset, engine, 8, rare_classes=rare) for engine in ("torch", "dali"))
    anyhow = take(dataset, "torch", 8, rare_classes=plain)
    assert [x.geometries for x in a] == [x.geometries for x in b]
    assert all(torch.equal(x.label, y.label) for x, y in zip(a, b, strict=True))
    assert [x.ids for x in a] == [x.ids for x in anyhow]
    assert [x.geometries for x in a] != [x.geometries for x in anyhow]


def test_a_label_that_turns_bad_before_its_crop_is_chosen_is_named(make):
    dataset = make("gta5", 35)
    rare = RareClasses(check_dataset(dataset).pixels, 1.0, min_pixels=60)
    for sample in dataset.samples:
        sample.label.write_bytes(b"")
    for engine in ("torch", "dali"):
        with pytest.raises(BadFile, match=r"label .*\.png: found an empty file"):
            take(dataset, engine, 1, rare_classes=rare)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.integers(0, 254), st.integers(0, 255), min_size=1), st.booleans(), st.booleans())
def test_undeclared_ids_are_marked_by_a_byte_that_is_not_a_train_id(mapping, void, padded):
    from udas_fast.data.dali import _lookup_table

    id_map = IdMap({**mapping, 255: 255} if void else mapping)
    table, mark = _lookup_table(id_map, padded)
    meant = {**mapping, **({255: 255} if void or padded else {})}
    assert all(table[i] == train for i, train in meant.items())
    assert mark not in meant.values()
    assert {i for i in range(256) if table[i] == mark} == set(range(256)) - set(meant)


@pytest.mark.parametrize("engine", ["torch", "dali"])
def test_the_processes_of_a_run_share_its_steps(make, monkeypatch, engine):
    dataset = make("camvid")

    def streams():
        inputs = InputConfig(source=GEOMETRY, target=GEOMETRY, batch_size=4)
        domains = Domains(source=dataset, engine=engine)
        loader = domains.loaders({"source": GEOMETRY}, inputs, seed=0, phase="p")["source"]
        assert loader.global_batch == 4
        return list(itertools.islice(loader.batches(), 4))

    whole, parts = streams(), []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        parts.append(streams())
    for batch, *halves in zip(whole, *parts, strict=True):
        assert batch.ids == [i for half in halves for i in half.ids]
        assert torch.equal(batch.image, torch.cat([half.image for half in halves]))
        assert torch.equal(batch.label, torch.cat([half.label for half in halves]))


@pytest.mark.parametrize("engine", ["torch", "dali"])
def test_processes_share_the_steps_of_one(make, engine):
    dataset = make("camvid")
    whole = take(dataset, engine, 6, batch=4)
    parts = [take(dataset, engine, 6, batch=2, rank=rank, world_size=2) for rank in (0, 1)]
    for batch, *halves in zip(whole, *parts, strict=True):
        assert batch.ids == [i for half in halves for i in half.ids]
        assert torch.equal(batch.image, torch.cat([half.image for half in halves]))
        assert torch.equal(batch.label, torch.cat([half.label for half in halves]))


def test_auto_takes_dali_for_files_and_torch_for_drawn_images(make):
    files, drawn = make("camvid"), open_dataset("streets:sim", "train", size=(32, 64))
    assert choose_engine("auto", [files]) == "dali"
    assert choose_engine("auto", [files, drawn]) == "torch"
    assert choose_engine("torch", [files]) == "torch"
    with pytest.raises(InputError, match=r"engine 'dali': found .*streets.*, which has no files"):
        choose_engine("dali", [files, drawn])


def test_without_dali_auto_is_torch_and_the_error_names_the_package(make, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    dataset = make("camvid")
    assert choose_engine("auto", [dataset]) == "torch"
    with pytest.raises(InputError, match=r"found no DALI, expected `pip install udas-fast\[dali\]`"):
        choose_engine("dali", [dataset])
