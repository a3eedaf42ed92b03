"""The pages of docs/: their Python runs, their faults have tests, their first run is one, links lead somewhere."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

import udas_fast.recipes
from udas_fast import TrainedModel, cli
from udas_fast.data import CITYSCAPES, domains
from udas_fast.inference import export_model
from udas_fast.recipes import Recipe, get_recipe, has_key, list_recipes, override, small

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
OTHER_SOFTWARE = ("deploy.md", "sweeps.md", "other-loops.md")  # tests/docs/test_other_software.py runs them
REFERENCE = sorted((ROOT / "docs/api").glob("*.md"))
MADE_UP = "README.md"  # tests/docs/test_readme.py makes the tensors of its operators' example


def _python(page: Path) -> list[str]:
    """The blocks of a page that are scripts, and not files of their own."""
    text = page.read_text(encoding="utf-8")
    text = text.replace("num_labels=100", "num_labels=2")  # DATA is small here
    blocks = re.findall(r"(?<!\.py`:\n\n)```python\n(.*?)```", text, re.DOTALL)
    return [block for block in blocks if page.name != MADE_UP or "ops.pseudo_label" not in block]


def _tiny_recipe(name: str) -> Recipe:
    return override(small(get_recipe(name), size=(32, 48), steps=6, batch_size=1), ["model.width=4"])


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _pair(i: int, ids: int) -> tuple[np.ndarray, np.ndarray]:
    label = np.random.default_rng(i).integers(0, ids, (8, 12), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    return np.stack([label * 20, 255 - label * 20, label + 30], -1), label


def _write_data(root: Path) -> None:
    """What the pages call DATA: two folders of their own classes, GTA5 and Cityscapes, a few files each."""
    for i in range(3):
        image, label = _pair(i, 35)
        _write(root / f"gta5/images/{i:05d}.png", image)
        _write(root / f"gta5/labels/{i:05d}.png", label)
        for split in ("train", "val"):
            image, label = _pair(10 + i, 34)
            _write(root / f"cityscapes/leftImg8bit/{split}/ulm/ulm_{i}_leftImg8bit.png", image)
            _write(root / f"cityscapes/gtFine/{split}/ulm/ulm_{i}_gtFine_labelIds.png", label)
    for domain in ("sim", "real"):
        for split, count in (("train", 12), ("val", 2)):
            for i in range(count):
                image, label = _pair(i, 3)
                _write(root / f"{domain}/images/{split}/{i:04d}.png", image)
                _write(root / f"{domain}/labels/{split}/{i:04d}.png", label)
        (root / domain / "classes.txt").write_text("road\ncar\nsky\n")


class _AdaptSegNets(Dataset):
    """Gives what AdaptSegNet's datasets give: BGR minus a mean, floating labels, size, name."""

    mean = np.array([104.00698793, 116.66876762, 122.67891434], np.float32).reshape(3, 1, 1)

    def __init__(self, root: str, labelled: bool) -> None:
        assert Path(root).is_dir()
        self.labelled = labelled

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> tuple:
        rgb, label = _pair(index, 19)
        image = rgb[..., ::-1].transpose(2, 0, 1).astype(np.float32) - self.mean
        size = np.array(rgb.shape)
        return (
            (image, label.astype(np.float32), size, f"{index}")
            if self.labelled
            else (image, size, f"{index}")
        )


class _DeeplabMulti(nn.Module):
    """AdaptSegNet's network from outside: the auxiliary head first, groups by a method."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, 8, 1)
        self.heads = nn.ModuleList(nn.Conv2d(4, num_classes, 1) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x / 255).relu()
        return self.heads[0](features), self.heads[1](features)

    def optim_parameters(self, lr: float) -> list[dict]:
        return [
            {"params": self.body.parameters(), "lr": lr},
            {"params": self.heads.parameters(), "lr": 10 * lr},
        ]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder as the pages have one: DATA, small recipes, and the modules of an AdaptSegNet checkout."""
    _write_data(tmp_path / "DATA")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(udas_fast.recipes, "get_recipe", _tiny_recipe)
    monkeypatch.setattr(
        domains, "choose_engine", lambda engine, datasets: "torch"
    )  # DALI takes its time to start
    modules = {
        "dataset": {},
        "dataset.gta5_dataset": {"GTA5DataSet": lambda root: _AdaptSegNets(root, labelled=True)},
        "dataset.cityscapes_dataset": {"cityscapesDataSet": lambda root: _AdaptSegNets(root, labelled=False)},
        "model": {},
        "model.deeplab_multi": {"DeeplabMulti": _DeeplabMulti},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    torch.manual_seed(0)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [page for page in [*PAGES, ROOT / MADE_UP] if _python(page) and page.name not in OTHER_SOFTWARE],
    ids=lambda p: p.stem,
)
def test_python_runs_from_top_to_bottom(page: Path, workplace: Path) -> None:
    names: dict[str, Any] = {"image": _pair(0, 3)[0]}  # README's, to label
    if page.name == "first-run.md":
        _first_run_model(workplace)
    for block in _python(page):
        if "model.pt2" in block:  # what the page's `udas-fast export` has written
            export_model(TrainedModel.load("runs/first"), Path("model.pt2"), "torch")
        if "import lightning" not in block or importlib.util.find_spec("lightning"):
            exec(compile(block, str(page), "exec"), names)


def test_the_lightning_module_runs(workplace: Path) -> None:
    pytest.importorskip("lightning")
    (block,) = (b for b in _python(ROOT / "docs/operators.md") if "import lightning" in b)
    names: dict[str, object] = {}
    exec(block, names)
    assert names["trainer"].global_step == 1


def test_the_script_changes_in_five_lines() -> None:
    before, after, *_ = _python(ROOT / "docs/own-model.md")
    kept = before.splitlines()
    new = [line for line in after.splitlines() if line and line not in kept]
    assert len(new) == 5, new
    assert "five lines are new or changed" in (ROOT / "docs/own-model.md").read_text(encoding="utf-8")


def _first_run_model(workplace: Path) -> None:
    """The run that the page's Python looks at."""
    from udas_fast import Trainer
    from udas_fast.data.domains import DataConfig

    data = DataConfig("folder:DATA/sim", "folder:DATA/real", engine="torch")
    Trainer(_tiny_recipe("no_adaptation"), data, run_dir=workplace / "runs/first", device="cpu").fit()


def _rows() -> Iterator[tuple[str, str]]:
    for line in (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8").splitlines():
        if "`tests/" in line:
            yield tuple(re.search(r"`(tests/\S+)::(\w+)`", line).groups())
        else:
            assert not line.startswith("| ") or line.startswith("| Fault"), f"a fault without a test: {line}"


@pytest.mark.parametrize(("file", "test"), list(_rows()))
def test_every_fault_has_its_test(file: str, test: str) -> None:
    assert re.search(rf"^def {test}\(", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)


def test_the_classes_of_cityscapes_are_listed() -> None:
    names = "\n".join(CITYSCAPES.names)
    assert f"```\n{names}\n```" in (ROOT / "docs/own-data.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", [*PAGES, *REFERENCE], ids=lambda page: page.stem)
def test_links_lead_to_pages(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+\.md)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).is_file(), target


def _documented() -> list[tuple[str, str]]:
    """Return (place, name) of everything that the pages of docs/api show."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in REFERENCE)
    return [tuple(name.rsplit(".", 1)) for name in re.findall(r"^::: (\S+)$", text, re.MULTILINE)]


@pytest.mark.parametrize(("place", "name"), _documented())
def test_the_reference_shows_what_exists(place: str, name: str) -> None:
    assert getattr(importlib.import_module(place), name).__doc__


def test_the_reference_shows_the_packages_face_and_every_operator() -> None:
    names = {name for _, name in _documented()} | {place.split(".")[1] for place, _ in _documented()}
    assert set(udas_fast.__all__) - {"__version__", "load"} <= names
    assert set(udas_fast.ops.__all__) - {"PseudoLabel"} <= names
    assert set(udas_fast.nn.__all__) <= names


def test_the_reference_lists_the_fields_of_configurations() -> None:
    griffe = pytest.importorskip("griffe")  # which `make docs` installs
    extensions = griffe.load_extensions(str(ROOT / "docs/_fields.py"))
    module = griffe.load("udas_fast.data.domains", search_paths=[ROOT], extensions=extensions)
    text = module["DataConfig"].docstring.value
    assert (
        "    num_labels: Labelled target images: a number (a fixed, nested subset" in text
    )  # above the field
    assert "    workers: loader processes per stream; DALI's threads (default: ``0``)" in text  # beside it


def test_every_recipe_is_in_the_list() -> None:
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    listed = text[text.index("## All recipes") : text.index("## Translation")]
    assert set(list_recipes()) - {"cyclegan"} <= set(re.findall(r"`(\w+)`", listed))


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    listed = sorted(re.findall(r"[\w/-]+\.md", navigation))
    assert listed == sorted(str(page.relative_to(ROOT / "docs")) for page in [*PAGES, *REFERENCE])


def _settings() -> list[tuple[str, str]]:
    """Return (page, KEY=VALUE) of every ``--set`` in README and docs that is for recipes of the package."""
    pages = [ROOT / "README.md", *(page for page in PAGES if page.name != "adding-a-method.md")]
    pattern = r"--set (?:\"([^\"]+)\"|'([^']+)'|([^\s`),;]+(?:,\d+\])?))"
    found = set()
    for page in pages:
        for quoted in re.findall(pattern, page.read_text(encoding="utf-8")):
            found.add((page.name, "".join(quoted)))
    found = {(page, text) for page, text in found if not text.startswith("network.")}  # of a user's own
    return sorted((page, text) for page, text in found if "KEY" not in text and text.count("=") == 1)


@pytest.mark.parametrize(("page", "assignment"), _settings())
def test_settings_of_the_pages_are_taken(page: str, assignment: str) -> None:
    name, _, value = assignment.partition("=")
    recipes = {"online": "online_self_training", "mixed": "mixmatch", "consistency": "uda_xie"}
    stage = name.split(".")[1] if name.startswith("stages.") else ""
    recipe = get_recipe(recipes.get(stage, "udas"))
    changed = override(recipe, [f"{name}={1 if value == 'N' else value}"])
    assert changed != recipe or assignment == "model.name=deeplabv2"


# Parts of the objective that `online_self_training` is without.
ABSENT = tuple(f"online.objective.{part}" for part in ("feature_distance", "channel_dropout", "masked"))


def _table_keys() -> list[tuple[str, str]]:
    """Return (recipe, key) of the first columns of docs/methods.md's tables of keys."""
    found, stage = [], None
    for line in (ROOT / "docs/methods.md").read_text(encoding="utf-8").splitlines():
        if heading := re.match(r"\| `stages\.(\w+)\.objective", line):
            stage = heading[1]
        elif not line.startswith("|"):
            stage = None
        elif stage is not None:
            place = "student_1" if "(students)" in line else stage
            recipes = {"adaptation": "udas", "self_training": "udas", "online": "online_self_training"}
            recipe = recipes.get(place, "ddm")
            keys = re.findall(r"`([\w.]+)`", line.split("|")[1])
            found += [(recipe, f"stages.{place}.objective.{key}") for key in keys]
    return found


@pytest.mark.parametrize(("recipe", "key"), _table_keys())
def test_the_tables_of_keys_are_true(recipe: str, key: str) -> None:
    changed = get_recipe(recipe)
    for part in ("adaptation.objective.entropy", *ABSENT):  # absent in the recipe
        if key.startswith(f"stages.{part}."):
            changed = override(changed, [f"stages.{part}={{}}"])
    assert has_key(changed, key)


def test_contributing_names_files_that_exist() -> None:
    """Each file or folder of "Where things are"; one without a folder is beside the one before it in its row."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) > 40
    for row in rows:
        folder = ROOT
        for name in re.findall(r"`([\w./]*(?:/|\.(?:py|h|cpp|cu|cuh)))`", row):
            place = ROOT / name if "/" in name else folder / name
            assert place.exists(), f"{name} in {row}"
            folder = place if place.is_dir() else place.parent


# docs/first-run.md as a fresh user runs it, on folders of their own: every command of the page, in order.


def _commands() -> list[list[str]]:
    text = (ROOT / "docs/first-run.md").read_text(encoding="utf-8")
    lines = [
        line for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for line in block.splitlines()
    ]
    tiny = {"600": "18", "96x192": "32x48", "50": "2"}
    return [[tiny.get(word, word) for word in shlex.split(line)[1:]] for line in lines]


def _run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["udas-fast", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code, arguments


def _killed(arguments: list[str], run: Path) -> None:
    """Start the command and kill it after its first checkpoint."""
    process = subprocess.Popen(
        [sys.executable, "-m", "udas_fast", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not list((run / "checkpoints").glob("*.pt")) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_the_first_run(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    run = workplace / "runs/first"
    did: dict[str, Callable[[], bool]] = {
        "check-data": lambda: "12 images" in capsys.readouterr().out,
        "train": lambda: (run / "model.safetensors").is_file() and (run / "scores.json").is_file(),
        "watch": lambda: "adaptation" in capsys.readouterr().out,
        "report": lambda: (run / "report.html").stat().st_size > 10_000,
        "evaluate": lambda: "mIoU" in capsys.readouterr().out,
        "predict": lambda: len(list((workplace / "labels").glob("*.png"))) == 4,
        "export": lambda: (workplace / "model.pt2").is_file(),
    }
    commands = _commands()
    assert {command[0] for command in commands} == did.keys()
    followed = []
    for command in commands:
        if command[0] == "train" and "--resume" not in command:
            _killed([*command, "--set", "model.width=4", "--device", "cpu", "--engine", "torch"], run)
        elif command[0] == "watch":  # it follows a run to its end, which has to come first
            followed.append(command)
        else:
            _run(command, monkeypatch)
            assert did[command[0]](), command
    for command in followed:
        _run(command, monkeypatch)
        assert did["watch"]()
