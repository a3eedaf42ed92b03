"""Everything that needs a GPU, in one command and within ten minutes: `make gpu-check`.

    python benchmarks/gpu_check.py [--out FOLDER]

For a bare machine with a GPU, nvcc, torch, pytest and hypothesis, and no network: builds the extension in place for the
GPU that is there, runs the operators' CUDA tests, a short set under compute-sanitizer, and the benchmarks of the
operators and, where the package's other dependencies are, of whole training steps. Writes FOLDER/gpu-check.json with
each step's result and time, and the benchmarks' own JSON beside it (ops-cuda.json, ops-cuda-compile.json,
step-cuda.json); full logs go to build/gpu-check. Ends with 1 where a step failed. A step that cannot run is reported
as skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOGS = ROOT / "build/gpu-check"
TOTAL_S = 570  # of the ten minutes


class Check:
    """Runs steps in order, each a command with what is left of the time, and keeps what came of them."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.began = time.monotonic()
        self.steps: dict[str, dict[str, Any]] = {}

    def left(self) -> float:
        return max(1.0, TOTAL_S - (time.monotonic() - self.began))

    def run(self, name: str, command: list[str], limit: float, **environment: str) -> bool:
        """Run ``command`` from the repository for at most ``limit`` seconds; its output goes to a log."""
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
        return code == 0

    def skip(self, name: str, reason: str) -> None:
        self.steps[name] = {"skipped": reason}
        print(f"skip {name}: {reason}", flush=True)

    def write(self, environment: dict[str, Any]) -> bool:
        """Write the JSON; True where nothing failed."""
        good = all(step.get("exit", 0) == 0 for step in self.steps.values())
        result = {"ok": good, "environment": environment, "steps": self.steps}
        (self.out / "gpu-check.json").write_text(json.dumps(result, indent=1) + "\n")
        return good


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


def sanitize(check: Check) -> None:
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    for name in ("memcheck", "racecheck", "initcheck"):
        if not os.access(tool, os.X_OK):
            check.skip(name, "no compute-sanitizer on PATH or in /usr/local/cuda/bin")
            continue
        command = [tool, "--tool", name, "--error-exitcode", "9", "--kernel-regex", "kns=udas"]
        short = [sys.executable, __file__, "--short-set", "cuda"]
        check.run(name, [*command, *short], 90, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def benchmark(check: Check) -> None:
    """Against eager at two sizes and batches; against torch.compile, which takes its time, at one."""
    command = [sys.executable, "benchmarks/ops.py", "--device", "cuda", "--seconds", "0.5"]
    sizes = ["--sizes", "1280x720", "1024x512", "--batches", "1", "8", "--no-compile"]
    check.run("benchmark", [*command, *sizes, "--output", str(check.out / "ops-cuda.json")], 150)
    one = ["--sizes", "1280x720", "--batches", "8", "--dtypes", "float32"]
    check.run(
        "benchmark-compile", [*command, *one, "--output", str(check.out / "ops-cuda-compile.json")], 240
    )


def step(check: Check) -> None:
    """The whole training steps at the published sizes, and ours under hard caps of memory."""
    if missing := [name for name in ("pydantic", "yaml", "tqdm", "PIL") if find_spec(name) is None]:
        check.skip("benchmark-step", f"no {', '.join(missing)}")
        return
    command = [sys.executable, "benchmarks/step.py", "--device", "cuda", "--batches", "1", "2", "4"]
    caps = ["--repeats", "3", "--caps", "11", "8", "6", "4"]
    check.run("benchmark-step", [*command, *caps, "--output", str(check.out / "step-cuda.json")], 240)


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
    check, here = Check(arguments.out), environment()
    print(here, flush=True)
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    if check.run("build", build, 300, UDAS_FAST_CUDA="1", TORCH_CUDA_ARCH_LIST=here["capability"]):
        tests = [
            sys.executable,
            "-m",
            "pytest",
            "--noconftest",
            "-p",
            "no:cacheprovider",
            "-m",
            "cuda",
            "tests/ops",
        ]
        check.run("tests", tests, 200)
        sanitize(check)
        benchmark(check)
        step(check)
    good = check.write(here)
    print(f"gpu-check: {'all passed' if good else 'FAILED'}, {check.out / 'gpu-check.json'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
