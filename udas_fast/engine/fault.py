"""Losses that are no use to go on from: the run stops and ``fault.json`` tells what the step was made of."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from udas_fast.atomic import atomic_write
from udas_fast.errors import InputError

EXPLODED = 1e8
"""No mean over pixels comes near it, and neither does a sum over the pixels of a full-HD image."""


def check_losses(
    folder: Path,
    record: Mapping[str, Any],
    losses: Mapping[str, float],
    samples: Mapping[str, Sequence[str]],
) -> None:
    """Stop where one of a step's ``losses`` is not finite or beyond :data:`EXPLODED`.

    ``record`` has the step, its phase and rate; ``samples`` the ids of its images by stream.

    Raises:
        InputError: names the term, the step and the images, which ``folder/fault.json`` holds as well.
    """
    term = next((name for name, value in losses.items() if not abs(value) <= EXPLODED), None)
    if term is None:
        return
    # JSON has no word for what is not finite.
    values = {name: value if math.isfinite(value) else str(value) for name, value in losses.items()}
    document = {**record, "term": term, "losses": values, "samples": {k: list(v) for k, v in samples.items()}}
    path = folder / "fault.json"
    atomic_write(json.dumps(document, indent=2) + "\n", path)
    images = "; ".join(f"{name} {', '.join(ids[:4])}" for name, ids in samples.items())
    raise InputError(
        f"loss {term!r} is {losses[term]:g} at step {record['step']} ({record['phase']}), on {images}: wanted a "
        f"finite number below {EXPLODED:g}; lower stages.*.optimizer.lr in {folder / 'run.yaml'} and go on with "
        f"--resume {folder}, or look for wrong labels with `udas-fast check-data` (all of the step: {path})"
    )
