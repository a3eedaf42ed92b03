"""Shared parts of all benchmarks: timing, peak extra memory, the environment, JSON and tables.

One measurement is a dict. On a CPU: ``wall_ms`` (median), ``cpu_ms`` (median CPU time of the process), ``best_ms``
and ``repeats``. On a GPU: ``ms`` and ``host_us``, see :func:`time_call`. On both ``extra_mib``, the peak growth of
memory during one call, results included.
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

from udas_fast import build_info
from udas_fast.atomic import atomic_write, make_folder

MIB = 2**20
EXP_INSTRUCTIONS = 11  # of csrc/core/math.h's exp2: a clamp, three to split, five FMAs, two for the power
RESULTS = Path(__file__).parent / "results"
# With these, glibc keeps freed memory instead of giving it back to the kernel: no page faults after the first call.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "17179869184"}


def environment(device: str) -> dict[str, Any]:
    """Return the environment of the figures: the package's own report, the commit, page faults and the GPU."""
    from udas_fast.training.environment import environment as package_environment  # not bare: needs tqdm

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
    action: Callable[[], object],
    device: str,
    *,
    repeats: int = 9,
    seconds: float = 20.0,
    graph: bool = True,
) -> dict[str, Any]:
    """Measure time and memory of ``action``.

    On a CPU: two calls to warm up, then up to ``repeats`` timed ones within about ``seconds``. On a GPU:
    :func:`time_call`, with ``graph``. Then one call for memory.
    """
    if device == "cuda":
        return {**time_call(action, device, graph), "extra_mib": round(peak_growth(action, device), 2)}
    for _ in range(2):
        action()
    runs: list[tuple[float, float]] = []
    began = time.perf_counter()
    while len(runs) < repeats and (len(runs) < 3 or time.perf_counter() - began < seconds):
        wall, busy = time.perf_counter(), time.process_time()
        action()
        runs.append((1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - busy)))
    walls, busies = zip(*runs, strict=True)
    return {
        "wall_ms": round(statistics.median(walls), 4),
        "cpu_ms": round(statistics.median(busies), 4),
        "best_ms": round(min(busies), 4),
        "repeats": len(runs),
        "extra_mib": round(peak_growth(action, device), 2),
    }


def time_call(action: Callable[[], object], device: str, graph: bool) -> dict[str, float]:
    """Return ``ms`` of a call on the device and ``host_us``, see :func:`host_us`.

    With ``graph`` the first is the median of replays of ten calls each: events around calls that the host launches
    would show the host wherever a kernel is shorter than its launch. Otherwise it is the wall time of ten calls.
    """
    calls = 2 if device == "cpu" else 10
    found = {"host_us": host_us(action, device, calls=calls, rounds=3)}
    if graph:
        replay = captured(action, calls)[0].replay
        replay()
        found["ms"] = statistics.median(_between_events_ms(replay) for _ in range(7)) / calls
    else:
        wait(device)
        began = time.perf_counter()
        for _ in range(calls):
            action()
        wait(device)
        found["ms"] = 1e3 * (time.perf_counter() - began) / calls
    return {key: round(value, 5) for key, value in found.items()}


def host_us(action: Callable[[], object], device: str, *, calls: int = 200, rounds: int = 40) -> float:
    """Return the µs for which a call keeps the host, without waiting for a GPU.

    A neighbour on the same core may halve its speed for seconds. A fixed piece of Python beside each of ``rounds``
    shows by how much: the result is the median of the ratios of both times, times the least of the fixed piece's. On a
    CPU it is CPU time, and the kernels count: take inputs so small that they hardly do.
    """
    clock = time.process_time if device == "cpu" else time.perf_counter
    for _ in range(2):
        action()
    ratios, pieces = [], []
    for _ in range(rounds):
        wait(device)
        began = clock()
        for _ in range(calls):
            action()
        between = clock()
        sum(i * i for i in range(20_000))
        pieces.append(clock() - between)
        ratios.append((between - began) / pieces[-1])
    wait(device)
    return 1e6 * statistics.median(ratios) * min(pieces) / calls


def captured(action: Callable[[], Any], count: int) -> tuple[torch.cuda.CUDAGraph, Any]:
    """Return a CUDA graph of ``count`` calls, and the results of the last."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        action()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for _ in range(count):
            results = action()
    return graph, results


def wait(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def _between_events_ms(action: Callable[[], object]) -> float:
    wait("cuda")
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    action()
    last.record()
    wait("cuda")
    return first.elapsed_time(last)


def peak_growth(action: Callable[[], object], device: str) -> float:
    """Return the peak growth in MiB during ``action`` of resident memory, or of the CUDA allocator's."""
    if device == "cuda":
        wait(device)
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


def cpu_ceilings() -> dict[str, float]:
    """Measure the limits of one thread: bytes copied, and exps and FMAs in the operators' vectors per second."""
    big = torch.empty(64 * MIB, dtype=torch.uint8)
    other, x = torch.empty_like(big), torch.randn(512, 512)
    copy = min(_busy_ms(lambda: other.copy_(big)) for _ in range(20))
    multiply = min(
        _busy_ms(lambda: x @ x) for _ in range(50)
    )  # oneMKL reaches nine tenths of the peak or more
    lanes = {"AVX-512": 16, "AVX512": 16, "AVX2": 8}
    own, torchs = build_info()["simd"], torch.backends.cpu.get_cpu_capability()
    fmas = x.numel() * x.shape[0] / multiply * 1e3 * lanes.get(own, 4) / lanes.get(torchs, 4)
    found = {"bytes_per_s": 2 * big.numel() / copy * 1e3, "fmas_per_s": fmas}
    return found | {"exps_per_s": fmas / EXP_INSTRUCTIONS}


def _busy_ms(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return 1e3 * (time.process_time() - began)


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
    return min(_between_events_ms(action) for _ in range(10))


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
