"""What a run comes to: its scores, a picture of the val split, and the model's file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from udas_fast import evaluation
from udas_fast.atomic import atomic_write
from udas_fast.data import ClassSet, SegmentationDataset, UserLoader
from udas_fast.inference import MODEL_FILE, TrainedModel
from udas_fast.models import ModelConfig
from udas_fast.recipes import Recipe


@dataclass
class Results:
    """``scores.json``, ``pictures/val.png`` and ``model.safetensors`` in the folder of a run.

    Attributes:
        folder: the run's.
        recipe, seed: what the scores are of.
        classes: of the data.
        model_config: how to build the model from its file; None: the user's own.
        val: what is scored on; None: nothing is.
        scores: by phase, a stage's further networks as ``PHASE.NETWORK``.
    """

    folder: Path
    recipe: Recipe
    seed: int
    classes: ClassSet
    model_config: ModelConfig | None
    val: SegmentationDataset | UserLoader | None
    scores: dict[str, evaluation.Scores] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether the run has come to its end: its model is written last."""
        return (self.folder / MODEL_FILE).is_file()

    def score(self, network: nn.Module) -> evaluation.Scores:
        """Score ``network`` on the val split, labels at their native size (collective)."""
        return evaluation.evaluate_dataset(network, self.val, "val", self.recipe.input.target.size)

    def scores_to_dict(self) -> dict[str, dict]:
        """The scores as plain data, which :meth:`take_scores` takes."""
        return {name: score.to_dict() for name, score in self.scores.items()}

    def take_scores(self, phases: Mapping[str, dict]) -> None:
        """Go on with scores that an earlier attempt at the run came to."""
        self.scores.update((name, evaluation.Scores.from_dict(content)) for name, content in phases.items())

    def read_scores(self) -> None:
        """Take the scores in ``scores.json``, which a run without a val split does not have."""
        self.scores.update(evaluation.read_scores(self.folder / "scores.json"))

    def write_scores(self) -> None:
        """``scores.json``: what was scored, on which classes, by phase."""
        document = {
            "recipe": self.recipe.name,
            "seed": self.seed,
            "classes": list(self.classes.names),
            "phases": self.scores_to_dict(),
        }
        atomic_write(json.dumps(document, indent=2) + "\n", self.folder / "scores.json")

    def trained(self, model: nn.Module) -> TrainedModel:
        """``model`` with its classes, input size and the protocol of the last scores."""
        scores = list(self.scores.values())
        protocol = scores[-1].protocol if scores else None
        return TrainedModel(model, self.model_config, self.classes, self.recipe.input.target.size, protocol)

    @property
    def picture(self) -> Path:
        """What :meth:`draw` drew last; a loader's val split is not drawn."""
        return self.folder / "pictures/val.png"

    def draw(self, phase: str, model: nn.Module) -> None:
        """What the ``model`` that ``phase`` has trained makes of some images of the val split."""
        if isinstance(self.val, SegmentationDataset):
            size = self.recipe.input.target.size
            evaluation.validation_figure({phase: model}, model, self.val, size, self.picture)

    def finish(self, model: nn.Module) -> None:
        """Write ``model.safetensors``, which says that the run is complete."""
        self.trained(model).save(self.folder / MODEL_FILE)
