"""Callbacks of a run: the base class of a user's own loggers and hooks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udas_fast.evaluation import Scores


class Callback:
    """Base class of callbacks; override the methods that you need.

    A callback changes nothing of a run, and an exception in one ends it. A resumed run calls again for the steps and
    phases after its checkpoint.
    """

    def on_run_begin(self, run_dir: Path, document: Mapping[str, Any]) -> None:
        """Act on the begin of an attempt at a run: ``document`` is the content of ``run.yaml``, as plain values."""

    def on_step(self, record: Mapping[str, float | str]) -> None:
        """Act on an optimisation step: a line of ``metrics.jsonl``, with step, phase, lr and losses by name.

        Called for every step, in order. Losses are read every ``log_every`` steps, so calls come in groups and nothing
        waits for them.
        """

    def on_picture(self, name: str, step: int, path: Path) -> None:
        """Act on the PNG ``path``, drawn after ``step`` steps: "validation", or a round's "pseudo-labels"."""

    def on_scores(self, phase: str, step: int, scores: Scores) -> None:
        """Act on scores of the trained network after ``step`` steps: every ``evaluate_every``, and after each round."""

    def on_phase_end(self, phase: str, step: int, scores: Mapping[str, float]) -> None:
        """Act on the end of a round of a stage, after ``step`` steps; ``scores`` is mIoU by network, or empty."""

    def on_run_end(self, run_dir: Path) -> None:
        """Act on the end of the run: ``run_dir`` holds ``model.safetensors``."""
