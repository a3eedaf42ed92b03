"""The model card of a run: its front matter, its scores, its lines, and what it keeps to itself."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from udas_fast import DataConfig, Trainer
from udas_fast.errors import InputError
from udas_fast.recipes import get_recipe, override, small
from udas_fast.tools.card import write_card


@pytest.fixture(scope="module")
def trained(camvid_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "night-drive"
    recipe = override(small(get_recipe("joint"), size=(32, 48), steps=2, batch_size=2), ["model.width=4"])
    data = DataConfig(f"camvid:{camvid_root}", f"camvid:{camvid_root}", num_labels=3, engine="torch")
    Trainer(recipe, data, run_dir=run, device="cpu").fit()
    return run


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return shutil.copytree(trained, tmp_path / trained.name)


def test_the_card_of_a_run(run: Path, camvid_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = write_card(run).read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    matter = yaml.safe_load(front)
    assert (matter["library_name"], matter["pipeline_tag"]) == ("udas_fast", "image-segmentation")
    (result,) = matter["model-index"][0]["results"]
    miou = result["metrics"][0]["value"]
    assert f"| {100 * miou:.1f} |" in re.sub(" +", " ", body)
    assert "night-drive" in body
    assert "2 steps by the recipe `joint`" in body
    assert f"camvid:{camvid_root.name} (source)" in body
    assert "with 3 labelled target images" in body
    assert "Protocol: camvid val, 2 images" in body
    assert str(camvid_root.parent) not in text
    (lines,) = re.findall(r"```python\n(.*?)```", body, re.DOTALL)
    monkeypatch.chdir(run)
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save("image.png")
    names: dict[str, np.ndarray] = {}
    exec(lines, names)
    assert names["label"].shape == (20, 30)


def test_a_card_replaces_no_file(run: Path) -> None:
    (run / "README.md").write_text("mine")
    with pytest.raises(InputError, match="README.md: found a file that may be your own, expected none"):
        write_card(run)
    assert (run / "README.md").read_text() == "mine"


def test_a_run_that_is_not_finished_or_not_scored(run: Path) -> None:
    (run / "scores.json").unlink()
    text = write_card(run).read_text(encoding="utf-8")
    assert "The model was not scored." in text
    assert "model-index" not in text
    (run / "README.md").unlink()
    (run / "model.safetensors").unlink()
    with pytest.raises(InputError, match="found no model.safetensors, as it is not finished"):
        write_card(run)


def test_the_command(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from udas_fast import cli

    monkeypatch.setattr("sys.argv", ["udas-fast", "card", str(run)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert capsys.readouterr().out == f"{run / 'README.md'}\n"
