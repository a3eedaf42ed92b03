"""From files to normalised batches: both data engines and a plain DataLoader as in AdaptSegNet's code.

    python benchmarks/data.py                   # CPU
    python benchmarks/data.py --device cuda     # and the share of a training step that waits for data
    python benchmarks/data.py --check           # few images, seconds

CPU milliseconds per image are CPU time of this process, with one thread or no worker, so that other work on the machine
hardly changes them. Images per second are wall time with two threads or workers. Writes results/data-DEVICE.json and
prints its table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import harness
import numpy as np
import nvidia.dali
import PIL
import torch
from PIL import Image, ImageEnhance, ImageOps
from torch.utils.data import DataLoader, Dataset, RandomSampler

from udas_fast.data import FileDataset, Geometry, TrainLoader, augment, open_dataset
from udas_fast.data.specs import DATASETS
from udas_fast.models import normalize

# name → (suffix, (H, W) of the files, (H, W) of the batch): AdaptSegNet's source and target.
CASES = {
    "1280x720 JPEG": ("jpg", (720, 1280), (720, 1280)),
    "2048x1024 PNG": ("png", (1024, 2048), (512, 1024)),
}
LOADERS = ("plain", "torch", "dali")
WORKERS = 2  # for images per second
WARM_UP = 5  # batches until memory is reused; before that, new pages take most of the system time


def write_files(root: Path, suffix: str, size: tuple[int, int], count: int) -> FileDataset:
    """Write ``count`` drawn street scenes in GTA5's layout: images of the given kind, palette labels."""
    scenes = open_dataset("streets:real", "train", size=size)
    ids = np.array([i for i, train in DATASETS["gta5"].id_to_train_id.items() if train != 255], np.uint8)
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
    for i in range(count):
        scene = scenes[i]
        Image.fromarray(scene.image).save(root / "images" / f"{i:05d}.{suffix}", quality=90)
        label = Image.fromarray(np.append(ids, [0])[np.minimum(scene.label, len(ids))].astype(np.uint8))
        label.putpalette([(7 * v) % 256 for v in range(768)])
        label.save(root / "labels" / f"{i:05d}.png")
    return open_dataset(f"gta5:{root}", "train")


class PlainDataset(Dataset):
    """Dataset that prepares samples as AdaptSegNet's code does: float arrays, one comparison per class.

    The K - 1 strong views are Pillow's own operations, by the policy of the package.
    """

    def __init__(self, files: FileDataset, size: tuple[int, int], views: int) -> None:
        self.files, self.size, self.views = files, size[::-1], views
        self.mean = np.array((104.00698793, 116.66876762, 122.67891434), np.float32)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        sample = self.files.samples[index]
        image = Image.open(sample.image).convert("RGB").resize(self.size, Image.Resampling.BICUBIC)
        label = np.asarray(Image.open(sample.label).resize(self.size, Image.Resampling.NEAREST), np.float32)
        mapped = 255 * np.ones(label.shape, np.float32)
        for file_id, train_id in self.files.spec.id_to_train_id.items():
            if train_id != 255:
                mapped[label == file_id] = train_id
        rng = np.random.default_rng(index)
        mirror = -1 if rng.random() < 0.5 else 1
        views = [image, *(strong(image, augment.draw(rng)) for _ in range(self.views - 1))]
        arrays = [np.asarray(view, np.float32)[:, ::mirror, ::-1] - self.mean for view in views]
        return *(a.transpose(2, 0, 1).copy() for a in arrays), mapped[:, ::mirror].copy()


def strong(image: Image.Image, operations: augment.Operations) -> Image.Image:
    """Apply ``operations`` with Pillow."""
    for name, level in operations:
        if name == "posterize":
            image = ImageOps.posterize(image, 8 - round(4 * level / 9))
        elif name == "solarize":
            image = ImageOps.solarize(image, 256 - round(256 * level / 9))
        elif name in ("color", "contrast", "sharpness"):
            image = getattr(ImageEnhance, name.title())(image).enhance(0.1 + 1.8 * level / 9)
        else:
            image = getattr(ImageOps, name)(image)
    return image


def batches(
    loader: str, files: FileDataset, size: tuple[int, int], views: int, workers: int, device: str
) -> Iterator[object]:
    """Yield normalised batches of two images with their K views, without end."""
    if loader == "plain":
        data = PlainDataset(files, size, views)
        # Endless, as AdaptSegNet's lists are: restarting workers would count against this loader.
        order = RandomSampler(data, replacement=True, num_samples=10**6)
        for batch in DataLoader(data, 2, sampler=order, num_workers=workers):
            yield [part.to(device) for part in batch]
        return
    train_loader = TrainLoader(
        files,
        Geometry(size=size, flip=True),
        2,
        0,
        "data",
        workers,
        engine=loader,
        views=("strong",) * (views - 1),
    )
    for batch in train_loader.batches(device=device):
        images = [batch.image] if batch.views is None else [batch.image, *batch.views.unbind(1)]
        yield [normalize(image) for image in images], batch.label


def rate(make: Callable[[], Iterator[object]], steps: int) -> tuple[float, float]:
    """Return (CPU ms, wall ms) per image of ``steps`` batches of two, in a steady state."""
    iterator = make()
    for _ in range(WARM_UP):
        next(iterator)
    # Reading ahead is complete at both ends, so that exactly ``steps`` batches lie between them.
    time.sleep(0.5)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        next(iterator)
    wall = time.perf_counter() - wall
    time.sleep(0.5)
    return 1e3 * (time.process_time() - cpu) / steps / 2, 1e3 * wall / steps / 2


def measure(files: FileDataset, size: tuple[int, int], views: int, arguments: argparse.Namespace) -> dict:
    """Measure every loader in turn, several times over, and return medians."""
    found: dict[str, list[tuple[float, float]]] = {loader: [] for loader in LOADERS}
    for _ in range(arguments.rounds):
        for loader in LOADERS:

            def make(workers: int, loader: str = loader) -> Callable[[], Iterator[object]]:
                return lambda: batches(loader, files, size, views, workers, arguments.device)

            cpu, _ = rate(make(0), arguments.steps)
            _, wall = rate(make(WORKERS), arguments.steps)
            found[loader].append((cpu, wall))
    return {
        loader: {
            "cpu_ms_per_image": round(statistics.median(cpu for cpu, _ in runs), 2),
            "images_per_second": round(1e3 / statistics.median(wall for _, wall in runs), 1),
            "cpu_ms_of_each_round": [round(cpu, 2) for cpu, _ in runs],
        }
        for loader, runs in found.items()
    }


def data_wait(files: FileDataset, size: tuple[int, int]) -> dict[str, Any]:
    """Measure the part of a training step that waits for data, by engine: no_adaptation on a GPU at full size."""
    from udas_fast.data.domains import Domains
    from udas_fast.recipes import InputConfig, get_recipe
    from udas_fast.training.trainer import Trainer

    found = {}
    geometry = Geometry(size=size, flip=True)
    recipe = get_recipe("no_adaptation")
    recipe = replace(
        recipe,
        stages=tuple(replace(stage, steps=200) for stage in recipe.stages),
        input=InputConfig(source=geometry, target=geometry, batch_size=2),
    )
    for engine in ("torch", "dali"):
        with tempfile.TemporaryDirectory() as run_dir:
            domains = Domains(source=files, workers=WORKERS, engine=engine)
            Trainer(recipe, domains, run_dir=run_dir, device="cuda").fit()
            lines = [json.loads(line) for line in (Path(run_dir) / "timing.jsonl").read_text().splitlines()][
                50:
            ]
        seconds, wait = (sum(line[key] for line in lines) for key in ("seconds", "data_wait"))
        found[engine] = {"step_ms": 1e3 * seconds / len(lines), "waiting": wait / seconds}
    return found


def table(document: dict[str, Any]) -> str:
    """Return a line for each case: ours, and how many times as long the plain loader takes."""
    header = ["files", "K", "loader", "CPU ms per image", "plain ×", "images per second"]
    rows = []
    for row in document["rows"]:
        plain = row["plain"]["cpu_ms_per_image"]
        for loader in LOADERS:
            cpu = row[loader]["cpu_ms_per_image"]
            rows.append(
                [row["files"], row["views"], loader, cpu, plain / cpu, row[loader]["images_per_second"]]
            )
    return harness.table(header, rows)


def main() -> None:
    """Measure, print the table, and write the JSON (not with --check)."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--check", action="store_true", help="few images and one round; writes nothing")
    arguments = parser.parse_args()
    arguments.rounds, arguments.steps, count = (1, 2, 4) if arguments.check else (3, 12, 24)
    torch.set_num_threads(1)
    document: dict[str, Any] = {
        "device": arguments.device,
        "environment": harness.environment(arguments.device),
    }
    document["environment"] |= {"dali": nvidia.dali.__version__, "pillow": PIL.__version__}
    document["rows"] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, native, size) in CASES.items():
            files = write_files(Path(folder) / suffix, suffix, native, count)
            total = sum(sample.image.stat().st_size for sample in files.samples)
            for views in (1, 3):
                row: dict[str, Any] = {
                    "files": name,
                    "image_size": size,
                    "views": views,
                    "mean_bytes": total // count,
                }
                document["rows"].append(row | measure(files, size, views, arguments))
            if arguments.device == "cuda":
                document["rows"][-1]["training"] = data_wait(files, size)
    document["environment"]["load"] = os.getloadavg()
    print(table(document))
    if not arguments.check:
        path = Path(__file__).parent / "results" / f"data-{arguments.device}.json"
        harness.write(path, document)


if __name__ == "__main__":
    main()
