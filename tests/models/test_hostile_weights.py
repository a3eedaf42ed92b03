"""Weights of others that ask for endless work or huge memory: refused in a sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, build_model, load_weights

KEY = "backbone.conv1.weight"


@pytest.mark.filterwarnings("ignore")  # torch's, about kinds of tensors that are new
@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (
            lambda t: torch.zeros(1).expand(2**40),
            "found 1099511627776 values of which 1 are stored, expected a dense",
        ),
        (
            lambda t: t[:1].clone().expand(t.shape),
            r"found \d+ values of which \d+ are stored",
        ),
        (lambda t: t.to_sparse(), "found a sparse_coo tensor, expected a dense tensor"),
        (lambda t: t.to("meta"), "found a meta tensor"),
        (lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8), "found a quantised tensor"),
        (lambda t: torch.nested.nested_tensor([t[0], t[1]]), "found a nested tensor"),
    ],
    ids=["huge", "expanded", "sparse", "meta", "quantised", "nested"],
)
def test_a_tensor_that_does_not_hold_its_values(make: Any, sentence: str, tmp_path: Path) -> None:
    model = build_model(ModelConfig(backbone="resnet18", width=4), 3)
    state: dict[str, Tensor] = dict(model.state_dict())
    torch.save({**state, KEY: make(state[KEY].clone())}, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=f"weights.pth: {KEY}: {sentence}"):
        load_weights(model, tmp_path / "weights.pth")


def test_a_state_dict_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="found no tensors, expected a file with a torch state dict"):
        load_weights(torch.nn.Conv2d(3, 3, 1), tmp_path / "weights.pth")
