"""Shared parts of all benchmarks: timing, peak extra memory, the environment, JSON and tables.

One measurement is a dict: ``wall_ms`` (median), ``cpu_ms`` (median CPU time of the process, or the time between
events on a GPU), ``best_ms``, ``repeats``, and ``extra_mib``, the peak growth of memory during one call, results
included.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from udas_fast.atomic import atomic_write, make_folder
from udas_fast.training.environment import environment as package_environment

MIB = 2**20
# With these, glibc keeps freed memory instead of giving it back to the kernel: no page faults after the first call.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def environment(device: str) -> dict[str, Any]:
    """Return the environment of the figures: the package's own report, the commit, page faults and the GPU."""
    found: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "commit": _git_commit(),
        **package_environment(),
        "page_faults": not all(os.environ.get(k) == v for k, v in KEEP_MEMORY.items()),
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": gpu.name,
            "sms": gpu.multi_processor_count,
            "memory_mib": gpu.total_memory // MIB,
        }
        found["ceilings"] = ceilings()
        torch.cuda.empty_cache()  # frees the buffers of ceilings()
    return found


def _git_commit() -> str | None:
    try:
        result = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def measure(
    action: Callable[[], object], device: str, *, repeats: int = 9, seconds: float = 20.0
) -> dict[str, Any]:
    """Measure two calls to warm up, up to ``repeats`` timed ones within about ``seconds``, then one for memory."""
    for _ in range(2):
        action()
    time_one = _time_on_gpu if device == "cuda" else _time_on_cpu
    runs: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(runs) < repeats and (len(runs) < 3 or time.perf_counter() - began < seconds):
        runs.append(time_one(action))
    wall, busy = zip(*runs, strict=True)
    return {
        "wall_ms": round(statistics.median(wall), 4),
        "cpu_ms": round(statistics.median(busy), 4),
        "best_ms": round(min(busy), 4),
        "repeats": len(runs),
        "extra_mib": round(peak_growth(action, device), 2),
    }


def _time_on_cpu(action: Callable[[], object]) -> tuple[float, float]:
    wall, busy = time.perf_counter(), time.process_time()
    action()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - busy)


def _time_on_gpu(action: Callable[[], object]) -> tuple[float, float]:
    torch.cuda.synchronize()
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    wall = time.perf_counter()
    first.record()
    action()
    last.record()
    torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - wall), first.elapsed_time(last)


def peak_growth(action: Callable[[], object], device: str) -> float:
    """Return the peak growth in MiB during ``action`` of resident memory, or of the CUDA allocator's."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        return (torch.cuda.max_memory_allocated() - before) / MIB
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return float("nan")
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else freed but resident memory would hide new allocations
    reset.write_text("5")  # reset the peak
    before = _resident("VmRSS")
    action()
    return (_resident("VmHWM") - before) / MIB


def _resident(key: str) -> int:
    return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def ceilings() -> dict[str, float]:
    """Measure the limits of this GPU: bytes copied, exps and FMAs per second."""
    big = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    other = torch.empty_like(big)
    copy = _best_ms(lambda: other.copy_(big))
    found = {"bytes_per_s": 2 * big.numel() / copy * 1e3}
    rounds, chains = 256, 4
    x = torch.zeros(1 << 22, device="cuda")
    for name, step in (("exps", "y = exp2f(y)"), ("fmas", "y = fmaf(y, 0.5f, 0.25f)")):
        steps = "; ".join(step.replace("y", f"y{i}") for i in range(chains))
        start = ", ".join(f"y{i} = x - {i}.0f" for i in range(chains))
        total = " + ".join(f"y{i}" for i in range(chains))
        code = (
            f"template <typename T> T chain(T x) {{ float {start}; "
            f"for (int i = 0; i < {rounds}; ++i) {{ {steps}; }} return {total}; }}"
        )
        kernel = torch.cuda.jiterator._create_jit_fn(code)
        best = _best_ms(lambda kernel=kernel: kernel(x))
        found[f"{name}_per_s"] = x.numel() * rounds * chains / best * 1e3
    return found


def _best_ms(action: Callable[[], object]) -> float:
    action()
    return min(_time_on_gpu(action)[1] for _ in range(10))


def without_page_faults(script: str, arguments: Sequence[str]) -> None:
    """Run ``script`` again in a process whose allocator keeps its memory."""
    environment = {**os.environ, **KEEP_MEMORY}
    subprocess.run([sys.executable, script, *arguments], env=environment, check=True)


def write(path: Path, document: dict[str, Any]) -> None:
    """Write ``document`` as JSON."""
    make_folder(path.parent)
    atomic_write(json.dumps(document, indent=1) + "\n", path)


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table; numbers keep three significant digits."""

    def cell(value: object) -> str:
        return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)

    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell(v) for v in line) + " |" for line in lines)
