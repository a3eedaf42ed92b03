"""Five classes, a small dataset in memory, and a model whose output depends on every pixel."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from udas_fast.data import Batch, ClassSet, Sample, SegmentationDataset
from udas_fast.evaluation import Protocol
from udas_fast.models import SegmentationOutput

CLASSES = ClassSet(
    "tiny",
    ("sky", "road", "car", "tree", "sign"),
    ((0, 0, 255), (90, 60, 90), (200, 0, 0), (0, 130, 0), (220, 220, 0)),
)


class TinyDataset(SegmentationDataset):
    """Images and labels of several sizes, a tenth of the pixels ignored."""

    name = "tiny"
    classes = CLASSES

    def __init__(self, count: int = 3) -> None:
        rng = np.random.default_rng(0)
        self.samples = []
        for i in range(count):
            label = rng.integers(0, 5, (20 + 3 * i, 28 + i)).astype(np.uint8)
            label[rng.random(label.shape) < 0.1] = 255
            image = rng.integers(0, 256, (*label.shape, 3)).astype(np.uint8)
            self.samples.append(Sample(image, label, f"scene{i}"))

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


class TinyModel(nn.Module):
    """One strided convolution with batch norm and dropout, two heads."""

    align_corners = False

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, classes, 5, 4, 2)
        self.norm = nn.BatchNorm2d(classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> SegmentationOutput:
        y = self.dropout(self.norm(self.conv(x)))
        return SegmentationOutput(y, -y, self.align_corners)


@pytest.fixture
def classes() -> ClassSet:
    return CLASSES


@pytest.fixture
def dataset() -> TinyDataset:
    return TinyDataset()


@pytest.fixture
def model() -> TinyModel:
    return TinyModel()


@pytest.fixture
def make_model():
    return TinyModel


@pytest.fixture
def protocol():
    def make(**changes) -> Protocol:
        fields = {"dataset": "tiny", "split": "val", "images": 3, "input_size": (16, 24), "num_classes": 5}
        return Protocol(**{**fields, **changes})

    return make


@pytest.fixture
def batches() -> list[Batch]:
    """Three images of 16x24 with labels of other sizes."""
    g = torch.Generator().manual_seed(1)
    made = []
    for i, size in enumerate(((33, 47), (16, 24), (9, 50))):
        image = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8, generator=g)
        label = torch.randint(0, 5, (1, *size), dtype=torch.uint8, generator=g)
        label[torch.rand(label.shape, generator=g) < 0.2] = 255
        made.append(Batch(image, label, [f"scene{i}"]))
    return made
