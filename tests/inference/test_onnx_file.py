"""Exported ONNX files scored and used for predictions as the model they were made of, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from udas_fast import TrainedModel, cli
from udas_fast.data import Sample, SegmentationDataset
from udas_fast.errors import InputError
from udas_fast.evaluation import evaluate_dataset
from udas_fast.inference import export_model, load_onnx

pytestmark = pytest.mark.slow

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
Make = Callable[..., TrainedModel]


class Predicted(SegmentationDataset):
    """Images of noise whose labels are a model's own, half of them shifted, at the size of its input."""

    name = "predicted"

    def __init__(self, trained: TrainedModel) -> None:
        self.classes, rng = trained.classes, np.random.default_rng(0)
        self.samples = []
        for i in range(3):
            image = rng.integers(0, 256, (*trained.size, 3), dtype=np.uint8)
            label, _ = trained.predict(image)
            label[: i * 8] = (label[: i * 8] + 1) % 11
            self.samples.append(Sample(image, label, str(i)))

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Sample:
        return self.samples[index]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of each output, of one model."""
    from udas_fast.data import CAMVID
    from udas_fast.models import ModelConfig, build_model

    torch.manual_seed(0)
    config = ModelConfig(backbone="resnet18", width=4, head="fcn")
    trained = TrainedModel(build_model(config, 11).eval(), config, CAMVID, (32, 48), temperature=0.5)
    folder = tmp_path_factory.mktemp("exported")
    trained.save(folder / "model.safetensors")
    found = {"model": folder / "model.safetensors"}
    for output in ("logits", "logits-small", "labels", "labels,confidence"):
        found[output] = folder / f"{output}.onnx"
        size = (32, 48) if output == "labels" else None
        export_model(trained, found[output], "onnx", output=output, size=size)
    return found


@pytest.mark.parametrize("output", ["logits", "logits-small", "labels", "labels,confidence"])
def test_the_scores_are_those_of_the_model(exported: dict[str, Path], output: str) -> None:
    original, found = TrainedModel.load(exported["model"]), load_onnx(exported[output])
    dataset = Predicted(original)
    assert (found.classes.names, found.size) == (original.classes.names, original.size)
    expected, scores = (
        evaluate_dataset(one.model, dataset, "val", one.size, temperature=one.temperature)
        for one in (original, found)
    )
    assert 0.1 < expected.miou < 0.95
    assert scores.miou == pytest.approx(expected.miou, abs=0.001)
    if output == "labels":
        assert scores.reliability is None
    else:
        assert scores.ece == pytest.approx(expected.ece, abs=0.01)
    image = dataset[0].image
    for one, other in zip(found.predict(image), original.predict(image), strict=True):
        if one.dtype == np.uint8:
            assert (one == other).mean() > 0.999
        elif output != "labels":
            np.testing.assert_allclose(one, other, atol=2e-3)


def test_the_command(
    exported: dict[str, Path],
    camvid_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*words: object) -> int:
        monkeypatch.setattr("sys.argv", ["udas-fast", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0)

    root = camvid_folder("data", size=(32, 48))  # a file of labels has those of its input's size
    data = ("--data", f"camvid:{root}", "--json", tmp_path / "scores.json")
    mious = []
    for model in (exported["model"], exported["labels"]):
        assert run("evaluate", model, *data) == 0
        mious.append(json.loads((tmp_path / "scores.json").read_text())["miou"])
    assert mious[1] == pytest.approx(mious[0], abs=0.001)
    assert run("evaluate", exported["labels"], *data, "--calibrate") == 2
    assert "--calibrate: found" in capsys.readouterr().err
    assert run("evaluate", exported["labels"], *data, "--views", "0.5") == 2
    assert "image for the exported file: found 16x24, expected 32x48" in capsys.readouterr().err
    words = ("export", exported["model"], "--format", "onnx", "--out", tmp_path / "half.onnx")
    assert run(*words, "--output", "labels", "--size", "32x48", "--half") == 0
    assert "arg-max equal in" in capsys.readouterr().out


def test_what_is_no_exported_model(exported: dict[str, Path], tmp_path: Path) -> None:
    path, card = tmp_path / "a.onnx", tmp_path / "a.onnx.json"
    with pytest.raises(InputError, match="description .*a.onnx.json: found no such file"):
        load_onnx(path)
    text = exported["labels"].with_name("labels.onnx.json").read_text()
    card.write_text(text)
    with pytest.raises(InputError, match="model .*a.onnx: found no such file"):
        load_onnx(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"model .*a.onnx: cannot be run \("):
        load_onnx(path)
    card.write_text(text.replace('"output": "labels"', '"output": "pictures"'))
    with pytest.raises(InputError, match=r"a.onnx.json: damaged \(output"):
        load_onnx(path)
