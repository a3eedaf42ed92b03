"""The training steps of UDAS and MIC: ours, and as public code writes them, in fp32 and with AMP and channels_last.

    python benchmarks/step.py                                    # CPU: a small network and small images
    python benchmarks/step.py --device cuda                      # DeepLabV2-ResNet101 at the published sizes
    python benchmarks/step.py --device cuda --caps 11 8 6 4      # ours under hard caps of GB as well

Images a second count source and target images of a step, not their views and mixtures. The split of a step's time is
over its parts: data (colours, mixing, augmentation, normalisation; images are in memory already; the table has its
share of the step as well), forward of the segmentation networks, backward, losses (with the discriminators' forward)
and optimiser; a CUDA graph holds all but colours, mixing, augmentation and the optimiser. Memory is the allocator's
peak on a GPU, on a CPU the tracker's, of all tensors; "predicted" is `udas-fast plan`'s. Writes
results/step-DEVICE.json after every row; --limit stops before the rows that are left. fp32 is fp32 in our steps; in the
public code's torch's own choice holds, which is TF32 in convolutions where a GPU has it.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import harness
import public_step
import torch

from udas_fast.data import Batch
from udas_fast.engine.graph import WARM_UP, CudaCapture
from udas_fast.engine.memory import CONTEXT, GIB
from udas_fast.engine.precision import build_amp, memory_format
from udas_fast.engine.step import TrainStep
from udas_fast.errors import InputError
from udas_fast.memory import POLICIES, predict
from udas_fast.memory.tracker import MemoryTracker
from udas_fast.models import build_model
from udas_fast.objectives import Batches, StepContext, online_self_training
from udas_fast.objectives.online_self_training import OnlineSelfTraining
from udas_fast.recipes import Recipe, get_recipe, override

CLASSES = 19
PUBLIC = {
    "adaptation": public_step.PublicAdaptation,
    "self_training": public_step.PublicSelfTraining,
    "mixed": public_step.PublicOnlineSelfTraining,
}
PARTS = ("data", "forward", "backward", "losses", "optimiser", "graph")
SMALL = ("model.backbone=resnet18", "model.width=16")
# (source, target), height × width: published, and both as large as the source.
SIZES = {
    "cuda": (((720, 1280), (512, 1024)), ((720, 1280), (720, 1280))),
    "cpu": (((180, 320), (128, 256)),),
}


class Form(NamedTuple):
    """A way to run a step; AMP is the device's own 16-bit type."""

    precision: str
    public: bool = False
    graphs: bool = False


class Clock:
    """Adds up the time of named parts of a step, by events on a GPU."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.spans: list[tuple[str, Any, Any]] = []
        self._open: set[str] = set()

    def now(self) -> Any:
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        if name in self._open:  # inside itself: counted once
            yield
            return
        self._open.add(name)
        begin = self.now()
        yield
        self.spans.append((name, begin, self.now()))
        self._open.remove(name)

    def timed(self, name: str, function: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            with self.part(name):
                return function(*args, **options)

        return run

    def milliseconds(self) -> Counter[str]:
        if self.device == "cuda":
            torch.cuda.synchronize()
        total: Counter[str] = Counter()
        for name, begin, end in self.spans:
            total[name] += 1e3 * (end - begin) if self.device == "cpu" else begin.elapsed_time(end)
        self.spans.clear()
        return total


def random_batch(batch_size: int, size: tuple[int, int], device: str) -> Batch:
    """Return random images and labels, on the device."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (batch_size, 3, *size), dtype=torch.uint8, generator=generator)
    label = torch.randint(0, CLASSES, (batch_size, *size), dtype=torch.uint8, generator=generator)
    return Batch(image, label, [""] * batch_size).to(device)


class Phase(NamedTuple):
    """One stage, with the same batches in every step."""

    step: TrainStep
    batches: Batches

    def run(self, count: int) -> None:
        """Take ``count`` steps, the last ones of the stage: they have all terms."""
        self.step.done = self.step.steps - count
        self.step.model.train()
        for _ in range(count):
            self.step(self.batches)


def build_phase(recipe: Recipe, stage_name: str, device: str, form: Form) -> Phase:
    """Return one stage, as the trainer makes it, or with the public code's step."""
    (stage,) = (s for s in recipe.stages if s.name == stage_name)
    torch.manual_seed(0)
    model = build_model(recipe.model, CLASSES)
    amp = build_amp(recipe.precision, torch.device(device))
    plain = form.public and recipe.precision == "fp32"
    layout = torch.contiguous_format if plain else memory_format(amp, model)
    model = model.to(device, memory_format=layout)
    objective = (
        PUBLIC[stage_name](stage.objective, CLASSES) if form.public else stage.objective.build(CLASSES)
    )
    for module in (model, objective):
        recipe.memory.apply(module)
    objective.on_round_start(model)
    objective.to(device)
    inputs, capture = recipe.input, CudaCapture(amp.device) if form.graphs else None
    batches = Batches(
        source=random_batch(inputs.batch_size, inputs.source.size, device),
        unlabelled=random_batch(inputs.batch_size, inputs.target.size, device),
    )
    step = TrainStep(stage.name, stage.steps, model, objective, stage.optimizer, amp, seed=0, capture=capture)
    if form.public:
        step.input = public_step.PublicInput(
            step.input.normalization, channels_last=layout is torch.channels_last
        )
    return Phase(step, batches)


@contextlib.contextmanager
def split(step: TrainStep, clock: Clock) -> Iterator[None]:
    """While active, the parts of ``step`` go to ``clock``; what is left are losses, or the whole graph."""
    parts = [("data", step.objective, "prepare_batch")]
    if step.graph is None and isinstance(step.objective, OnlineSelfTraining):
        parts += [("data", step.objective, "_student_view"), ("data", public_step, "changed")]
        parts += [("data", online_self_training, "apply_strong")]
    parts += [("optimiser", optimizer, "step") for optimizer in step.optimizers.values()]
    if step.graph is None:
        networks = [step.model, getattr(step.objective, "teacher", None)]
        parts += [("forward", network, "forward") for network in networks if network is not None]
        parts += [("data", StepContext, "normalize"), ("backward", step, "_backward")]
    with contextlib.ExitStack() as stack:
        for part, owner, name in parts:
            timed = clock.timed(part, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, timed))
        yield


def measure(recipe: Recipe, stage: str, device: str, form: Form, repeats: int) -> dict[str, Any]:
    """Steps to warm up, and to record a graph, then ``repeats`` timed ones, then one for memory on a CPU."""
    torch.backends.cudnn.allow_tf32 = form.public
    phase = build_phase(recipe, stage, device, form)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    phase.run(WARM_UP + 1 if form.graphs else 2)
    clock = Clock(device)
    with split(phase.step, clock):
        times = []
        for _ in range(repeats):
            with clock.part("step"):
                phase.run(1)
            times.append(clock.milliseconds())
    middle = sorted(times, key=lambda t: t["step"])[len(times) // 2]
    rest = "graph" if form.graphs else "losses"
    middle[rest] = middle["step"] - sum(middle[part] for part in PARTS if part != rest)
    return {
        "step_ms": round(middle["step"], 2),
        "images_per_s": round(2 * recipe.input.batch_size / middle["step"] * 1e3, 3),
        "parts_ms": {part: round(middle[part], 2) for part in PARTS if part in middle},
        **peak_memory(phase, device),
    }


def peak_memory(phase: Phase, device: str) -> dict[str, float]:
    """MiB: what the CUDA allocator saw, or the tracker on a CPU, which first is told what there is already."""
    if device == "cuda":
        found = {"allocated": torch.cuda.max_memory_allocated(), "reserved": torch.cuda.max_memory_reserved()}
    else:
        tracker = MemoryTracker()
        with tracker:
            for module in (phase.step.model, phase.step.objective):
                tracker.hold("weights", [*module.parameters(), *module.buffers()])
                tracker.hold("gradients", [p.grad for p in module.parameters()])
            for optimizer in phase.step.optimizers.values():
                tracker.hold("optimiser", [t for s in optimizer.state.values() for t in s.values()])
            phase.run(1)
        found = {"tensors": tracker.peak}
    return {f"{name}_mib": round(size / harness.MIB, 1) for name, size in found.items()}


def forms(device: str) -> dict[str, Form]:
    """Those that a device has, by name."""
    amp = "bf16" if device == "cpu" else "auto"
    found = {
        "ours": Form(amp),
        "ours fp32": Form("fp32"),
        "public fp32": Form("fp32", public=True),
        "public AMP": Form(amp, public=True),
    }
    return found if device == "cpu" else found | {"ours, CUDA graph": Form(amp, graphs=True)}


def cases(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each size, batch size, stage and form; caps add ours under the first policy that they hold."""
    for own_source, target in SIZES[arguments.device]:
        for batch_size in arguments.batches:
            for stage in PUBLIC:
                source = target if stage == "mixed" else own_source  # images of one size
                recipe = recipe_of(arguments.device, stage, source, target, batch_size)
                where = {"source": source, "target": target, "batch_size": batch_size, "stage": stage}
                for name, form in forms(arguments.device).items():
                    memory = replace(recipe.memory, checkpointing="none")
                    row = replace(recipe, precision=form.precision, memory=memory)
                    yield where | {"form": name} | attempt(row, stage, arguments, form)
                for cap in arguments.caps:
                    yield where | {"form": "ours", "cap_gb": cap} | capped(recipe, stage, arguments, cap)


def attempt(recipe: Recipe, stage: str, arguments: argparse.Namespace, form: Form) -> dict[str, Any]:
    """The measurement, or that memory was not enough, or what went wrong."""
    found: dict[str, Any] = {"checkpointing": recipe.memory.checkpointing, "precision": recipe.precision}
    try:
        found |= measure(recipe, stage, arguments.device, form, arguments.repeats)
    except torch.OutOfMemoryError:
        found["out_of_memory"] = True
    except (RuntimeError, InputError) as error:  # the other rows count all the same
        found["error"] = str(error).splitlines()[0]
    gc.collect()  # first: what a failed step leaves may hold itself alive
    if arguments.device == "cuda":
        torch.cuda.empty_cache()
    return found


def add_prediction(row: dict[str, Any], device: str) -> None:
    """Put MiB of tensors at the stage's peak into a row of ours; without labelled target images, as here."""
    recipe = recipe_of(device, row["stage"], row["source"], row["target"], row["batch_size"])
    memory = replace(recipe.memory, checkpointing=row["checkpointing"])
    peaks = _peaks(replace(recipe, precision=row["precision"], memory=memory))
    row["predicted_mib"] = round(peaks[row["stage"]] / harness.MIB, 1)


@cache
def _peaks(recipe: Recipe) -> dict[str, int]:
    return {p.stage: p.tensors for p in predict(recipe, num_classes=CLASSES, labelled=False)}


def recipe_of(
    device: str, stage: str, source: tuple[int, int], target: tuple[int, int], batch_size: int
) -> Recipe:
    """UDAS, or MIC on UDAS's network, at these sizes, on a small network for a CPU, with the public code's terms."""
    udas = get_recipe("udas_tuned")
    recipe, settings = udas, ["stages.self_training.objective.pseudo_labels.threshold=0.6"]
    if device == "cpu":
        settings.append("stages.adaptation.objective.adversary.width=16")
    if stage == "mixed":
        recipe = replace(get_recipe("mic"), model=udas.model, input=udas.input)
        settings = ["stages.mixed.objective.feature_distance=null"]  # MIC's on a host of vision transformers
    settings += [
        *(SMALL if device == "cpu" else ()),
        f"input.source.size={list(source)}",
        f"input.target.size={list(target)}",
        f"input.batch_size={batch_size}",
        "stages.self_training.objective.pseudo_labels.threshold=0.6",
    ]
    return override(recipe, settings)


def capped(recipe: Recipe, stage: str, arguments: argparse.Namespace, cap: float) -> dict[str, Any]:
    """Ours where the allocator gets ``cap`` GB less the CUDA context: the first policy that runs."""
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (cap * GIB - CONTEXT) / total))
    try:
        for policy in POLICIES:
            one = replace(recipe, memory=replace(recipe.memory, checkpointing=policy))
            found = attempt(one, stage, arguments, Form(recipe.precision))
            if "images_per_s" in found:
                break
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=None, help="1 2 4, on a CPU 1 2")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps, of which the median one counts")
    parser.add_argument("--caps", type=float, nargs="*", default=(), metavar="GB", help="GPU only")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), help="seconds after which no row is begun"
    )
    parser.add_argument("--output", type=Path, help="instead of results/step-DEVICE.json")
    arguments = parser.parse_args()
    arguments.batches = arguments.batches or ([1, 2] if arguments.device == "cpu" else [1, 2, 4])
    if arguments.caps and arguments.device == "cpu":
        parser.error("--caps: found the CPU, expected --device cuda")
    output = arguments.output or Path(__file__).parent / "results" / f"step-{arguments.device}.json"
    began, rows = time.monotonic(), []
    document = {"environment": harness.environment(arguments.device), "complete": False, "rows": rows}
    for row in cases(arguments):
        rows.append(row)
        harness.write(output, document)
        shown = ("stage", "batch_size", "form", "cap_gb", "images_per_s", "error")
        print({key: row[key] for key in shown if key in row}, flush=True)
        if time.monotonic() - began > arguments.limit:
            break
    else:
        document["complete"] = True
    for row in rows:  # last, and as far as the time goes: `udas-fast plan` has them anywhere
        if row["form"].startswith("ours") and time.monotonic() - began < arguments.limit:
            add_prediction(row, arguments.device)
    harness.write(output, document)
    print(table(document))
    if any("error" in row for row in rows):
        raise SystemExit(1)


def table(document: dict[str, Any]) -> str:
    """A line for each row: images per second, milliseconds of each part, the data's share, and the tensors' peak."""
    rows = document["rows"]
    parts = [part for part in PARTS if any(part in row.get("parts_ms", ()) for row in rows)]
    header = ("target", "batch", "stage", "form", "checkpointing", "images/s", *parts, "data %", "MiB")
    return harness.table(header, [cells(row, parts) for row in rows])


def cells(row: dict[str, Any], parts: list[str]) -> list[object]:
    """One line of the table."""
    height, width = row["target"]
    form = f"{row['form']}, {row['cap_gb']:g} GB" if "cap_gb" in row else row["form"]
    start = [f"{width}×{height}", row["batch_size"], row["stage"], form, row["checkpointing"]]
    if "images_per_s" not in row:
        return [*start, row.get("error", "out of memory"), *[""] * (len(parts) + 2)]
    memory = row.get("allocated_mib", row.get("tensors_mib"))
    share = round(100 * row["parts_ms"]["data"] / row["step_ms"], 1)
    return [*start, row["images_per_s"], *(row["parts_ms"].get(part, "") for part in parts), share, memory]


if __name__ == "__main__":
    main()
