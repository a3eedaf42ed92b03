"""benchmarks/gpu_check.py without a GPU: its rehearsal, and the end of a step that takes too long."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/gpu_check.py"


@pytest.fixture(scope="module")
def gpu_check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_the_rehearsal_passes_every_step(gpu_check: ModuleType, tmp_path: Path) -> None:
    """Every step's command is run, so that a typing error shows here and not on a GPU."""
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--out", str(tmp_path)]
    found = subprocess.run(
        [*command, "--steps", *gpu_check.ALL_STEPS], capture_output=True, text=True, timeout=400
    )
    assert found.returncode == 0, found.stdout
    result = json.loads((tmp_path / "gpu-check.json").read_text())
    assert result["ok"]
    assert [name for name, step in result["steps"].items() if step.get("exit") == 0] == list(
        gpu_check.ALL_STEPS
    )
    with tarfile.open(tmp_path / "logs.tar.gz") as archive:
        assert {f"logs/{name}.log" for name in gpu_check.ALL_STEPS} < set(archive.getnames())
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert all(row[kind][key] > 0 for row in rows for kind in ("ours", "eager") for key in ("ms", "host_us"))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "gpu-check.json",
        "logs.tar.gz",
        "step.json",
        "times.json",
    ]


@pytest.mark.slow
def test_a_step_that_takes_too_long_ends_with_all_that_it_started(
    gpu_check: ModuleType, tmp_path: Path
) -> None:
    check = gpu_check.Check(tmp_path, "cpu", 100, {})
    marker = tmp_path / "written"
    check.run("slow", ["sh", "-c", f"(sleep 2; touch {marker}) & sleep 60"], 0.3)
    assert check.steps["slow"]["exit"] == 124
    assert not check.good
    time.sleep(2.2)
    assert not marker.exists()


def test_a_step_without_time_is_skipped(gpu_check: ModuleType, tmp_path: Path) -> None:
    check = gpu_check.Check(tmp_path, "cpu", 1, {})
    check.run("late", ["false"], 10)
    assert json.loads((tmp_path / "gpu-check.json").read_text())["steps"] == {
        "late": {"skipped": "no time left"}
    }


def test_differences_between_devices(gpu_check: ModuleType) -> None:
    one = torch.tensor([1.0, 4.0])
    assert gpu_check.difference(one, one) == 0
    assert gpu_check.difference(one + torch.tensor([1.0, 0.0]), one) == 0.25
    assert gpu_check.difference(one, one.bfloat16()) == float("inf")
    assert not gpu_check.difference(one * float("nan"), one) <= gpu_check.tolerance(one)
    assert gpu_check.difference(torch.tensor([1, 3]), torch.tensor([2, 2])) == 0.5  # counts
    labels = torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
    assert gpu_check.difference(labels, labels.flip(0)) == 1
