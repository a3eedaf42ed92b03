"""Batches on a GPU: the same as on the CPU, in order, and an error is raised at its own step. Needs a GPU."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from udas_fast.data import BadFile, Geometry, TrainLoader, open_dataset

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]
ENGINES = ["torch", pytest.param("dali", marks=pytest.mark.dali)]


@pytest.fixture
def dataset(make_dataset):
    rng = np.random.default_rng(0)
    root, *_ = make_dataset("gta5", [rng.integers(0, 35, (40, 56), dtype=np.uint8) for _ in range(9)])
    return open_dataset(f"gta5:{root}", "train")


@pytest.mark.parametrize("engine", ENGINES)
def test_batches_arrive_on_the_gpu_as_they_are_on_the_cpu(dataset, engine):
    def take(device: str, start: int = 0):
        geometry = Geometry(size=(40, 56), crop=(32, 64), flip=True)
        loader = TrainLoader(dataset, geometry, 2, 0, "gpu", 2, engine=engine, views=("strong", "strong"))
        return itertools.islice(loader.batches(start, device), 12 - start)

    for here, there in zip(take("cpu"), take("cuda"), strict=True):
        assert here.ids == there.ids
        assert there.image.is_cuda
        assert torch.equal(here.label, there.label.cpu())
        assert torch.equal(here.image, there.image.cpu())
        difference = (here.views.float() - there.views.cpu().float()).abs().mean((2, 3, 4))
        assert difference.max() <= (0 if engine == "torch" else 3)
    first, again = list(take("cuda"))[5:], list(take("cuda", 5))
    assert all(torch.equal(a.views, b.views) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_error_is_raised_at_its_own_step(dataset, engine):
    loader = TrainLoader(dataset, Geometry(size=(40, 56)), 1, 0, "gpu", engine=engine)
    bad = loader.sampler.image_index(4)
    dataset.samples[bad].image.write_bytes(b"")
    batches = loader.batches(device="cuda")
    assert len([next(batches) for _ in range(4)]) == 4
    with pytest.raises(BadFile, match=str(dataset.samples[bad].image)):
        next(batches)
