"""Records of a run while it trains: metrics.jsonl, timing.jsonl, scores.jsonl, TensorBoard and a progress bar.

Times have a file of their own, because metrics.jsonl is the same in every run of one recipe and seed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from udas_fast import distributed
from udas_fast.atomic import atomic_write, writing
from udas_fast.data import read_image
from udas_fast.engine.callbacks import Callback
from udas_fast.engine.faults import check_losses, describe_fault
from udas_fast.errors import bad, first_line
from udas_fast.evaluation import Scores


class Recorder:
    """Recorder of every step's losses: collected on the device, read once every ``every`` steps.

    Among several processes the means are recorded, and only the main process writes.

    Args:
        folder: the run's folder.
        first: number of the next step; records of an earlier attempt from there on are dropped.
        total: number of steps of the whole run.
        every: steps between two reads, the only places where training waits for the device.
        callbacks: called for every step.
    """

    def __init__(
        self, folder: Path, *, first: int, total: int, every: int, callbacks: Sequence[Callback] = ()
    ) -> None:
        self._folder = folder
        self._callbacks = callbacks
        self._files: _Files | None = None
        if distributed.is_main():
            with writing(folder / "metrics.jsonl"):
                self._files = _Files(folder, first, total)
        self._every = every
        self._pending: list[
            tuple[dict[str, float | str], dict[str, Tensor], Mapping[str, Sequence[str]], bool]
        ] = []
        self._waits: list[dict[str, float]] = []
        self._before = time.perf_counter()

    def start_clock(self) -> None:
        """Start the clock of the next step: labelling and scoring before it belong to no step."""
        self._before = time.perf_counter()

    def step(
        self,
        step: int,
        phase: str,
        lr: float,
        losses: Mapping[str, Tensor],
        samples: Mapping[str, Sequence[str]],
        data_wait: float,
        *,
        skipped: bool = False,
    ) -> None:
        """Record the losses (scalars on the device) of optimisation step ``step``, counted from 0.

        ``samples``: ids of the step's images by stream; ``data_wait``: seconds that it waited for them. A step that
        was ``skipped`` is reported on stderr and not logged.
        """
        now = time.perf_counter()
        self._waits.append({"step": step, "seconds": now - self._before, "data_wait": data_wait})
        self._before = now
        record: dict[str, float | str] = {"step": step, "phase": phase, "lr": lr}
        self._pending.append((record, dict(losses), samples, skipped))
        if len(self._pending) >= self._every:
            self.flush()
        if self._files is not None:
            self._files.show_step(phase)

    def flush(self) -> None:
        """Read the pending losses, check them and write them.

        Raises:
            InputError: a loss is not finite (:func:`udas_fast.engine.faults.check_losses`), or the disk is full.
        """
        with writing(self._folder / "metrics.jsonl"):
            records = self._write()
        for record in records:
            for callback in self._callbacks:
                callback.on_step(record)

    def _write(self) -> list[dict[str, float | str]]:
        """Write the pending steps; return the lines that were written."""
        written = []
        for (record, losses, samples, skipped), values in zip(self._pending, self._read(), strict=True):
            named = dict(zip(losses, values, strict=True))
            if skipped:
                fault = describe_fault(self._folder, record, named, samples, skipped=True)
                if self._files is not None:
                    tqdm.write(f"skipped: {fault}", file=sys.stderr)
                continue
            check_losses(self._folder, record, named, samples)
            if self._files is not None:
                self._files.add_losses(record, named)
            written.append({**record, **named})
        if self._files is not None:
            self._files.add_times(self._waits)
        self._pending.clear()
        self._waits.clear()
        return written

    def _read(self) -> list[list[float]]:
        """Return the values of each pending step's losses; waits for the device once."""
        if not self._pending:
            return []
        values = torch.stack([v.float() for _, losses, *_ in self._pending for v in losses.values()])
        counts = [len(losses) for _, losses, *_ in self._pending]
        return [part.tolist() for part in distributed.all_reduce_mean(values).cpu().split(counts)]

    def scores(self, step: int, values: Mapping[str, float]) -> None:
        """Add evaluation results to the events."""
        if self._files is not None:
            self._files.add_scores(step, values)

    def evaluated(self, phase: str, step: int, scores: Scores, keep: Callable[[], None] | None) -> None:
        """Add the network's ``scores`` after ``step`` steps to scores.jsonl and to the events.

        ``keep`` writes the network to ``best.safetensors``; it is called if no earlier scores are as high.
        """
        if self._files is None:
            return
        with writing(self._folder / "scores.jsonl"):
            self._files.add_evaluation(phase, step, scores, keep)

    def picture(self, name: str, step: int, path: Path) -> None:
        """Add the PNG ``path`` to the events and call the callbacks; nothing where it was not drawn."""
        if self._files is None or not path.is_file():
            return
        with writing(self._folder / "tensorboard"):
            self._files.add_picture(name, step, path)
        for callback in self._callbacks:
            callback.on_picture(name, step, path)

    def pseudo_labels(self, step: int, picture: Path, report: Path) -> None:
        """Add the pseudo-labels of a round that has ended: their picture, confidences and kept shares."""
        self.picture("pseudo-labels", step, picture)
        if self._files is not None and report.is_file():
            content = json.loads(report.read_text(encoding="utf-8"))
            with writing(self._folder / "tensorboard"):
                self._files.add_pseudo_labels(step, content)

    def close(self) -> None:
        """Close files and bar; pending losses that could not be read are left out."""
        if self._files is not None:
            self._files.close()


class _Files:
    """Files and progress bar of a :class:`Recorder`."""

    def __init__(self, folder: Path, first: int, total: int) -> None:
        self._file = _continue(folder / "metrics.jsonl", first)
        self._times = _continue(folder / "timing.jsonl", first)
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        self._phase = ""
        self._scores = folder / "scores.jsonl"
        self._best = _best_kept(self._scores, first)
        if self._scores.is_file():
            _drop(self._scores, first)
        # A bar where someone watches, a line every half minute in a log.
        interval = 0.1 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            total=total, initial=first, unit="step", mininterval=interval, miniters=1, maxinterval=interval
        )

    def show_step(self, phase: str) -> None:
        if phase != self._phase:
            self._phase = phase
            self._bar.set_description(phase, refresh=False)
        self._bar.update()

    def add_losses(self, record: Mapping[str, float | str], named: Mapping[str, float]) -> None:
        for name, value in named.items():
            self._board.add_scalar(f"loss/{name}", value, record["step"])
        self._board.add_scalar("lr", record["lr"], record["step"])
        self._file.write(json.dumps({**record, **named}) + "\n")
        self._bar.set_postfix({name: f"{value:.3g}" for name, value in named.items()}, refresh=False)

    def add_times(self, waits: Sequence[Mapping[str, float]]) -> None:
        """Add mean times over the pending steps: on a GPU a single step's time is the host's, not the device's."""
        self._file.flush()
        if waits:
            step = waits[-1]["step"]
            seconds, wait = (sum(w[name] for w in waits) for name in ("seconds", "data_wait"))
            self._board.add_scalar("time/step", seconds / len(waits), step)
            self._board.add_scalar("time/data_wait", wait / len(waits), step)
            self._bar.set_description(f"{self._phase}, {wait / seconds:.1%} waiting for data", refresh=False)
        self._times.writelines(json.dumps(wait) + "\n" for wait in waits)
        self._times.flush()
        self._board.flush()  # a checkpoint comes after this: events before it must outlive a kill

    def add_scores(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._board.add_scalar(f"score/{name}", value, step)

    def add_evaluation(self, phase: str, step: int, scores: Scores, keep: Callable[[], None] | None) -> None:
        is_best = keep is not None and scores.miou > self._best
        if keep is not None and is_best:
            keep()  # before its line: where there is a line, the file is whole
            self._best = scores.miou
        line = {"step": step, "phase": phase, "best": is_best, **scores.to_dict()}
        del line["confusion_matrix"], line["reliability"]
        with self._scores.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        by_class = {f"iou/{name}": value for name, value in line["iou"].items() if value is not None}
        self.add_scores(step, {"miou": scores.miou, **by_class})
        tqdm.write(f"{phase}: mIoU {100 * scores.miou:.1f} % after {step:,} steps", file=sys.stderr)

    def add_picture(self, name: str, step: int, path: Path) -> None:
        self._board.add_image(name, read_image(path), step, dataformats="HWC")

    def add_pseudo_labels(self, step: int, report: Mapping[str, Any]) -> None:
        """Add confidences of all classes together, and kept shares and accuracies of all and by class."""
        for name, counts in zip(("kept", "dropped"), np.sum(report["histogram"], axis=0), strict=True):
            self._add_histogram(f"confidence/{name}", step, counts)
        for quantity in ("kept_share", "accuracy"):
            by_class = zip(report["classes"], report[quantity], strict=True) if report[quantity] else ()
            for name, value in (("all classes", report[f"{quantity}_all"]), *by_class):
                if value is not None:  # a class without pixels has none
                    self._board.add_scalar(f"pseudo_labels_{quantity}/{name}", value, step)

    def _add_histogram(self, tag: str, step: int, counts: np.ndarray) -> None:
        """Add a histogram of ``counts`` in equal bins of [0, 1]; sums are taken at the bins' middles."""
        edges = np.linspace(0, 1, len(counts) + 1)
        middles = (edges[:-1] + edges[1:]) / 2
        # TensorBoard drops empty ends and draws the first and last remaining bins from min and to max.
        filled = np.flatnonzero(counts)
        ends = edges[[filled[0], filled[-1] + 1]] if len(filled) else edges[[0, -1]]
        self._board.add_histogram_raw(
            tag,
            min=float(ends[0]),
            max=float(ends[1]),
            num=int(counts.sum()),
            sum=float(counts @ middles),
            sum_squares=float(counts @ middles**2),
            bucket_limits=edges[1:].tolist(),
            bucket_counts=counts.tolist(),
            global_step=step,
        )

    def close(self) -> None:
        self._bar.close()
        for file in (self._file, self._times, self._board):
            with suppress(OSError):  # a full disk has been reported where it was met
                file.close()


def _continue(path: Path, first: int) -> TextIO:
    """Open a file of one JSON object a line to append to it, without the lines from step ``first`` on.

    Raises:
        InputError: a line is damaged, or the file cannot be written.
    """
    if path.is_file():
        _drop(path, first)
    return path.open("a", encoding="utf-8")


def _drop(path: Path, first: int) -> None:
    """Take the lines from step ``first`` on out of the file ``path``."""
    kept = [text for text, content in _lines(path) if content["step"] < first]
    atomic_write(b"".join(kept), path)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Return each whole line and its content; a killed run may have left half a line at the end."""
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        lines = [(line, json.loads(line)) for line in whole]
        for _, content in lines:
            content["step"] + 0
    except (ValueError, KeyError, TypeError) as error:
        raise bad(f"{path}", f"a damaged line ({first_line(error)})", "one JSON object a line") from error
    return lines


def _best_kept(path: Path, first: int) -> float:
    """Return the mIoU of the network in ``best.safetensors``, below all where it is of a step from ``first`` on."""
    lines = _lines(path) if path.is_file() else ()
    best = [(content["step"], content.get("miou")) for _, content in lines if content.get("best")]
    step, miou = best[-1] if best else (first, None)
    return miou if step < first and isinstance(miou, float) else -1.0
