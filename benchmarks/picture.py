"""Draw the picture of README and docs: synthetic, real, before, after, on the package's own streets.

    python benchmarks/picture.py

Before is a network of the synthetic images alone, after the same one adapted by UDAS with ten labels. It trains both,
in minutes on a CPU, unless they are in runs/picture already.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import udas_fast as uf
from udas_fast.atomic import replacing
from udas_fast.data import CITYSCAPES
from udas_fast.data.streets import Streets
from udas_fast.evaluation import colorize
from udas_fast.recipes import small

PICTURE = Path(__file__).parents[1] / "docs" / "images" / "before-after.png"
RUNS = Path("runs/picture")
TRAINED, STEPS, LABELS = (64, 128), 300, 10
SIZE = (192, 384)  # of a scene in the picture
SCENE = 1  # in which both networks differ clearly
GAP, TITLE = 8, 24
COLOURS = 128  # of the file's palette: a fifth of the bytes


def main() -> None:
    """Draw a scene of each domain, and what both networks see in the real one."""
    sim, real = (
        Streets(style, split, SIZE)[SCENE].image for style, split in (("sim", "train"), ("real", "val"))
    )
    before, after = (
        model("no_adaptation", 0).predict(real)[0],
        model("udas_tuned", LABELS).predict(real)[0],
    )
    panels = {
        "synthetic, with labels": sim,
        "real": real,
        "before: trained on synthetic images": colorize(before, CITYSCAPES),
        f"after: adapted, with {LABELS} labels": colorize(after, CITYSCAPES),
    }
    with replacing(PICTURE) as file:
        grid(panels).quantize(COLOURS).save(file, format="png", optimize=True)
    print(PICTURE)


def model(recipe: str, num_labels: int) -> uf.TrainedModel:
    """Return the recipe's model, trained if it is not there yet."""
    run_dir = RUNS / recipe
    if not (run_dir / "model.safetensors").is_file():
        data = uf.DataConfig("streets:sim", "streets:real", num_labels=num_labels)
        made = small(uf.get_recipe(recipe), size=TRAINED, steps=STEPS)
        uf.Trainer(made, data, run_dir=run_dir).fit()
    return uf.load(run_dir)


def grid(panels: dict[str, np.ndarray]) -> Image.Image:
    """Return four pictures in two rows, each below its title."""
    height, width = SIZE
    font = ImageFont.load_default(15)
    whole = Image.new("RGB", (2 * width + GAP, 2 * (height + TITLE) + GAP), "white")
    draw = ImageDraw.Draw(whole)
    for i, (title, pixels) in enumerate(panels.items()):
        x, y = i % 2 * (width + GAP), i // 2 * (height + TITLE + GAP)
        draw.text((x + 2, y + 2), title, "black", font)
        whole.paste(Image.fromarray(pixels), (x, y + TITLE))
    return whole


if __name__ == "__main__":
    main()
