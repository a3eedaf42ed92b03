"""Exported files give the model's logits, without this package and at any size; errors of the export."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast import TrainedModel, cli
from udas_fast.data import CAMVID
from udas_fast.errors import InputError
from udas_fast.inference import export, export_model

Make = Callable[..., TrainedModel]

ALONE = """
import sys
sys.modules["udas_fast"] = None  # an import of it fails
import torch
image = torch.load(sys.argv[2], weights_only=True)
torch.save(torch.export.load(sys.argv[1]).module()(image), sys.argv[3])
"""


def _expected(trained: TrainedModel, image: Tensor) -> Tensor:
    """Return the logits of the image's size, in float64."""
    mean = torch.tensor((0.485, 0.456, 0.406), dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225), dtype=torch.float64).view(3, 1, 1)
    with torch.no_grad():
        logits = trained.model.double()((image.double() / 255 - mean) / std).primary
    aligned = trained.config.align_corners
    return F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=aligned)


def _images(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_the_command_and_a_file_that_runs_without_this_package(
    make_trained: Make,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained, image = make_trained(align_corners=True, norm="domain"), _images(1, 3, 37, 50)
    trained.save(tmp_path / "model.safetensors")
    arguments = ["export", tmp_path, "--format", "torch", "--out", tmp_path / "model.pt2"]
    monkeypatch.setattr("sys.argv", ["udas-fast", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    assert "arg-max equal in 100.0000% of pixels" in capsys.readouterr().out
    torch.save(image, tmp_path / "image.pt")
    files = [str(tmp_path / name) for name in ("model.pt2", "image.pt", "logits.pt")]
    subprocess.run([sys.executable, "-c", ALONE, *files], check=True)
    logits = torch.load(tmp_path / "logits.pt", weights_only=True)
    # float32 against float64 through some twenty layers
    torch.testing.assert_close(logits.double(), _expected(trained, image), rtol=1e-4, atol=1e-4)
    card = json.loads((tmp_path / "model.pt2.json").read_text())
    assert card["classes"] == list(CAMVID.names)
    assert card["size"] == [32, 48]
    assert card["protocol"]["dataset"] == "camvid"


@pytest.mark.slow
def test_onnx_runs_at_any_size(make_trained: Make, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    trained = make_trained(head="deeplabv3plus", output_stride=4)
    agreement = export_model(trained, tmp_path / "model.onnx", "onnx")
    assert agreement.largest_difference <= 1e-4 * agreement.largest_logit
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    (expected,) = session.get_inputs()
    assert (expected.name, expected.type) == ("image", "tensor(uint8)")
    assert expected.shape == ["batch", 3, "height", "width"]
    trained.model.double()
    for shape in ((1, 3, 32, 48), (2, 3, 61, 40)):
        image = _images(*shape)
        (logits,) = session.run(["logits"], {"image": image.numpy()})
        np.testing.assert_allclose(logits, _expected(trained, image).numpy(), rtol=1e-4, atol=1e-4)


class Branching(nn.Module):
    """Network with a branch that depends on a value."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_impossible_exports_are_refused(
    make_trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained(head="fcn")
    with pytest.raises(InputError, match="--output: found 'label', expected one of .*did you mean 'labels'"):
        export_model(trained, tmp_path / "model.onnx", "onnx", output="label")
    odd = TrainedModel(Branching(), None, CAMVID, (8, 8))
    for model, name, form, words in (
        (trained, "model.pt2", "tensorrt", "--format: found 'tensorrt', expected one of onnx, torch"),
        (trained, "model.pt", "torch", "a name that ends in .pt2"),
        (odd, "model.pt2", "torch", "export: Branching cannot be exported to torch"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            export_model(model, tmp_path / name, form)
        assert "\n" not in str(caught.value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'expected pip install "udas-fast\[export\]"'):
        export_model(trained, tmp_path / "model.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_a_file_that_disagrees_is_not_written(
    make_trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained(head="fcn")
    whole = export.Exported(trained.model)
    monkeypatch.setattr(export, "_trace", lambda *_, **__: None)
    for wrong in (1.001, float("nan")):
        monkeypatch.setattr(
            export, "_torch", lambda _, wrong=wrong: (b"x", lambda image: (whole(image) * wrong,))
        )
        with pytest.raises(InputError, match="one that disagrees with the model: largest difference"):
            export_model(trained, tmp_path / "model.pt2", "torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_folder_of_the_file_is_made(make_trained: Make, tmp_path: Path) -> None:
    path = tmp_path / "new/folder/model.pt2"
    export_model(make_trained(), str(path), "torch")
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.pt2", "model.pt2.json"]


def _onnx(path: Path) -> Callable[[Tensor], list[np.ndarray]]:
    session = pytest.importorskip("onnxruntime").InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image.numpy()})


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_labels_and_confidence_of_any_size(make_trained: Make, tmp_path: Path, form: str) -> None:
    pytest.importorskip("onnxscript")
    trained, path = make_trained(align_corners=True), tmp_path / f"model{export.SUFFIXES[form]}"
    trained.temperature = 1.7
    agreement = export_model(trained, path, form, output="labels,confidence")
    assert agreement.equal_classes > 0.999
    run = _onnx(path) if form == "onnx" else torch.export.load(path).module()
    image = _images(2, 3, 41, 56)
    labels, confidence = (torch.as_tensor(value).detach() for value in run(image))
    chance = (_expected(trained, image) / 1.7).softmax(1)
    assert (labels.dtype, confidence.dtype) == (torch.uint8, torch.float16)
    assert (labels == chance.argmax(1)).double().mean() > 0.999
    np.testing.assert_allclose(confidence.double(), chance.amax(1), atol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("error")  # none of torch or of onnx reaches the user
def test_a_fixed_size_and_small_logits(make_trained: Make, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    trained, path = make_trained(head="fcn"), tmp_path / "model.onnx"
    export_model(trained, path, "onnx", output="logits-small", size=(64, 96))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 3, 64, 96]
    image = _images(1, 3, 64, 96)
    (small,) = session.run(["logits"], {"image": image.numpy()})
    assert small.shape[-2] < 64
    full = F.interpolate(torch.from_numpy(small).double(), (64, 96), mode="bilinear")
    np.testing.assert_allclose(full, _expected(trained, image), rtol=1e-4, atol=1e-4)
    card = json.loads((tmp_path / "model.onnx.json").read_text())
    assert (card["output"], card["size"], card["size_is_fixed"]) == ("logits-small", [64, 96], True)
    assert "64x96 to which images must be resized before" in card["input"]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["torch", "onnx"])
def test_half_precision(make_trained: Make, tmp_path: Path, form: str) -> None:
    pytest.importorskip("onnxscript")
    trained = make_trained(head="fcn")
    sizes = {}
    for half in (False, True):
        path = tmp_path / f"{half}{export.SUFFIXES[form]}"
        agreement = export_model(trained, path, form, output="labels", half=half)
        sizes[half] = path.stat().st_size
        assert agreement.equal_classes > 0.97
    weights = sum(4 * parameter.numel() for parameter in trained.model.parameters())
    assert sizes[False] - sizes[True] > 0.4 * weights
    assert next(trained.model.parameters()).dtype == torch.float32
    assert json.loads(path.with_name(f"{path.name}.json").read_text())["precision"] == "fp16"


def test_labels_that_are_no_ties_are_refused(
    make_trained: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = make_trained(head="fcn")
    whole = export.Exported(trained.model, "labels").eval()
    monkeypatch.setattr(export, "_trace", lambda *_, **__: None)
    monkeypatch.setattr(export, "_torch", lambda _: (b"x", lambda image: ((whole(image) + 1) % 11,)))
    with pytest.raises(InputError, match="one that disagrees with the model"):
        export_model(trained, tmp_path / "model.pt2", "torch", output="labels")
    assert not list(tmp_path.iterdir())
