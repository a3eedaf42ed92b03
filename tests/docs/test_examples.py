"""The examples run, each with a few steps; the notebook from its first cell to its last."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(autouse=True)
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], ModuleType]:
    """Import an example, which sees few and small scenes; the working folder is the test's own."""
    import udas_fast.data.streets as streets

    class Few(streets.Streets):
        def __init__(
            self, style: str, split: str, size: tuple[int, int] = (32, 64), count: int | None = None
        ) -> None:
            super().__init__(style, split, (32, 64), 2 if split == "val" else 12)

    monkeypatch.setattr(streets, "Streets", Few)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)

    def imported(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        module = importlib.import_module(name)
        monkeypatch.setattr(module, "SIZE", (32, 64), raising=False)
        return module

    return imported


def test_own_loop_learns(load: Callable[[str], ModuleType]) -> None:
    own_loop = load("own_loop")
    assert 0 < own_loop.main(steps=15) < own_loop.main(steps=1)


@pytest.mark.usefixtures("own_methods")
def test_own_method_trains(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    own_method = load("own_method")
    assert 0 <= own_method.main(4, tmp_path / "run") <= 1


def test_own_network_comes_back_from_its_file(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    own_network = load("own_network")
    assert 1 / 19 < own_network.main(4, tmp_path / "run") <= 1


@pytest.mark.slow
def test_few_labels_scores_three_recipes(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    few_labels = load("few_labels")
    scores = few_labels.main(6, tmp_path / "runs")
    assert scores.keys() == {"supervised", "joint", "udas_tuned"}
    assert all(0 <= miou <= 1 for miou in scores.values())


@pytest.mark.slow
def test_deploy_onnx_gives_the_models_labels(load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    import udas_fast as uf
    from udas_fast.data.domains import Domains
    from udas_fast.data.streets import Streets
    from udas_fast.recipes import small

    recipe = small(uf.get_recipe("no_adaptation"), size=(32, 64), steps=4)
    uf.Trainer(recipe, Domains(source=Streets("sim", "train")), run_dir=tmp_path / "run").fit()
    found = load("deploy_onnx").main(tmp_path / "run")
    label, _ = uf.load(tmp_path / "run").predict(Streets("real", "val")[0].image)
    assert (np.asarray(found) == label).mean() > 0.99


@pytest.mark.slow
def test_the_notebook_runs(capsys: pytest.CaptureFixture) -> None:
    cells = json.loads((EXAMPLES / "first_run.ipynb").read_text(encoding="utf-8"))["cells"]
    assert not any(cell.get("outputs") for cell in cells)  # committed without results
    names: dict[str, object] = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            text = "".join(cell["source"]).replace("(64, 128), 300", "(32, 64), 6")
            exec(compile(text, "first_run.ipynb", "exec"), names)
    assert "mIoU" in capsys.readouterr().out
    assert names["label"].shape == (32, 64)


def test_every_example_is_listed() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert files == {name for name in files if f"[{name}]({name})" in text}
