"""The commands on data as people have it: some labels, labels that cannot be right, other files, a bad photo."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

RunCli = Callable[..., tuple[int, str, str]]
SMALL = ("--small", "64x96", "--steps", 6, "--device", "cpu", "--engine", "torch", "--set", "model.width=4")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a ``folder:`` root of three classes, train 8 and val 3; only images in ``labelled`` have a label."""

    def write(name: str, labelled: range = range(8)) -> Path:
        root, rng = tmp_path / name, np.random.default_rng(0)
        for split, count in (("train", 8), ("val", 3)):
            for kind in ("images", "labels"):
                (root / kind / split).mkdir(parents=True)
            for i in range(count):
                label = rng.integers(0, 3, (8, 12), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
                image = np.stack([60 * label, 200 - 60 * label, label], -1)
                Image.fromarray(image).save(root / f"images/{split}/{i:04d}.png")
                if split == "val" or i in labelled:
                    Image.fromarray(label).save(root / f"labels/{split}/{i:04d}.png")
        (root / "classes.txt").write_text("grass\nroad\ncar\n")
        return root

    return write


def train(source: Path, target: Path, out: Path, *more: object) -> tuple[object, ...]:
    data = ("--source", f"folder:{source}", "--target", f"folder:{target}", "--out", out)
    return ("train", "online_self_training", *data, *SMALL, *more)


@pytest.mark.slow
def test_a_target_of_which_two_images_have_labels(
    run_cli: RunCli, folder: Callable[..., Path], tmp_path: Path
) -> None:
    sim, real = folder("sim"), folder("real", range(2))
    code, stdout, stderr = run_cli(*train(sim, real, tmp_path / "plain"))
    assert code == 0, stderr
    assert "target folder (0 labelled, 8 unlabelled; 2 labels unused without --num-labels)" in stdout
    assert "mIoU: mean over all 3 classes" in stdout
    (tmp_path / "ids.txt").write_text("0001\n")
    for choice, count in (("all", 2), (1, 1), (tmp_path / "ids.txt", 1)):
        code, stdout, stderr = run_cli(
            *train(sim, real, tmp_path / f"run-{count}-{len(str(choice))}", "--num-labels", choice)
        )
        assert code == 0, stderr
        assert f"target folder ({count} labelled, {8 - count} unlabelled), val folder (3)" in stdout
        assert stdout.index("labelled") < stdout.index("mIoU")
    few = folder("few", range(4))  # the rest of its images is not used
    code, stdout, stderr = run_cli(*train(sim, real, tmp_path / "few", "--labelled", f"folder:{few}"))
    assert code == 0, stderr
    assert "target folder (4 labelled, 8 unlabelled)" in stdout


@pytest.mark.slow
def test_two_sources_with_shares(run_cli: RunCli, folder: Callable[..., Path], tmp_path: Path) -> None:
    first, second, real, run = folder("sim"), folder("game"), folder("real"), tmp_path / "run"
    words = (*train(first, real, run), "--source", f"folder:{second}=3")
    code, _, stderr = run_cli(*words)
    assert code == 2
    assert "found shares beside input.rare_classes, expected none, as the rare classes" in stderr
    words = (*words[:-2], "--set", "input.rare_classes=null", *words[-2:])
    code, stdout, stderr = run_cli(*words)
    assert code == 0, stderr
    assert "data source folder + folder (16), target folder" in stdout
    data = yaml.safe_load((run / "run.yaml").read_text())["run"]["data"]
    assert data["source"] == [f"folder:{first}=1", f"folder:{second}=3"]
    assert f"folder:{first}=1 + folder:{second}=3" in _page(run_cli, run)
    (run / "model.safetensors").unlink()
    max(run.glob("checkpoints/step-*.pt")).unlink()
    for kind in ("images", "labels"):
        (second / kind / "train/0003.png").unlink()
    code, _, stderr = run_cli("train", "--resume", run, "--device", "cpu")
    assert code == 2
    assert "source: 1 (1/0003) gone, expected the files" in stderr
    code, _, stderr = run_cli(*words[:-2], "--out", tmp_path / "new", "--source", words[3])
    assert code == 2
    assert "different datasets, each once" in stderr
    code, _, stderr = run_cli(*words, "--out", tmp_path / "cyclegan", "--translate", "cyclegan")
    assert code == 2
    assert (
        "--source: found 2 for recipe online_self_training, whose source CycleGAN translates, expected one"
        in stderr
    )


def _page(run_cli: RunCli, run: Path) -> str:
    assert run_cli("report", run)[0] == 0
    return (run / "report.html").read_text()


def test_check_data_tells_labels_that_cannot_be_right(run_cli: RunCli, folder: Callable[..., Path]) -> None:
    root = folder("real", range(2))
    code, stdout, stderr = run_cli("check-data", f"folder:{root}")
    assert code == 0
    assert "8 images (8 of 64x96), 2 labelled, 6 unlabelled, 0 ignored pixels" in stdout
    assert stderr == "NOTICE: a source needs a label for every image; of a target some suffice\n"
    assert stdout.endswith("no damaged files; notices: 1\n")
    for path in (root / "labels/train").iterdir():
        label = np.array(Image.open(path))
        Image.fromarray(np.where(label == 0, 0, 255).astype(np.uint8)).save(path)
    shutil.copy(root / "labels/train/0000.png", root / "labels/train/stray.png")
    _, stdout, stderr = run_cli("check-data", f"folder:{root}")
    assert "NOTICE: the only ids are 0 (grass) and 255, which is ignored" in stderr
    assert "% of the pixels of labels are ignored\n" in stderr
    assert f"NOTICE: label files without an image: 1 ({root}/labels/train/stray.png)\n" in stderr
    shutil.rmtree(root / "labels/train")
    code, stdout, _ = run_cli("check-data", f"folder:{root}")
    assert code == 0
    assert "0 labelled, 8 unlabelled" in stdout
    assert "grass" not in stdout
    assert run_cli("check-data", f"folder:{root}", "--split", "val")[1].endswith("no problems\n")


@pytest.mark.slow
def test_other_files_on_resume(run_cli: RunCli, folder: Callable[..., Path], tmp_path: Path) -> None:
    sim, run = folder("sim"), tmp_path / "run"
    assert run_cli(*train(sim, sim, run))[0] == 0
    (run / "model.safetensors").unlink()
    max(run.glob("checkpoints/step-*.pt")).unlink()
    for kind in ("images", "labels"):
        (sim / kind / "train/0003.png").unlink()
    resume = ("train", "--resume", run, "--device", "cpu")
    code, _, stderr = run_cli(*resume)
    assert code == 2
    assert (
        "source: 1 (0003) gone; unlabelled: 1 (0003) gone, expected the files of its checkpoint, or --a"
        in stderr
    )
    code, _, stderr = run_cli(*resume, "--allow-other-data")
    assert code == 0, stderr
    assert "data has changed since the checkpoint: source: 1 (0003) gone" in stderr
    code, _, stderr = run_cli(*train(sim, sim, tmp_path / "new", "--allow-other-data"))
    assert (code, stderr) == (
        2,
        "udas-fast: --allow-other-data: found no --resume, expected the run that goes on with other files\n",
    )


@pytest.mark.slow
def test_weights_of_other_classes_and_a_bad_photo(
    run_cli: RunCli, folder: Callable[..., Path], tmp_path: Path
) -> None:
    sim, run = folder("sim"), tmp_path / "run"
    assert run_cli(*train(sim, sim, run))[0] == 0
    photos = tmp_path / "photos"
    shutil.copytree(sim / "images/train", photos)
    (photos / "0002.png").write_bytes((photos / "0002.png").read_bytes()[:100])
    code, stdout, stderr = run_cli("predict", run, photos, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2
    assert "7 images labelled in" in stdout
    assert f"skipped: image {photos}/0002.png: found " in stderr
    assert stderr.endswith("udas-fast: predict: 1 of 8 files cannot be read; the others are labelled\n")
    (photos / "0003.png").write_bytes(b"")
    words = ("predict", run, photos, "--table", tmp_path / "table.csv", "--device", "cpu", "--max-bad-files")
    code, stdout, stderr = run_cli(*words, 2)
    assert (code, stdout, stderr.count("skipped: ")) == (
        0,
        f"6 images labelled in {tmp_path / 'table.csv'}\n",
        2,
    )
    code, _, stderr = run_cli(*words, 1)
    assert code == 2
    assert stderr.endswith("2 of 8 files cannot be read, --max-bad-files allows 1; the others are labelled\n")
    assert len(list((tmp_path / "out").glob("*_ids.png"))) == 7
    (sim / "classes.txt").write_text("grass\nroad\ncar\nsky\n")
    weights = ("--weights", run / "model.safetensors")
    code, _, stderr = run_cli(*train(sim, sim, tmp_path / "refused", *weights))
    assert code == 2
    assert "found 3 classes in auxiliary.branches.0.weight, expected 4 classes; --reset-head" in stderr
    code, stdout, stderr = run_cli(*train(sim, sim, tmp_path / "reset", *weights, "--reset-head"))
    assert code == 0, stderr
    assert "  head of 3 classes left out, reset: auxiliary.* (8), primary.* (8)\n" in stdout
    assert "NOTICE: source folder: classes that no label shows: 1 of 4 (sky)\n" in stderr


def test_classes_of_a_task_in_both_domains(
    run_cli: RunCli, folder: Callable[..., Path], tmp_path: Path
) -> None:
    sim, real, task = folder("sim"), folder("real"), tmp_path / "task.yaml"
    (real / "classes.txt").unlink()
    (real / "dataset.yaml").write_text("classes: {meadow: 0, auto: 2, street: 1}\n")
    task.write_text("green: [grass, meadow]\nway: [road, street]\n")
    code, stdout, stderr = run_cli(*train(sim, real, tmp_path / "run", "--classes", task))
    assert code == 0, stderr
    assert "mIoU: mean over all 2 classes" in stdout
    data = ("--device", "cpu")
    code, stdout, stderr = run_cli(
        "evaluate", tmp_path / "run", f"--data=folder:{real}", "--classes", task, *data
    )
    assert code == 0, stderr
    code, _, stderr = run_cli("evaluate", tmp_path / "run", f"--data=folder:{real}", *data)
    assert code == 2
    assert "--classes FILE" in stderr
    code, stdout, stderr = run_cli("check-data", f"folder:{real}", "--classes", task)
    assert code == 0
    assert "way " in stdout
    assert f"NOTICE: classes of {task} that the data does not have: 'grass', 'road'" in stderr


@pytest.mark.slow
def test_the_page_leads_from_photos_and_colour_masks_to_a_model(
    run_cli: RunCli, folder: Callable[..., Path], tmp_path: Path
) -> None:
    page = (Path(__file__).resolve().parents[2] / "docs/own-data.md").read_text(encoding="utf-8")
    section = page[page.index("## Colour masks") :]
    text = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0]
    colours = np.array(
        [[int(c[i : i + 2], 16) for i in (0, 2, 4)] for c in re.findall(r"#(\w{6})", text)], np.uint8
    )
    folder("sim")
    real = folder("real", range(2))
    for path in real.glob("labels/*/*.png"):
        Image.fromarray(colours[np.array(Image.open(path))]).save(path)
    for path in real.glob("images/*/*.png"):
        Image.open(path).save(path.with_suffix(".JPG"), "JPEG")
        path.unlink()
    (real / "classes.txt").unlink()
    (real / "dataset.yaml").write_text(text)
    check, command = re.findall(r"```bash\n(.*?)\n(.*?)\n```", section)[0]
    code, stdout, _ = run_cli(*shlex.split(check.replace("DATA", str(tmp_path)))[1:])
    assert code == 0
    assert "2 labelled, 6 unlabelled, 0 ignored pixels" in stdout
    words = shlex.split(command.replace("DATA", str(tmp_path)).replace("runs/real", str(tmp_path / "run")))
    code, stdout, stderr = run_cli(*words[1:], *SMALL)
    assert code == 0, stderr
    assert "target folder (2 labelled, 6 unlabelled)" in stdout
    assert "mIoU: mean over all 3 classes" in stdout
    assert (tmp_path / "run/model.safetensors").is_file()
