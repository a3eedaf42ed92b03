"""Read a run folder of any version. Parts that are missing are listed in the record's notes, not refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import (
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.dataclasses import dataclass as checked_dataclass

from udas_fast.config import load_yaml
from udas_fast.data.translated import Manifest, read_manifest
from udas_fast.errors import InputError, bad, first_line, first_problem
from udas_fast.evaluation import Scores, read_scores
from udas_fast.inference import MODEL_FILE
from udas_fast.recipes.recipe import MOST_ROUNDS, enumerate_rounds

LENIENT = ConfigDict(extra="ignore")  # files of a newer version may hold more
BINS = 64
"""Equal parts of 0 to 1 in a confidence histogram (:func:`udas_fast.ops.pseudo_label`)."""
POINTS = 240
"""Most points of a series: about as many as a chart on a phone or in a column can show."""


@checked_dataclass(frozen=True, config=LENIENT)
class RecordedStage:
    """The part of a recipe's stage that reports use."""

    name: str
    steps: PositiveInt
    rounds: Annotated[int, Field(gt=0, le=MOST_ROUNDS)] = 1


@checked_dataclass(frozen=True, config=LENIENT)
class RecordedInput:
    """The part of a recipe's input that reports use."""

    batch_size: PositiveInt
    stream_batch_size: dict[str, PositiveInt | None] = field(default_factory=dict)  # of streams that differ


@checked_dataclass(frozen=True, config=LENIENT)
class RecordedRecipe:
    """The part of a recipe that reports use: reading it needs none of the run's objectives."""

    name: str
    stages: tuple[RecordedStage, ...]
    summary: str = ""
    input: RecordedInput | None = None

    def phases(self) -> dict[str, range]:
        """Return the optimisation steps of each phase by its name, in order."""
        rounds = enumerate_rounds(self.stages)
        return {name: range(first, first + stage.steps) for stage, _, name, first in rounds}

    @property
    def steps(self) -> int:
        """Number of optimisation steps of the whole run."""
        return sum(map(len, self.phases().values()))


@checked_dataclass(frozen=True, config=LENIENT)
class RecordedData:
    """Names of the datasets."""

    source: str | tuple[str, ...] | None = None
    target: str | None = None
    num_labels: int | str | None = None

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, with their shares where there are several."""
        return (self.source,) if isinstance(self.source, str) else self.source or ()


@checked_dataclass(frozen=True, config=LENIENT)
class RecordedConfig:
    """The part of run.yaml's ``run`` that reports use; ``data`` is None where the datasets were objects."""

    data: RecordedData | None = None
    labelled: tuple[str, ...] | None = None
    given: tuple[str, ...] = ()  # what began as an object or a function
    engine: str = "not recorded"
    seed: int = 0

    @property
    def num_labels(self) -> int | None:
        """Number of labelled target images; None where it is not recorded."""
        if self.labelled is not None:
            return len(self.labelled)
        given = None if self.data is None else self.data.num_labels or 0
        return given if isinstance(given, int) else None


@checked_dataclass(frozen=True, config=LENIENT)
class RunYaml:
    """Content of run.yaml."""

    recipe: RecordedRecipe
    run: RecordedConfig


Fraction: TypeAlias = Annotated[float, Field(ge=0, le=1)] | None
Counts: TypeAlias = Annotated[tuple[NonNegativeInt, ...], Field(min_length=BINS, max_length=BINS)]


@checked_dataclass(frozen=True, config=LENIENT)
class LabelReport:
    """Content of ``pseudo_labels/ROUND/report.json``: statistics of the pseudo-labels of one round.

    Lists are by class. Fractions are None where a class has no pixels. ``histogram`` is (kept, dropped) by class.
    """

    phase: str
    classes: tuple[str, ...]
    threshold: tuple[float, ...]
    histogram: tuple[tuple[Counts, Counts], ...]
    images: NonNegativeInt
    kept_share: tuple[Fraction, ...]
    kept_share_all: Fraction
    accuracy: tuple[Fraction, ...] | None = None  # None: no ground truth
    accuracy_all: Fraction = None

    @model_validator(mode="after")
    def _one_of_each_per_class(self) -> LabelReport:
        for name in ("threshold", "histogram", "kept_share", "accuracy"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.classes):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.classes)} classes")
        return self


@checked_dataclass(frozen=True, config=LENIENT)
class ScoredStep:
    """One line of scores.jsonl: fractions of 1 after ``step`` steps; ``best`` if the network was kept as the best."""

    step: NonNegativeInt
    phase: str
    miou: Fraction
    best: bool = False


class Series:
    """Values by step as means over spans of ``span`` steps, at most :data:`POINTS` of them.

    ``first`` and ``last`` are the smallest and largest step, ``count`` is the number of values, ``total`` their sum.
    """

    def __init__(self) -> None:
        self.span = 1
        self.first, self.last = 0, 0
        # By step // span: count, sum of steps, sum of values.
        self._cells: dict[int, tuple[int, int, float]] = {}

    def add(self, step: int, value: float) -> None:
        """Add the ``value`` of ``step``; the span doubles while there are too many points."""
        self.first, self.last = (min(self.first, step), max(self.last, step)) if self._cells else (step, step)
        self._merge(step // self.span, (1, step, value))
        while len(self._cells) > POINTS:
            self._double()

    def coarsen(self, span: int) -> None:
        """Widen the span to at least ``span``, so that series in one chart are equally smooth."""
        while self.span < span:
            self._double()

    def _double(self) -> None:
        self.span *= 2
        cells, self._cells = self._cells, {}
        for index, cell in cells.items():
            self._merge(index // 2, cell)

    def _merge(self, index: int, cell: tuple[int, int, float]) -> None:
        count, steps, total = self._cells.get(index, (0, 0, 0.0))
        self._cells[index] = (count + cell[0], steps + cell[1], total + cell[2])

    @property
    def points(self) -> list[tuple[float, float]]:
        """(mean step, mean value) of each span, in the order of steps."""
        cells = sorted(self._cells.items())
        return [(steps / count, total / count) for _, (count, steps, total) in cells]

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(count for count, _, _ in self._cells.values())

    @property
    def total(self) -> float:
        """Sum of the values."""
        return sum(total for _, _, total in self._cells.values())


Curves: TypeAlias = dict[str, dict[str, Series]]
"""Series by the name of the quantity, then by phase."""


@dataclass(frozen=True)
class RunRecord:
    """Content of one run folder.

    ``curves`` holds ``lr`` and the losses. ``timing`` holds the seconds of each step (``seconds``, ``data_wait``);
    lines without a phase are under "". ``scores`` are by phase in the order of training, ``scored`` are those during
    the run. ``notes`` list what is missing.
    """

    run_dir: Path
    recipe: RecordedRecipe
    config: RecordedConfig
    yaml: str
    curves: Curves
    timing: Curves
    scores: dict[str, Scores]
    scored: list[ScoredStep]
    label_reports: list[LabelReport]
    pictures: list[Path]
    environment: dict[str, Any]
    finished: bool
    notes: tuple[str, ...]

    @property
    def recorded_phases(self) -> dict[str, tuple[int, int]]:
        """(first, last) recorded step of each phase."""
        found: dict[str, tuple[int, int]] = {}
        for series in self.curves.values():
            for phase, s in series.items():
                first, last = found.get(phase, (s.first, s.last))
                found[phase] = (min(first, s.first), max(last, s.last))
        return found

    @property
    def recorded_steps(self) -> int:
        """Number of steps up to the last recorded one."""
        return max((last + 1 for _, last in self.recorded_phases.values()), default=0)

    @property
    def final(self) -> Scores | None:
        """Scores after the last phase that was scored."""
        return list(self.scores.values())[-1] if self.scores else None


def read_run(run_dir: Path) -> RunRecord:
    """Read a run folder; the run may be unfinished, or killed in the middle of a line.

    Raises:
        InputError: ``run_dir`` holds no run, or a file in it is damaged; the message names the file.
    """
    text, document = read_run_yaml(run_dir)
    curves, cut_metrics = _read_curves(run_dir / "metrics.jsonl")
    timing, cut_timing = _read_curves(run_dir / "timing.jsonl")
    scores = read_scores(run_dir / "scores.json")
    pictures = sorted((run_dir / "pictures").glob("*.png"), key=_natural)
    environment = _read_json(run_dir / "environment.json") or {}
    if not isinstance(environment, dict):
        raise bad(f"{run_dir / 'environment.json'}", type(environment).__name__, "a JSON object")
    finished = is_finished(run_dir, read_manifest(run_dir))
    notes = {
        "The run is not finished.": not finished,
        "No step has been recorded yet.": not curves,
        "The last line of metrics.jsonl is incomplete and was ignored.": cut_metrics,
        "The last line of timing.jsonl is incomplete and was ignored.": cut_timing,
        "There are no scores: no phase has ended yet, or there is no validation data.": not scores,
        "There are no pictures yet.": not pictures,
        "The environment was not recorded.": not environment,
    }
    return RunRecord(
        run_dir=run_dir,
        recipe=document.recipe,
        config=document.run,
        yaml=text,
        curves=curves,
        timing=timing,
        scores=scores,
        scored=read_scored(run_dir),
        label_reports=_read_label_reports(run_dir / "pseudo_labels"),
        pictures=pictures,
        environment=environment,
        finished=finished,
        notes=tuple(note for note, applies in notes.items() if applies),
    )


def read_runs(run_dirs: Sequence[Path]) -> dict[str, RunRecord]:
    """Read run folders, by their names with as much of the parent path as makes the names differ.

    Raises:
        InputError: as :func:`read_run`, or a folder was given twice.
    """
    parts = [path.resolve().parts for path in run_dirs]
    for path, own in zip(run_dirs, parts, strict=True):
        if parts.count(own) > 1:
            raise bad("runs", f"{path} twice", "each folder once")
    length = 1
    while len({own[-length:] for own in parts}) < len(parts):
        length += 1
    return {"/".join(own[-length:]): read_run(path) for path, own in zip(run_dirs, parts, strict=True)}


@dataclass(frozen=True)
class StepLine:
    """One line of metrics.jsonl or timing.jsonl: the values of one optimisation step by name."""

    step: int
    phase: str
    values: dict[str, float]


def parse_step(line: bytes, origin: str) -> StepLine:
    """Parse a line; raises InputError that names ``origin`` unless it is a JSON object of numbers."""
    content = _parse(line, origin)
    if not isinstance(content, dict):
        raise bad(origin, type(content).__name__, "a JSON object")
    step, phase = content.pop("step", None), content.pop("phase", "")
    if type(step) is not int or not 0 <= step < 2**53 or not isinstance(phase, str):
        raise bad(origin, f"step {step!r:.40}, phase {phase!r:.40}", "a number and a name")
    for name, value in content.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise bad(origin, f"{name!r:.40} {value!r:.40}", "a finite number")
    return StepLine(step, phase, {name: float(value) for name, value in content.items()})


def _read_curves(path: Path) -> tuple[Curves, bool]:
    """Return the curves, all of one span, and whether the last line is incomplete; no file gives no curves."""
    curves: Curves = {}
    incomplete = False
    if path.is_file():
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if incomplete := not text.endswith(b"\n"):  # as a killed run leaves it
                    break
                line = parse_step(text, f"{path} line {number}")
                for name, value in line.values.items():
                    curves.setdefault(name, {}).setdefault(line.phase, Series()).add(line.step, value)
    series = [series for phases in curves.values() for series in phases.values()]
    for each in series:
        each.coarsen(max(other.span for other in series))
    return curves, incomplete


def read_scored(run_dir: Path) -> list[ScoredStep]:
    """Return the whole lines of ``scores.jsonl``; none where the run is scored after its rounds only."""
    path = run_dir / "scores.jsonl"
    lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
    try:
        return [
            TypeAdapter(ScoredStep).validate_python(_parse(line, f"{path} line {number}"))
            for number, line in enumerate(lines, 1)
            if line.endswith(b"\n")
        ]
    except ValidationError as error:
        raise InputError(f"{path}: damaged ({first_problem(error)})") from None


def is_finished(run_dir: Path, images: Manifest | None) -> bool:
    """Return whether the run is complete: it writes its model, or the last of its translated ``images``, at the end."""
    return (run_dir / MODEL_FILE).is_file() if images is None else not images.missing


def read_run_yaml(run_dir: Path) -> tuple[str, RunYaml]:
    """Return text and content of ``run.yaml``; raises InputError as :func:`read_run`."""
    path = run_dir / "run.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        return text, TypeAdapter(RunYaml).validate_python(load_yaml(text))
    except OSError as error:
        raise bad(str(run_dir), f"no run (run.yaml: {error.strerror})", "the folder of a run") from error
    except ValidationError as error:
        raise InputError(f"{path}: damaged ({first_problem(error)})") from None
    except ValueError as error:
        raise InputError(f"{path}: damaged ({first_line(error)})") from error


def _read_label_reports(folder: Path) -> list[LabelReport]:
    """Return the reports of all rounds that have one, in order."""
    reports = []
    for path in sorted(folder.glob("*/report.json"), key=_natural):
        try:
            reports.append(TypeAdapter(LabelReport).validate_python(_read_json(path)))
        except ValidationError as error:
            raise InputError(f"{path}: damaged ({first_problem(error)})") from None
    return reports


def _read_json(path: Path) -> Any:
    """Return the content of a JSON file, None where there is no file."""
    return _parse(path.read_bytes(), str(path)) if path.is_file() else None


def _parse(content: bytes, origin: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin}: damaged ({first_line(error)})") from error


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts round 10 after round 9."""
    pieces = re.findall(r"\d+|\D+", "/".join(path.parts[-2:]))
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]
