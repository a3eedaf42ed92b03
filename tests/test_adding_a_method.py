"""The worked example of docs/adding-a-method.md: its two files, put where the page says, train."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_example_is_found_and_trains(camvid_root: Path, tmp_path: Path) -> None:
    page = (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8")
    files = dict(re.findall(r"`(udas_fast/\S+\.py)`:\n\n```python\n(.*?)```", page, re.DOTALL))
    assert len(files) == 2
    assert sum(len([line for line in text.splitlines() if line]) for text in files.values()) < 60

    shutil.copytree(ROOT / "udas_fast", tmp_path / "udas_fast", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in files.items():
        assert not (tmp_path / name).exists()
        (tmp_path / name).write_text(text, encoding="utf-8")
    data = f"camvid:{camvid_root}"
    arguments = ["--small", "32x48", "--steps", "2", "--set", "model.width=4", "--out", str(tmp_path / "run")]
    command = [sys.executable, "-m", "udas_fast", "train", "maximum_squares"]
    result = subprocess.run(
        [*command, "--source", data, "--target", data, "--device", "cpu", "--engine", "torch", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "run/model.safetensors").is_file()
    losses = json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1])
    # −½ Σ p² of 11 classes: from all equal to one alone.
    assert -0.5 <= losses["squares"] <= -0.5 / 11
    assert losses["seg"] > 0
