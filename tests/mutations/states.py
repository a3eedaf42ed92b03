"""Mutated checkpoints, models and weights."""

from __future__ import annotations

import copy
import io
import json
import os
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mutate import ZOO, mutate_bytes, mutate_tree
from pydantic import ValidationError

from udas_fast.data import CAMVID
from udas_fast.engine.checkpoint import read_state
from udas_fast.inference import MODEL_FILE, TrainedModel
from udas_fast.inference.model import HEADER, KEY, Header, _checksum
from udas_fast.models import ModelConfig, build_model, load_weights

CONFIG = ModelConfig(backbone="resnet18", width=4, output_stride=4)


def _bytes(state: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


class Hostile:
    """Its pickle would run a command."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.witness}",)


def model_case(folder: Path) -> Callable[[int], None]:
    """``model.safetensors``: another byte is refused, another value is refused or the model predicts."""
    torch.manual_seed(0)
    model = build_model(CONFIG, len(CAMVID))
    path, whole = folder / MODEL_FILE, folder / "whole.safetensors"
    TrainedModel(model, CONFIG, CAMVID, (24, 32)).save(whole)
    data, state = whole.read_bytes(), model.state_dict()
    header = HEADER.dump_python(Header(CAMVID, (24, 32), CONFIG, None), mode="json")
    image = torch.zeros(24, 32, 3, dtype=torch.uint8).numpy()

    def run(seed: int) -> None:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            path.write_bytes(mutate_bytes(rng, data))
            trained = TrainedModel.load(path)
            found = trained.model.state_dict()
            assert all(torch.equal(value, state[name]) for name, value in found.items())
            assert (trained.config, trained.classes, trained.size) == (CONFIG, CAMVID, (24, 32))
            return
        tensors = {k: v for k, v in _mutant(rng, state).items() if isinstance(v, torch.Tensor)}
        tensors = {k: v.clone() for k, v in (tensors if rng.random() < 0.4 else state).items()}
        text = json.dumps(header if rng.random() < 0.3 else mutate_tree(rng, header), default=str)
        with suppress(ValidationError):  # as whoever changes a file on purpose would
            changed = replace(HEADER.validate_json(text), checksum="")
            checksum = _checksum(HEADER.dump_json(changed), tensors)
            text = HEADER.dump_json(replace(changed, checksum=checksum)).decode()
        path.write_bytes(safetensors.torch.save(tensors, {KEY: text} if rng.random() < 0.95 else None))
        trained = TrainedModel.load(path)
        if max(trained.size) > 2000:
            return
        label, confidence = trained.predict(image)
        assert label.shape == confidence.shape == (24, 32)
        assert (label < len(trained.classes)).all()
        assert (confidence > 0).all()

    return run


def _mutant(rng: random.Random, state: dict) -> dict:
    """``state`` with one of its weights changed."""
    weights = dict(state)
    key = rng.choice(sorted(weights))
    value = weights[key]
    weights[key] = rng.choice(
        [
            value[:1] if value.dim() else value,
            value.double(),
            value.to(torch.int8),
            value * torch.nan,
            "x",
            None,
        ]
    )
    if rng.random() < 0.3:
        weights[f"{key}x"] = weights.pop(key)
    return weights


def weights_case(folder: Path) -> Callable[[int], None]:
    """``--weights``: files of others, without checksums of ours; what is loaded fits and is finite."""
    torch.manual_seed(0)
    model = build_model(CONFIG, len(CAMVID))
    state = {k: v for k, v in model.state_dict().items() if k.startswith("backbone.")}
    data = _bytes(state)
    path, witness = folder / "weights.pth", folder / "witness"

    def run(seed: int) -> None:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            path.write_bytes(mutate_bytes(rng, data))
        else:
            content: Any = _mutant(rng, state)
            wrap = rng.choice([None, "state_dict", "model", "module"])
            content = content if wrap is None else {wrap: content, "epoch": rng.choice(ZOO[:12])}
            others = [[content], None, {}, {**state, "x": Hostile(witness)}]
            path.write_bytes(_bytes(rng.choice([content, content, content, *others])))
        try:
            report = load_weights(model, str(path))
        finally:
            assert not witness.exists(), "code from a file was run"
        assert report.loaded
        assert report.summary()
        assert all(value.isfinite().all() for value in model.state_dict().values())

    return run


def checkpoint_case(folder: Path) -> Callable[[int], None]:
    """Checkpoints: any other byte is noticed."""
    state = {"phase": 1, "step": {"done": 7, "model": {"w": torch.arange(999.0)}}, "scores": {}}
    data = _bytes(state)
    path = folder / "step-00000007.pt"

    def run(seed: int) -> None:
        changed = mutate_bytes(random.Random(seed), data)
        path.write_bytes(changed)
        found = read_state(path)
        same = torch.equal(found["step"]["model"]["w"], state["step"]["model"]["w"])
        assert same, "other weights were read"
        assert {**found, "step": None} == {**copy.deepcopy(state), "step": None}

    return run
