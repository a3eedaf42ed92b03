"""Run folders that no training made."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from udas_fast.evaluation import Protocol, Scores


def write_run(
    run_dir: Path, *, hits: int = 90, seed: int = 0, batch_size: int = 2, **protocol: object
) -> Path:
    """Write a finished run of stages adapt (6 steps) and train (2 rounds of 4); ``hits`` % of road is correct.

    There are two classes, road and sky. A step takes 0.5 s, 0.1 s of it waiting. ``protocol`` changes the protocol
    of the scores.
    """
    run_dir.mkdir(parents=True)
    stages = [{"name": "adapt", "steps": 6}, {"name": "train", "steps": 4, "rounds": 2}]
    recipe = {
        "name": "example",
        "summary": "An example.",
        "stages": stages,
        "input": {"batch_size": batch_size},
    }
    data = {"source": "a:b", "target": "c:d", "num_labels": 3}
    (run_dir / "run.yaml").write_text(yaml.safe_dump({"recipe": recipe, "run": {"seed": seed, "data": data}}))
    phases = ["adapt"] * 6 + ["train.1"] * 4 + ["train.2"] * 4
    lines = [{"step": i, "phase": p, "lr": 0.01, "seg": 2.0 - i / 10} for i, p in enumerate(phases)]
    times = [{"step": i, "seconds": 0.5, "data_wait": 0.1} for i in range(len(phases))]
    for name, content in (("metrics", lines), ("timing", times)):
        (run_dir / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in content))
    fields = {"dataset": "tiny", "split": "val", "images": 3, "input_size": (16, 24), "num_classes": 2}
    kind = Protocol(**{**fields, **protocol})
    scores = {
        name: Scores(torch.tensor([[right, 100 - right], [0, 100]]), ("road", "sky"), kind).to_dict()
        for name, right in (("adapt", 50), ("train.1", 80), ("train.2", hits))
    }
    (run_dir / "scores.json").write_text(json.dumps({"phases": scores}))
    (run_dir / "model.safetensors").touch()
    return run_dir


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Return :func:`write_run` on a folder of the given name."""
    return lambda name, **options: write_run(tmp_path / name, **options)
