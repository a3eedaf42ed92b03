"""What "equal within rounding" means for runs by one process and by several."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

# SGD is linear in the gradient: it carries rounding on, where Adam's first steps would take it for a direction.
SGD = {"name": "sgd", "lr": 1e-2, "discriminator_lr": 1e-6}
# Sums in another order: 1e-7 after a step of these float32 networks, ten times that after the last one.
ROUNDING = 1e-5


@contextmanager
def without_kinks() -> Iterator[None]:
    """Compute SiLU for ReLU: rounding turns a ReLU at zero, and one that is turned is 1e-3 of the gradient."""
    with (
        patch.object(nn.ReLU, "forward", lambda self, x: F.silu(x)),
        patch.object(nn.ReLU6, "forward", lambda self, x: F.silu(x)),
        patch.object(nn.LeakyReLU, "forward", lambda self, x: F.silu(x)),
    ):
        yield


def assert_equal_within_rounding(one: Path, two: Path, rounding: float = ROUNDING) -> None:
    """The same steps with the same losses, the same weights and, where they are scored, as many images."""
    first, second = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()] for run in (one, two)
    )
    for a, b in zip(first, second, strict=True):
        assert a.pop("phase") == b.pop("phase")
        assert b == pytest.approx(a, rel=rounding)
    first, second = (load_file(run / "model.safetensors") for run in (one, two))
    for name, value in first.items():
        difference = (value.double() - second[name].double()).norm()
        # A weight that began at 0 is no larger than a step, whose rounding is that of the gradients' sums.
        assert difference <= rounding * max(value.double().norm().item(), SGD["lr"]), name
    if (one / "scores.json").is_file():
        scores = [json.loads((run / "scores.json").read_text())["phases"] for run in (one, two)]
        for a, b in zip(*(phases.values() for phases in scores), strict=True):
            assert a["protocol"] == b["protocol"]  # and so as many images
