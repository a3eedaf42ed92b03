"""The command line as a user meets it: whole runs on tiny data, and one sentence for each bad input."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from udas_fast import cli
from udas_fast.data import CAMVID
from udas_fast.distributed import ProcessLost

TINY = ("--set", "model.width=4", "--set", "input.batch_size=2")


@pytest.fixture
def run_cli(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Calls the entry point; returns (exit code, standard output, standard error)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["udas-fast", *map(str, arguments)])
        capsys.readouterr()
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def _train(root: Path, out: Path, *more: object, recipe: str = "no_adaptation") -> tuple[object, ...]:
    return (
        *("train", recipe, "--source", f"camvid:{root}", "--target", f"camvid:{root}", "--out", out),
        *("--small", "32x48", "--steps", 6, "--device", "cpu", *TINY, *more),
    )


@pytest.mark.parametrize("rank", [0, 1])
def test_what_torchrun_would_do_several_times_is_refused_once(
    rank: int, run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("WORLD_SIZE", 2), ("RANK", rank), ("TORCHELASTIC_RUN_ID", "run")):
        monkeypatch.setenv(name, str(value))
    for command in ("study", "demo", "predict", "export", "report", "recipes", "check-data"):
        expected = "one: start it without torchrun, as only train, translate and evaluate share their work"
        refused = f"udas-fast: {command}: found 2 processes (WORLD_SIZE), expected {expected}\n"
        assert run_cli(command) == ((2, "", refused) if rank == 0 else (0, "", ""))
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_heard_where_torchrun_has_not_started_the_process(
    run_cli: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")  # as in a shell of a cluster's job
    code, _, stderr = run_cli("recipes")
    assert code == 2
    assert "recipes: found 2 processes (WORLD_SIZE)" in stderr
    for value in ("", "two", "-1"):
        monkeypatch.setenv("WORLD_SIZE", value)
        for command in ("recipes", "train"):
            refused = f"udas-fast: WORLD_SIZE: found {value!r}, expected the number of processes, as torchrun sets it\n"
            assert run_cli(command) == (2, "", refused)


def test_variables_of_torchrun_that_are_missing_are_named(
    run_cli: Callable[..., tuple[int, str, str]],
    camvid_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    code, _, stderr = run_cli(*_train(camvid_root, tmp_path / "run"))
    assert code == 2
    assert re.fullmatch(
        r"udas-fast: torch.distributed: found .*RANK.*, expected RANK, .* sets them\n", stderr
    )


@pytest.mark.parametrize(("interrupted", "expected"), [(True, 130), (False, 1)])
def test_processes_end_as_the_one_that_stopped_first(
    interrupted: bool,
    expected: int,
    run_cli: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def lost(**_: object) -> None:
        raise ProcessLost("process 1 stopped", interrupted)

    monkeypatch.setattr(cli, "app", lost)
    assert run_cli("train")[0] == expected


def test_train_evaluate_predict(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root, out = camvid_folder("data", size=(40, 56)), tmp_path / "run"
    code, stdout, stderr = run_cli(*_train(root, out, "--num-labels", 2, recipe="udas"))
    assert code == 0, stderr
    assert "mIoU" in stdout
    for name in (
        "run.yaml",
        "metrics.jsonl",
        "tensorboard",
        "checkpoints",
        "scores.json",
        "model.safetensors",
        "pictures",
    ):
        assert (out / name).exists(), name
    scores = json.loads((out / "scores.json").read_text())
    assert list(scores["phases"]) == ["adaptation", "self_training.1", "self_training.2"]
    protocol = scores["phases"]["adaptation"]["protocol"]
    assert protocol["input_size"] == [32, 48]
    assert protocol["images"] == 2
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 6  # 4 + 1 + 1 steps

    code, stdout, stderr = run_cli(
        "evaluate", out, "--data", f"camvid:{root}", "--json", tmp_path / "scores.json"
    )
    assert code == 0, stderr
    last = scores["phases"]["self_training.2"]
    assert json.loads((tmp_path / "scores.json").read_text())["confusion_matrix"] == last["confusion_matrix"]
    nowhere = tmp_path / "missing/scores.json"
    code, stdout, stderr = run_cli("evaluate", out, "--data", f"camvid:{root}", "--json", nowhere)
    assert code == 2
    assert "mIoU" in stdout  # what took the time is told
    assert stderr.startswith(f"udas-fast: {nowhere}: cannot be written (no such file or directory)")

    (root / "classes.txt").write_text("\n".join(["building", "sky", *CAMVID.names[2:]]))
    code, _, stderr = run_cli("evaluate", out, "--data", f"folder:{root}")
    assert code == 2
    assert "found 11 classes for the model's 11, number 0 is 'building' and 'sky', expected" in stderr

    code, stdout, stderr = run_cli("predict", out, root / "images/val", "--out", tmp_path / "labels")
    assert code == 0, stderr
    ids = np.asarray(Image.open(tmp_path / "labels/0000_ids.png"))
    assert ids.shape == (40, 56)
    assert ids.max() < 11
    assert np.asarray(Image.open(tmp_path / "labels/0000_colour.png")).shape == (40, 56, 3)


def test_check_data_prints_frequencies_and_finds_problems(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path]
) -> None:
    root = camvid_folder("data")
    code, stdout, _ = run_cli("check-data", f"camvid:{root}")
    assert code == 0
    assert "bicyclist" in stdout
    assert "4 images (4 of 24x32)" in stdout
    assert stdout.endswith("no problems\n")
    label = root / "labels/train/0001.png"
    Image.fromarray(np.full((24, 32), 77, np.uint8)).save(label)
    code, _, stderr = run_cli("check-data", f"camvid:{root}")
    assert code == 2
    assert "0001.png" in stderr
    assert "77" in stderr


def test_recipes_are_listed_and_shown_as_yaml_that_trains(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from udas_fast.recipes import all_recipes

    code, stdout, _ = run_cli("recipes")
    assert code == 0
    for name, recipe in all_recipes().items():
        assert f"{name}: {recipe.summary}" in stdout
    code, stdout, _ = run_cli("recipes", "show", "no_adaptation")
    assert code == 0
    path, root = tmp_path / "recipe.yaml", camvid_folder("data")
    path.write_text(stdout.replace("lr: 0.00025", "learning_rate: 0.00025"))
    train = ("train", "--recipe", path, "--source", f"camvid:{root}", "--out", tmp_path / "run")
    code, _, stderr = run_cli(*train)
    assert code == 2
    assert "stages[0].optimizer.learning_rate" in stderr
    path.write_text(stdout)
    code, _, stderr = run_cli(*train, "--small", "32x48", "--steps", 1, "--device", "cpu", *TINY)
    assert code == 0, stderr
    code, _, stderr = run_cli("recipes", "show", "no_adaption")
    assert code == 2
    assert "did you mean 'no_adaptation'" in stderr


def test_doctor_names_versions_and_backends(run_cli: Callable[..., tuple[int, str, str]]) -> None:
    code, stdout, _ = run_cli("doctor")
    assert code == 0
    for word in (torch.__version__, "pseudo_label", "cross_entropy", "CUDA"):
        assert word in stdout


def _no_folder(root: Path) -> None:
    shutil.rmtree(root)


def _empty_folder(root: Path) -> None:
    for file in (root / "images/train").iterdir():
        file.unlink()


def _no_label(root: Path) -> None:
    (root / "labels/train/0002.png").unlink()


def _wrong_id(root: Path) -> None:
    Image.fromarray(np.full((24, 32), 40, np.uint8)).save(root / "labels/train/0003.png")


def _truncated(root: Path) -> None:
    file = root / "images/train/0001.png"
    file.write_bytes(file.read_bytes()[:60])


def _other_size(root: Path) -> None:
    Image.fromarray(np.zeros((24, 30), np.uint8)).save(root / "labels/train/0000.png")


@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (_no_folder, ["data"]),
        (_empty_folder, ["images/train"]),
        (_no_label, ["0002"]),
        (_wrong_id, ["0003.png", "40"]),
        (_truncated, ["0001.png"]),
        (_other_size, ["0000.png", "24", "30"]),
    ],
)
def test_bad_data_ends_before_training_with_one_sentence(
    run_cli: Callable[..., tuple[int, str, str]],
    camvid_folder: Callable[..., Path],
    tmp_path: Path,
    damage: Callable[[Path], None],
    names: list[str],
) -> None:
    root, out = camvid_folder("data"), tmp_path / "run"
    damage(root)
    code, stdout, stderr = run_cli(*_train(root, out))
    assert code == 2
    assert stdout == ""
    lines = stderr.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("udas-fast: ")
    for name in names:
        assert name in lines[0]
    assert not (out / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "model.wdth=3"), ["wdth", "width"]),
        (("--weights", "missing.pth"), ["missing.pth"]),
        (("--device", "cuda:99"), ["cuda:99"]),
        (("--num-labels", "3"), ["--num-labels", "no_adaptation"]),
        (("--small", "²x32"), ["--small", "²x32", "HEIGHTxWIDTH"]),
        (("--resume", "run"), ["--resume", "recipe", "run.yaml"]),
        (("--set", "input.source.crop=512,512"), ["input.source.crop", "[512, 512]"]),
        (("--recipe", "recipe.yaml"), ["both", "--recipe FILE"]),
    ],
)
def test_bad_settings_end_with_one_sentence(
    run_cli: Callable[..., tuple[int, str, str]],
    camvid_folder: Callable[..., Path],
    tmp_path: Path,
    arguments: tuple[str, ...],
    words: list[str],
) -> None:
    code, _, stderr = run_cli(*_train(camvid_folder("data"), tmp_path / "run", *arguments))
    assert code == 2
    assert len(stderr.strip().splitlines()) == 1
    for word in words:
        assert word in stderr


@pytest.mark.parametrize(
    "option", ["--num-labels=-1", "--seed=-1", "--workers=-1", "--checkpoint-every=0", "--max-bad-steps=-1"]
)
def test_numbers_out_of_range_are_refused_by_their_option(
    option: str, run_cli: Callable[..., tuple[int, str, str]]
) -> None:
    code, _, stderr = run_cli("train", "udas", option)
    assert code == 2
    assert f"Invalid value for '{option.partition('=')[0]}'" in stderr


def test_only_what_a_run_can_take_up_stands_beside_resume(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    for command in ("train", "translate"):
        code, _, stderr = run_cli(command, "--resume", tmp_path, "--seed", 3, "--device", "cpu")
        assert code == 2
        assert stderr.startswith("udas-fast: --resume: found --seed beside it, expected --")
        assert "no run to go on with" in run_cli(command, "--resume", tmp_path, "--device", "cpu")[2]
    assert "no run" in run_cli("train", "--resume", tmp_path, "--max-bad-files", 1, "--device", "cpu")[2]


def test_letters_that_a_terminal_does_not_have_end_no_command(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setattr("sys.argv", ["udas-fast", "recipes"])  # GTA5 → Cityscapes
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    terminal.flush()
    assert b"GTA5 ? Cityscapes" in terminal.buffer.getvalue()


@pytest.mark.parametrize("images", [True, False])
def test_a_target_without_val_labels_trains_and_is_not_scored(
    images: bool,
    run_cli: Callable[..., tuple[int, str, str]],
    camvid_folder: Callable[..., Path],
    tmp_path: Path,
) -> None:
    source, target = camvid_folder("sim"), camvid_folder("real")
    shutil.rmtree(target / "labels")
    if not images:
        shutil.rmtree(target / "images/val")
    code, stdout, stderr = run_cli(
        *("train", "udas", "--source", f"camvid:{source}", "--target", f"camvid:{target}"),
        *(
            "--out",
            tmp_path / "run",
            "--small",
            "32x48",
            "--steps",
            6,
            "--device",
            "cpu",
            *TINY,
            "--engine",
            "torch",
        ),
    )
    assert code == 0, stderr
    assert "no labelled val images, so no scores" in stdout
    assert "mIoU" not in stdout
    assert (tmp_path / "run/model.safetensors").is_file()


def test_help_is_complete() -> None:
    import typer

    from udas_fast.data import KINDS

    assert ", ".join(KINDS) == cli.KINDS
    group = typer.main.get_command(cli.app)
    for name, command in group.commands.items():
        first = command.help.split("\n\n")[0]
        assert len(first) <= 58, f"{name}: the list of commands cuts {first!r}"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name} {parameter.name}"
    words = " ".join(group.commands["train"].help.split())
    assert cli.KINDS in words


def test_more_labels_than_images(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    code, _, stderr = run_cli(
        *_train(camvid_folder("data"), tmp_path / "run", "--num-labels", 9, recipe="udas")
    )
    assert code == 2
    assert "found 9" in stderr
    assert "4" in stderr


def test_checkpoint_of_other_classes_is_refused(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from udas_fast.models import ModelConfig, build_model

    model = build_model(ModelConfig(backbone="resnet18", width=4, norm="batch"), 19)
    torch.save(model.state_dict(), tmp_path / "other.pth")
    root = camvid_folder("data")
    code, _, stderr = run_cli(*_train(root, tmp_path / "run", "--weights", tmp_path / "other.pth"))
    assert code == 2
    assert len(stderr.strip().splitlines()) == 1
    assert "19" in stderr
    assert "11" in stderr


def test_a_run_folder_is_not_overwritten(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root, out = camvid_folder("data"), tmp_path / "run"
    assert run_cli(*_train(root, out))[0] == 0
    before = (out / "metrics.jsonl").read_text()
    code, _, stderr = run_cli(*_train(root, out))
    assert code == 2
    assert "--resume" in stderr
    assert (out / "metrics.jsonl").read_text() == before


def test_processes_that_torchrun_restarts_go_on_with_their_run(
    camvid_root: Path,
    tmp_path: Path,
    run_cli: Callable[..., tuple[int, str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arguments = _train(camvid_root, tmp_path / "run")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run_cli(*arguments)[0] == 0  # the first attempt had failed before there was a run
    code, output, _ = run_cli(*arguments)
    assert code == 0
    assert "already complete" in output


def test_recipe_from_a_file(
    run_cli: Callable[..., tuple[int, str, str]], camvid_folder: Callable[..., Path], tmp_path: Path
) -> None:
    from udas_fast.recipes import get_recipe, small

    root, path = camvid_folder("data"), tmp_path / "recipe.yaml"
    recipe = small(get_recipe("supervised"), size=(32, 48), steps=2, batch_size=2)
    path.write_text(yaml.safe_dump(recipe.to_dict()))
    code, _, stderr = run_cli(
        *(
            "train",
            "--recipe",
            path,
            "--target",
            f"camvid:{root}",
            "--num-labels",
            2,
            "--out",
            tmp_path / "run",
        ),
        *("--device", "cpu", "--set", "model.width=4"),
    )
    assert code == 0, stderr
    written = yaml.safe_load((tmp_path / "run/run.yaml").read_text())
    assert written["recipe"]["model"]["width"] == 4
    assert written["recipe"]["name"] == "supervised"


def test_plan_prints_what_fits_and_writes_json(
    run_cli: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    file = tmp_path / "plan.json"
    small = ("--small", "32x48", "--batches", "1,2", "--set", "model.width=4")
    code, out, _ = run_cli(
        "plan", "no_adaptation", *small, "--set", "memory.checkpointing=all", "--json", file
    )
    assert code == 0
    assert re.search(r"^4 GB +all +all *$", out, re.MULTILINE)
    rows = json.loads(file.read_text())["rows"]
    assert [(row["batch_size"], row["checkpointing"]) for row in rows] == [(1, "all"), (2, "all")]
    for row in rows:
        stage = row["stages"]["source"]
        kinds = [size for name, size in stage.items() if name not in ("tensors", "needed")]
        assert stage["tensors"] == sum(kinds) < stage["needed"]
    assert run_cli("plan")[0] == 2
