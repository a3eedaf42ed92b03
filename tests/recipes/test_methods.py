"""Methods in files of the user's own: loading, what a bad file leaves alone, and going on with their runs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from udas_fast import Callback, DataConfig, Trainer
from udas_fast.errors import InputError
from udas_fast.objectives import objective_kinds
from udas_fast.recipes import (
    all_recipes,
    get_recipe,
    list_recipes,
    load_method_file,
    methods,
    recipe_from_dict,
)

pytestmark = pytest.mark.usefixtures("own_methods")

ROOT = Path(__file__).parents[2]

METHOD = '''"""Cross-entropy of the source, some of it."""

from __future__ import annotations

from dataclasses import replace

from udas_fast.config import config_dataclass
from udas_fast.data import Geometry
from udas_fast.data.inputs import InputConfig
from udas_fast.models import ModelConfig
from udas_fast.objectives import Objective, ObjectiveConfig, Requirements
from udas_fast.objectives.losses import segmentation_loss
from udas_fast.recipes import Recipe, Stage


@config_dataclass
class ShareConfig(ObjectiveConfig, kind="KIND"):
    share: float = 0.5

    @property
    def requirements(self) -> Requirements:
        return Requirements(("source",))

    def build(self, num_classes: int) -> Share:
        return Share(self)


class Share(Objective):
    def __init__(self, config: ShareConfig) -> None:
        super().__init__()
        self.config = config

    def training_step(self, model, batch, ctx):
        output = ctx.forward(model, batch.source.image, domain="source")
        loss = self.config.share * segmentation_loss(output, batch.source.required_label, 0.1)
        ctx.backward(loss)
        return {"share": loss.detach()}


SIZE = Geometry(size=(24, 32))
OWN = Recipe(
    "KIND",
    "some of the source",
    stages=(Stage("train", ShareConfig(share=0.25), steps=4),),
    model=ModelConfig(backbone="resnet18", width=4),
    input=InputConfig(source=SIZE, target=SIZE, batch_size=2),
)
'''


def _write(path: Path, kind: str = "share", more: str = "") -> Path:
    """A method file at ``path``, with ``more`` lines at its end."""
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(METHOD.replace("KIND", kind) + more, encoding="utf-8")
    return path


# Loading


def test_a_files_recipes_are_found_by_name(tmp_path: Path) -> None:
    file = _write(tmp_path / "mine.py")
    loaded = load_method_file(file)
    own = get_recipe("share")
    assert own in loaded
    assert own.stages[0].objective.share == 0.25
    assert "share" in list_recipes()
    assert recipe_from_dict(own.to_dict()) == own
    assert load_method_file(str(file)) == loaded  # again: the same objects
    assert get_recipe("share") is own


def test_a_file_may_change_a_recipe_of_the_package(tmp_path: Path) -> None:
    variant = "from udas_fast.recipes.udas import UDAS\nVARIANT = replace(UDAS, name='variant', ema=0.99)\n"
    udas = get_recipe("udas")
    load_method_file(_write(tmp_path / "mine.py", more=variant))
    assert get_recipe("udas") is udas
    assert get_recipe("variant").stages == udas.stages
    assert methods.origins(get_recipe("variant")) == []


def test_files_of_one_name_are_two_methods(tmp_path: Path) -> None:
    load_method_file(_write(tmp_path / "a/mine.py", "first"))
    load_method_file(_write(tmp_path / "b/mine.py", "second"))
    kinds = [type(get_recipe(name).stages[0].objective).kind for name in ("first", "second")]
    assert kinds == ["first", "second"]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    sentence = f"method file {tmp_path}/none.py: found no such file, expected a Python file with recipes"
    with pytest.raises(InputError, match=sentence):
        load_method_file(tmp_path / "none.py")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ("x = = 1\n", "line {}: invalid syntax"),
        ("1 / 0\n", "line {}: division by zero"),
        ("def fail():\n    return UNKNOWN\n\nfail()\n", "line {}: name 'UNKNOWN' is not defined"),
        ("Recipe('share', 'no stages', stages=())\n", "line {}: Recipe: stages.*at least 1 item"),
        ("raise SystemExit(3)\n", "line {}: sys.exit"),
        ("import broken_helper\n", r"line {}: invalid syntax \(broken_helper.py, line 2\)"),
    ],
)
def test_a_file_that_fails_names_its_line_and_leaves_nothing_behind(
    more: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_helper.py").write_text("\nx = = 1\n")
    file = _write(tmp_path / "mine.py", more=more)
    line = file.read_text().count("\n") - more.count("\n") + 1
    line += 1 if "def fail" in more else 0  # where the error arose, not where it was called
    kinds, recipes, modules = dict(objective_kinds()), list_recipes(), set(sys.modules)
    with pytest.raises(InputError, match=f"method {file}: {sentence.format(line)}"):
        load_method_file(file)
    assert dict(objective_kinds()) == kinds
    assert list_recipes() == recipes
    assert set(sys.modules) == modules
    with pytest.raises(InputError, match="found 'share', expected one of"):
        get_recipe("share")

    load_method_file(_write(tmp_path / "mine.py"))  # repaired
    assert get_recipe("share").stages[0].objective.share == 0.25


def test_what_a_bad_file_has_imported_stays_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Python keeps the imported module, so that no later import would register its kinds again.
    monkeypatch.syspath_prepend(tmp_path)
    _write(tmp_path / "good_module_of_mine.py", "good")
    (tmp_path / "bad.py").write_text("from good_module_of_mine import OWN\n1 / 0\n")
    with pytest.raises(InputError, match=r"bad.py: line 2: division by zero"):
        load_method_file(tmp_path / "bad.py")
    load_method_file(tmp_path / "good_module_of_mine.py")
    own = get_recipe("good")
    assert recipe_from_dict(own.to_dict()) == own
    monkeypatch.delitem(sys.modules, "good_module_of_mine")


def test_a_file_may_not_take_a_kind_or_a_name_of_the_package(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line \d+: kind of ShareConfig in .*found 'adaptation'"):
        load_method_file(_write(tmp_path / "kind.py", "adaptation"))
    copied = _write(tmp_path / "name.py", "fresh", more='COPY = replace(OWN, name="udas")\n')
    load_method_file(copied)
    sentence = "recipe 'udas' of your own: found the name of a recipe of udas_fast, expected another name"
    with pytest.raises(InputError, match=sentence):
        get_recipe("udas")


def test_two_files_may_not_have_recipes_of_one_name(tmp_path: Path) -> None:
    load_method_file(_write(tmp_path / "one.py", "one"))
    load_method_file(_write(tmp_path / "two.py", "two", more='COPY = replace(OWN, name="one")\n'))
    sentence = (
        f"recipes of {tmp_path}/two.py: found the name 'one' of another recipe, expected a name of its own"
    )
    with pytest.raises(InputError, match=sentence):
        all_recipes()


# Installed packages


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Stands for installed packages: modules of ``tmp_path`` by entry point."""
    points: list[metadata.EntryPoint] = []

    def install(**modules: str) -> None:
        points.extend(
            metadata.EntryPoint(name, value, methods.ENTRY_POINTS) for name, value in modules.items()
        )

    def found(group: str) -> list[metadata.EntryPoint]:
        return points if group == methods.ENTRY_POINTS else []

    monkeypatch.setattr(metadata, "entry_points", found)
    monkeypatch.syspath_prepend(tmp_path)
    yield install
    for point in points:
        sys.modules.pop(point.module, None)


def test_recipes_of_installed_packages_are_found(entry_points: Callable[..., None], tmp_path: Path) -> None:
    _write(tmp_path / "plugin_of_mine.py", "plugin")
    entry_points(mine="plugin_of_mine")
    assert "plugin" in list_recipes()
    # By the name that it is installed under.
    assert methods.origins(get_recipe("plugin")) == ["plugin_of_mine"]


def test_a_bad_package_leaves_the_others_alone_and_is_named(
    entry_points: Callable[..., None], tmp_path: Path
) -> None:
    _write(tmp_path / "good_plugin_of_mine.py", "good")
    _write(tmp_path / "bad_plugin_of_mine.py", "bad", more="1 / 0\n")
    entry_points(bad="bad_plugin_of_mine", missing="no_plugin_of_mine", good="good_plugin_of_mine")
    assert get_recipe("good").name == "good"
    assert get_recipe("udas").name == "udas"
    assert "bad" not in objective_kinds()
    with pytest.raises(InputError) as error:
        get_recipe("bad")
    assert "recipe: found 'bad', expected one of" in str(error.value)
    assert "method bad_plugin_of_mine: division by zero" in str(error.value)
    assert "method no_plugin_of_mine: No module named 'no_plugin_of_mine'" in str(error.value)


# Runs


class Killed(Exception):
    """Stands for a power cut."""


class KillsAt(Callback):
    """Ends the run at the ``step``-th step of it."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, record: Mapping[str, float | str]) -> None:
        if record["step"] == self.step:
            raise Killed


def _python(*words: str) -> subprocess.CompletedProcess[str]:
    """A process of its own that knows nothing of what this one has loaded."""
    return subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def _trainer(file: Path, root: Path, run: Path, *callbacks: Callback) -> Trainer:
    load_method_file(file)
    data = DataConfig(f"camvid:{root}", engine="torch")
    options = {"device": "cpu", "checkpoint_every": 1, "log_every": 1}
    return Trainer("share", data, run_dir=run, callbacks=callbacks, **options)


@pytest.mark.slow
def test_a_run_goes_on_in_another_process_wherever_its_file_is(camvid_root: Path, tmp_path: Path) -> None:
    file = _write(tmp_path / "mine.py")
    run, whole = tmp_path / "run", tmp_path / "whole"
    _trainer(file, camvid_root, whole).fit()
    with pytest.raises(Killed):
        _trainer(file, camvid_root, run, KillsAt(2)).fit()
    document = yaml.safe_load((run / "run.yaml").read_text())
    assert document["methods"] == [str(file)]
    assert document["recipe"]["stages"][0]["objective"] == {"kind": "share", "share": 0.25}

    moved = file.rename(tmp_path / "moved.py")
    resume = ("-m", "udas_fast", "train", "--resume", str(run), "--device", "cpu")
    refused = _python(*resume)
    assert refused.returncode == 2, refused.stderr
    sentence = f"its method cannot be imported: method {file}: no such file; give the file's new place by --method-file"
    assert sentence in " ".join(refused.stderr.split())
    assert not (run / "model.safetensors").exists()

    moved.rename(file)
    done = _python(*resume)
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run, whole))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "share" in line] == [0, 1, 2, 3]

    file.rename(moved)
    told = _python(*resume, "--method-file", str(moved))
    assert told.returncode == 0, told.stderr
    assert f"already complete: {run}" in told.stdout


def test_runs_of_the_packages_methods_import_nothing() -> None:
    for recipe in all_recipes().values():
        assert methods.origins(recipe) == []


@pytest.mark.slow
def test_a_method_of_a_script_goes_on_in_the_script(camvid_root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    main = f"""
from udas_fast import DataConfig, Trainer
from pathlib import Path

if __name__ == "__main__":
    run = Path({str(run)!r})
    if run.exists():
        Trainer.resume(run, device="cpu").fit()
    else:
        Trainer(OWN, DataConfig("camvid:{camvid_root}", engine="torch"), run_dir=run, device="cpu")
"""
    script = _write(tmp_path / "script.py", more=main)
    began = _python(str(script))
    assert began.returncode == 0, began.stderr
    refused = _python("-m", "udas_fast", "train", "--resume", str(run), "--device", "cpu")
    assert refused.returncode == 2
    sentence = (
        f"found a method defined in the script {script}, expected to go on in that script by Trainer.resume"
    )
    assert sentence in " ".join(refused.stderr.split())
    done = _python(str(script))
    assert done.returncode == 0, done.stderr
    assert (run / "model.safetensors").is_file()


def test_a_damaged_list_of_methods_is_named(tmp_path: Path) -> None:
    for wrong in ("mine.py", [3]):
        with pytest.raises(
            InputError, match="run.yaml: methods: found .*, expected a list of files and modules"
        ):
            methods.import_origins(wrong, "run.yaml", ["share"])


@pytest.mark.slow
def test_a_module_of_a_package_is_imported_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package_of_mine"
    _write(package / "method.py", more="from .numbers import SHARE\n")
    (package / "numbers.py").write_text("SHARE = 0.25\n")
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    from package_of_mine.method import OWN  # type: ignore[import-not-found]  # written above

    origins = methods.origins(OWN)
    assert origins == ["package_of_mine.method"]
    fresh = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from udas_fast.recipes import methods; "
    done = _python("-c", fresh + f"methods.import_origins({origins!r}, 'run.yaml', ['share'])")
    assert done.returncode == 0, done.stderr
    lost = _python(
        "-c",
        f"from udas_fast.recipes import methods; methods.import_origins({origins!r}, 'run.yaml', ['share'])",
    )
    assert "run.yaml: its method cannot be imported: method package_of_mine.method: No module" in lost.stderr
    for name in [name for name in sys.modules if name.startswith("package_of_mine")]:
        del sys.modules[name]
