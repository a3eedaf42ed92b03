"""A run of several networks: DDM's teachers and student, their scores, and the way back after a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from udas_fast import Trainer
from udas_fast.data import open_dataset
from udas_fast.data.domains import Domains
from udas_fast.engine.recorder import Recorder
from udas_fast.errors import InputError
from udas_fast.recipes import Recipe, get_recipe, override, select_stages, small

STAGES = ("region_1", "sample_1", "student_1", "region_2")


def _recipe(*stages: str) -> Recipe:
    recipe = select_stages(small(get_recipe("ddm"), size=(32, 48), steps=8, batch_size=2), stages)
    disk = ["stages.region_2.objective.pseudo_labels.labels=disk"] if "region_2" in stages else []
    return override(recipe, ["model.width=4", *disk])


def _trainer(root: Path, run: Path, recipe: Recipe) -> Trainer:
    train, val = (open_dataset(f"camvid:{root}", split) for split in ("train", "val"))
    domains = Domains(source=train, labelled=train, unlabelled=train, val=val)
    return Trainer(recipe, domains, run_dir=run, device="cpu", checkpoint_every=1)


@pytest.mark.slow
def test_teachers_keep_their_weights_while_others_learn_and_a_killed_run_goes_on_to_the_same_bits(
    camvid_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _trainer(camvid_root, tmp_path / "whole", _recipe(*STAGES))
    start = {name: value.clone() for name, value in whole.model.state_dict().items()}
    whole.fit()
    assert list(whole.networks) == ["region", "sample", "student"]
    assert whole.model is whole.networks["region"]  # what the last stage trains
    scores = json.loads((tmp_path / "whole/scores.json").read_text())["phases"]
    assert list(scores) == ["region_1", "sample_1", "student_1.teachers", "student_1", "region_2"]
    for network in whole.networks.values():
        assert not torch.equal(
            network.state_dict()["primary.branches.0.weight"], start["primary.branches.0.weight"]
        )
    report = json.loads((tmp_path / "whole/pseudo_labels/region_2/report.json").read_text())
    assert (report["phase"], report["images"]) == ("region_2", 4)  # the student's labels of all images
    saved = load_file(tmp_path / "whole/model.safetensors")
    assert all(torch.equal(v, saved[k]) for k, v in whole.networks["region"].state_dict().items())

    class Killed(Exception):
        pass

    record = Recorder.step

    def killed(self: Recorder, step: int, *rest: object, **named: object) -> None:
        record(self, step, *rest, **named)
        if step == 5:  # in the student's stage
            raise Killed

    broken = _trainer(camvid_root, tmp_path / "broken", _recipe(*STAGES))
    monkeypatch.setattr(Recorder, "step", killed)
    with pytest.raises(Killed):
        broken.fit()
    monkeypatch.setattr(Recorder, "step", record)
    again = Trainer.resume(tmp_path / "broken", data=broken.domains, device="cpu")
    again.fit()
    for name, network in whole.networks.items():
        resumed = again.networks[name].state_dict()
        assert all(torch.equal(v, resumed[k]) for k, v in network.state_dict().items()), name
    assert json.loads((tmp_path / "broken/scores.json").read_text())["phases"] == scores


def test_a_student_without_its_teachers_is_refused(camvid_root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="stage student_1: found no network '(region|sample)' to learn from"):
        _trainer(camvid_root, tmp_path / "run", _recipe("student_1"))
