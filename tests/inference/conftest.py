"""A tiny trained model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from udas_fast import TrainedModel
from udas_fast.data.types import CAMVID
from udas_fast.evaluation import Protocol
from udas_fast.models import ModelConfig, build_model

PROTOCOL = Protocol("camvid", "val", 2, (32, 48), 11)


@pytest.fixture
def make_trained() -> Callable[..., TrainedModel]:
    """Return a function that makes a model of CamVid's classes for 32x48; keywords change its ModelConfig."""

    def make(**changes: object) -> TrainedModel:
        torch.manual_seed(0)
        config = ModelConfig(**{"backbone": "resnet18", "width": 4, **changes})
        return TrainedModel(build_model(config, 11).eval(), config, CAMVID, (32, 48), PROTOCOL)

    return make


@pytest.fixture
def image() -> np.ndarray:
    """Noise, uint8 [40, 56, 3]."""
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
