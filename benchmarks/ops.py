"""Time and peak extra memory of the fused operators against eager PyTorch and torch.compile.

    python benchmarks/ops.py --check                 # one small size, seconds
    python benchmarks/ops.py                         # CPU, one thread, the real sizes
    python benchmarks/ops.py --no-page-faults        # the same with an allocator that keeps its memory
    python benchmarks/ops.py --device cuda           # and the fraction of the GPU's floor
    python benchmarks/ops.py --host                  # host time of a call, on two logits
    python benchmarks/ops.py --floor                 # the share of the least possible time, by number of classes

Writes results/ops-DEVICE[-SIMD][-no-page-faults].json, host-DEVICE.json or floor-DEVICE[-SIMD].json, and prints its
table. UDAS_FAST_SIMD=avx2 measures AVX2.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import torch
import torch.nn.functional as F
from torch import Tensor

from udas_fast import build_info, ops

CLASSES = 19
SIZES = {"1280x720": (720, 1280), "1024x512": (512, 1024), "2048x1024": (1024, 2048)}
FLOOR_SIZE = (360, 640)
# Images by number of classes: their full-resolution maps take the same 140 to 170 MB, so that for none they stay in a
# cache, as the 17 MB of one image of 19 classes would from call to call.
FLOOR_IMAGES = {CLASSES: 8, 60: 3, 150: 1}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
Step = Callable[..., Any]


@dataclass
class Inputs:
    """Random inputs of one size: three logit maps at stride 8, two label maps, and two uint8 images."""

    maps: list[Tensor]
    target: Tensor
    other: Tensor
    images: list[Tensor]
    boxes: Tensor
    size: tuple[int, int]

    @classmethod
    def make(
        cls, size: tuple[int, int], batch: int, dtype: torch.dtype, device: str, classes: int = CLASSES
    ) -> Inputs:
        """Draw inputs for images of ``size`` (H, W); the same for the same arguments."""
        generator = torch.Generator().manual_seed(0)
        height, width = size
        low = (batch, classes, height // 8 + 1, width // 8 + 1)
        maps = [(torch.randn(low, generator=generator) * 3).to(device, dtype) for _ in range(3)]
        target = torch.randint(0, classes, (batch, *size), generator=generator, dtype=torch.uint8).to(device)
        images = [
            torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8).to(device)
            for _ in range(2)
        ]
        boxes, _ = ops.sample_boxes(batch, size, fit=True, generator=generator)
        return cls(maps, target, target.flip(0), images, boxes.to(device), size)


def up(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample logits ``[N, C, h, w]`` to ``size``, in float32."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).float()


def eager_pseudo_label(maps: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Label K views as a user would write it; without the histogram, which ours counts too."""
    confidence, label = up(maps[0], size).softmax(1).max(1)
    for view in maps[1:]:
        value, index = up(view, size).softmax(1).max(1)
        label = torch.where(value > confidence, index, label)
        confidence = torch.maximum(value, confidence)
    return torch.where(confidence >= 0.6, label, 255).to(torch.uint8), confidence


def eager_symmetric_kl(a: Tensor, b: Tensor, size: tuple[int, int]) -> Tensor:
    """Return KL(a‖b) + KL(b‖a) in plain PyTorch."""
    p, q = up(a, size).log_softmax(1), up(b, size).log_softmax(1)
    forth, back = (
        F.kl_div(y, x, reduction="none", log_target=True).sum(1).mean() for x, y in ((p, q), (q, p))
    )
    return forth + back


def eager_ensemble_kl(a: Tensor, b: Tensor, size: tuple[int, int]) -> Tensor:
    """Return KL(m‖a) + KL(m‖b), m = softmax(0.5·b + a) detached, in plain PyTorch."""
    p, q = up(a, size), up(b, size)
    mean = (0.5 * q + p).detach().log_softmax(1)
    first, second = (F.kl_div(x.log_softmax(1), mean, reduction="none", log_target=True) for x in (p, q))
    return first.sum(1).mean() + second.sum(1).mean()


def eager_distillation_kl(student: Tensor, teachers: list[Tensor], size: tuple[int, int]) -> Tensor:
    """Return KL(mean of the teachers ‖ student) in plain PyTorch."""
    mean = torch.stack([up(t, size).softmax(1) for t in teachers]).mean(0)
    return F.kl_div(up(student, size).log_softmax(1), mean, reduction="none").sum(1).mean()


def eager_soft_cross_entropy(a: Tensor, q: Tensor, size: tuple[int, int]) -> Tensor:
    """Return −Σ q·log softmax(a) in plain PyTorch, which takes probabilities as targets."""
    return F.cross_entropy(up(a, size), up(q, size))


def eager_squared_error(a: Tensor, q: Tensor, size: tuple[int, int]) -> Tensor:
    """Return Σ (softmax(a) − q)² in plain PyTorch."""
    return (up(a, size).softmax(1) - up(q, size)).square().sum(1).mean()


def eager_rectified(a: Tensor, b: Tensor, target: Tensor) -> Tensor:
    """Return mean(CE(a)·exp(−var)) + mean(var), var = KL(b‖a), in plain PyTorch."""
    size = tuple(target.shape[1:])
    p, q = up(a, size), up(b, size)
    variance = F.kl_div(p.log_softmax(1), q.softmax(1), reduction="none").sum(1)
    loss = F.cross_entropy(p, target.long(), ignore_index=255, reduction="none")
    return (loss * torch.exp(-variance)).mean() + variance.mean()


def eager_entropy(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the mean normalised entropy in plain PyTorch."""
    log_p = up(logits, size).log_softmax(1)
    return -(log_p.exp() * log_p).sum(1).mean() / torch.log(torch.tensor(float(logits.shape[1])))


def eager_upsample(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Return the softmax of upsampled logits in plain PyTorch."""
    return F.interpolate(logits, size, mode="bilinear", align_corners=False).softmax(1, dtype=torch.float32)


def eager_confusion(logits: Tensor, target: Tensor) -> Tensor:
    """Return the confusion matrix int64 ``[C, C]`` in plain PyTorch."""
    prediction = up(logits, tuple(target.shape[1:])).argmax(1)
    valid = target != 255
    cell = target[valid].long() * CLASSES + prediction[valid]
    return torch.bincount(cell, minlength=CLASSES * CLASSES).view(CLASSES, CLASSES)


def eager_mix(
    inside: Tensor, outside: Tensor, inside_label: Tensor, outside_label: Tensor, boxes: Tensor
) -> Any:
    """Return the composite of two images and labels in plain PyTorch, the image normalised."""
    height, width = inside.shape[2:]
    y = torch.arange(height, device=inside.device).view(1, -1, 1)
    x = torch.arange(width, device=inside.device).view(1, 1, -1)
    x0, y0, x1, y1 = boxes.view(-1, 4, 1, 1).unbind(1)
    mask = (x >= x0) & (x < x1) & (y >= y0) & (y < y1)
    mean, std = (torch.tensor(v, device=inside.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    image = (torch.where(mask.unsqueeze(1), inside, outside).float() / 255 - mean) / std
    return image, torch.where(mask, inside_label, outside_label)


@dataclass(frozen=True)
class Work:
    """Least arithmetic per full-resolution pixel and class: exponentials or logarithms, and all other instructions.

    Vertical interpolation of a map is one FMA, its adjoint two; the horizontal ones are shared by the rows of a stride
    and left out. A softmax is a maximum, a shift with scaling, an exponential and a sum. What is done once a pixel is
    left out. The counts by operator stand in csrc/core/losses.h, predict.h and upsample.h.
    """

    slots: float = 0
    exps: float = 0


@dataclass(frozen=True)
class Case:
    """One operator, ours and eager on the same inputs; ``gradients`` maps get a gradient.

    ``forward`` and ``both``, with the backward pass, are the least work, for the floor.
    """

    name: str
    ours: Callable[[Inputs], Step]
    eager: Callable[[Inputs], Step]
    maps: int
    gradients: int = 0
    forward: Work = Work()
    both: Work = Work()
    eager_waits: bool = False  # the eager form waits for the GPU, so that no graph can hold it


def heads(name: str, twin: Callable[..., Tensor], forward: Work, both: Work) -> Case:
    """Return the case of an operator on the logits of two heads."""
    return Case(
        name,
        lambda i: lambda a, b: getattr(ops, name)(a, b, i.size),
        lambda i: lambda a, b: twin(a, b, i.size),
        maps=2,
        gradients=2,
        forward=forward,
        both=both,
    )


CASES = [
    Case(
        "pseudo_label",
        lambda i: lambda *m: ops.pseudo_label(m, i.size),
        lambda i: lambda *m: eager_pseudo_label(list(m), i.size),
        maps=3,
        forward=Work(18, 3),
    ),
    Case(
        "cross_entropy",
        lambda i: lambda a: ops.cross_entropy(a, i.target),
        lambda i: lambda a: F.cross_entropy(up(a, i.size), i.target.long(), ignore_index=255),
        maps=1,
        gradients=1,
        forward=Work(4, 1),
        both=Work(6, 1),
    ),
    heads("symmetric_kl", eager_symmetric_kl, Work(11, 2), Work(21, 2)),
    heads("ensemble_kl", eager_ensemble_kl, Work(13, 3), Work(20, 3)),
    Case(
        "distillation_kl",
        lambda i: lambda s, *t: ops.distillation_kl(s, [x.detach() for x in t], i.size),
        lambda i: lambda s, *t: eager_distillation_kl(s, [x.detach() for x in t], i.size),
        maps=3,
        gradients=1,
        forward=Work(16, 4),
        both=Work(19, 4),
    ),
    Case(
        "soft_cross_entropy",
        lambda i: lambda a, b: ops.soft_cross_entropy(a, b.detach().softmax(1), i.size),
        lambda i: lambda a, b: eager_soft_cross_entropy(a, b.detach().softmax(1), i.size),
        maps=2,
        gradients=1,
        forward=Work(6, 1),
        both=Work(8, 1),
    ),
    Case(
        "squared_error",
        lambda i: lambda a, b: ops.squared_error(a, b.detach().softmax(1), i.size),
        lambda i: lambda a, b: eager_squared_error(a, b.detach().softmax(1), i.size),
        maps=2,
        gradients=1,
        forward=Work(8, 1),
        both=Work(11, 1),
    ),
    Case(
        "rectified_cross_entropy",
        lambda i: lambda a, b: ops.rectified_cross_entropy(a, b, i.target),
        lambda i: lambda a, b: eager_rectified(a, b, i.target),
        maps=2,
        gradients=2,
        forward=Work(10, 2),
        both=Work(18, 2),
    ),
    Case(
        "entropy",
        lambda i: lambda a: ops.entropy(a, i.size),
        lambda i: lambda a: eager_entropy(a, i.size),
        maps=1,
        gradients=1,
        forward=Work(5, 1),
        both=Work(9, 1),
    ),
    Case(
        "upsample",
        lambda i: lambda a: ops.upsample(a, i.size),
        lambda i: lambda a: eager_upsample(a, i.size),
        maps=1,
        gradients=1,
        forward=Work(5, 1),
        both=Work(14, 2),
    ),
    Case(
        "confusion_matrix",
        lambda i: lambda a: ops.confusion_matrix(a, i.target, a.shape[1]),
        lambda i: lambda a: eager_confusion(a, i.target),
        maps=1,
        forward=Work(4),
        eager_waits=True,
    ),
    Case(
        "region_mix",
        lambda i: lambda: ops.region_mix(*i.images, i.target, i.other, i.boxes, mean=MEAN, std=STD),
        lambda i: lambda: eager_mix(*i.images, i.target, i.other, i.boxes),
        maps=0,
        eager_waits=True,
    ),
]
FLIPS = [False, True, False]
FLIPPED = Case(  # a list of flips has a cost on the host alone
    "pseudo_label, flips",
    lambda i: lambda *m: ops.pseudo_label(m, i.size, flips=FLIPS),
    lambda i: (
        lambda *m: eager_pseudo_label(
            [view.flip(-1) if flip else view for view, flip in zip(m, FLIPS, strict=True)], i.size
        )
    ),
    maps=3,
)


def action(step: Step, maps: list[Tensor], gradients: int) -> Callable[[], object]:
    """Return one call of ``step``, with its backward pass where there are ``gradients``."""

    def forward() -> Any:
        with torch.no_grad():
            return step(*maps)

    if gradients == 0:
        return forward

    incoming = torch.ones_like(forward())  # gradient of a loss, or of a full-resolution map

    def both() -> object:
        leaves = [m.detach().requires_grad_(k < gradients) for k, m in enumerate(maps)]
        step(*leaves).backward(incoming)
        return [leaf.grad for leaf in leaves]

    return both


def floor_ms(case: Case, inputs: Inputs, backward: bool, ceilings: dict[str, float]) -> float:
    """Return the least time on this device: that of the bytes moved, or of the arithmetic.

    A GPU has a unit of its own for exponentials, which it also issues; a CPU computes them like everything else.
    """
    height, width = inputs.size
    classes = inputs.maps[0].shape[1]
    pixels = inputs.target.shape[0] * height * width
    maps = sum(m.numel() * m.element_size() for m in inputs.maps[: case.maps])
    moved = maps + pixels
    if backward:
        moved += sum(m.numel() * (4 + 2 * m.element_size()) for m in inputs.maps[: case.gradients])
    if case.name == "upsample":
        moved += 4 * classes * pixels * (2 if backward else 1)
    if case.name == "pseudo_label":
        moved += 4 * pixels
    if case.name == "region_mix":
        moved = pixels * (3 + 3 * 4 + 2)
    work = case.both if backward else case.forward
    exps = work.exps / ceilings["exps_per_s"]
    if inputs.target.is_cuda:
        arithmetic = max(exps, (work.slots + work.exps) / ceilings["fmas_per_s"])
    else:
        arithmetic = exps + work.slots / ceilings["fmas_per_s"]
    return 1e3 * max(moved / ceilings["bytes_per_s"], pixels * classes * arithmetic)


def chosen_cases(arguments: argparse.Namespace, cases: list[Case]) -> list[Case]:
    """Return those of ``cases`` that were asked for."""
    return [case for case in cases if not arguments.ops or case.name in arguments.ops]


def run(arguments: argparse.Namespace, ceilings: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Measure every requested case, size, batch, dtype and pass."""
    grid = [(s, b, d) for d in arguments.dtypes for b in arguments.batches for s in arguments.sizes]
    for size, batch, dtype in grid:
        inputs = Inputs.make(SIZES[size], batch, DTYPES[dtype], arguments.device)
        for case in chosen_cases(arguments, CASES):
            if case.maps == 0 and dtype != arguments.dtypes[0]:
                continue  # works on uint8: no second dtype
            for backward in (False, True) if case.gradients else (False,):
                row = {"op": case.name, "pass": "forward+backward" if backward else "forward"}
                row |= {"size": size, "batch": batch, "dtype": dtype}
                try:
                    row |= compare(case, inputs, backward, arguments)
                except RuntimeError as error:  # out of memory, a failing compiler: the other rows follow
                    row["error"] = str(error).splitlines()[0]
                row["floor_ms"] = round(floor_ms(case, inputs, backward, ceilings), 4)
                print(summary(row), file=sys.stderr, flush=True)
                yield row


def compare(case: Case, inputs: Inputs, backward: bool, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure ours, eager and, where requested, torch.compile."""
    maps, gradients = inputs.maps[: case.maps], case.gradients if backward else 0
    steps = {"ours": case.ours(inputs), "eager": case.eager(inputs)}
    if arguments.compile:
        torch._dynamo.reset()
        steps["compile"] = torch.compile(case.eager(inputs), dynamic=False)
    return {
        name: harness.measure(
            action(step, maps, gradients),
            arguments.device,
            repeats=arguments.repeats,
            seconds=arguments.seconds,
            graph=name != "eager" or not case.eager_waits,
        )
        for name, step in steps.items()
    }


def run_host(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Measure the host time of every requested case and pass, ours and eager, on two logits."""
    inputs = Inputs.make((2, 3), 1, torch.float32, arguments.device, classes=2)
    for case in chosen_cases(arguments, [*CASES, FLIPPED]):
        for backward in (False, True) if case.gradients else (False,):
            row: dict[str, Any] = {"op": case.name, "pass": "forward+backward" if backward else "forward"}
            for name, step in (("ours", case.ours(inputs)), ("eager", case.eager(inputs))):
                call = action(step, inputs.maps[: case.maps], case.gradients if backward else 0)
                row[f"{name}_us"] = round(harness.host_us(call, arguments.device), 1)
            print(row, file=sys.stderr, flush=True)
            yield row


def run_floor(arguments: argparse.Namespace, ceilings: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Measure ours alone beside the floor, for few and many classes in turn; of three turns the fastest counts.

    ``ceilings`` of a CPU, whose memory others use too, become the best that were reached beside any operator.
    """
    inputs = {
        classes: Inputs.make(FLOOR_SIZE, images, torch.float32, arguments.device, classes)
        for classes, images in FLOOR_IMAGES.items()
    }
    rows = []
    for case in chosen_cases(arguments, CASES):
        if arguments.device == "cpu":
            ceilings |= {k: max(v, ceilings[k]) for k, v in harness.cpu_ceilings().items()}
        counts = FLOOR_IMAGES if case.maps else (CLASSES,)
        for backward in (False, True) if case.gradients else (False,):
            calls = {
                c: action(case.ours(inputs[c]), inputs[c].maps[: case.maps], case.gradients * backward)
                for c in counts
            }
            found: dict[int, list[dict[str, Any]]] = {c: [] for c in counts}
            for _ in range(3):
                for c, call in calls.items():
                    found[c].append(harness.measure(call, arguments.device, repeats=20, seconds=0.5))
            for c, turns in found.items():
                row = {"op": case.name, "pass": "forward+backward" if backward else "forward"}
                values = FLOOR_IMAGES[c] * FLOOR_SIZE[0] * FLOOR_SIZE[1] * (c if case.maps else 1)
                row |= {"classes": c, "values": values, "ours": min(turns, key=_best_ms)}
                print(row, file=sys.stderr, flush=True)
                rows.append((row, case, inputs[c], backward))
    for row, case, of_case, backward in rows:
        yield row | {"floor_ms": round(floor_ms(case, of_case, backward, ceilings), 4)}


def summary(row: dict[str, Any]) -> str:
    """Return a row in one line, for progress."""
    parts = [f"{row['op']} {row['pass']} {row['size']} batch {row['batch']} {row['dtype']}:"]
    parts += [f"{k} {_ms(row[k]):.3f} ms" for k in ("ours", "eager", "compile") if k in row]
    parts += [row["error"]] if "error" in row else []
    return " ".join(parts)


def _ms(measured: dict[str, float]) -> float:
    """Return the device's time of a measurement, see harness."""
    return measured["ms"] if "ms" in measured else measured["cpu_ms"]


def _best_ms(measured: dict[str, float]) -> float:
    """Return the least time of a measurement on a CPU, else the device's."""
    return measured["best_ms"] if "best_ms" in measured else _ms(measured)


def floor_table(document: dict[str, Any]) -> str:
    """Return a table of the time of a class and pixel by number of classes, and the share of the floor reached."""
    rows: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for row in document["rows"]:
        ms = _best_ms(row["ours"])
        found = rows.setdefault((row["op"], row["pass"]), {})
        found[row["classes"]] = 1e6 * ms / row["values"], row["floor_ms"] / ms
    few, *many = FLOOR_IMAGES
    header = ["operator", "pass", f"ns, {few} classes", *(f"times that, {c}" for c in many)]
    header += [f"of the floor, {c}" for c in FLOOR_IMAGES]
    lines = []
    for key, found in rows.items():
        own = found[few][0]
        times = [f"{found[c][0] / own:.2f}" if c in found else "–" for c in many]
        shares = [f"{found[c][1]:.0%}" if c in found else "–" for c in FLOOR_IMAGES]
        lines.append([*key, f"{own:.3f}", *times, *shares])
    return harness.table(header, lines)


def host_table(document: dict[str, Any]) -> str:
    """Return a table of the host time of a call, ours and eager PyTorch's."""
    rows = [[row["op"], row["pass"], row["ours_us"], row["eager_us"]] for row in document["rows"]]
    return harness.table(["operator", "pass", "ours µs", "eager µs"], rows)


def table(document: dict[str, Any]) -> str:
    """Return a table of ours, eager and torch.compile: time, memory, and on a GPU the fraction of the floor."""
    cuda = document["device"] == "cuda"
    header = [
        "operator",
        "pass",
        "size",
        "batch",
        "dtype",
        "ours ms",
        "eager ×",
        "compile ×",
        "ours MiB",
        "eager MiB",
    ]
    rows = []
    for row in document["rows"]:
        if "error" in row:
            continue
        ours, eager, compiled = row["ours"], row["eager"], row.get("compile")
        times = [_ms(eager) / _ms(ours), _ms(compiled) / _ms(ours) if compiled else "–"]
        line = [row["op"], row["pass"], row["size"], row["batch"], row["dtype"], _ms(ours), *times]
        line += [ours["extra_mib"], eager["extra_mib"]]
        rows.append(line + ([f"{row['floor_ms'] / _ms(ours):.0%}", ours["host_us"]] if cuda else []))
    return harness.table(header + (["of the floor", "ours host µs"] if cuda else []), rows)


def parse() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--ops", nargs="+", choices=[case.name for case in CASES])
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument(
        "--batches", nargs="+", type=int, default=None, help="default: 1 on the CPU, 1 4 8 on a GPU"
    )
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=20.0, help="per measurement, about")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="leave torch.compile out")
    parser.add_argument(
        "--no-page-faults", action="store_true", help="with an allocator that keeps its memory"
    )
    parser.add_argument("--host", action="store_true", help="host time of a call instead")
    parser.add_argument(
        "--floor", action="store_true", help="ours alone beside its floor, by number of classes"
    )
    parser.add_argument("--check", action="store_true", help="one small size, to see that it runs")
    parser.add_argument("--output", type=Path, help="JSON to write")
    arguments = parser.parse_args()
    if arguments.batches is None:
        arguments.batches = [1] if arguments.device == "cpu" else [1, 4, 8]
    if arguments.check:
        arguments.sizes, arguments.batches, arguments.dtypes = ["1024x512"], [1], ["float32"]
        arguments.repeats, arguments.compile = 3, False
    return arguments


def output_path(arguments: argparse.Namespace) -> Path:
    """Return the path of the JSON."""
    if arguments.output:
        return arguments.output
    results = Path(__file__).parent / "results"
    if arguments.host:
        return results / f"host-{arguments.device}.json"
    simd = {"AVX-512": "avx512", "AVX2": "avx2"}.get(build_info()["simd"], "baseline")
    kind = f"cpu-{simd}" if arguments.device == "cpu" else "cuda"
    if arguments.floor:
        return results / f"floor-{kind}.json"
    return results / f"ops-{kind}{'-no-page-faults' * arguments.no_page_faults}.json"


def main() -> None:
    """Measure, print the table, and write the JSON (not with --check)."""
    arguments = parse()
    arguments.no_page_faults |= arguments.floor
    if arguments.no_page_faults and any(os.environ.get(k) != v for k, v in harness.KEEP_MEMORY.items()):
        harness.without_page_faults(__file__, sys.argv[1:])
        return
    torch.set_num_threads(arguments.threads)
    environment = harness.environment(arguments.device)
    document = {"device": arguments.device, "environment": environment, "rows": []}
    if arguments.device == "cpu" and not arguments.host:
        environment["ceilings"] = harness.cpu_ceilings()
    if arguments.host:
        rows = run_host(arguments)
    elif arguments.floor:
        rows = run_floor(arguments, environment["ceilings"])
    else:
        rows = run(arguments, environment["ceilings"])
    for row in rows:
        document["rows"].append(row)
        if not arguments.check or arguments.output:
            harness.write(output_path(arguments), document)
    shown = host_table if arguments.host else floor_table if arguments.floor else table
    print(shown(document))
    if any("error" in row for row in document["rows"]):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
