"""Words of a tiny training run, which tests of several commands start from."""

from __future__ import annotations

from pathlib import Path

TINY = ("--set", "model.width=4", "--set", "input.batch_size=2")


def train_words(
    root: Path, out: Path, *more: object, recipe: str = "no_adaptation", steps: int = 6
) -> tuple[object, ...]:
    """``udas-fast train`` of a small recipe, with the dataset in ``root`` as both domains."""
    return (
        *("train", recipe, "--source", f"camvid:{root}", "--target", f"camvid:{root}", "--out", out),
        *("--small", "32x48", "--steps", steps, "--device", "cpu", *TINY, *more),
    )
