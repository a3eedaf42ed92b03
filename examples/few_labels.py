"""What ten labelled real images are worth: alone, with synthetic ones beside them, and with adaptation.

python examples/few_labels.py
"""

from __future__ import annotations

from pathlib import Path

import udas_fast as uf
from udas_fast.data import subset
from udas_fast.data.domains import Domains
from udas_fast.data.streets import Streets
from udas_fast.recipes import small

SIZE, LABELS = (64, 128), 10


def main(steps: int = 300, run_dir: str | Path = "runs/few-labels") -> dict[str, float]:
    """Train three recipes for as many steps each; return mIoU by recipe."""
    sim, real = Streets("sim", "train", SIZE), Streets("real", "train", SIZE)
    val = Streets("real", "val", SIZE, count=50)
    few = subset(real, LABELS)
    streams = {
        "supervised": Domains(labelled=few, val=val),
        "joint": Domains(source=sim, labelled=few, val=val),
        "udas_tuned": Domains(source=sim, labelled=few, unlabelled=real, val=val),
    }
    scores = {}
    for name, data in streams.items():
        recipe = small(uf.get_recipe(name), size=SIZE, steps=steps)
        phases = uf.Trainer(recipe, data, run_dir=Path(run_dir) / name).fit()
        scores[name] = list(phases.values())[-1].miou
    return scores


if __name__ == "__main__":
    for name, miou in main().items():
        print(f"{name}: mIoU {100 * miou:.1f}")
