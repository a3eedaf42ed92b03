"""A machine that only predicts: a process without the packages of training and drawing, and with warnings as errors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udas_fast import TrainedModel

ABSENT = "matplotlib tensorboard torch.utils.tensorboard rich transformers av onnx onnxruntime nvidia.dali wandb mlflow"
PREDICT = """
import numpy as np, udas_fast as uf
from PIL import Image
from udas_fast.inference import DatasetFolder, Pictures, Table, export_model, media_files, predict_files
model = uf.load("run/model.safetensors")
of_path, of_pillow, of_array = (
    model.predict(image)
    for image in ("photo.png", Image.open("photo.png"), np.asarray(Image.open("photo.png")))  # read-only
)
for one in (of_pillow, of_array):
    assert all((a == b).all() for a, b in zip(of_path, one))
outputs = [Pictures(Path("out"), ["ids", "overlay"], model.classes), Table(Path("t.csv"), model.classes)]
assert predict_files(model, media_files([Path("photo.png")]), outputs).images == 1
np.save("label.npy", of_path[0])
export_model(model, "seg.pt2", "torch", output="labels")
"""
COMMAND = """
from udas_fast import cli
sys.argv = ["udas-fast", "predict", "run/model.safetensors", "photo.png", "--out", "out", "--device", "cpu"]
cli.main()
"""


def _run(folder: Path, script: str, *options: str) -> str:
    """Run ``script`` where no package of ``ABSENT`` can be imported; return what it wrote to stderr."""
    begin = f"import sys\nfrom pathlib import Path\nsys.modules.update(dict.fromkeys({ABSENT!r}.split()))\n"
    done = subprocess.run(
        [sys.executable, *options, "-c", begin + script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.slow
def test_it_predicts_and_exports_without_a_warning(
    make_trained: Callable[..., TrainedModel], tmp_path: Path, image: np.ndarray
) -> None:
    trained = make_trained()
    (tmp_path / "run").mkdir()
    trained.save(tmp_path / "run/model.safetensors")
    Image.fromarray(image).save(tmp_path / "photo.png")
    assert _run(tmp_path, PREDICT, "-W", "always") == ""
    label, _ = trained.predict(image)
    np.testing.assert_array_equal(np.load(tmp_path / "label.npy"), label)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/photo_ids.png")), label)
    assert (tmp_path / "seg.pt2").is_file()
    (tmp_path / "out/photo_ids.png").unlink()
    _run(tmp_path, COMMAND)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out/photo_ids.png")), label)
