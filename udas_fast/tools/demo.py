"""Demo: four recipes on procedural streets, from sim to real, in minutes on two CPU cores."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from udas_fast import evaluation
from udas_fast.atomic import atomic_write
from udas_fast.data import open_dataset
from udas_fast.data.domains import DataConfig
from udas_fast.recipes import Recipe, get_recipe, small
from udas_fast.training.environment import environment
from udas_fast.training.run_folder import locked
from udas_fast.training.trainer import Trainer

SIZE = (96, 192)
STEPS = 270  # of every row: the demo is to end within 8 minutes on two cores
NUM_LABELS = 10
SOURCE, TARGET = "streets:sim", "streets:real"


@dataclass(frozen=True)
class Entry:
    """One row of the demo's table; every row takes the same number of optimisation steps."""

    recipe: str
    num_labels: int = 0

    @property
    def name(self) -> str:
        """Name of the row in the table."""
        if self.num_labels or self.recipe == "udas_tuned":
            return f"{self.recipe}, {self.num_labels} labels"
        return self.recipe

    @property
    def folder(self) -> str:
        """Name of the run's folder."""
        return f"{self.recipe}-{self.num_labels}"

    def build(self) -> Recipe:
        """Return the recipe at the demo's size."""
        return small(get_recipe(self.recipe), size=SIZE, steps=STEPS)


ENTRIES = (
    Entry("no_adaptation"),
    Entry("udas_tuned"),
    Entry("udas_tuned", NUM_LABELS),
    Entry("supervised", NUM_LABELS),
)
# What a pair of rows shows: the better one is expected first.
SHOWN = (
    ("adaptation, without a label of a real image", ENTRIES[1], ENTRIES[0]),
    ("synthetic images and adaptation, beside the same labels", ENTRIES[2], ENTRIES[3]),
    (f"{NUM_LABELS} labels, beside adaptation", ENTRIES[2], ENTRIES[1]),
)
NOTE = (
    "One seed of a small network and a short run: seeds and kinds of CPU differ by up to two points. "
    "On your own images: udas-fast train, with --small at first."
)


def run_demo(out: Path, *, seed: int = 0, device: str = "auto") -> dict[str, evaluation.Scores]:
    """Train every row, print their scores and what they show, write ``demo.json`` and ``demo.png``.

    Returns:
        The last scores by row.
    """
    started = time.perf_counter()
    trainers: dict[str, Trainer] = {}
    phases: dict[str, dict[str, evaluation.Scores]] = {}
    for entry in ENTRIES:
        run_dir = out / entry.folder
        if (run_dir / "run.yaml").is_file():  # of an earlier demo; the trainer refuses any other folder
            with locked(run_dir):  # raises where another demo is writing into it
                shutil.rmtree(run_dir)
        data = DataConfig(
            source=None if entry.recipe == "supervised" else SOURCE,
            target=TARGET,
            num_labels=entry.num_labels,
        )
        print(f"\n{entry.name}: {run_dir}", flush=True)
        trainer = Trainer(entry.build(), data, run_dir=run_dir, seed=seed, device=device)
        phases[entry.name] = trainer.fit()
        trainers[entry.name] = trainer
    final = {name: list(scores.values())[-1] for name, scores in phases.items()}
    document = {
        "task": "streets sim -> real",
        "seed": seed,
        "seconds": round(time.perf_counter() - started, 1),
        "environment": environment(),
        "runs": {
            name: {
                "recipe": trainers[name].recipe.to_dict(),
                "phases": {p: s.to_dict() for p, s in scores.items()},
            }
            for name, scores in phases.items()
        },
    }
    _figure(trainers, out / "demo.png")
    atomic_write(
        json.dumps(document, indent=1) + "\n", out / "demo.json"
    )  # written last: the demo is complete
    print("\n" + evaluation.scores_table(final, next(iter(trainers.values())).classes))
    print("\n" + conclusions({name: scores.miou for name, scores in final.items()}))
    print(f"\n{out / 'demo.png'}, {out / 'demo.json'}: {document['seconds']:.0f} s, seed {seed}")
    return final


def conclusions(miou: Mapping[str, float]) -> str:
    """Return a table of what the rows show: differences of ``miou`` (by row, 0 to 1) in points."""
    table = [["What it is worth", "mIoU, points", "of", "over"]]
    for what, better, base in SHOWN:
        gain = 100 * (miou[better.name] - miou[base.name])
        table.append([what, f"{gain:+.1f}", better.name, base.name])
    return f"{evaluation.aligned_table(table)}\n\n{NOTE}"


def _figure(trainers: dict[str, Trainer], path: Path) -> None:
    """Draw image, ground truth and each prediction; confidence and pseudo-labels are of UDAS with labels."""
    teacher = trainers[ENTRIES[2].name]
    evaluation.validation_figure(
        {name: trainer.model for name, trainer in trainers.items()},
        teacher.model,
        open_dataset(TARGET, "val", size=SIZE),
        SIZE,
        path,
    )
