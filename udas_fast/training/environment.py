"""Versions and hardware of a run: ``environment.json``, and the environment beside every reported figure."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import udas_fast
from udas_fast.atomic import atomic_write


def environment() -> dict[str, Any]:
    """Return versions and hardware, which stand beside every figure that this project reports."""
    build = udas_fast.build_info()
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "udas_fast": udas_fast.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_cuda": torch.version.cuda,
        "dali": _dali_version(),
        "cpu": _cpu_name(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "gpus": gpus,
        "os": f"{platform.system()} {platform.machine()}",
        "simd": build["simd"],
        "toolkit": build["cuda"],
    }


def write_environment(run: Path, device: str, precision: str) -> None:
    """Write ``environment.json``: what this attempt computes on. A run that goes on elsewhere is reported on stderr."""
    path = run / "environment.json"
    document = {**environment(), "device": device, "precision": precision}
    if changes := _changes(path, document):
        tqdm.write(
            f"the run goes on with {', '.join(changes)}: its last digits may differ from one attempt's",
            file=sys.stderr,
        )
    atomic_write(json.dumps(document, indent=2) + "\n", path)


def _changes(path: Path, now: dict[str, Any]) -> list[str]:
    """Return the differences to the environment of an earlier attempt; none where it left no readable file."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return [f"{k} {now[k]} ({before[k]} before)" for k in now if k in before and before[k] != now[k]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _dali_version() -> str | None:
    for package in ("nvidia-dali-cuda130", "nvidia-dali-cuda120"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
