"""What a run leaves behind while it trains: metrics.jsonl, TensorBoard events and a progress bar."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from udas_fast.errors import InputError


class Recorder:
    """Collects the losses of every step on the device and reads them once every ``every`` steps.

    Args:
        folder: the run's folder.
        first: number of the first step to come; what an earlier attempt wrote from there on is dropped.
        total: number of steps of the whole run.
        every: steps between two reads, the only places where training waits for the device.
    """

    def __init__(self, folder: Path, *, first: int, total: int, every: int) -> None:
        self._path = folder / "metrics.jsonl"
        self._drop_from(first)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        self._every = every
        self._pending: list[tuple[dict[str, float | str], dict[str, Tensor]]] = []
        # A bar where someone watches, a line every half minute in a log.
        interval = 0.1 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=total, initial=first, unit="step", mininterval=interval, miniters=1, maxinterval=interval
        )

    def step(self, step: int, phase: str, lr: float, losses: Mapping[str, Tensor]) -> None:
        """Record the losses (scalars on the device) of optimisation step ``step``, counted from 0."""
        self._pending.append(({"step": step, "phase": phase, "lr": lr}, dict(losses)))
        if len(self._pending) >= self._every:
            self.flush()
        self._bar.set_description(phase, refresh=False)
        self._bar.update()

    def flush(self) -> None:
        """Read what is pending, check it and write it.

        Raises:
            InputError: a loss is not finite; names the term and the step.
        """
        for record, losses in self._pending:
            values = torch.stack([v.float() for v in losses.values()]).tolist()  # one wait for all terms
            named = dict(zip(losses, values, strict=True))
            for name, value in named.items():
                if value != value or value in (float("inf"), float("-inf")):
                    raise InputError(
                        f"loss {name!r} is {value} at step {record['step']} ({record['phase']}): wanted a finite "
                        "number; lower stages.*.optimizer.lr, or look for labels outside the classes with "
                        "`udas-fast check-data`"
                    )
                self._board.add_scalar(f"loss/{name}", value, record["step"])
            self._board.add_scalar("lr", record["lr"], record["step"])
            self._file.write(json.dumps(record | named) + "\n")
            self._bar.set_postfix({name: f"{value:.3g}" for name, value in named.items()}, refresh=False)
        self._pending.clear()
        self._file.flush()

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        """Add evaluation results to the events."""
        for name, value in values.items():
            self._board.add_scalar(f"score/{name}", value, step)

    def close(self) -> None:
        """Close files and bar; what is pending and could not be read is left out."""
        self._bar.close()
        self._file.close()
        self._board.close()

    def _drop_from(self, first: int) -> None:
        if not self._path.exists():
            return
        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        # A killed run may have left half a line at the end.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] < first]
        self._path.write_text("".join(kept), encoding="utf-8")
