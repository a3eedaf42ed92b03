"""The backbone by torch.compile: the same losses, and a sentence where it cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from udas_fast import Trainer
from udas_fast.data import open_dataset
from udas_fast.data.domains import Domains
from udas_fast.engine.memory import MemoryConfig
from udas_fast.errors import InputError
from udas_fast.models import ModelConfig, build_model
from udas_fast.recipes import get_recipe, override, small
from udas_fast.training.networks import compile_backbones

CPU = torch.device("cpu")
NONE = MemoryConfig(checkpointing="none")


def network() -> nn.Module:
    return build_model(ModelConfig(backbone="resnet18", width=4), 4)


def test_what_cannot_be_compiled_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="compile: found Conv2d without a backbone of udas_fast"):
        compile_backbones([network(), nn.Conv2d(3, 4, 1)], NONE, CPU)
    with pytest.raises(
        InputError,
        match="compile: found checkpointing 'layer3', .* expected memory.checkpointing none and no",
    ):
        compile_backbones([network()], MemoryConfig(checkpointing="layer3"), CPU)

    def no_compiler(function: object) -> object:
        raise RuntimeError("No working C++ compiler found in cpp.cxx: g++\nmore")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with pytest.raises(
        InputError, match=r"found none that works \(No working C\+\+ compiler .*\), expected a C\+\+"
    ):
        compile_backbones([network()], NONE, CPU)


@pytest.mark.slow
def test_a_compiled_run_has_the_losses_of_an_eager_one(camvid_root: Path, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        recipe = small(get_recipe("no_adaptation"), size=(32, 48), steps=2, batch_size=2)
        recipe = override(recipe, ["model.width=4", f"compile={json.dumps(compiled)}"])
        data = Domains(source=open_dataset(f"camvid:{camvid_root}", "train"))
        run = tmp_path / str(compiled)
        try:
            trainer = Trainer(recipe, data, run_dir=run, device="cpu")
        except InputError as error:
            pytest.skip(str(error))
        trainer.fit()
        lines = (run / "metrics.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["seg"] for line in lines])
        assert not any("_orig_mod" in name for name in trainer.model.state_dict())
    eager, compiled = losses
    # The second step's follows from the first one's gradients; float32, and sums in another order.
    assert compiled == pytest.approx(eager, rel=1e-4)
