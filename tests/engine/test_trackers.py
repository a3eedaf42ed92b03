"""Weights & Biases and MLflow beside TensorBoard, by stand-ins for both: what they get, a resume, their failure."""

from __future__ import annotations

import importlib.machinery
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from udas_fast import DataConfig, Trainer
from udas_fast.engine.interrupt import Interrupted
from udas_fast.engine.trackers import TRACKERS, MlflowTracker, WandbTracker
from udas_fast.errors import InputError
from udas_fast.evaluation import Protocol, Scores
from udas_fast.recipes import get_recipe, override, small


def _install(monkeypatch: pytest.MonkeyPatch, name: str, content: dict[str, Any]) -> None:
    module = ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a stand-in for wandb was told, of the parts of its interface that runs use."""
    told = SimpleNamespace(begun=[], lines=[], finished=0)

    class Run:
        def __init__(self, id: str | None) -> None:
            self.id = id or f"made-{len(told.begun)}"

        def define_metric(self, name: str, *, step_metric: str) -> None:
            assert (name, step_metric) == ("*", "step")

        def log(self, line: dict[str, Any]) -> None:
            told.lines.append(line)

        def finish(self) -> None:
            told.finished += 1

    def init(*, id: str | None, resume: str, name: str, config: dict) -> Run:
        assert resume == "allow"
        told.begun.append((id, name, config))
        return Run(id)

    _install(monkeypatch, "wandb", {"init": init, "Image": lambda path: ("image", path)})
    return told


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What a stand-in for mlflow was told."""
    told = SimpleNamespace(begun=[], lines=[], files=[], ended=[])

    def start_run(*, run_id: str | None, run_name: str) -> SimpleNamespace:
        told.begun.append((run_id, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id=run_id or "made"))

    def log_metrics(values: dict[str, float], *, step: int, synchronous: bool) -> None:
        assert not synchronous
        assert all(isinstance(value, (int, float)) for value in values.values())
        told.lines.append((step, values))

    functions = {
        "start_run": start_run,
        "log_metrics": log_metrics,
        "log_dict": lambda document, name: told.files.append((name, document)),
        "log_artifact": lambda path, folder: told.files.append((folder, Path(path).name)),
        "flush_async_logging": lambda: told.ended.append("flush"),
        "end_run": lambda: told.ended.append("end"),
    }
    _install(monkeypatch, "mlflow", functions)
    return told


@pytest.fixture
def train(tmp_path: Path, camvid_root: Path) -> Callable[..., Trainer]:
    """Sets up a run of 6 steps that is scored after 3, in ``tmp_path / "run"``."""
    recipe = small(get_recipe("no_adaptation"), size=(32, 48), steps=6, batch_size=1)
    data = DataConfig(f"camvid:{camvid_root}", f"camvid:{camvid_root}", engine="torch")
    options = {"run_dir": tmp_path / "run", "device": "cpu", "checkpoint_every": 2, "evaluate_every": 3}

    def make(*callbacks: object) -> Trainer:
        return Trainer(override(recipe, ["model.width=4"]), data, callbacks=callbacks, **options)

    return make


def test_both_are_told_every_step_score_and_picture(
    wandb: SimpleNamespace, mlflow: SimpleNamespace, train: Callable[..., Trainer], tmp_path: Path
) -> None:
    trainer = train(WandbTracker(), MlflowTracker())
    scores = trainer.fit()["source"]
    document = yaml.safe_load((tmp_path / "run/run.yaml").read_text())
    assert wandb.begun == [(None, "run", document)]
    assert mlflow.begun == [(None, "run")]
    assert mlflow.files[0] == ("run.yaml", document)
    assert json.loads((tmp_path / "run/trackers.json").read_text()) == {"wandb": "made-1", "mlflow": "made"}
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [(r["step"], r["seg"]) for r in records if "seg" in r]
    assert [(line["step"], line["seg"]) for line in wandb.lines if "seg" in line] == losses
    assert [(step, line["seg"]) for step, line in mlflow.lines if "seg" in line] == losses
    scored = [line for line in wandb.lines if "score/miou" in line]
    assert [line["step"] for line in scored] == [3, 6]
    assert scored[-1]["score/miou"] == pytest.approx(scores.miou)
    (seen, *_) = scores.iou.isfinite().nonzero().flatten().tolist()
    assert scored[-1][f"score/iou/{scores.classes[seen]}"] == pytest.approx(scores.iou[seen].item())
    assert [(step, v["score/miou"]) for step, v in mlflow.lines if "score/miou" in v] == [
        (line["step"], line["score/miou"]) for line in scored
    ]
    assert any("picture/validation" in line for line in wandb.lines)
    assert ("pictures", "val.png") in mlflow.files
    assert (wandb.finished, mlflow.ended) == (1, ["flush", "end"])


def test_a_resumed_run_goes_on_under_its_id(
    wandb: SimpleNamespace, train: Callable[..., Trainer], tmp_path: Path
) -> None:
    class Stops(WandbTracker):
        def on_scores(self, phase: str, step: int, scores: Scores) -> None:
            raise Interrupted("enough")

    with pytest.raises(Interrupted):
        train(Stops()).fit()
    Trainer.resume(tmp_path / "run", device="cpu", callbacks=[WandbTracker()]).fit()
    assert [id for id, *_ in wandb.begun] == [None, "made-1"]
    assert wandb.finished == 1


def test_a_tracker_that_fails_is_reported_once_and_ends_no_run(
    wandb: SimpleNamespace,
    train: Callable[..., Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(**options: object) -> None:
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(sys.modules["wandb"], "init", fail)
    train(WandbTracker()).fit()
    assert (tmp_path / "run/model.safetensors").is_file()
    assert capsys.readouterr().err.count("wandb failed, the run goes on without it: no network\n") == 1


def test_classes_that_nothing_shows_are_not_logged_and_names_fit_mlflow(mlflow: SimpleNamespace) -> None:
    matrix = torch.tensor([[3, 1, 0], [0, 2, 0], [0, 0, 0]])
    protocol = Protocol("made up", "val", 1, None, 3)
    MlflowTracker().on_scores("source", 7, Scores(matrix, ("road", "car (parked)", "sky"), protocol))
    ((step, values),) = mlflow.lines
    assert step == 7
    assert values == pytest.approx(
        {"score/miou": (3 / 4 + 2 / 3) / 2, "score/iou/road": 3 / 4, "score/iou/car _parked_": 2 / 3}
    )


@pytest.mark.parametrize("name", TRACKERS)
def test_a_missing_library_is_an_error_before_the_run(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=rf"--log {name}: .*`pip install {name}`"):
        TRACKERS[name]()
