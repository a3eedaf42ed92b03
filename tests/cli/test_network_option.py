"""`--network MODULE:FUNCTION` in every command: a network of the user's own, never imported because a file names it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_words import train_words

from udas_fast import TrainedModel, Trainer
from udas_fast.data import open_dataset
from udas_fast.errors import InputError
from udas_fast.models import OwnNetwork

RunCli = Callable[..., tuple[int, str, str]]
MODULE = """
from torch import nn

def build(num_classes, width=4, aligned=False):
    return nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, num_classes, 1))

def fails(num_classes):
    raise ValueError("no such width")

def nothing(num_classes):
    return num_classes

NUMBER = 5
"""


@pytest.fixture
def mynets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package's module in the working folder, which is not on Python's path."""
    (tmp_path / "mynets").mkdir()
    (tmp_path / "mynets/plain.py").write_text(MODULE)
    (tmp_path / "mynets/broken.py").write_text("import a_module_that_is_not_there")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "mynets.plain"
    for name in [name for name in sys.modules if name.startswith("mynets")]:
        del sys.modules[name]


def test_trained_resumed_scored_predicted_and_exported(
    run_cli: RunCli, camvid_root: Path, tmp_path: Path, mynets: str
) -> None:
    out, named = tmp_path / "run", ("--network", f"{mynets}:build")
    words = train_words(camvid_root, out, *named, "--set", "network.width=6", "--checkpoint-every", 2)
    code, _, stderr = run_cli(*words)
    assert code == 0, stderr
    record = {"function": f"{mynets}:build", "options": {"width": 6}}
    assert yaml.safe_load((out / "run.yaml").read_text())["run"]["network"] == record
    trained = TrainedModel.load(out, model=sys.modules[mynets].build)
    assert trained.network == OwnNetwork(**record)
    assert trained.model[0].out_channels == 6

    for command in (
        ("evaluate", out, "--data", f"camvid:{camvid_root}"),
        ("predict", out, camvid_root / "images/val", "--out", tmp_path / "labels"),
        ("train", "--resume", out),
    ):
        code, _, stderr = run_cli(*command)
        assert code == 2, command
        assert f"{mynets}:build" in stderr
        assert "--network" in stderr
        code, _, stderr = run_cli(*command, *named)
        assert code == 0, stderr

    (out / "model.safetensors").unlink()
    whole = {name: value.clone() for name, value in trained.model.state_dict().items()}
    (newest,) = (out / "checkpoints").glob("step-00000006*.pt")
    newest.unlink()
    code, _, stderr = run_cli("train", "--resume", out, *named)
    assert code == 0, stderr
    again = TrainedModel.load(out, model=sys.modules[mynets].build).model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())


@pytest.mark.slow
def test_exported_from_the_command_line(
    run_cli: RunCli, camvid_root: Path, tmp_path: Path, mynets: str
) -> None:
    out, named = tmp_path / "run", ("--network", f"{mynets}:build")
    assert run_cli(*train_words(camvid_root, out, *named))[0] == 0
    export = ("export", out, "--format", "torch", "--out", tmp_path / "model.pt2")
    assert run_cli(*export)[0] == 2
    code, _, stderr = run_cli(*export, *named)
    assert code == 0, stderr


def test_two_runs_with_one_seed_begin_alike(
    camvid_root: Path, tmp_path: Path, run_cli: RunCli, mynets: str
) -> None:
    runs = [tmp_path / name for name in ("one", "other")]
    for run in runs:
        torch.rand(3)  # what went before decides nothing
        assert run_cli(*train_words(camvid_root, run, "--network", f"{mynets}:build"))[0] == 0
    assert (runs[0] / "model.safetensors").read_bytes() == (runs[1] / "model.safetensors").read_bytes()


def test_a_network_that_began_as_an_object_is_read_by_its_function(
    run_cli: RunCli, camvid_root: Path, tmp_path: Path, mynets: str
) -> None:
    from udas_fast.data.domains import Domains
    from udas_fast.models import import_network
    from udas_fast.recipes import get_recipe, small

    model = torch.nn.DataParallel(import_network(f"{mynets}:build")(11))
    train, val = (open_dataset(f"camvid:{camvid_root}", split) for split in ("train", "val"))
    recipe = small(get_recipe("no_adaptation"), size=(32, 48), steps=2, batch_size=2)
    Trainer(recipe, Domains(train, val=val), model, run_dir=tmp_path / "run", device="cpu").fit()
    evaluate = ("evaluate", tmp_path / "run", "--data", f"camvid:{camvid_root}")
    code, _, stderr = run_cli(*evaluate)
    assert code == 2
    assert "pass it as `model`, or `--network MODULE:FUNCTION`" in stderr
    code, stdout, stderr = run_cli(*evaluate, "--network", f"{mynets}:build")
    assert code == 0, stderr
    assert "mIoU" in stdout


def test_a_file_that_names_a_module_imports_none(camvid_root: Path, tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text("raise SystemExit('imported')")
    from udas_fast.data import CAMVID

    model = torch.nn.Conv2d(3, 11, 1)
    TrainedModel(model, None, CAMVID, (32, 48), network=OwnNetwork("hostile:build")).save(
        tmp_path / "m.safetensors"
    )
    with pytest.raises(InputError, match="network of your own, hostile:build; pass it"):
        TrainedModel.load(tmp_path / "m.safetensors")
    assert "hostile" not in sys.modules
    trained = TrainedModel.load(
        tmp_path / "m.safetensors", model=lambda classes: torch.nn.Conv2d(3, classes, 1)
    )
    label, _ = trained.predict(np.zeros((8, 8, 3), np.uint8))
    assert label.shape == (8, 8)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plain", r"--network: found 'plain', expected MODULE:FUNCTION, such as"),
        ("my/nets.py:build", r"--network: found 'my/nets.py:build', expected MODULE:FUNCTION"),
        ("mynets.missing:build", r"ModuleNotFoundError: No module named 'mynets.missing', expected a module"),
        ("mynets.broken:build", r"ModuleNotFoundError: No module named 'a_module_that_is_not_there'"),
        ("mynets.plain:built", "found no function built in"),
        ("mynets.plain:NUMBER", "found no function NUMBER in"),
        ("mynets.plain:fails", "network mynets.plain:fails: ValueError: no such width"),
        (
            "mynets.plain:nothing",
            "network mynets.plain:nothing returns: found int, expected a torch.nn.Module",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(
    run_cli: RunCli, camvid_root: Path, tmp_path: Path, mynets: str, name: str, message: str
) -> None:
    code, _, stderr = run_cli(*train_words(camvid_root, tmp_path / "run", "--network", name))
    assert code == 2
    assert message in stderr
    assert "Traceback" not in stderr


def test_options_need_a_function(run_cli: RunCli, camvid_root: Path, tmp_path: Path) -> None:
    code, _, stderr = run_cli(*train_words(camvid_root, tmp_path / "run", "--set", "network.width=3"))
    assert code == 2
    assert "--set network: found no --network, expected the function whose options they are" in stderr


def test_the_record_of_a_function() -> None:
    record = OwnNetwork.of(functools.partial(torch.nn.Identity, width=3, name="b2"))
    assert str(record) == "torch.nn.modules.linear:Identity width=3 name=b2"
    with pytest.raises(InputError, match="options"):
        OwnNetwork.of(functools.partial(torch.nn.Identity, width=[3]))
