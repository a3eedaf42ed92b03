"""`udas-fast rank`: the order of images by each score, the list that `--num-labels` takes, and what is refused."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from command_words import train_words
from PIL import Image
from torch import Tensor

from udas_fast import TrainedModel
from udas_fast.data import CAMVID, open_dataset
from udas_fast.inference.ranking import Ranked, class_rarity, rank_images, spread_out
from udas_fast.models import ModelConfig, build_model

RunCli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def trained() -> TrainedModel:
    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet18", width=4, head="fcn")
    return TrainedModel(build_model(config, 11).eval(), config, CAMVID, (32, 48), temperature=0.8)


@pytest.fixture
def root(camvid_folder: Callable[..., Path], tmp_path: Path, trained: TrainedModel) -> Path:
    """Eight images of which three have labels, and two models beside them."""
    folder = camvid_folder("data", train=8, size=(32, 48))
    for number in range(3, 8):
        (folder / f"labels/train/{number:04d}.png").unlink()
    trained.save(tmp_path / "one.safetensors")
    torch.nn.init.normal_(next(trained.model.parameters()), std=0.2)
    trained.save(tmp_path / "other.safetensors")
    return folder


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "rank.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _entropy(trained: TrainedModel, image: np.ndarray) -> float:
    output, size = trained.logits(image)
    logits = F.interpolate(output.primary.double(), size, mode="bilinear", align_corners=output.align_corners)
    chance = (logits / trained.temperature).softmax(1)
    return float(-(chance * chance.log()).sum(1).mean() / np.log(11))


def test_the_least_sure_images_come_first_and_train_takes_them(
    run_cli: RunCli, root: Path, camvid_root: Path, tmp_path: Path
) -> None:
    model, out = tmp_path / "one.safetensors", tmp_path / "next"
    code, stdout, stderr = run_cli("rank", model, "--data", f"camvid:{root}", "--n", 2, "--out", out)
    assert code == 0, stderr
    assert "2 of 5 images by uncertainty" in stdout
    rows = _rows(out)
    trained = TrainedModel.load(model)
    expected = {
        f"{i:04d}": _entropy(trained, np.asarray(Image.open(root / f"images/train/{i:04d}.png")))
        for i in range(3, 8)
    }
    order = sorted(expected, key=lambda name: -expected[name])
    assert [row["image"] for row in rows] == order
    for row in rows:
        assert float(row["uncertainty"]) == pytest.approx(expected[row["image"]], abs=1e-5)
    assert (out / "next.txt").read_text().split() == order[:2]
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width > 0

    for name in order[:2]:  # they are labelled
        Image.fromarray(np.zeros((32, 48), np.uint8)).save(root / f"labels/train/{name}.png")
    words = list(
        train_words(root, tmp_path / "run", "--num-labels", out / "next.txt", recipe="joint", steps=2)
    )
    words[words.index("--source") + 1] = f"camvid:{camvid_root}"  # which has a label for every image
    code, stdout, stderr = run_cli(*words)
    assert code == 0, stderr
    assert all(name in (tmp_path / "run/run.yaml").read_text() for name in order[:2])


def test_models_or_views_that_disagree(run_cli: RunCli, root: Path, tmp_path: Path) -> None:
    models, data = [tmp_path / f"{name}.safetensors" for name in ("one", "other")], f"camvid:{root}"
    code, _, stderr = run_cli(
        "rank", *models, "--data", data, "--by", "disagreement", "--out", tmp_path / "a"
    )
    assert code == 0, stderr
    one, other = (TrainedModel.load(model) for model in models)
    for row in _rows(tmp_path / "a"):
        image = root / f"images/train/{row['image']}.png"
        share = (one.predict(image)[0] != other.predict(image)[0]).mean()
        assert float(row["disagreement"]) == pytest.approx(share, abs=1e-6)
    code, _, stderr = run_cli(
        "rank", models[0], "--data", data, "--by", "disagreement", "--out", tmp_path / "b"
    )
    assert code == 0, stderr
    assert 0 < float(_rows(tmp_path / "b")[0]["disagreement"]) <= 1


class Constant(torch.nn.Module):
    """A network that is sure of the class that an image's red value names."""

    def forward(self, x: Tensor) -> Tensor:
        red = ((x[:, :1] * 0.229 + 0.485) * 255).round().long()
        return 20 * F.one_hot(red[:, 0].clamp(0, 10), 11).movedim(-1, 1).float()


def test_labels_that_are_contradicted(tmp_path: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind / "train").mkdir(parents=True)
    for number, wrong in enumerate((0, 8, 4)):
        label = np.zeros((16, 24), np.uint8)
        image = np.stack([label + 3] * 3, -1)
        label[:] = 3
        label[:wrong] = 5
        label[-2:] = 11  # void
        Image.fromarray(image).save(tmp_path / f"images/train/{number}.png")
        Image.fromarray(label).save(tmp_path / f"labels/train/{number}.png")
    trained = TrainedModel(Constant(), None, CAMVID, (16, 24))
    dataset = open_dataset(f"camvid:{tmp_path}", "train")
    ranked = rank_images([trained], dataset, range(3), "doubt")
    assert [one.id for one in ranked] == ["1", "2", "0"]
    assert [one.score for one in ranked] == pytest.approx([8 / 14, 4 / 14, 0])
    assert ranked[0].pair == f"{CAMVID.names[5]} as {CAMVID.names[3]}"
    assert ranked[2].pair == ""
    rarity = class_rarity(torch.tensor([0] * 3 + [90] + [10] + [0] * 6))
    rare = rank_images([trained], dataset, range(3), "rare", rarity=rarity)
    assert [one.id for one in rare] == ["0", "1", "2"]  # equal scores keep their order
    assert rare[0].score == pytest.approx((1 / 0.91) / (1 / 0.01))


def test_images_that_differ_are_spread() -> None:
    places = [0.0, 0.1, 0.2, 5.0, 5.1, 9.0, 100.0]
    ranked = [Ranked(i, str(i), 1 - i / 10, "", torch.tensor([place])) for i, place in enumerate(places)]
    assert [one.id for one in spread_out(ranked, 1)] == ["0"]
    assert [one.id for one in spread_out(ranked[:6], 3)] == ["0", "5", "3"]
    assert [one.id for one in spread_out(ranked, 9)][:2] == ["0", "6"]
    assert sorted(one.id for one in spread_out(ranked, 9)) == [str(i) for i in range(7)]
    same = [Ranked(i, str(i), 1.0, "", torch.zeros(1)) for i in range(3)]
    assert sorted(one.id for one in spread_out(same, 3)) == ["0", "1", "2"]
    assert spread_out([], 3) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--by", "doubts"), "--by: found 'doubts', expected one of"),
        (("--split", "val"), "found a label for every image, expected images to rank by uncertainty"),
    ],
)
def test_what_cannot_be_ranked(
    run_cli: RunCli, root: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    model, out = tmp_path / "one.safetensors", tmp_path / "out"
    code, _, stderr = run_cli("rank", model, "--data", f"camvid:{root}", "--out", out, *words)
    assert code == 2
    assert message in stderr
    assert not out.exists()
