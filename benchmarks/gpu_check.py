"""Everything that needs a GPU, in one command and within ten minutes: `make gpu-check`.

    python benchmarks/gpu_check.py [--out FOLDER]

For a bare machine with a GPU, nvcc, torch, pytest and hypothesis, and no network: builds the extension in place for
the GPU that is there, runs the operators' CUDA tests and, where the package's other dependencies are, those of
training; then the benchmarks of whole steps and of the operators, a short set under compute-sanitizer, and
torch.compile beside the operators. Missing packages can come along in a folder on PYTHONPATH.

Writes FOLDER/gpu-check.json after every step, with its result and time; the benchmarks write their own JSON beside it
after every row (step-cuda.json, ops-cuda.json, ops-cuda-compile.json); full logs go to build/gpu-check. Ends with 1
where a step failed. A step that cannot run, or for which no time is left, is reported as skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build/gpu-check"
TOTAL_S = 570  # of the ten minutes
LEAST_S = 20  # with less than this left, a step is not begun
TRAINING = ("pydantic", "yaml", "tqdm", "PIL", "safetensors", "rich", "typer", "tensorboard", "matplotlib")
STEPS = TRAINING[:5]  # what benchmarks/step.py imports beside torch and numpy


class Check:
    """Runs steps in order, each a command with what is left of the time, and keeps what came of them."""

    def __init__(self, out: Path, environment: dict[str, Any]) -> None:
        self.out, self.environment = out, environment
        self.began = time.monotonic()
        self.steps: dict[str, dict[str, Any]] = {}

    def left(self) -> float:
        return TOTAL_S - (time.monotonic() - self.began)

    def run(self, name: str, command: list[str], limit: float, **environment: str) -> bool:
        """Run ``command`` from the repository for at most ``limit`` seconds; its output goes to a log."""
        if self.left() < LEAST_S:
            self.skip(name, "no time left")
            return False
        began = time.monotonic()
        log = LOGS / f"{name}.log"
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        with log.open("w") as output:
            try:
                code = subprocess.run(
                    command,
                    cwd=ROOT,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=min(limit, self.left()),
                    env=os.environ | {"PYTHONPATH": paths} | environment,
                ).returncode
            except subprocess.TimeoutExpired:
                code = 124
        tail = log.read_text(errors="replace").strip().splitlines()[-12:]
        self.steps[name] = {
            "command": command,
            "exit": code,
            "seconds": round(time.monotonic() - began, 1),
            "tail": tail,
        }
        print(f"{'ok  ' if code == 0 else 'FAIL'} {name} ({self.steps[name]['seconds']} s)", flush=True)
        if code != 0:
            print("\n".join(f"     {line}" for line in tail), flush=True)
        self.write()
        return code == 0

    def missing(self, name: str, modules: Sequence[str]) -> bool:
        """Whether one of ``modules`` is not installed, so that step ``name`` is skipped."""
        if absent := [module for module in modules if find_spec(module) is None]:
            self.skip(name, f"no {', '.join(absent)}")
        return bool(absent)

    def skip(self, name: str, reason: str) -> None:
        self.steps[name] = {"skipped": reason}
        print(f"skip {name}: {reason}", flush=True)
        self.write()

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return all(step.get("exit", 0) == 0 for step in self.steps.values())

    def write(self) -> None:
        """Write the JSON."""
        result = {"ok": self.good, "environment": self.environment, "steps": self.steps}
        (self.out / "gpu-check.json").write_text(json.dumps(result, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """The machine, as every result of a benchmark needs it."""
    import torch

    device = torch.cuda.get_device_properties(0)
    return {
        "gpu": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "memory_gib": round(device.total_memory / 2**30, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "python": sys.version.split()[0],
    }


def short_set(device: str) -> None:
    """Every operator once on small tensors, for an unrolled and a general class count: for compute-sanitizer."""
    import torch

    from udas_fast import ops

    size = (45, 149)
    for classes in (19, 5):
        a, b, c = (torch.randn(2, classes, 6 + k, 19, device=device, requires_grad=True) for k in range(3))
        target = torch.randint(0, classes, (2, *size), device=device, dtype=torch.uint8)
        target[:, :3] = 255
        losses = [
            ops.cross_entropy(a, target),
            ops.rectified_cross_entropy(a, b, target),
            ops.symmetric_kl(a, b, size),
            ops.ensemble_kl(a, b, size),
            ops.distillation_kl(a, [b, c], size),
            ops.entropy(a, size),
        ]
        losses += [
            ops.upsample(a, size, activation=activation).square().mean()
            for activation in ("none", "softmax", "self_information")
        ]
        torch.stack(losses).sum().backward()
        for reduce in ("max", "mean"):
            ops.pseudo_label([a.detach(), c.detach()], size, reduce=reduce)
        ops.confusion_matrix(a.detach(), target, classes)
        images = [torch.randint(0, 256, (2, 3, *size), device=device, dtype=torch.uint8) for _ in range(2)]
        table = torch.rand(2, classes, device=device) < 0.5
        for last in (False, True):
            ops.region_mix(*images, target, target.flip(0), table, mean=[0.5] * 3, channels_last=last)
    if device == "cuda":
        torch.cuda.synchronize()


def build(check: Check) -> bool:
    """For this GPU alone, in place."""
    environment = {"UDAS_FAST_CUDA": "1", "TORCH_CUDA_ARCH_LIST": check.environment["capability"]}
    environment["MAX_JOBS"] = str(min(16, os.cpu_count() or 1))
    return check.run("build", [sys.executable, "setup.py", "build_ext", "--inplace"], 240, **environment)


def test(check: Check) -> None:
    """The operators' tests, which need torch alone, then training and reading ahead."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "cuda"]
    check.run("tests", [*command, "--noconftest", "tests/ops"], 150)
    if not check.missing("tests-training", TRAINING):
        check.run("tests-training", [*command, "tests/gpu/test_gpu.py", "tests/data/test_prefetch.py"], 150)


def sanitize(check: Check) -> None:
    """A short set of every operator under compute-sanitizer's tools."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for name in ("memcheck", "racecheck", "initcheck"):
        if not os.access(tool, os.X_OK):
            check.skip(name, "no compute-sanitizer on PATH or in /usr/local/cuda/bin")
            continue
        command = [tool, "--tool", name, "--error-exitcode", "9", "--kernel-regex", "kns=udas"]
        short = [sys.executable, __file__, "--short-set", "cuda"]
        check.run(name, [*command, *short], 60, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def benchmark_steps(check: Check) -> None:
    """The whole training steps at the published sizes, and ours under hard caps of memory, as far as the time goes."""
    if check.missing("benchmark-step", STEPS):
        return
    command = [sys.executable, "benchmarks/step.py", "--device", "cuda", "--batches", "1", "2", "4"]
    caps = ["--repeats", "3", "--caps", "11", "8", "6", "4", "--limit", "130"]
    check.run("benchmark-step", [*command, *caps, "--output", str(check.out / "step-cuda.json")], 160)


def benchmark_operators(check: Check, name: str, limit: float, *options: str) -> None:
    """Against eager at two sizes and batches, or against torch.compile, which takes its time, at one."""
    command = [sys.executable, "benchmarks/ops.py", "--device", "cuda", "--seconds", "0.5", *options]
    check.run(
        name, [*command, "--output", str(check.out / f"{name.replace('benchmark', 'ops-cuda')}.json")], limit
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results", help="folder for results")
    parser.add_argument("--short-set", metavar="DEVICE", help="only call every operator once, on DEVICE")
    arguments = parser.parse_args()
    if arguments.short_set:
        short_set(arguments.short_set)
        return 0
    import torch

    if not torch.cuda.is_available():
        print("gpu-check: found no GPU that torch can use; nothing was checked")
        return 1
    for folder in (arguments.out, LOGS):
        folder.mkdir(parents=True, exist_ok=True)
    check = Check(arguments.out, environment())
    print(check.environment, flush=True)
    # Without the operators a step is another; but whether training runs can be told all the same.
    built = build(check)
    test(check)
    if built:
        benchmark_steps(check)
        sizes = ["--sizes", "1280x720", "1024x512", "--batches", "1", "8", "--no-compile"]
        benchmark_operators(check, "benchmark", 100, *sizes)
        sanitize(check)
        one = ["--sizes", "1280x720", "--batches", "8", "--dtypes", "float32"]
        benchmark_operators(check, "benchmark-compile", 150, *one)
    check.write()
    print(f"gpu-check: {'all passed' if check.good else 'FAILED'}, {check.out / 'gpu-check.json'}")
    return 0 if check.good else 1


if __name__ == "__main__":
    sys.exit(main())
