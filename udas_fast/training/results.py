"""Results of a run: its scores, a picture of the val split, and the model's file."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from udas_fast import evaluation
from udas_fast.atomic import atomic_write
from udas_fast.data import ClassSet, SegmentationDataset, UserLoader
from udas_fast.errors import InputError
from udas_fast.inference import BEST_FILE, MODEL_FILE, TrainedModel
from udas_fast.models import ModelConfig, OwnNetwork
from udas_fast.recipes import Recipe


@dataclass
class Results:
    """``scores.json``, ``pictures/val.png``, ``model.safetensors`` and ``best.safetensors`` in the folder of a run.

    Attributes:
        run_dir: the run's folder.
        recipe, seed: what was trained.
        classes: classes of the data.
        network: the function that built the user's own network; None: it was given, or is the recipe's.
        val: what is scored; None: nothing.
        bit_depth: of the data's 16-bit images.
        workers: processes that decode the val split.
        scores: scores by phase; those of a phase's further networks as ``PHASE.NETWORK``.
    """

    run_dir: Path
    recipe: Recipe
    seed: int
    classes: ClassSet
    network: OwnNetwork | None
    val: SegmentationDataset | UserLoader | None
    bit_depth: int | None
    workers: int
    scores: dict[str, evaluation.Scores]

    @property
    def complete(self) -> bool:
        """True where the run is complete: its model is written last."""
        return (self.run_dir / MODEL_FILE).is_file()

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the images that the network sees."""
        return self.recipe.input.target.size

    def score(self, network: nn.Module) -> evaluation.Scores:
        """Score ``network`` on the val split, labels at their native size (collective).

        Raises:
            InputError: there is no val split.
        """
        if self.val is None:
            raise InputError("evaluate: found no val dataset, expected a target domain with one")
        return evaluation.evaluate_dataset(network, self.val, "val", self.size, workers=self.workers)

    def read_scores(self) -> None:
        """Take over the scores in ``scores.json``, which a run without a val split does not have."""
        self.scores.update(evaluation.read_scores(self.run_dir / "scores.json"))

    def write_scores(self) -> None:
        """Write ``scores.json``: what was scored, on which classes, by phase."""
        document = {
            "recipe": self.recipe.name,
            "seed": self.seed,
            "classes": list(self.classes.names),
            "phases": {name: scores.to_dict() for name, scores in self.scores.items()},
        }
        atomic_write(json.dumps(document, indent=2) + "\n", self.run_dir / "scores.json")

    def trained(self, model: nn.Module, config: ModelConfig | None) -> TrainedModel:
        """Return ``model`` with its classes, input size and the protocol of the last scores.

        ``config``: how to build it from its file; None: the user's own network.
        """
        scores = list(self.scores.values())
        return self._trained(model, config, scores[-1].protocol if scores else None)

    def keep_best(
        self, model: nn.Module, config: ModelConfig | None, step: int, protocol: evaluation.Protocol
    ) -> None:
        """Write the ``model`` after ``step`` steps, scored by ``protocol``, to ``best.safetensors``."""
        chosen = replace(protocol, selected=f"best on {protocol.split} at step {step}")
        self._trained(model, config, chosen).save(self.run_dir / BEST_FILE)

    def _trained(
        self, model: nn.Module, config: ModelConfig | None, protocol: evaluation.Protocol | None
    ) -> TrainedModel:
        return TrainedModel(model, config, self.classes, self.size, protocol, self.bit_depth, self.network)

    @property
    def picture(self) -> Path:
        """Picture that :meth:`draw` drew last; a loader's val split is not drawn."""
        return self.run_dir / "pictures/val.png"

    def draw(self, phase: str, model: nn.Module) -> None:
        """Draw predictions of the ``model`` that ``phase`` has trained on some images of the val split."""
        if isinstance(self.val, SegmentationDataset):
            evaluation.validation_figure({phase: model}, model, self.val, self.size, self.picture)

    def finish(self, model: nn.Module, config: ModelConfig | None) -> None:
        """Write :meth:`trained` to ``model.safetensors``, which marks the run as complete."""
        self.trained(model, config).save(self.run_dir / MODEL_FILE)
