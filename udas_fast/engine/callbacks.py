"""What a user's own code is told while a run trains: the base of loggers and hooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class Callback:
    """Overrides what it wants to hear of. It changes nothing of a run, and what it raises ends one.

    A run that is resumed tells again of the steps and phases after its checkpoint.
    """

    def on_step(self, record: Mapping[str, float | str]) -> None:
        """Each optimisation step, in order: a line of ``metrics.jsonl``, with step, phase, lr and losses by name.

        Losses are read every ``log_every`` steps, so steps are told of in groups and nothing waits for them.
        """

    def on_picture(self, name: str, step: int, path: Path) -> None:
        """The PNG ``path`` was drawn after ``step`` steps of the run: "validation", or a round's "pseudo-labels"."""

    def on_phase_end(self, phase: str, step: int, scores: Mapping[str, float]) -> None:
        """A round of a stage is over, after ``step`` steps of the run; mIoU by network, empty without a val split."""

    def on_run_end(self, run: Path) -> None:
        """All is written: the folder ``run`` has ``model.safetensors``."""
