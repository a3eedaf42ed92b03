"""`udas-fast translate`: runs that go on to the bit, images that are kept or made again, and training on them."""

from __future__ import annotations

import io
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from udas_fast import Trainer, cli
from udas_fast.data import open_dataset
from udas_fast.data.domains import DataConfig
from udas_fast.data.streets import COUNTS
from udas_fast.data.translated import read_manifest
from udas_fast.engine.checkpoint import CheckpointFolder, read_state
from udas_fast.engine.interrupt import Interrupted
from udas_fast.errors import InputError
from udas_fast.objectives import Losses
from udas_fast.objectives.cyclegan import CycleGAN
from udas_fast.recipes import get_recipe, override, small
from udas_fast.recipes.cyclegan import small_cyclegan
from udas_fast.tools.report import watch_run
from udas_fast.training.run_folder import locked
from udas_fast.training.translation import Translation, TranslationConfig, at_native_size, open_datasets

STEPS = 6
TINY = ("width=4", "blocks=1", "discriminator_width=4", "pool=2")


def _start(
    source: str, target: str, run: Path, *settings: str, semantic: str | None = None, max_bad_files: int = 0
) -> Translation:
    data = DataConfig(source, target, workers=2, engine="torch", max_bad_files=max_bad_files)
    recipe = small_cyclegan(get_recipe("cyclegan"), crop=(32, 36), steps=STEPS)
    recipe = at_native_size(recipe, data)
    recipe = override(recipe, [f"stages.translation.objective.{s}" for s in (*TINY, *settings)])
    config = TranslationConfig(data, semantic, log_every=1, checkpoint_every=2)
    return Translation(recipe, config, run_dir=run, device="cpu")


@pytest.fixture(scope="module")
def roots(camvid_writer: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A source and a target of four images, which no test changes."""
    folder = tmp_path_factory.mktemp("domains")
    return tuple(f"camvid:{camvid_writer(folder / name, size=(40, 52))}" for name in ("source", "target"))


@pytest.fixture(scope="module")
def finished(roots: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, which no test changes."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert _start(*roots, run).fit() == 4
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def _state(run: Path) -> dict:
    return read_state(CheckpointFolder(run / "checkpoints").newest())["step"]


def _same(a: object, b: object) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


@pytest.mark.slow
@pytest.mark.parametrize("end", ["killed", "stopped"])
def test_an_interrupted_run_goes_on_to_the_bit(
    finished: Path, roots: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    calls, training_step = [], CycleGAN.training_step

    def interrupted(self: CycleGAN, *arguments: object) -> Losses:
        calls.append(1)
        if len(calls) == 4:  # the pool of two is full, and the newest checkpoint is of step 2
            if end == "killed":
                raise MemoryError
            signal.raise_signal(signal.SIGINT)
        return training_step(self, *arguments)

    out = tmp_path / "run"
    monkeypatch.setattr(CycleGAN, "training_step", interrupted)
    with pytest.raises(MemoryError if end == "killed" else Interrupted):
        _start(*roots, out).fit()
    monkeypatch.undo()
    assert _state(out)["done"] == (2 if end == "killed" else 4)
    Translation.resume(out, device="cpu").fit()
    assert _same(_state(out), _state(finished))
    assert (out / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()
    assert read_manifest(out) == read_manifest(finished)


def test_a_run_folder_holds_what_readers_expect(finished: Path, roots: tuple[str, str]) -> None:
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(STEPS))
    assert {"phase", "lr", "gan_target", "cycle_source", "identity_target", "dis_source"} <= lines[0].keys()
    # Constant for one half, then linearly towards zero.
    assert [line["lr"] for line in lines] == pytest.approx([2e-4 * f for f in (1, 1, 1, 1, 2 / 3, 1 / 3)])
    assert json.loads((finished / "environment.json").read_text())["device"] == "cpu"
    for name in ("source", "target"):
        with Image.open(finished / f"pictures/translation-{name}.png") as sheet:
            assert sheet.format == "PNG"
    files = sorted(path.name for path in (finished / "translated/images").iterdir())
    assert files == [f"{i:04d}.png" for i in range(4)]
    assert not list(finished.rglob("*.tmp"))


def test_images_are_the_generators_to_the_bit(finished: Path, roots: tuple[str, str]) -> None:
    translation = Translation.resume(finished, device="cpu")
    translation.model.load_state_dict(_state(finished)["model"])
    source = open_dataset(roots[0], "train")[1].image
    with torch.no_grad():
        pixels = torch.from_numpy(source).permute(2, 0, 1)[None].float() / 127.5 - 1
        expected = (translation.model.to_target.eval()(pixels)[0] + 1) * 127.5
    found = open_dataset(f"translated:{finished}", "train")[1].image
    assert found.shape == source.shape
    assert np.array_equal(found, expected.round().permute(1, 2, 0).byte().numpy())


def test_a_complete_run_does_nothing(run: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    assert Translation.resume(run, device="cpu").fit() == 0
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


def test_lost_and_damaged_images_are_made_again(run: Path, finished: Path) -> None:
    images = run / "translated/images"
    kept = (images / "0000.png").stat().st_mtime_ns
    (images / "0001.png").unlink()
    content = bytearray((images / "0002.png").read_bytes())
    content[len(content) // 2] ^= 1
    (images / "0002.png").write_bytes(content)
    assert Translation.resume(run, device="cpu").fit() == 2
    assert (images / "0000.png").stat().st_mtime_ns == kept
    for path in images.iterdir():
        assert path.read_bytes() == (finished / "translated/images" / path.name).read_bytes()


def test_sheets_are_in_the_events_once_however_often_a_run_goes_on(run: Path) -> None:
    (run / "translated/images/0001.png").unlink()
    (run / "pictures/translation-target.png").unlink()
    assert Translation.resume(run, device="cpu").fit() == 1
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    for name in ("source", "target"):
        (event,) = events.Images(f"translation/{name}")
        assert event.step == STEPS
        drawn = Image.open(io.BytesIO(event.encoded_image_string))
        with Image.open(run / f"pictures/translation-{name}.png") as sheet:
            assert np.array_equal(drawn, sheet.convert("RGB"))


def test_the_view_of_a_finished_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    watch_run(finished)
    shown = " ".join(capsys.readouterr().out.split())
    for text in ("state complete", "step 6 of 6", "gan_target", "steps per second", "4 of 4 translated"):
        assert text in shown


@pytest.mark.slow
def test_translating_stops_and_goes_on(run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "translated")
    calls, translate = [], Translation._translate

    def interrupted(self: Translation, *arguments: object) -> np.ndarray:
        calls.append(1)
        if len(calls) == 1:  # a second signal acts as usual
            signal.raise_signal(signal.SIGINT)
        return translate(self, *arguments)

    translation = Translation.resume(run, device="cpu")
    translation._threads = 1
    monkeypatch.setattr(Translation, "_translate", interrupted)
    with pytest.raises(Interrupted, match=r"stopped after \d of 4 images; go on with --resume"):
        translation.fit()
    monkeypatch.undo()
    assert 0 < len(read_manifest(run).missing) < 4
    assert 0 < Translation.resume(run, device="cpu").fit() < 4
    assert read_manifest(run) == read_manifest(finished)


def test_images_of_another_generator_are_not_kept(run: Path) -> None:
    path = run / "translated/manifest.json"
    document = json.loads(path.read_text())
    document["generator"] = "0" * 64
    document["files"]["0003"] = None
    path.write_text(json.dumps(document))
    assert Translation.resume(run, device="cpu").fit() == 4


@pytest.mark.parametrize("engine", ["torch", pytest.param("dali", marks=pytest.mark.dali)])
def test_a_recipe_trains_on_translated_images(
    finished: Path, roots: tuple[str, str], tmp_path: Path, engine: str
) -> None:
    recipe = small(get_recipe("no_adaptation"), size=(32, 48), steps=2, batch_size=2)
    recipe = override(recipe, ["model.width=4", "input.rare_classes={min_pixels: 10}"])
    data = DataConfig(f"translated:{finished}", roots[1], engine=engine)
    trainer = Trainer(recipe, data, run_dir=tmp_path / "run", device="cpu", log_every=1)
    assert "camvid-translated (4)" in trainer.describe()
    trainer.fit()
    assert len((tmp_path / "run/metrics.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_semantic_consistency_with_a_runs_network(roots: tuple[str, str], tmp_path: Path) -> None:
    recipe = override(small(get_recipe("no_adaptation"), size=(32, 48), steps=1), ["model.width=4"])
    Trainer(recipe, DataConfig(*roots), run_dir=tmp_path / "seg", device="cpu").fit()
    translation = _start(*roots, tmp_path / "run", semantic=str(tmp_path / "seg"))
    translation.fit()
    line = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[0])
    assert line["semantic_target"] > 0
    assert line["semantic_source"] > 0


@pytest.mark.slow
def test_streets_keep_their_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COUNTS, "train", 3)
    out = tmp_path / "run"
    assert _start("streets:sim", "streets:real", out).fit() == 3
    translated, original = (open_dataset(s, "train") for s in (f"translated:{out}", "streets:sim"))
    assert translated.name == "streets-sim-translated"
    for i in range(3):
        assert np.array_equal(translated[i].label, original[i].label)
        assert translated[i].id == original[i].id
        assert not np.array_equal(translated[i].image, original[i].image)


def test_each_refusal_is_one_sentence(roots: tuple[str, str], finished: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--target: found none, expected the domain"):
        open_datasets(DataConfig(roots[0]))
    with pytest.raises(InputError, match="--source: found translated:.*, expected an original dataset"):
        open_datasets(DataConfig(f"translated:{finished}", roots[1]))
    with pytest.raises(InputError, match="an earlier run, expected a new folder, or --resume"):
        _start(*roots, finished)
    tiny = small_cyclegan(get_recipe("cyclegan"), crop=(16, 16), steps=1)
    with pytest.raises(InputError, match=r"crop of source: found \(16, 16\), expected sides of 32 or more"):
        Translation(tiny, TranslationConfig(DataConfig(*roots)), run_dir=tmp_path / "run")
    with pytest.raises(
        InputError, match="recipe udas: found another one, expected one round of kind cyclegan"
    ):
        Translation(get_recipe("udas"), TranslationConfig(DataConfig(*roots)), run_dir=tmp_path / "run")
    with pytest.raises(
        InputError, match="recipe udas: found another one, expected one stage of kind cyclegan"
    ):
        small_cyclegan(get_recipe("udas"), crop=(32, 32), steps=1)
    with pytest.raises(InputError, match="recipe cyclegan: found one that trains translation"):
        Trainer(get_recipe("cyclegan"), DataConfig(*roots), run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="no run to go on with"):
        Translation.resume(tmp_path / "nothing")
    with pytest.raises(
        InputError, match="found one of translation, expected .*`udas-fast translate --resume`"
    ):
        Trainer.resume(finished, device="cpu")


def test_a_process_that_trains_there_keeps_its_run(roots: tuple[str, str], tmp_path: Path) -> None:
    first = _start(*roots, tmp_path)
    with locked(tmp_path), pytest.raises(InputError, match="found a process that trains there"):
        _start(*roots, tmp_path, "cycle=3")
    assert "cycle: 10.0" in (tmp_path / "run.yaml").read_text()
    _start(*roots, tmp_path, "cycle=3")  # nothing has been trained yet
    with pytest.raises(InputError, match="run.yaml: found another run than the one that was set up"):
        first.fit()


@pytest.mark.slow
def test_bad_files_are_counted_over_all_attempts(camvid_folder: Callable[..., Path], tmp_path: Path) -> None:
    root, run = camvid_folder("data", size=(40, 52)), tmp_path / "run"
    translation = _start(f"camvid:{root}", f"camvid:{root}", run, max_bad_files=1)
    image = root / "images/train/0001.png"
    good = image.read_bytes()
    image.write_bytes(good[:100])
    with pytest.raises(InputError, match="0001.png"):  # training leaves it out, translating cannot
        translation.fit()
    image.write_bytes(good)
    checkpoints = CheckpointFolder(run / "checkpoints")
    checkpoints.newest().unlink()  # so that there are steps left
    Translation.resume(run, device="cpu").fit()
    assert len(read_state(checkpoints.newest())["bad_files"]) == 1


def test_the_command(
    roots: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*arguments: object) -> str:
        monkeypatch.setattr("sys.argv", ["udas-fast", "translate", *map(str, arguments), "--device", "cpu"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        assert not end.value.code, captured.err
        return captured.out

    out = tmp_path / "run"
    settings = [a for s in TINY for a in ("--set", f"stages.translation.objective.{s}")]
    where = ("--source", roots[0], "--target", roots[1], "--out", out)
    recipe = tmp_path / "cyclegan.yaml"
    recipe.write_text(get_recipe("cyclegan").to_yaml().replace("cycle: 10.0", "cycle: 7.0"), encoding="utf-8")
    printed = run(*where, "--recipe", recipe, "--small", "32x32", "--steps", 1, *settings)
    assert "cycle: 7.0" in (out / "run.yaml").read_text(encoding="utf-8")
    assert "4 images translated" in printed
    assert f"--source translated:{out}" in printed
    assert "already complete" in run("--resume", out)
