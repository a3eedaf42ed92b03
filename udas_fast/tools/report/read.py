"""A run's folder as data. Any version's run is read as far as it goes: what is not there is said, not refused."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import yaml
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

from udas_fast.data.translated import Manifest, read_manifest
from udas_fast.errors import InputError, bad, first_line, first_problem
from udas_fast.evaluation import Scores, read_scores
from udas_fast.inference import MODEL_FILE
from udas_fast.tools.report.series import Series

LENIENT = ConfigDict(extra="ignore")  # a newer version's file may hold more
BINS = 64
"""Of a confidence histogram, equal parts of 0 to 1 (:func:`udas_fast.ops.pseudo_label`)."""

Curves: TypeAlias = dict[str, dict[str, Series]]
"""Series by the name of the quantity, then by phase."""


@checked_dataclass(frozen=True, config=LENIENT)
class StageHead:
    """What a reader needs of a recipe's stage."""

    name: str
    steps: PositiveInt
    rounds: PositiveInt = 1


@checked_dataclass(frozen=True, config=LENIENT)
class InputHead:
    """What a reader needs of a recipe's input."""

    batch_size: PositiveInt


@checked_dataclass(frozen=True, config=LENIENT)
class RecipeHead:
    """What a reader needs of a recipe."""

    name: str
    stages: tuple[StageHead, ...]
    summary: str = ""
    input: InputHead | None = None


@checked_dataclass(frozen=True, config=LENIENT)
class DataHead:
    """The datasets' names."""

    source: str | None = None
    target: str | None = None
    labels: int = 0


@checked_dataclass(frozen=True, config=LENIENT)
class ConfigHead:
    """What a reader needs of the part ``run`` of run.yaml; ``data`` is None where datasets came as objects."""

    data: DataHead | None = None
    engine: str = "not recorded"
    weights: str | None = None
    seed: int = 0


@checked_dataclass(frozen=True, config=LENIENT)
class RunFile:
    """run.yaml."""

    recipe: RecipeHead
    run: ConfigHead


Share: TypeAlias = Annotated[float, Field(ge=0, le=1)] | None
Counts: TypeAlias = Annotated[tuple[NonNegativeInt, ...], Field(min_length=BINS, max_length=BINS)]


@checked_dataclass(frozen=True, config=LENIENT)
class PseudoLabels:
    """``pseudo_labels/ROUND/report.json``: what one round of self-training labelled itself.

    Lists go by class; shares are of 1, None where a class has no pixels; ``histogram`` is (kept, dropped) by class.
    """

    phase: str
    classes: tuple[str, ...]
    threshold: tuple[float, ...]
    histogram: tuple[tuple[Counts, Counts], ...]
    images: NonNegativeInt
    kept_share: tuple[Share, ...]
    kept_share_all: Share
    accuracy: tuple[Share, ...] | None = None  # None: no ground truth
    accuracy_all: Share = None

    @model_validator(mode="after")
    def _one_of_each_per_class(self) -> PseudoLabels:
        for name in ("threshold", "histogram", "kept_share", "accuracy"):
            values = getattr(self, name)
            if values is not None and len(values) != len(self.classes):
                raise ValueError(f"{name} has {len(values)} entries for {len(self.classes)} classes")
        return self


@dataclass(frozen=True)
class Run:
    """One run's folder, read.

    ``curves`` holds ``lr`` and the losses, ``timing`` the seconds of each step (``seconds``, ``data_wait``;
    lines without a phase are of ""); ``scores`` go by phase in the order of training; ``notes`` say what is missing.
    """

    path: Path
    head: RunFile
    yaml: str
    curves: Curves
    timing: Curves
    scores: dict[str, Scores]
    pseudo_labels: list[PseudoLabels]
    pictures: list[Path]
    environment: dict[str, Any]
    finished: bool
    notes: tuple[str, ...]

    @property
    def phases(self) -> dict[str, tuple[int, int]]:
        """(first, last) recorded step of each phase."""
        found: dict[str, tuple[int, int]] = {}
        for series in self.curves.values():
            for phase, s in series.items():
                first, last = found.get(phase, (s.first, s.last))
                found[phase] = (min(first, s.first), max(last, s.last))
        return found

    @property
    def steps(self) -> tuple[int, int]:
        """Steps (recorded, of the whole recipe)."""
        total = sum(stage.steps * stage.rounds for stage in self.head.recipe.stages)
        return max((last + 1 for _, last in self.phases.values()), default=0), total

    @property
    def final(self) -> Scores | None:
        """The scores after the last phase that has ended."""
        return list(self.scores.values())[-1] if self.scores else None


def read_run(path: Path) -> Run:
    """Read the run in folder ``path``; a run that is not finished, or was killed while it wrote, is one too.

    Raises:
        InputError: no run there, or a damaged file; names the file.
    """
    text, head = read_run_file(path)
    curves, half_metrics = _read_curves(path / "metrics.jsonl")
    timing, half_timing = _read_curves(path / "timing.jsonl")
    found = {
        "scores": read_scores(path / "scores.json"),
        "pseudo_labels": _read_pseudo_labels(path / "pseudo_labels"),
        "pictures": sorted((path / "pictures").glob("*.png"), key=_natural),
        "environment": _read_json(path / "environment.json") or {},
        "finished": is_finished(path, read_manifest(path)),
    }
    if not isinstance(found["environment"], dict):
        raise bad(f"{path / 'environment.json'}", type(found["environment"]).__name__, "a JSON object")
    missing = [
        (not found["finished"], "the run is not finished"),
        (not curves, "no step has been recorded yet"),
        (half_metrics, "the last line of metrics.jsonl is half written and left out"),
        (half_timing, "the last line of timing.jsonl is half written and left out"),
        (not found["scores"], "no scores yet: no phase has ended, or there is no validation data"),
        (not found["pictures"], "no pictures yet"),
        (not found["environment"], "the environment was not recorded"),
    ]
    notes = tuple(note for applies, note in missing if applies)
    return Run(path=path, head=head, yaml=text, curves=curves, timing=timing, notes=notes, **found)


def read_runs(paths: Sequence[Path]) -> dict[str, Run]:
    """The runs by their folders' names, with as much of the path before as tells them apart.

    Raises:
        InputError: as :func:`read_run`, or a folder given twice.
    """
    parts = [path.resolve().parts for path in paths]
    for path, own in zip(paths, parts, strict=True):
        if parts.count(own) > 1:
            raise bad("runs", f"{path} twice", "each folder once")
    length = 1
    while len({own[-length:] for own in parts}) < len(parts):
        length += 1
    return {"/".join(own[-length:]): read_run(path) for path, own in zip(paths, parts, strict=True)}


@dataclass(frozen=True)
class StepLine:
    """One line of metrics.jsonl or timing.jsonl: the values of one optimisation step by name."""

    step: int
    phase: str
    values: dict[str, float]


def parse_step(line: bytes, origin: str) -> StepLine:
    """What ``line`` says; raises InputError that names ``origin`` where it is no JSON object of numbers."""
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
    """(curves of one span, whether the last line is half written); a missing file has none."""
    curves: Curves = {}
    half = False
    if path.is_file():
        with path.open("rb") as file:
            for number, text in enumerate(file, 1):
                if half := not text.endswith(b"\n"):  # a killed run leaves one
                    break
                line = parse_step(text, f"{path} line {number}")
                for name, value in line.values.items():
                    curves.setdefault(name, {}).setdefault(line.phase, Series()).add(line.step, value)
    series = [series for phases in curves.values() for series in phases.values()]
    for each in series:
        each.coarsen(max(other.span for other in series))
    return curves, half


def is_finished(path: Path, images: Manifest | None) -> bool:
    """Whether the run in folder ``path`` has come to its end: it writes its model, or translated ``images``, last."""
    return (path / MODEL_FILE).is_file() if images is None else not images.missing


def read_run_file(run: Path) -> tuple[str, RunFile]:
    """(text, content) of ``run.yaml``. Raises InputError as :func:`read_run`."""
    path = run / "run.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        return text, TypeAdapter(RunFile).validate_python(yaml.safe_load(text))
    except OSError as error:
        raise bad(run, f"no run (run.yaml: {error.strerror})", "the folder of a run") from error
    except ValidationError as error:
        raise InputError(f"{path}: damaged ({first_problem(error)})") from None
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path}: damaged ({first_line(error)})") from error


def _read_pseudo_labels(folder: Path) -> list[PseudoLabels]:
    """Of every round that is whole, in order."""
    rounds = []
    for path in sorted(folder.glob("*/report.json"), key=_natural):
        try:
            rounds.append(TypeAdapter(PseudoLabels).validate_python(_read_json(path)))
        except ValidationError as error:
            raise InputError(f"{path}: damaged ({first_problem(error)})") from None
    return rounds


def _read_json(path: Path) -> Any:
    """The content of a JSON file, None where it is not there."""
    return _parse(path.read_bytes(), str(path)) if path.is_file() else None


def _parse(content: bytes, origin: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{origin}: damaged ({first_line(error)})") from error


def _natural(path: Path) -> list[tuple[bool, int, str]]:
    """Sorts round 10 after round 9."""
    pieces = re.findall(r"\d+|\D+", "/".join(path.parts[-2:]))
    return [(piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece) for piece in pieces]
