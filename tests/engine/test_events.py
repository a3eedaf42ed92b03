"""TensorBoard's events of a run, read back: its pictures and confidences, each once however often a run is killed."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

from udas_fast import Trainer, distributed
from udas_fast.data import open_dataset
from udas_fast.data.domains import Domains
from udas_fast.engine.callbacks import Callback
from udas_fast.engine.recorder import Recorder
from udas_fast.errors import InputError
from udas_fast.objectives.self_training import SelfTraining
from udas_fast.recipes import get_recipe, override, small

ROUNDS = {4: "self_training.1", 6: "self_training.2"}  # by the step of their end; adaptation ends after two


def test_a_damaged_line_is_named_and_half_a_line_is_dropped(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 0}\n{"step": 1}\n{"st')
    Recorder(tmp_path, first=1, total=2, every=1).close()
    assert metrics.read_text() == '{"step": 0}\n'
    metrics.write_text('{"step": 0}\n\0\0\0\n{"step": 1}\n')
    with pytest.raises(InputError, match=r"metrics.jsonl: found a damaged line \(Expecting value"):
        Recorder(tmp_path, first=2, total=2, every=1)


class Listener(Callback):
    def __init__(self) -> None:
        self.heard: list[tuple[str, int, Path]] = []

    def on_picture(self, name: str, step: int, path: Path) -> None:
        assert path.is_file()
        self.heard.append((name, step, path))


@pytest.fixture(scope="module")
def start(camvid_root: Path) -> Callable[..., Trainer]:
    """Makes a run of six steps, a checkpoint after each."""

    def make(run: Path, **options: object) -> Trainer:
        steps = ("stages.adaptation.steps=2", "stages.self_training.steps=2")
        balanced = (
            "stages.self_training.objective.pseudo_labels.threshold=balanced"  # so that some pixels are kept
        )
        recipe = small(get_recipe("udas"), size=(32, 48), steps=6, batch_size=2)
        recipe = override(recipe, [*steps, balanced, "model.width=4"])
        images, val = (open_dataset(f"camvid:{camvid_root}", split) for split in ("train", "val"))
        domains = Domains(source=images, labelled=images, unlabelled=images, val=val, engine="torch")
        return Trainer(recipe, domains, run_dir=run, device="cpu", checkpoint_every=1, **options)

    return make


@pytest.fixture(scope="module")
def listener() -> Listener:
    return Listener()


@pytest.fixture(scope="module")
def whole(
    start: Callable[..., Trainer], listener: Listener, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run in one piece."""
    run = tmp_path_factory.mktemp("events") / "whole"
    start(run, callbacks=[listener]).fit()
    return run


def read(run: Path) -> EventAccumulator:
    kept = dict.fromkeys(("images", "histograms", "scalars"), 0)  # all of them
    return EventAccumulator(str(run / "tensorboard"), size_guidance=kept).Reload()


def told(run: Path) -> dict[str, list[tuple[int, object]]]:
    """(step, value) of every event by tag, but for times."""
    events = read(run)
    tags = events.Tags()
    found = {tag: [(e.step, e.encoded_image_string) for e in events.Images(tag)] for tag in tags["images"]}
    found |= {
        tag: [(e.step, e.histogram_value) for e in events.Histograms(tag)] for tag in tags["histograms"]
    }
    scalars = [tag for tag in tags["scalars"] if not tag.startswith("time/")]
    return found | {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in scalars}


def pixels(source: Path | bytes) -> np.ndarray:
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
        return np.asarray(picture.convert("RGB"))


def test_pictures_are_those_of_the_folder(whole: Path, listener: Listener) -> None:
    events = told(whole)
    assert [step for step, _ in events["validation"]] == [2, 4, 6]
    assert np.array_equal(pixels(events["validation"][-1][1]), pixels(whole / "pictures/val.png"))
    assert len({content for _, content in events["validation"]}) == 3  # of three networks
    pseudo = dict(events["pseudo-labels"])
    assert pseudo.keys() == ROUNDS.keys()
    for step, name in ROUNDS.items():
        assert np.array_equal(pixels(pseudo[step]), pixels(whole / f"pictures/{name}-pseudo.png"))
    assert listener.heard == [
        ("validation", 2, whole / "pictures/val.png"),
        ("pseudo-labels", 4, whole / "pictures/self_training.1-pseudo.png"),
        ("validation", 4, whole / "pictures/val.png"),
        ("pseudo-labels", 6, whole / "pictures/self_training.2-pseudo.png"),
        ("validation", 6, whole / "pictures/val.png"),
    ]


def test_confidences_are_those_of_the_report(whole: Path) -> None:
    events = told(whole)
    for step, name in ROUNDS.items():
        report = json.loads((whole / f"pseudo_labels/{name}/report.json").read_text())
        for part, tag in enumerate(("confidence/kept", "confidence/dropped")):
            found = dict(events[tag])[step]
            counts = [sum(by_class[part][i] for by_class in report["histogram"]) for i in range(64)]
            assert found.bucket == counts
            assert found.bucket_limit == [(i + 1) / 64 for i in range(64)]
            assert found.num == sum(counts) > 0
            filled = [i for i, count in enumerate(counts) if count]
            assert (found.min, found.max) == (filled[0] / 64, (filled[-1] + 1) / 64)
            # No confidence is further than half a part from the middle of its own.
            assert found.sum == pytest.approx(sum((i + 0.5) / 64 * c for i, c in enumerate(counts)))
        for quantity in ("kept_share", "accuracy"):
            found = {tag: dict(values).get(step) for tag, values in events.items() if f"_{quantity}/" in tag}
            expected = dict(zip(report["classes"], report[quantity], strict=True))
            expected["all classes"] = report[f"{quantity}_all"]
            assert {tag.partition("/")[2]: v for tag, v in found.items() if v is not None} == pytest.approx(
                {key: value for key, value in expected.items() if value is not None}
            )


class Killed(BaseException):
    """Nothing handles it."""


def kill(patch: pytest.MonkeyPatch, trainer: Trainer, owner: type, name: str, call: int) -> None:
    """Train until the ``call``-th call of ``owner.name``."""
    calls, real = [], getattr(owner, name)

    def counting(*arguments: object, **options: object) -> object:
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return real(*arguments, **options)

    with patch.context() as inner:
        inner.setattr(owner, name, counting)
        # SIGKILL lets nobody write what is left; events are held back as for a remote folder or by tensorflow's files.
        inner.setattr(Recorder, "close", lambda self: None)
        inner.delattr(LocalFileSystem, "append")
        with pytest.raises(Killed):
            trainer.fit()


@pytest.mark.slow
def test_a_run_that_is_killed_twice_has_every_event_once(
    whole: Path, start: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, trainer = tmp_path / "run", start(tmp_path / "run")
    data = trainer.domains
    # The first round's pictures are written, and no checkpoint since.
    kill(monkeypatch, trainer, SelfTraining, "on_round_start", 2)
    # Within the second round, after a checkpoint there.
    kill(monkeypatch, Trainer.resume(run, device="cpu", data=data), Recorder, "step", 2)
    Trainer.resume(run, device="cpu", data=data).fit()
    ours, theirs = told(run), told(whole)
    assert ours.keys() == theirs.keys()
    for tag, values in theirs.items():
        assert ours[tag] == values, tag


def test_other_processes_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    listener = Listener()
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    (tmp_path / "report.json").write_text("not read")
    recorder = Recorder(tmp_path, first=0, total=1, every=1, callbacks=[listener])
    recorder.pseudo_labels(1, tmp_path / "picture.png", tmp_path / "report.json")
    recorder.close()
    assert listener.heard == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["picture.png", "report.json"]
