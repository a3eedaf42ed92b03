"""Runs on every family of backbones: training, memory settings, and going on to the same bits."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from udas_fast import Callback, Trainer
from udas_fast.data import open_dataset
from udas_fast.data.domains import Domains
from udas_fast.engine.interrupt import Interrupted
from udas_fast.engine.memory import MemoryConfig
from udas_fast.memory import predict
from udas_fast.models import ModelConfig
from udas_fast.recipes import Recipe, get_recipe, small

MODELS = {
    "efficientnet": ModelConfig(backbone="efficientnet_lite0", width=8, drop_path=0.2, norm="domain"),
    "mit": ModelConfig(backbone="mit_b0", head="daformer", width=8, drop_path=0.2, dropout=0.1),
    "dinov2": ModelConfig(backbone="dinov2_s", width=12, drop_path=0.2),
    "dinov3": ModelConfig(backbone="dinov3_s", head="upscaling", width=24),
}


def domains(root: Path) -> Domains:
    train, val = (open_dataset(f"camvid:{root}", split) for split in ("train", "val"))
    return Domains(source=train, labelled=train, unlabelled=train, val=val)


def recipe(model: ModelConfig, name: str = "no_adaptation", **options) -> Recipe:
    return replace(small(get_recipe(name), size=(56, 70), steps=3, batch_size=2), model=model, **options)


class StopAfter(Callback):
    def __init__(self, steps: int) -> None:
        self.left = steps

    def on_step(self, record: dict) -> None:
        self.left -= 1
        if not self.left:
            raise Interrupted("enough")


def assert_resumes(model: ModelConfig, root: Path, tmp_path: Path, gone: Path | None = None) -> None:
    options = {"device": "cpu", "log_every": 1, "checkpoint_every": 1}
    Trainer(recipe(model), domains(root), run_dir=tmp_path / "whole", **options).fit()
    cut = Trainer(recipe(model), domains(root), run_dir=tmp_path / "cut", callbacks=[StopAfter(2)], **options)
    with pytest.raises(Interrupted):
        cut.fit()
    if gone is not None:
        shutil.rmtree(gone)
    torch.rand(3)  # another process has another global state
    Trainer.resume(tmp_path / "cut", data=domains(root), device="cpu").fit()
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "cut/metrics.jsonl").read_text()
    a, b = (load_file(tmp_path / run / "model.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_a_run_goes_on_to_the_same_bits(kind: str, camvid_root: Path, tmp_path: Path) -> None:
    assert_resumes(MODELS[kind], camvid_root, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segformer", "dinov2"])
def test_a_run_needs_a_model_of_transformers_at_its_start_only(
    kind: str, camvid_root: Path, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    if kind == "segformer":
        config = transformers.SegformerConfig(
            hidden_sizes=[8, 16, 40, 64], depths=[1, 1, 1, 1], decoder_hidden_size=16
        )
        model = transformers.SegformerForSemanticSegmentation(config)
    else:
        config = transformers.Dinov2Config(hidden_size=24, num_hidden_layers=4, num_attention_heads=2)
        model = transformers.Dinov2Model(config)
    folder = tmp_path / "there"
    model.save_pretrained(folder)
    assert_resumes(ModelConfig(name="hf", hf=str(folder)), camvid_root, tmp_path, gone=folder)


def test_weights_of_transformers_are_reported(camvid_root: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(hidden_size=24, num_hidden_layers=4, num_attention_heads=2)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "there")
    model = ModelConfig(name="hf", hf=str(tmp_path / "there"), head="linear")
    trainer = Trainer(recipe(model), domains(camvid_root), run_dir=tmp_path / "run", device="cpu")
    assert "tensors loaded, named as in transformers" in trainer.describe()
    assert "not in the file, unchanged: primary.* (2), auxiliary.* (2)" in trainer.describe()
    assert trainer.recipe.model.hf_configuration is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", MODELS)
def test_memory_is_predicted_and_falls_from_policy_to_policy(kind: str) -> None:
    needs = []
    for policy in ("none", "all"):
        planned = recipe(MODELS[kind], memory=MemoryConfig(checkpointing=policy))
        (peak,) = predict(planned, num_classes=5)
        needs.append(peak.kinds["activations"])
    assert needs == sorted(set(needs), reverse=True)
