"""A running run in the terminal: where it is, what it costs, how long it will take."""

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
from udas_fast.tools.report.read import RunFile, StepLine, is_finished, parse_step, read_run_file

REFRESH = 1.0  # seconds
TAIL = 1 << 16
"""Bytes that are read of the end of a file, so that a look at a run of any length costs the same."""
STEPS = 100
"""The last steps, or translated images, over which rate and wait for data are means."""


@dataclass(frozen=True)
class Images:
    """How far the images of `udas-fast translate` are, ``written`` of ``total``, and the ``seconds`` that one takes.

    Its manifest, which counts them, is up to half a minute old; where several processes share the images it counts
    the main one's alone until all are written, so that ``written`` is too low and the time left too long.
    """

    written: int
    total: int
    seconds: float | None


@dataclass(frozen=True)
class Glance:
    """What a run's folder tells at one moment.

    ``done`` of ``total`` steps are recorded; ``last`` is the last line of metrics.jsonl (learning rate and losses).
    ``seconds`` of a step and ``data_wait`` in it are means over the last :data:`STEPS`, None where none is timed;
    ``age`` is how many seconds ago a step or an image was written; ``images`` is None where none are translated (yet).
    """

    head: RunFile
    done: int
    total: int
    last: StepLine | None
    seconds: float | None
    data_wait: float | None
    age: float | None
    scores: dict[str, Scores]
    images: Images | None
    finished: bool

    @property
    def seconds_left(self) -> float | None:
        """At the rate of the last steps, or images; a later phase may have another."""
        if self.images is not None:
            left, seconds = self.images.total - self.images.written, self.images.seconds
        else:
            left, seconds = self.total - self.done, self.seconds
        return None if seconds is None else seconds * left


def glance(run: Path) -> Glance:
    """Look at the run in folder ``run``.

    Raises:
        InputError: no run there, or a damaged file; names the file.
    """
    _, head = read_run_file(run)
    metrics, times = _tail(run / "metrics.jsonl"), _tail(run / "timing.jsonl")[-STEPS:]
    means = {
        key: sum(line.values.get(key, 0.0) for line in times) / len(times) if times else None
        for key in ("seconds", "data_wait")
    }
    last = metrics[-1] if metrics else None
    manifest = _manifest(run, _written(manifest_file(run)))
    written = [_written(run / name) for name in ("metrics.jsonl", "translated/images")]
    newest = max((moment for moment in written if moment is not None), default=None)
    return Glance(
        head=head,
        done=0 if last is None else last.step + 1,
        total=sum(stage.steps * stage.rounds for stage in head.recipe.stages),
        last=last,
        age=None if newest is None else max(0.0, time.time() - newest),
        scores=read_scores(run / "scores.json"),
        images=None if manifest is None else _images(run, manifest),
        finished=is_finished(run, manifest),
        **means,
    )


def watch_run(run: Path, *, once: bool = False) -> None:
    """Show the run in folder ``run`` until it is complete or Ctrl-C; ``once``: print it as it is now.

    Raises:
        InputError: as :func:`glance`.
    """
    console = Console()
    if once:
        console.print(draw(run, glance(run)))
        return
    with suppress(KeyboardInterrupt), Live(console=console, auto_refresh=False) as live:
        while True:
            seen = glance(run)
            live.update(draw(run, seen), refresh=True)
            if seen.finished:
                return
            time.sleep(REFRESH)


def draw(run: Path, seen: Glance) -> Table:
    """``seen`` as lines of a name and a value."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column()
    for name, value in _lines(seen):
        grid.add_row(name, Text(value) if isinstance(value, str) else value)
    grid.title, grid.title_justify = Text(f"{run}: {seen.head.recipe.name}"), "left"
    return grid


def _lines(seen: Glance) -> Iterator[tuple[str, str | ProgressBar]]:
    yield "state", _state(seen)
    if seen.last is not None:
        yield "phase", _phase(seen, seen.last.phase)
    yield "steps", f"{seen.done:,} of {seen.total:,}"
    yield "", ProgressBar(total=seen.total, completed=seen.done, width=40)
    if seen.last is not None:
        values = dict(seen.last.values)
        lr = values.pop("lr", None)
        yield "losses", ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        yield "learning rate", "–" if lr is None else f"{lr:.3g}"
    if seen.images is not None:
        rate = f", {1 / seen.images.seconds:.2f} a second" if seen.images.seconds else ""
        yield "images", f"{seen.images.written:,} of {seen.images.total:,} translated{rate}"
    if seen.seconds:
        yield (
            "rate",
            f"{1 / seen.seconds:.2f} steps a second, {seen.data_wait / seen.seconds:.1%} waiting for data",
        )
    if seen.seconds_left is not None and not seen.finished:
        yield "time left", f"{timedelta(seconds=round(seen.seconds_left))} at this rate"
    if seen.scores:
        yield "mIoU, %", ", ".join(f"{phase} {percent(score.miou)}" for phase, score in seen.scores.items())


def _state(seen: Glance) -> str:
    if seen.finished:
        return "complete"
    if seen.age is None:
        return "no step has been recorded yet"
    return f"not complete; last write {timedelta(seconds=round(seen.age))} ago"


def _phase(seen: Glance, name: str) -> str:
    """Name, number and step of phase ``name``."""
    stages = seen.head.recipe.stages
    phases = [
        (s.name if s.rounds == 1 else f"{s.name}.{r + 1}", s.steps) for s in stages for r in range(s.rounds)
    ]
    before = 0
    for number, (other, steps) in enumerate(phases, 1):
        if name == other:
            return f"{name} ({number} of {len(phases)}), step {seen.done - before:,} of {steps:,}"
        before += steps
    return name


@lru_cache(maxsize=1)
def _manifest(run: Path, written: float | None) -> Manifest | None:
    """As it was ``written`` last: it has a line for every image, too many to read once a second for nothing."""
    return None if written is None else read_manifest(run)


def _images(run: Path, manifest: Manifest) -> Images:
    names = [name for name, record in manifest.files.items() if record is not None]
    moments = [_written(image_path(run, name)) for name in names[-STEPS:]]
    known = [moment for moment in moments if moment is not None]
    seconds = (max(known) - min(known)) / (len(known) - 1) if len(known) > 1 else None
    return Images(len(names), len(manifest.files), seconds)


def _written(path: Path) -> float | None:
    """When ``path`` was changed last, in seconds since the epoch; None where it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _tail(path: Path) -> list[StepLine]:
    """The last whole lines of a file of one JSON object a line; none where no file is."""
    if not path.is_file():
        return []
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - TAIL)
        file.seek(start)
        lines = file.read(TAIL).splitlines(keepends=True)
    whole = [line for line in lines[start > 0 :] if line.endswith(b"\n")]
    return [parse_step(line, f"the last lines of {path}") for line in whole[-STEPS:]]
