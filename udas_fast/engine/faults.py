"""Handling of non-finite losses and gradients: steps are skipped and counted, or the run ends with ``fault.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from udas_fast import distributed
from udas_fast.atomic import atomic_write
from udas_fast.errors import InputError

EXPLODED = 1e8
"""Bound above any mean over pixels, and above a sum over the pixels of a full-HD image."""


@dataclass
class BadSteps:
    """Counter of skipped steps: up to ``limit`` leave no trace in weights or state, one more ends the run."""

    limit: int = 0
    found: int = 0

    def undo(
        self,
        losses: Mapping[str, Tensor],
        gradients: Iterable[Tensor],
        state: Sequence[tuple[Tensor, Tensor]],
    ) -> bool:
        """Return whether the step must be skipped because a loss or gradient is not finite; waits for the device.

        ``state``, (tensor, value) each, then gets its values from before the step back. All processes decide the same,
        by the means of their losses, which are the global batch's, and of their ``gradients`` (collective).
        """
        means = distributed.all_reduce_mean(torch.stack([loss.detach().float() for loss in losses.values()]))
        finite = [(means.abs() <= EXPLODED).all(), *(gradient.isfinite().all() for gradient in gradients)]
        if torch.stack(finite).all().item():
            return False
        with torch.no_grad():
            for tensor, value in state:
                tensor.copy_(value)
        self.found += 1
        return True


def describe_fault(
    folder: Path,
    record: Mapping[str, Any],
    losses: Mapping[str, float],
    samples: Mapping[str, Sequence[str]],
    *,
    skipped: bool = False,
) -> str | None:
    """Write ``folder/fault.json`` about a bad step and return a sentence about it; None where all ``losses`` are good.

    ``record`` has the step, its phase and learning rate; ``samples`` the ids of its images by stream. A step that was
    ``skipped`` with good losses had bad gradients. Collective: losses are the same in all processes, images differ.
    """
    term = next((name for name, value in losses.items() if not abs(value) <= EXPLODED), None)
    if term is None and not skipped:
        return None
    parts = distributed.all_gather_object(samples)
    images = {name: [i for part in parts for i in part[name]] for name in samples}
    # JSON cannot write numbers that are not finite.
    values = {name: value if math.isfinite(value) else str(value) for name, value in losses.items()}
    document = {**record, "term": term, "losses": values, "samples": images}
    distributed.on_main(lambda: atomic_write(json.dumps(document, indent=2) + "\n", folder / "fault.json"))
    listed = "; ".join(f"{name} {', '.join(ids[:4])}" for name, ids in images.items())
    what = "a gradient is not finite" if term is None else f"loss {term!r} is {losses[term]:g}"
    return f"{what} at step {record['step']} ({record['phase']}), on {listed}"


def check_losses(
    folder: Path,
    record: Mapping[str, Any],
    losses: Mapping[str, float],
    samples: Mapping[str, Sequence[str]],
) -> None:
    """End the run where one of a step's ``losses`` is not finite or above :data:`EXPLODED`; see :func:`describe_fault`.

    Raises:
        InputError: names the term, the step and the images, which ``folder/fault.json`` holds as well.
    """
    if fault := describe_fault(folder, record, losses, samples):
        raise InputError(
            f"{fault}: expected a finite number below {EXPLODED:g}; lower stages.*.optimizer.lr in "
            f"{folder / 'run.yaml'} and go on with --resume {folder}, skip such steps with max_bad_steps there, or "
            f"look for wrong labels with `udas-fast check-data` (all of the step: {folder / 'fault.json'})"
        )
