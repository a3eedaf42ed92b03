"""Check that a change of the code changes no number: train every recipe for a few steps before and after.

Run it in each of two checkouts (``python benchmarks/same_numbers.py --out FILE``), then compare the two files
(``python benchmarks/same_numbers.py --compare BEFORE AFTER``). Equal means: the same bytes in ``metrics.jsonl`` and
the same bits in every weight, on one machine with one number of threads.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import safe_open

SIZE, STEPS = "64x96", 18
#: Runs beside the recipes as they are: options that no recipe sets.
VARIANTS = {
    "udas, disk labels, fresh student": (
        "udas",
        4,
        "stages.self_training.objective.pseudo_labels.labels=disk",
        "stages.self_training.objective.student=fresh",
    ),
    "udas, flips, scales, consistency": (
        "udas",
        4,
        "stages.self_training.objective.pseudo_labels.flip_view=true",
        "stages.self_training.objective.pseudo_labels.scales=[1.25]",
        "stages.self_training.objective.consistency={weight: 0.5}",
    ),
    "udas, average of weights, batch norm": ("udas", 0, "ema=0.9", "model.norm=batch"),
    "no_adaptation, checkpointing": ("no_adaptation", 0, "memory.checkpointing=all"),
    "udas, bf16": ("udas", 4, "precision=bf16"),
}


def main() -> None:
    """Train or compare, as the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="write the digests of this checkout's numbers here")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"))
    arguments = parser.parse_args()
    if arguments.compare:
        sys.exit(compare(*(json.loads(path.read_text(encoding="utf-8")) for path in arguments.compare)))
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        for style, name in enumerate(("sim", "real")):
            write_images(Path(folder) / name, style)
        for title, (recipe, labels, *settings) in cases().items():
            run = Path(folder) / title.replace(" ", "-").replace(",", "")
            train(recipe, labels, settings, run)
            digests[title] = {"metrics": digest(run / "metrics.jsonl"), "weights": digest_weights(run)}
            print(title, digests[title], flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


def write_images(root: Path, style: int) -> None:
    """A dataset of a few images in CamVid's layout; colours follow from the class and the ``style``."""
    rng = np.random.default_rng(style)
    for split, count in (("train", 8), ("val", 3)):
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True)
        for i in range(count):
            label = rng.integers(0, 12, (9, 12), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            colour = np.stack([label * 20, 255 - label * 20 - 30 * style, label * 7 + 50 * style], -1)
            noise = rng.integers(0, 9, colour.shape, dtype=np.uint8)
            Image.fromarray(colour.astype(np.uint8) + noise).save(root / "images" / split / f"{i:04d}.png")
            Image.fromarray(label).save(root / "labels" / split / f"{i:04d}.png")


def cases() -> dict[str, tuple]:
    """(recipe, labelled target images, settings) by title."""
    found: dict[str, tuple] = {"translate": ("translate", 0)}
    for name, needs_labels in recipe_names().items():
        found |= {} if needs_labels else {name: (name, 0)}
        if needs_labels or name == "udas":
            found[f"{name}, 4 labels"] = (name, 4)
    return found | VARIANTS


def recipe_names() -> dict[str, bool]:
    """The segmentation recipes of this checkout, and whether each one needs labelled target images."""
    listed = command("recipes").split("\n\n")
    names = {paragraph.split(":", 1)[0]: paragraph for paragraph in listed}
    return {
        name: "labelled target (--" in text.replace("given", "").split("needs", 1)[1].split("where")[0]
        for name, text in names.items()
        if name != "cyclegan"
    }


def train(recipe: str, labels: int, settings: list[str], run: Path) -> None:
    """Train ``recipe`` at a small size in folder ``run``, beside the folders of the data."""
    words = ["--target", f"camvid:{run.parent / 'real'}"]
    if recipe != "supervised":
        words += ["--source", f"camvid:{run.parent / 'sim'}"]
    words += ["--small", SIZE, "--steps", str(STEPS), "--seed", "3", "--out", str(run)]
    words += [word for setting in settings for word in ("--set", setting)]
    if recipe == "translate":
        command("translate", *words)
        return
    option = "--num-labels" if "--num-labels" in command("train", "--help") else "--labels"
    command("train", recipe, option, str(labels), *words)


def command(*words: str) -> str:
    """What ``udas-fast WORDS`` of this checkout prints."""
    module = "udas_fast" if Path("udas_fast/__main__.py").is_file() else "udas_fast.cli"
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd()), "COLUMNS": "200"},
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"udas-fast {' '.join(words)}: {done.stderr}")
    return done.stdout


def digest(path: Path) -> str:
    """BLAKE2b of a file."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()


def digest_weights(run: Path) -> str:
    """BLAKE2b of every tensor in the run's model and of its name; of a translation, of its images."""
    hasher = hashlib.blake2b(digest_size=16)
    if not (run / "model.safetensors").is_file():
        for image in sorted((run / "translated").rglob("*.png")):
            hasher.update(image.read_bytes())
        return hasher.hexdigest()
    with safe_open(run / "model.safetensors", "np") as file:
        for name in sorted(file.keys()):
            hasher.update(name.encode() + file.get_tensor(name).tobytes())
    return hasher.hexdigest()


def compare(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> int:
    """Print what differs; the exit code."""
    different = [title for title in before if after.get(title) != before[title]]
    print(f"{len(before) - len(different)} of {len(before)} runs are equal to the byte")
    for title in different:
        print(f"different: {title}: {before[title]} before, {after.get(title)} after")
    return 1 if different else 0


if __name__ == "__main__":
    main()
