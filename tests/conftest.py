"""Small data and networks that many tests share."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from udas_fast.data import Batch
from udas_fast.objectives import Step


class TinyNet(nn.Module):
    """Two heads at a quarter of the resolution on one convolution; remembers how it was called."""

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.primary = nn.Conv2d(8, num_classes, 1)
        self.auxiliary = nn.Conv2d(8, num_classes, 1)
        self.inputs: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.training:
            self.inputs.append(x.detach().clone())
        features = self.norm(self.body(x)).relu()
        return self.primary(features), self.auxiliary(features)


@pytest.fixture
def tiny_net() -> TinyNet:
    torch.manual_seed(0)
    return TinyNet()


@pytest.fixture
def batches() -> dict[str, Batch]:
    """Source, labelled and unlabelled batches of two 32x48 images, four classes and some ignored pixels."""
    generator = torch.Generator().manual_seed(1)

    def images() -> torch.Tensor:
        return torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=generator)

    def labels() -> torch.Tensor:
        label = torch.randint(0, 4, (2, 32, 48), dtype=torch.uint8, generator=generator)
        label[:, :2] = 255
        return label

    return {
        "source": Batch(images(), labels(), ["s0", "s1"]),
        "labelled": Batch(images(), labels(), ["l0", "l1"]),
        "unlabelled": Batch(images(), None, ["u0", "u1"]),
    }


@pytest.fixture
def make_step() -> Callable[..., Step]:
    """A :class:`Step` that calls ``loss.backward()``."""

    def make(progress: float = 0.5, seed: int = 0) -> Step:
        return Step(
            progress=progress,
            generator=torch.Generator().manual_seed(seed),
            backward=lambda loss: loss.backward(),
            normalize=lambda image: image.float() / 255,
        )

    return make


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
