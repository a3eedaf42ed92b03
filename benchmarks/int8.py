"""The loss in mIoU by 8 bits: a run's model, its ONNX file, and that file quantised by the lines of docs/deploy.md.

    python benchmarks/int8.py RUN --data camvid:../shared/data/camvid

Ranges are those of 100 training images of the dataset, in images/train of its folder; scores are those of its val
split. Milliseconds are CPU time of one thread from one image to its labels. Writes results/int8.json, prints its table.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import onnxruntime
import torch

from udas_fast import TrainedModel
from udas_fast.data import open_dataset
from udas_fast.evaluation import evaluate_dataset, image_logits, label_and_confidence
from udas_fast.inference import export_model, load_onnx
from udas_fast.inference.onnx_file import OnnxNetwork

PAGE = Path(__file__).parents[1] / "docs" / "deploy.md"
NAMES = {"model": "the run's model", "seg.onnx": "ONNX", "seg-int8.onnx": "ONNX, 8 bits"}


def quantise() -> None:
    """Run the page's lines on seg.onnx and DATA/real in the working folder."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    first, last = blocks[0], next(block for block in blocks if "quantize_static(" in block)
    imports = [line for line in first.splitlines() if line.startswith(("import ", "from "))]
    exec("\n".join([*imports, last]), {})


def milliseconds(trained: TrainedModel) -> float:
    """Return the CPU time from one image to its labels in one thread, the median of 15."""
    image = torch.zeros(3, *trained.size, dtype=torch.uint8)
    network, runs = trained.model, []
    for _ in range(17):
        began = time.process_time()
        if isinstance(network, OnnxNetwork):
            network.run(image[None])
        else:
            label_and_confidence(*image_logits(network, image, trained.size))
        runs.append(1e3 * (time.process_time() - began))
    return statistics.median(runs[2:])


def row(trained: TrainedModel, data: str, path: Path | None) -> dict[str, Any]:
    """Score a model; return its mIoU, the protocol, its time, and the size of its file."""
    dataset = open_dataset(data, "val", size=trained.size)
    scores = evaluate_dataset(trained.model, dataset, "val", trained.size)
    protocol = scores.to_dict()["protocol"]
    found = {"miou": scores.miou, "cpu_ms": round(milliseconds(trained), 2), "protocol": protocol}
    return found if path is None else found | {"bytes": path.stat().st_size}


def table(document: dict[str, Any]) -> str:
    """Return a line for each file."""
    rows = document["rows"]
    lines = [
        [NAMES[name], f"{100 * one['miou']:.1f}", one["cpu_ms"], _megabytes(one)]
        for name, one in rows.items()
    ]
    protocol = rows["model"]["protocol"]
    size = "×".join(map(str, protocol["input_size"]))
    network = f"{document['network']}, {protocol['dataset']} {protocol['split']}, {protocol['images']} images at {size}"
    header = ["file", "mIoU, %", "CPU ms per image", "MB"]
    return f"{harness.table(header, lines)}\n\n{network} (height × width); `{document['command']}`."


def _megabytes(one: dict[str, Any]) -> str:
    return f"{one['bytes'] / 1e6:.1f}" if "bytes" in one else "–"


def main() -> None:
    """Measure, write the JSON and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--data", required=True, metavar="KIND:ROOT")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kind, _, root = arguments.data.partition(":")
    data = f"{kind}:{Path(root).resolve()}"
    trained = TrainedModel.load(arguments.run)
    rows = {"model": row(trained, data, None)}
    name = trained.config.backbone if trained.config is not None else type(trained.model).__name__
    document = {
        "command": f"python benchmarks/int8.py {arguments.run} --data {arguments.data}",
        "network": name,
        "onnxruntime": onnxruntime.__version__,
        "environment": harness.environment("cpu"),
        "rows": rows,
    }
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            Path("DATA").mkdir()
            Path("DATA/real").symlink_to(data.partition(":")[2])
            export_model(trained, "seg.onnx", "onnx", output="labels", size=trained.size)
            quantise()
            for path in map(Path, ("seg.onnx", "seg-int8.onnx")):
                rows[path.name] = row(load_onnx(path), data, path)
        finally:
            os.chdir(before)
    print(table(document))
    harness.write(Path(__file__).parent / "results" / "int8.json", document)


if __name__ == "__main__":
    main()
