"""View of a running run in the terminal: its position, losses, rate and time left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from udas_fast.data.translated import Manifest, image_path, manifest_file, read_manifest
from udas_fast.evaluation import Scores, read_scores
from udas_fast.tools.report.markup import percent
from udas_fast.tools.report.read import (
    RecordedRecipe,
    ScoredStep,
    StepLine,
    is_finished,
    parse_step,
    read_run_yaml,
    read_scored,
)

REFRESH = 1.0  # seconds
TAIL = 1 << 16
"""Bytes read from the end of a file, so that runs of any length cost the same."""
LATEST = 5
"""Number of last scores during the run that are shown."""
RECENT = 100
"""Number of last steps, or translated images, over which rates are averaged."""


@dataclass(frozen=True)
class TranslatedImages:
    """Progress of `udas-fast translate`: ``written`` of ``total`` images, and the ``seconds`` per image.

    The manifest, which counts them, is up to half a minute old. Where several processes share the images, it counts
    those of the main process until all are written, so ``written`` is too low and the time left too long.
    """

    written: int
    total: int
    seconds: float | None


@dataclass(frozen=True)
class RunStatus:
    """State of a run folder at one moment.

    ``done`` of ``total`` steps are recorded. ``last`` is the last line of metrics.jsonl (learning rate and losses).
    ``seconds`` of a step and ``data_wait`` in it are means over the last :data:`RECENT` steps, None where no step is
    timed. ``age`` is the number of seconds since a step or an image was written. ``images`` is None where no
    translation has begun.
    """

    recipe: RecordedRecipe
    done: int
    last: StepLine | None
    seconds: float | None
    data_wait: float | None
    age: float | None
    scores: dict[str, Scores]
    scored: list[ScoredStep]
    images: TranslatedImages | None
    finished: bool

    @property
    def total(self) -> int:
        """Number of steps of the whole run."""
        return self.recipe.steps

    @property
    def seconds_left(self) -> float | None:
        """Time left at the rate of the last steps or images; a later phase may be slower or faster."""
        if self.images is not None:
            left, seconds = self.images.total - self.images.written, self.images.seconds
        else:
            left, seconds = self.total - self.done, self.seconds
        return None if seconds is None else seconds * left


def read_status(run_dir: Path) -> RunStatus:
    """Read the state of a run.

    Raises:
        InputError: ``run_dir`` holds no run, or a file in it is damaged; the message names the file.
    """
    _, document = read_run_yaml(run_dir)
    metrics, times = _tail(run_dir / "metrics.jsonl"), _tail(run_dir / "timing.jsonl")[-RECENT:]
    last = metrics[-1] if metrics else None
    manifest = _manifest(run_dir, _written(manifest_file(run_dir)))
    written = [_written(run_dir / name) for name in ("metrics.jsonl", "translated/images")]
    newest = max((moment for moment in written if moment is not None), default=None)
    return RunStatus(
        recipe=document.recipe,
        done=0 if last is None else last.step + 1,
        last=last,
        seconds=_mean(times, "seconds"),
        data_wait=_mean(times, "data_wait"),
        age=None if newest is None else max(0.0, time.time() - newest),
        scores=read_scores(run_dir / "scores.json"),
        scored=read_scored(run_dir),
        images=None if manifest is None else _images(run_dir, manifest),
        finished=is_finished(run_dir, manifest),
    )


def watch_run(run_dir: Path, *, once: bool = False) -> None:
    """Show the state of a run until it is complete or Ctrl-C; with ``once`` print it and return.

    Raises:
        InputError: as :func:`read_status`.
    """
    console = Console()
    if once:
        console.print(status_table(run_dir, read_status(run_dir)))
        return
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            status = read_status(run_dir)
            live.update(status_table(run_dir, status), refresh=True)
            if status.finished:
                return
            time.sleep(REFRESH)


def status_table(run_dir: Path, status: RunStatus) -> Table:
    """Return ``status`` as lines of a name and a value."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, value in _lines(status):
        grid.add_row(name, Text(value) if isinstance(value, str) else value)
    grid.title, grid.title_justify = Text(f"{run_dir}: {status.recipe.name}"), "left"
    return grid


def _lines(status: RunStatus) -> Iterator[tuple[str, str | ProgressBar]]:
    yield "state", _state(status)
    if status.last is not None:
        yield "phase", _phase(status, status.last.phase)
    yield "steps", f"{status.done:,} of {status.total:,}"
    yield "", ProgressBar(total=status.total, completed=status.done, width=40)
    if status.last is not None:
        values = dict(status.last.values)
        lr = values.pop("lr", None)
        yield "losses", ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        yield "learning rate", "–" if lr is None else f"{lr:.3g}"
    if status.images is not None:
        rate = f", {1 / status.images.seconds:.2f} per second" if status.images.seconds else ""
        yield "images", f"{status.images.written:,} of {status.images.total:,} translated{rate}"
    if status.seconds and status.data_wait is not None:
        wait = status.data_wait / status.seconds
        yield "rate", f"{1 / status.seconds:.2f} steps per second, {wait:.1%} waiting for data"
    if status.seconds_left is not None and not status.finished:
        yield "time left", f"{timedelta(seconds=round(status.seconds_left))} at this rate"
    if status.scored:
        latest = ", ".join(f"{s.step:,}: {percent(s.miou)}" for s in status.scored[-LATEST:])
        best = [s for s in status.scored if s.best]
        kept = f"; best.safetensors {percent(best[-1].miou)} at step {best[-1].step:,}" if best else ""
        yield "mIoU by step, %", latest + kept
    if status.scores:
        yield "mIoU, %", ", ".join(f"{phase} {percent(score.miou)}" for phase, score in status.scores.items())
        yield "", list(status.scores.values())[-1].mean_note


def _state(status: RunStatus) -> str:
    if status.finished:
        return "complete"
    if status.age is None:
        return "no step has been recorded yet"
    return f"not complete; last write {timedelta(seconds=round(status.age))} ago"


def _phase(status: RunStatus, name: str) -> str:
    """Return the name, number and step of phase ``name``."""
    phases = status.recipe.phases()
    if name not in phases:
        return name
    steps, number = phases[name], list(phases).index(name) + 1
    return f"{name} ({number} of {len(phases)}), step {status.done - steps.start:,} of {len(steps):,}"


@lru_cache(maxsize=1)
def _manifest(run_dir: Path, written: float | None) -> Manifest | None:
    """Read the manifest again only when its time of writing has changed: it has a line for every image."""
    return None if written is None else read_manifest(run_dir)


def _images(run_dir: Path, manifest: Manifest) -> TranslatedImages:
    names = [name for name, record in manifest.files.items() if record is not None]
    moments = [_written(image_path(run_dir, name)) for name in names[-RECENT:]]
    known = [moment for moment in moments if moment is not None]
    seconds = (max(known) - min(known)) / (len(known) - 1) if len(known) > 1 else None
    return TranslatedImages(len(names), len(manifest.files), seconds)


def _mean(lines: list[StepLine], name: str) -> float | None:
    return sum(line.values.get(name, 0.0) for line in lines) / len(lines) if lines else None


def _written(path: Path) -> float | None:
    """Return when ``path`` was last changed, in seconds since the epoch; None where there is no such file."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _tail(path: Path) -> list[StepLine]:
    """Return the last whole lines of a file with one JSON object per line; none where there is no file."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL)
        file.seek(start)
        lines = file.read(TAIL).splitlines(keepends=True)
    whole = [line for line in lines[start > 0 :] if line.endswith(b"\n")]
    return [parse_step(line, f"the last lines of {path}") for line in whole[-RECENT:]]
