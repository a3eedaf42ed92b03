"""What was built, what runs here, and what to do about what is missing."""

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
    """Versions and hardware, as they stand beside every figure that this project reports."""
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
    """``environment.json``: what this attempt computes on. Where a run goes on elsewhere, standard error says so."""
    path = run / "environment.json"
    document = {**environment(), "device": device, "precision": precision}
    if changes := _changes(path, document):
        tqdm.write(
            f"the run goes on with {', '.join(changes)}: its last digits may differ from one attempt's",
            file=sys.stderr,
        )
    atomic_write(json.dumps(document, indent=2) + "\n", path)


def _changes(path: Path, now: dict[str, Any]) -> list[str]:
    """What another attempt at the run computed with otherwise; nothing where it left no readable file."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        return [f"{k} {now[k]} ({before[k]} before)" for k in now if k in before and before[k] != now[k]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def diagnose() -> str:
    """The text of ``udas-fast doctor``."""
    env, build = environment(), udas_fast.build_info()
    lines = [
        f"udas_fast    {env['udas_fast']} on Python {env['python']}, {env['os']}",
        f"torch        {env['torch']}, CUDA {env['torch_cuda'] or 'none (CPU-only build)'}",
        f"DALI         {env['dali'] or 'not installed; images are read by torch workers'}",
        f"CPU          {env['cpu']}, {env['cpu_count']} cores, {env['threads']} threads, {env['cpu_capability']}",
        f"GPU          {', '.join(env['gpus']) or 'none that torch can use'}",
        f"extension    {_extension(build)}",
        "",
        f"{'operator':<26}{'CPU':<12}CUDA",
        *(f"{name:<26}{where['cpu']:<12}{where['cuda']}" for name, where in build["operators"].items()),
    ]
    advice = _advice(env, build)
    return "\n".join([*lines, "", *(advice or ["Nothing is missing for this machine."])])


def _extension(build: dict[str, Any]) -> str:
    if not build["extension"]:
        return f"missing: {build['reason']}"
    cuda = (
        f"CUDA {build['cuda']} for {', '.join(build['archs'])}"
        if build["cuda"]
        else f"no CUDA: {build['cuda_reason']}"
    )
    return f"built against torch {build['torch_built']}; {build['simd']} chosen here; {cuda}"


def _advice(env: dict[str, Any], build: dict[str, Any]) -> list[str]:
    if not build["extension"]:
        return [
            "The compiled extension is missing, every operator runs its plain PyTorch form: run `pip install .` "
            "(with --no-build-isolation where pip cannot find your torch)."
        ]
    if env["gpus"] and not build["cuda"]:
        return [
            f"There is a GPU but no CUDA operators ({build['cuda_reason']}): install a CUDA toolkit of torch's "
            f"major version {env['torch_cuda']} and run `UDAS_FAST_CUDA=1 pip install --no-build-isolation .`"
        ]
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
