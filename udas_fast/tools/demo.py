"""The demo: four recipes on procedural streets, sim to real, in minutes on two CPU cores."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from udas_fast import evaluation
from udas_fast.atomic import atomic_write
from udas_fast.data.domains import DataConfig
from udas_fast.recipes import Recipe, get_recipe, small
from udas_fast.training.environment import environment
from udas_fast.training.run_folder import locked
from udas_fast.training.trainer import Trainer

SIZE = (96, 192)
LABELS = 10


@dataclass(frozen=True)
class Entry:
    """One row of the demo's table; every row takes the same number of optimisation steps."""

    recipe: str
    labels: int = 0
    steps: int = 600

    @property
    def name(self) -> str:
        return f"{self.recipe}, {self.labels} labels" if self.labels or self.recipe == "udas" else self.recipe

    @property
    def folder(self) -> str:
        return f"{self.recipe}-{self.labels}"

    def build(self) -> Recipe:
        """The recipe at the demo's size."""
        return small(get_recipe(self.recipe), size=SIZE, steps=self.steps)


ENTRIES = (Entry("no_adaptation"), Entry("udas"), Entry("udas", LABELS), Entry("supervised", LABELS))


def run_demo(out: Path, *, seed: int = 0, device: str = "auto") -> dict[str, evaluation.Scores]:
    """Train every row, print one table, write ``demo.json`` and ``demo.png``; return the last scores."""
    started = time.perf_counter()
    trainers: dict[str, Trainer] = {}
    phases: dict[str, dict[str, evaluation.Scores]] = {}
    for entry in ENTRIES:
        run = out / entry.folder
        if (run / "run.yaml").is_file():  # an earlier demo's; any other folder is left alone and refused
            with locked(run):  # and not one that another demo is filling
                shutil.rmtree(run)
        data = DataConfig(
            source=None if entry.recipe == "supervised" else "streets:sim",
            target="streets:real",
            num_labels=entry.labels,
        )
        print(f"\n{entry.name}: {run}", flush=True)
        trainer = Trainer(entry.build(), data, run_dir=run, seed=seed, device=device)
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
    atomic_write(json.dumps(document, indent=1) + "\n", out / "demo.json")  # last: it says that all is there
    print("\n" + evaluation.scores_table(final, next(iter(trainers.values())).classes))
    print(f"\n{out / 'demo.png'}, {out / 'demo.json'}: {document['seconds']:.0f} s, seed {seed}")
    return final


def _figure(trainers: dict[str, Trainer], path: Path) -> None:
    """Image, truth and each prediction; confidence and kept pseudo-labels of UDAS with labels."""
    teacher = trainers[ENTRIES[2].name]
    evaluation.validation_figure(
        {name: trainer.model for name, trainer in trainers.items()},
        teacher.model,
        teacher.domains.val,
        SIZE,
        path,
    )
