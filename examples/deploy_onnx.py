"""From a run to labels without this package: export to ONNX, then onnxruntime and numpy alone.

pip install ".[export]"
python examples/deploy_onnx.py RUN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

import udas_fast as uf
from udas_fast.data.streets import Streets
from udas_fast.inference import export_model


def main(run_dir: str | Path) -> np.ndarray:
    """Export the model of a finished run beside it and return the labels [H, W] of a scene."""
    model = uf.load(run_dir)
    path = Path(run_dir) / "model.onnx"
    agreement = export_model(model, path, "onnx", output="labels")
    print(f"{path}: {agreement}")
    return label(path, Streets("real", "val", model.size)[0].image)


def label(path: Path, image: np.ndarray) -> np.ndarray:
    """Return train ids uint8 [H, W] of an RGB image uint8 [H, W, 3]; nothing of udas_fast is used here."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: image.transpose(2, 0, 1)[None]})
    classes = json.loads(Path(f"{path}.json").read_text(encoding="utf-8"))["classes"]
    ids, counts = np.unique(found, return_counts=True)
    print({classes[i]: f"{n / found.size:.0%}" for i, n in zip(ids, counts, strict=True)})
    return found[0]


if __name__ == "__main__":
    main(*sys.argv[1:])
