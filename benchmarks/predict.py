"""Images per second of `predict` and of evaluation, on image files of 1280×720 and a small network.

    python benchmarks/predict.py                # 200 images, on two cores without other work
    python benchmarks/predict.py --check        # few images, seconds; writes nothing

`predict` decodes, runs the network and writes two pictures of each image at the same time. Beside it: decoding and
writing alone, the network alone, and a plain PyTorch loop, each in one thread. Evaluation also reads the labels, in
this process or in two workers. The network has one thread everywhere. Every figure is wall time, the median of rounds
in turn. Writes results/predict-cpu.json and prints its table.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import data
import harness
import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image

from udas_fast import TrainedModel
from udas_fast.data import FileDataset, open_dataset, read_image
from udas_fast.evaluation import colorize, evaluate_dataset, label_and_confidence
from udas_fast.inference import Pictures, media_files, predict_files
from udas_fast.inference.outputs import Frame, Labelled
from udas_fast.models import ModelConfig, build_model, normalization_of

NATIVE, SIZE = (720, 1280), (256, 448)  # of the files, and of the network's input
SCENES = 8  # different ones; the other files are links to these
WRITE = ("ids", "colour")  # the command's default


def make_files(root: Path, count: int) -> FileDataset:
    """Write ``count`` JPEG files in GTA5's layout, of which :data:`SCENES` differ."""
    dataset = data.write_files(root, "jpg", NATIVE, min(count, SCENES))
    for number in range(SCENES, count):
        for first in (dataset.samples[number % SCENES].image, dataset.samples[number % SCENES].label):
            os.link(first, first.with_name(f"{number:05d}{first.suffix}"))
    return open_dataset(f"gta5:{root}", "train")


class Cases:
    """What is measured, a method each; files are written to ``out``, over those of the round before."""

    def __init__(self, trained: TrainedModel, dataset: FileDataset, out: Path) -> None:
        self.trained, self.dataset, self.out = trained, dataset, out
        self.paths = [sample.image for sample in dataset.samples]
        first = read_image(self.paths[0])
        self.label, self.confidence = trained.predict(first)
        self.images = [read_image(path) for path in self.paths[:SCENES]]

    def predict(self) -> None:
        """`udas-fast predict`, without its start."""
        predict_files(self.trained, media_files(self.paths), [self._pictures()])

    def files_alone(self) -> None:
        """Decode each image, and draw and write its pictures."""
        pictures = self._pictures()
        for path in self.paths:
            frame = Frame(path.stem, path, read_image(path))
            pictures.prepare(Labelled(frame, self.label, self.confidence))()

    def network_alone(self) -> None:
        """Resize images in memory, run the network, and take labels and confidences at their own size."""
        for number in range(len(self.paths)):
            output, size = self.trained.logits(self.images[number % len(self.images)])
            label_and_confidence(output, size)

    @torch.no_grad()
    def plain_loop(self) -> None:
        """The loop that one writes: one image after the other, logits of all classes at full size."""
        classes, expected = self.trained.classes, normalization_of(self.trained.model)
        mean, std = (torch.tensor(v).view(3, 1, 1) for v in (expected.mean, expected.std))
        self.out.mkdir(exist_ok=True)
        for path in self.paths:
            image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
            resized = F.interpolate(image[None], SIZE, mode="bilinear", antialias=True)
            logits = self.trained.model((resized - mean) / std).primary
            logits = F.interpolate(logits, NATIVE, mode="bilinear", align_corners=False)
            _, label = logits.softmax(1).max(1)
            ids = label[0].to(torch.uint8).numpy()
            Image.fromarray(ids).save(self.out / f"{path.stem}_ids.png")
            Image.fromarray(colorize(ids, classes)).save(self.out / f"{path.stem}_colour.png")

    def evaluation(self, workers: int) -> None:
        """Score the model, labels at their own size."""
        evaluate_dataset(self.trained.model, self.dataset, "train", SIZE, workers=workers)

    def _pictures(self) -> Pictures:
        return Pictures(self.out, WRITE, self.trained.classes)


def measure(cases: Cases, rounds: int) -> dict[str, dict[str, Any]]:
    """Return images per second of every case, the median of ``rounds``, and each round's."""
    actions: dict[str, Callable[[], None]] = {
        "predict": cases.predict,
        "decode and write alone": cases.files_alone,
        "network alone": cases.network_alone,
        "plain PyTorch loop": cases.plain_loop,
        "evaluate, 0 workers": lambda: cases.evaluation(0),
        "evaluate, 2 workers": lambda: cases.evaluation(2),
    }
    rates: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            rates[name].append(len(cases.paths) / (time.perf_counter() - began))
    return {
        name: {
            "images_per_second": round(statistics.median(found), 2),
            "rounds": [round(rate, 2) for rate in found],
        }
        for name, found in rates.items()
    }


def table(document: dict[str, Any]) -> str:
    """Return a line for each case, and how near `predict` is to the slower of what it overlaps."""
    rates = {name: row["images_per_second"] for name, row in document["cases"].items()}
    rows = [[name, rate, rates["predict"] / rate] for name, rate in rates.items()]
    slower = min(rates["decode and write alone"], rates["network alone"])
    took = f"`predict` takes {slower / rates['predict']:.2f} times as long as the slower of what it overlaps."
    return harness.table(["case", "images per second", "predict ÷ it"], rows) + f"\n\n{took}"


def main() -> None:
    """Measure, print the table, and write the JSON (not with --check)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="few images and one round; writes nothing")
    arguments = parser.parse_args()
    count, rounds = (6, 1) if arguments.check else (200, 3)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet18", width=16)
    with tempfile.TemporaryDirectory() as folder:
        dataset = make_files(Path(folder) / "files", count)
        model = build_model(config, len(dataset.classes)).eval()
        trained = TrainedModel(model, config, dataset.classes, SIZE)
        document = {
            "device": "cpu",
            "images": count,
            "image_size": NATIVE,
            "input_size": SIZE,
            "network": {"backbone": config.backbone, "width": config.width},
            "write": WRITE,
            "environment": harness.environment("cpu") | {"pillow": PIL.__version__},
            "cases": measure(Cases(trained, dataset, Path(folder) / "out"), rounds),
        }
        document["environment"]["load"] = os.getloadavg()
    print(table(document))
    if not arguments.check:
        harness.write(Path(__file__).parent / "results" / "predict-cpu.json", document)


if __name__ == "__main__":
    main()
