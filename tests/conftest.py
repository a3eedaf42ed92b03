"""Small data and networks that many tests share."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from udas_fast.objectives import Batches, PrepareContext
from udas_fast.objectives.base import KINDS
from udas_fast.recipes import all_recipes, methods
from udas_fast.testing import TinyNetwork, make_context, random_batches

# What processes that tests fork have imported already.
multiprocessing.set_forkserver_preload(["udas_fast.cli", "udas_fast.training.trainer", "torch._dynamo"])


@pytest.fixture
def tiny_net() -> TinyNetwork:
    torch.manual_seed(0)
    return TinyNetwork()


@pytest.fixture
def batches() -> Batches:
    """Source, labelled and unlabelled batches of two 32x48 images, four classes and some ignored pixels."""
    return random_batches()


@pytest.fixture
def make_step() -> Callable[..., PrepareContext]:
    """A context that calls ``loss.backward()``: :func:`udas_fast.testing.make_context`."""
    return make_context


@pytest.fixture
def own_methods() -> Iterator[None]:
    """Forget the methods that a test registers, and the files that it loads."""
    all_recipes()  # first, so that the package's own stay
    kept = [(registry, dict(registry)) for registry in (KINDS, methods._LOADED)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)
    for name in [name for name in sys.modules if name.startswith("udas_fast_method_")]:
        del sys.modules[name]


def write_camvid(root: Path, train: int = 4, val: int = 2, size: tuple[int, int] = (24, 32)) -> Path:
    """A little dataset in CamVid's layout, with its 11 classes and void; colours tell the class."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            label = rng.integers(0, 12, (size[0] // 4, size[1] // 4), dtype=np.uint8)
            label = label.repeat(4, 0).repeat(4, 1)
            colour = np.stack([label * 20, 255 - label * 20, label * 7 + 30], -1)
            Image.fromarray(colour).save(root / "images" / split / f"{i:04d}.png")
            Image.fromarray(label).save(root / "labels" / split / f"{i:04d}.png")
    return root


@pytest.fixture
def camvid_folder(tmp_path: Path) -> Callable[..., Path]:
    """Calls :func:`write_camvid` on a folder of the given name."""
    return lambda name, **options: write_camvid(tmp_path / name, **options)


@pytest.fixture(scope="session")
def camvid_writer() -> Callable[..., Path]:
    """:func:`write_camvid`, for fixtures that outlive a test."""
    return write_camvid


@pytest.fixture(scope="session")
def camvid_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of :func:`write_camvid` that no test changes."""
    return write_camvid(tmp_path_factory.mktemp("camvid"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``dali`` where DALI is not installed; a broken installation still fails."""
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        return
    for item in items:
        if item.get_closest_marker("dali"):
            item.add_marker(pytest.mark.skip(reason="DALI is not installed"))
