"""Files that turn bad in the middle of a run: named, skipped up to the limit, never the end of a run's state."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from udas_fast.data import BadFile, FileDataset, Geometry, LoaderStopped
from udas_fast.data.domains import DataConfig
from udas_fast.engine.checkpoint import CheckpointFolder, read_state
from udas_fast.errors import InputError
from udas_fast.recipes import get_recipe, override, small
from udas_fast.training import trainer as training
from udas_fast.training.run_folder import locked
from udas_fast.training.trainer import Trainer

ENGINES = ["torch", pytest.param("dali", marks=pytest.mark.dali)]
STEPS = 6


def start(root: Path, run: Path, engine: str, **options: object) -> Trainer:
    recipe = small(get_recipe("no_adaptation"), size=(24, 32), steps=STEPS, batch_size=1)
    recipe = override(recipe, ["model.width=4"])
    spec = f"camvid:{root}"
    data = DataConfig(source=spec, target=None, engine=engine, **options)
    return Trainer(recipe, data, run_dir=run, device="cpu", log_every=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_bad_file_stops_the_run_after_a_checkpoint(camvid_folder, tmp_path, engine, capsys):
    root = camvid_folder("data", train=4)
    start(root, tmp_path / "whole", engine).fit()
    trainer = start(root, tmp_path / "run", engine)
    assert f"engine {engine}" in trainer.describe()
    assert f"engine: {engine}\n" in (tmp_path / "run/run.yaml").read_text()
    path = root / "images/train/0002.png"
    good = path.read_bytes()
    path.write_bytes(good[:100])
    with pytest.raises(BadFile) as caught:
        trainer.fit()
    assert str(path) in str(caught.value)
    assert f"--resume {tmp_path / 'run'}" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert CheckpointFolder(tmp_path / "run/checkpoints").newest() is not None

    path.write_bytes(good)
    Trainer.resume(tmp_path / "run", device="cpu").fit()
    for name in ("whole", "run"):
        assert len((tmp_path / name / "metrics.jsonl").read_text().splitlines()) == STEPS
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (tmp_path / "run/metrics.jsonl").read_text()
    a, b = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("engine", ENGINES)
def test_allowed_bad_files_are_skipped_named_and_counted(camvid_folder, tmp_path, engine, capsys):
    root = camvid_folder("data", train=4)
    trainer = start(root, tmp_path / "run", engine, max_bad_files=1)
    (root / "labels/train/0001.png").write_bytes(b"")
    trainer.fit()
    assert "skipped 1 of 1: label" in (errors := capsys.readouterr().err)
    assert errors.count("skipped") == 1
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == STEPS
    newest = CheckpointFolder(tmp_path / "run/checkpoints").newest()
    assert len(read_state(newest)["bad_files"]) == 1


def test_a_resumed_run_may_be_allowed_more_bad_files(camvid_folder, tmp_path, capsys):
    root, run = camvid_folder("data", train=4), tmp_path / "run"
    trainer = start(root, run, "torch")
    (root / "labels/train/0001.png").write_bytes(b"")
    with pytest.raises(BadFile, match=r"\(train: --max-bad-files\), and go on with --resume"):
        trainer.fit()
    Trainer.resume(run, max_bad_files=1, device="cpu").fit()
    assert "skipped 1 of 1: label" in capsys.readouterr().err
    assert len((run / "metrics.jsonl").read_text().splitlines()) == STEPS
    assert Trainer.resume(run, device="cpu")._run.bad_files.limit == 1  # from here on
    assert Trainer.resume(run, max_bad_files=0, device="cpu")._run.bad_files.limit == 1  # never lower
    with locked(run), pytest.raises(InputError, match="a process that trains there"):
        Trainer.resume(run, max_bad_files=5, device="cpu")
    assert "max_bad_files: 1" in (run / "run.yaml").read_text()


def test_each_step_says_how_long_it_waited_for_data(camvid_folder, tmp_path):
    start(camvid_folder("data", train=3), tmp_path / "run", "torch").fit()
    lines = [json.loads(line) for line in (tmp_path / "run/timing.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert all(0 <= line["data_wait"] <= line["seconds"] for line in lines)


@pytest.mark.slow
def test_what_comes_before_a_phase_is_no_time_of_its_first_step(camvid_folder, tmp_path, monkeypatch):
    root, recipe = camvid_folder("data", train=3), small(get_recipe("udas"), size=(32, 48), steps=6)
    settings = ["rounds=1", "objective.pseudo_labels.labels=disk"]
    recipe = override(recipe, ["model.width=4", *(f"stages.self_training.{setting}" for setting in settings)])
    label, clock = training.label_to_disk, [0.0]

    def labels_for_hours(labeller, labelled_round):
        clock[0] += 10_000.0
        return label(labeller, labelled_round)

    def ticks():
        clock[0] += 0.001
        return clock[0]

    monkeypatch.setattr(training, "label_to_disk", labels_for_hours)
    monkeypatch.setattr("time.perf_counter", ticks)
    spec = f"camvid:{root}"
    Trainer(recipe, DataConfig(spec, spec, engine="torch"), run_dir=tmp_path / "run", device="cpu").fit()
    lines = [json.loads(line) for line in (tmp_path / "run/timing.jsonl").read_text().splitlines()]
    assert clock[0] > 10_000
    assert len(lines) == 5
    assert max(line["seconds"] for line in lines) < 1


def test_another_global_batch_is_refused(camvid_folder, tmp_path):
    root = camvid_folder("data", train=3)
    start(root, tmp_path / "run", "torch").fit()
    (tmp_path / "run/model.safetensors").unlink()  # as if it were not complete
    file = tmp_path / "run/run.yaml"
    file.write_text(file.read_text().replace("batch_size: 1", "batch_size: 2"))
    with pytest.raises(
        InputError, match=r"images of source in a step over all processes: found 2, expected 1"
    ):
        Trainer.resume(tmp_path / "run", device="cpu").fit()


def test_rare_classes_are_a_setting_of_the_recipe(camvid_folder, tmp_path):
    root = camvid_folder("data", train=3)
    recipe = small(get_recipe("no_adaptation"), size=(24, 32), steps=2, batch_size=2)
    recipe = override(recipe, ["model.width=4", "input.rare_classes={temperature: 0.1, min_pixels: 8}"])
    trainer = Trainer(recipe, DataConfig(source=f"camvid:{root}"), run_dir=tmp_path / "run", device="cpu")
    loaders = trainer.domains.loaders({"source": recipe.input.source}, recipe.input, seed=0, phase="p")
    assert loaders["source"].sampler.rare_classes is not None
    assert recipe.input.source == Geometry(size=(24, 32), flip=True)
    trainer.fit()
    with pytest.raises(InputError, match="temperature"):
        override(recipe, ["input.rare_classes={temperature: 0}"])


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["killed", "no shared memory"])
def test_workers_that_the_system_stops_cost_no_step(camvid_folder, tmp_path, monkeypatch, damage):
    root, run = camvid_folder("data", train=4), tmp_path / "run"
    # A loader of the user's own installs torch's handler of SIGCHLD, which raises in the middle of a step.
    assert len(list(torch.utils.data.DataLoader([0, 1], num_workers=1))) == 2
    start(root, tmp_path / "whole", "torch", workers=1).fit()
    trainer, read = start(root, run, "torch", workers=1), FileDataset.__getitem__

    def until_it_ends(self, index):
        if torch.utils.data.get_worker_info() is not None and index == 2:
            if damage == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("unable to write to file </torch_1_2>: No space left on device; shared memory")
        return read(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(FileDataset, "__getitem__", until_it_ends)
        with pytest.raises(
            LoaderStopped, match="loader workers: found .*or --workers 0.*; a checkpoint is written"
        ):
            trainer.fit()
    Trainer.resume(run, device="cpu").fit()
    assert (tmp_path / "whole/metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda saved: saved.update(phase=7), "phase: found 7, expected 0 to 0, of the recipe in run.yaml"),
        (lambda saved: saved.update(phase=-1), "phase: found -1"),
        (lambda saved: saved["step"].update(done=STEPS + 1), f"steps of source: found 7, expected 0 to {STEPS}"),
        (lambda saved: saved["step"].update(done="x"), "steps of source: found 'x'"),
        (lambda saved: saved.pop("networks"), "networks: found NoneType, expected a dict"),
        (lambda saved: saved.update(files=[]), "files: found list, expected a dict"),
        (lambda saved: saved.update(networks={"x": {}}), "found 'x', expected networks and scores of that run"),
        (lambda saved: saved.update(scores={"source": 3}), "scores: found other content"),
        (lambda saved: saved["step"].pop("model"), "checkpoint of source: found 'model', expected network"),
    ],
)  # fmt: skip
def test_a_readable_checkpoint_of_other_content_is_told(finished, tmp_path, change, sentence):
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / "model.safetensors").unlink()  # as if it were not complete
    folder = CheckpointFolder(run / "checkpoints")
    saved = folder.load()
    change(saved)
    for path in folder.folder.iterdir():
        path.unlink()
    folder.save(saved, STEPS)
    with pytest.raises(InputError, match=sentence):
        Trainer.resume(run, device="cpu").fit()


@pytest.fixture(scope="module")
def finished(camvid_root, tmp_path_factory):
    """A finished run."""
    run = tmp_path_factory.mktemp("finished") / "run"
    start(camvid_root, run, "torch").fit()
    return run
