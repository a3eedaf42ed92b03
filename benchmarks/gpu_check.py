"""Everything that needs a GPU, in one command of seven minutes: `make gpu-check`.

    python benchmarks/gpu_check.py --out FOLDER                                           # at most 420 s
    python benchmarks/gpu_check.py --out OTHER --steps benchmark-step --limit 200         # or the steps that failed
    python benchmarks/gpu_check.py --out FOLDER --device cpu                              # a rehearsal

For a bare machine with a GPU, nvcc, torch, pytest and hypothesis, and no network. Packages that it lacks can come
along: `pip install --target build/packages pydantic pytest-xdist` with a network, then
PYTHONPATH=build/packages there.

Steps, the most telling first: the extension built in place for the GPU that is there; every operator against the
CPU's; compute-sanitizer on a small set; the operators' CUDA tests; kernel times against eager PyTorch; profiler
counters, where they are permitted; the tests of training. FOLDER gets gpu-check.json and logs.tar.gz after every step,
and times.json (or step.json) after every row. Ends with 1 where a step failed. A step that cannot run, or for which no
time is left, is reported as skipped. The rehearsal walks every step at tiny sizes, compiles nothing and only collects
the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    Call = Callable[[], list[Tensor]]

ROOT = Path(__file__).resolve().parents[1]
LEAST_S = 10  # with less than this left, a step is not begun
TRAINING = ("pydantic", "yaml", "tqdm", "PIL", "safetensors", "rich", "typer", "tensorboard", "matplotlib")
STEPS = TRAINING[:5]  # what benchmarks/step.py imports beside torch and numpy
SECTIONS = ("SpeedOfLight", "Occupancy", "WarpStateStats", "MemoryWorkloadAnalysis")


# ---- parts: what steps run in processes of their own -------------------------------------------------------


def small_calls(classes: int, dtype: str, device: str) -> dict[str, Call]:
    """Return one call of each operator, with its backward pass, on small inputs.

    Every input is made on the CPU and copied: initcheck takes what other kernels than ours wrote for uninitialised.
    """
    import torch

    from udas_fast import ops

    size = (45, 149)
    generator = torch.Generator().manual_seed(classes)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    maps = [(3 * normal(2, classes, 6 + k, 19)).to(device, getattr(torch, dtype)) for k in range(3)]
    a, b, c = (m.requires_grad_() for m in maps)
    target = torch.randint(0, classes, (2, *size), generator=generator).to(torch.uint8)
    target[:, :3] = 255 if classes < 256 else 0
    target, other = target.to(device), target.flip(0).to(device)
    one, incoming = torch.ones(()).to(device), normal(2, classes, *size).to(device)
    images = [torch.randint(0, 256, (2, 3, *size), generator=generator).to(torch.uint8) for _ in range(2)]
    images = [image.to(device) for image in images]
    table = (torch.rand(2, classes, generator=generator) < 0.5).to(device)
    views = [a.detach(), c.detach()]

    def loss(function: Callable[..., Tensor], *arguments: Any, leaves: Sequence[Tensor] = (a,)) -> Call:
        def call() -> list[Tensor]:
            value = function(*arguments)
            return [value.detach(), *torch.autograd.grad(value, leaves, one)]

        return call

    def upsample(activation: str) -> Call:
        def call() -> list[Tensor]:
            value = ops.upsample(a, size, activation=activation)
            return [value.detach(), *torch.autograd.grad(value, a, incoming)]

        return call

    def mix(channels_last: bool) -> Call:
        options = {"mean": [0.5] * 3, "channels_last": channels_last}
        return lambda: list(ops.region_mix(*images, target, other, table, **options))

    def label(reduce: str) -> Call:
        def call() -> list[Tensor]:
            found = ops.pseudo_label(views, size, reduce=reduce)
            return [found.confidence, found.label, found.histogram]

        return call

    calls = {
        "cross_entropy": loss(ops.cross_entropy, a, target),
        "rectified_cross_entropy": loss(ops.rectified_cross_entropy, a, b, target, leaves=(a, b)),
        "symmetric_kl": loss(ops.symmetric_kl, a, b, size, leaves=(a, b)),
        "ensemble_kl": loss(ops.ensemble_kl, a, b, size, leaves=(a, b)),
        "distillation_kl": loss(ops.distillation_kl, a, [b.detach(), c.detach()], size),
        "soft_cross_entropy": loss(ops.soft_cross_entropy, a, b.detach().softmax(1), size),
        "squared_error": loss(ops.squared_error, a, b.detach().softmax(1), size),
        "entropy": loss(ops.entropy, a, size),
        "confusion_matrix": lambda: [ops.confusion_matrix(views[0], target, classes)],
    }
    calls |= {f"upsample {name}": upsample(name) for name in ("none", "softmax", "self_information")}
    calls |= {f"pseudo_label {name}": label(name) for name in ("max", "mean")}
    return calls | {f"region_mix {name}": mix(name == "last") for name in ("first", "last")}


def short_set(device: str, out: Path) -> None:
    """Call every operator once, for an unrolled and a general class count: for compute-sanitizer."""
    import harness

    for classes in (19, 5):
        for call in small_calls(classes, "float32", device).values():
            call()
    harness.wait(device)


def smoke(device: str, out: Path) -> None:
    """Compare every operator with the CPU's, with itself (the same bits), and with a replay of its CUDA graph."""
    import harness
    import torch

    wrong = []
    for classes in (19, 5, 256):
        for dtype in ("float32", "bfloat16"):
            here, cpu = (small_calls(classes, dtype, d) for d in (device, "cpu"))
            for name, call in here.items():
                first, again, expected = call(), call(), cpu[name]()
                where = f"{name}, {classes} classes, {dtype}"
                if not all(torch.equal(a, b) for a, b in zip(first, again, strict=True)):
                    wrong.append(f"{where}: two calls differ")
                for k, (a, b) in enumerate(zip(first, expected, strict=True)):
                    if not (apart := difference(a.cpu(), b)) <= tolerance(b):  # NaN is wrong, too
                        wrong.append(f"{where}: result {k} is {apart:.2g} from the CPU's")
                if device == "cuda" and classes == 19:
                    graph, held = harness.captured(call, 1)
                    graph.replay()
                    if not all(torch.equal(a, b) for a, b in zip(first, held, strict=True)):
                        wrong.append(f"{where}: a CUDA graph differs")
    harness.wait(device)
    if wrong:
        raise SystemExit("\n".join(wrong))


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest difference over the largest value; of counts their sums, of labels the differing share."""
    import torch

    if a.dtype != b.dtype or a.shape != b.shape:
        return float("inf")
    if b.dtype == torch.uint8:
        return float((a != b).double().mean())
    apart, size = (a.double() - b.double()).abs(), b.double().abs()
    if b.dtype == torch.int64:
        return float(apart.sum() / size.sum())
    return float(apart.max() / size.max())


def tolerance(expected: Tensor) -> float:
    """Return the difference that is accepted: roundings, and in integers what they change at ties and edges of bins."""
    import torch

    return {torch.float32: 3e-5, torch.bfloat16: 1e-2}.get(expected.dtype, 4e-3)


def times(device: str, out: Path) -> None:
    """Time ours and eager PyTorch at 1280×720: replays of a CUDA graph, and the host's own time as another column."""
    import harness
    import ops as cases
    import torch

    cpu = device == "cpu"
    document: dict[str, Any] = {"environment": harness.environment(device), "rows": []}
    for batch in (1,) if cpu else (1, 4):
        for dtype in cases.DTYPES:
            inputs = cases.Inputs.make((24, 40) if cpu else (720, 1280), batch, cases.DTYPES[dtype], device)
            for case in cases.CASES:
                if case.maps == 0 and dtype != "float32":
                    continue  # works on uint8
                for backward in (False, True) if case.gradients else (False,):
                    row = {"op": case.name, "backward": backward, "batch": batch, "dtype": dtype}
                    for name, step in (("ours", case.ours(inputs)), ("eager", case.eager(inputs))):
                        call = cases.action(step, inputs.maps[: case.maps], case.gradients * backward)
                        graph = not (cpu or (name == "eager" and case.eager_waits))
                        row[name] = harness.time_call(call, device, graph)
                    if not cpu:
                        ceilings = document["environment"]["ceilings"]
                        row["floor_ms"] = round(cases.floor_ms(case, inputs, backward, ceilings), 4)
                        torch.cuda.empty_cache()
                    document["rows"].append(row)
                    harness.write(out / "times.json", document)
                    print(row, flush=True)


def profile(device: str, out: Path) -> None:
    """Call every operator once at 1280×720, for the profiler."""
    import harness
    import ops as cases

    size = (24, 40) if device == "cpu" else (720, 1280)
    inputs = cases.Inputs.make(size, 1, cases.DTYPES["float32"], device)
    for case in cases.CASES:
        cases.action(case.ours(inputs), inputs.maps[: case.maps], case.gradients)()
    harness.wait(device)


PARTS = {part.__name__: part for part in (short_set, smoke, times, profile)}


# ---- steps -------------------------------------------------------------------------------------------------


class Check:
    """Runs steps in order, each a command with what is left of the time, and keeps what came of them.

    Args:
        out: folder of everything that is written.
        device: "cuda", or "cpu" for a rehearsal.
        limit: seconds for all steps together.
        environment: the machine, for the JSON.
    """

    def __init__(self, out: Path, device: str, limit: float, environment: dict[str, Any]) -> None:
        self.out, self.device, self.environment = out, device, environment
        self.ends = time.monotonic() + limit
        self.steps: dict[str, dict[str, Any]] = {}
        self.logs = Path(tempfile.mkdtemp())

    def run(self, name: str, command: list[str], limit: float, **environment: str) -> None:
        """Run ``command`` from the repository for at most ``limit`` seconds; its output goes to a log."""
        left = self.ends - time.monotonic()
        if left < LEAST_S:
            self.skip(name, "no time left")
            return
        began = time.monotonic()
        log = self.logs / f"{name}.log"
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths} | environment
        with log.open("w") as output:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=output, stderr=output, env=environment, start_new_session=True
            )
            try:
                code = process.wait(min(limit, left))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # and all that it started
                process.wait()
                code = 124
        seconds = round(time.monotonic() - began, 1)
        tail = log.read_text(errors="replace").strip().splitlines()[-12:]
        if "ERR_NVGPUCTRPERM" in "".join(tail):
            self.skip(name, "profiler counters are not permitted")
            return
        self.steps[name] = {"command": command, "exit": code, "seconds": seconds, "tail": tail}
        print(f"{'ok  ' if code == 0 else 'FAIL'} {name} ({seconds} s)", flush=True)
        if code != 0:
            print("\n".join(f"     {line}" for line in tail), flush=True)
        self.write()

    def part(self, name: str, part: str, limit: float, *under: str, **environment: str) -> None:
        """Run one of PARTS in a process of its own, ``under`` the command of a tool."""
        own = [sys.executable, __file__, "--device", self.device, "--out", str(self.out), "--part", part]
        self.run(name, [*under, *own], limit, **environment)

    def tests(self, name: str, limit: float, *options: str) -> None:
        """Run the CUDA tests among ``options``; collect them alone without a GPU."""
        command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", "cuda", *options]
        if self.device == "cpu":
            command += ["--collect-only", "-q"]
        elif find_spec("xdist"):
            command += ["-n", "6"]
        self.run(name, command, limit)

    def missing(self, name: str, modules: Sequence[str]) -> bool:
        """Whether one of ``modules`` is not installed, so that step ``name`` is skipped."""
        if absent := [module for module in modules if find_spec(module) is None]:
            self.skip(name, f"no {', '.join(absent)}")
        return bool(absent)

    def tool(self, name: str, program: str) -> list[str] | None:
        """Return the command of a CUDA tool: nothing in a rehearsal, None where step ``name`` is skipped without it."""
        if self.device == "cpu":
            return []
        found = shutil.which(program) or f"/usr/local/cuda/bin/{program}"
        if os.access(found, os.X_OK):
            return [found]
        self.skip(name, f"no {program} on PATH or in /usr/local/cuda/bin")
        return None

    def skip(self, name: str, reason: str) -> None:
        """Record that a step was not run."""
        self.steps[name] = {"skipped": reason}
        print(f"skip {name}: {reason}", flush=True)
        self.write()

    @property
    def good(self) -> bool:
        """Whether nothing failed."""
        return all(step.get("exit", 0) == 0 for step in self.steps.values())

    def write(self) -> None:
        """Write the JSON, and the logs in one archive."""
        result = {"ok": self.good, "environment": self.environment, "steps": self.steps}
        (self.out / "gpu-check.json").write_text(json.dumps(result, indent=1) + "\n")
        with tarfile.open(self.out / "logs.tar.gz", "w:gz") as archive:
            archive.add(self.logs, "logs")


def build(check: Check, name: str) -> None:
    """For this GPU alone, in place."""
    command, environment = [sys.executable, "setup.py", "build_ext", "--inplace"], {"UDAS_FAST_CUDA": "1"}
    if check.device == "cpu":  # reads all of setup.py and compiles nothing
        command, environment = [sys.executable, "setup.py", "--version"], {"UDAS_FAST_CUDA": "0"}
    else:
        environment["TORCH_CUDA_ARCH_LIST"] = check.environment["capability"]
        environment["MAX_JOBS"] = str(min(16, os.cpu_count() or 1))
    check.run(name, command, 150, **environment)


def sanitize(check: Check, name: str) -> None:
    """One of compute-sanitizer's tools on our kernels. The filter takes mangled names."""
    if (tool := check.tool(name, "compute-sanitizer")) is None:
        return
    if tool:
        tool += ["--tool", name, "--error-exitcode", "9", "--kernel-name", "kns=udas"]
    check.part(name, "short_set", 75, *tool, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def counters(check: Check, name: str) -> None:
    """Nsight Compute on one launch of each kernel."""
    if (tool := check.tool(name, "ncu")) is None:
        return
    if tool:
        tool += ["--clock-control", "none", "--kernel-name-base", "mangled", "--kernel-name", "regex:udas"]
        tool += [option for section in SECTIONS for option in ("--section", section)]
    check.part(name, "profile", 60, *tool)


def test_training(check: Check, name: str) -> None:
    """Training on the GPU, and reading ahead."""
    if not check.missing(name, TRAINING):
        check.tests(name, 120, "tests/gpu/test_gpu.py", "tests/data/test_prefetch.py")


def benchmark_step(check: Check, name: str) -> None:
    """The whole training steps at the published sizes, ours and the public code's."""
    if check.missing(name, STEPS):
        return
    cuda = check.device == "cuda"
    command = [sys.executable, "benchmarks/step.py", "--device", check.device, "--batches", "1"]
    command += ["4", "--repeats", "3", "--limit", "150"] if cuda else ["--repeats", "1", "--limit", "0"]
    check.run(name, [*command, "--output", str(check.out / "step.json")], 190)


ALL_STEPS: dict[str, Callable[[Check, str], None]] = {
    "build": build,
    "smoke": lambda check, name: check.part(name, "smoke", 60),
    "memcheck": sanitize,
    "racecheck": sanitize,
    "tests": lambda check, name: check.tests(name, 120, "--noconftest", "tests/ops"),
    "times": lambda check, name: check.part(name, "times", 90),
    "counters": counters,
    "initcheck": sanitize,
    "synccheck": sanitize,
    "tests-training": test_training,
    "benchmark-step": benchmark_step,
}
FIRST = [name for name in ALL_STEPS if name != "benchmark-step"]


def environment(device: str) -> dict[str, Any]:
    """Return the machine, as every result of a benchmark needs it."""
    import torch

    found: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    found |= {"python": sys.version.split()[0], "cores": os.cpu_count()}
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        found |= {"gpu": gpu.name, "capability": f"{gpu.major}.{gpu.minor}"}
        found |= {"multiprocessors": gpu.multi_processor_count, "memory_gib": gpu.total_memory / 2**30}
    return found


def main() -> int:
    """Run the requested steps; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build/gpu-check", help="folder of everything written"
    )
    parser.add_argument(
        "--steps", nargs="+", choices=ALL_STEPS, default=FIRST, help="default: all but the last"
    )
    parser.add_argument("--limit", type=float, default=420, help="seconds for all steps together")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        PARTS[arguments.part](arguments.device, arguments.out)
        return 0
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("gpu-check: found no GPU that torch can use; nothing was checked")
        return 1
    arguments.out.mkdir(parents=True, exist_ok=True)
    out = arguments.out.resolve()
    check = Check(out, arguments.device, arguments.limit, environment(arguments.device))
    print(check.environment, flush=True)
    for name in arguments.steps:
        ALL_STEPS[name](check, name)
    shutil.rmtree(check.logs)
    print(f"gpu-check: {'all passed' if check.good else 'FAILED'}, {out / 'gpu-check.json'}")
    return 0 if check.good else 1


if __name__ == "__main__":
    sys.exit(main())
