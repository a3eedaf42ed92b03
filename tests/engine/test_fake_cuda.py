"""Every recipe's step on fake CUDA tensors: no tensor of the CPU among its operations, and nothing that waits.

fake_cuda/steps.py runs a recipe in a process of its own, in which torch finds a GPU that does nothing (guard.cpp). What
only a GPU can tell is left out: its kernels, and how long they take.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils import cpp_extension

from udas_fast.ops import _library
from udas_fast.recipes import list_recipes

HERE = Path(__file__).parent / "fake_cuda"

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
    pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has a CUDA device of its own"),
    pytest.mark.skipif(bool(_library.REASON), reason="the operators' shapes are not registered"),
]


@pytest.fixture(scope="module")
def guard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("guard") / "guard.so"
    libraries = Path(torch.__file__).parent / "lib"
    include = [f"-isystem{path}" for path in cpp_extension.include_paths()]
    link = [f"-L{libraries}", f"-Wl,-rpath,{libraries}", "-lc10", "-ltorch_cpu"]
    flags = ["-std=c++20", "-O0", "-fPIC", "-shared"]
    subprocess.run(["g++", *flags, *include, str(HERE / "guard.cpp"), *link, "-o", str(made)], check=True)
    return made


def run(guard: Path, *arguments: str) -> dict[str, str]:
    """Recipe, or line, → "ok" or what was refused."""
    command = [sys.executable, str(HERE / "steps.py"), str(guard), *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(line.split(": ", 1) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_every_recipe_stays_on_the_device(guard: Path) -> None:
    assert run(guard, ",".join(list_recipes())) == dict.fromkeys(list_recipes(), "ok")


@pytest.mark.slow
def test_a_method_of_the_users_own_stays_on_the_device(guard: Path, tmp_path: Path) -> None:
    # It draws numbers on the host and moves them to the device.
    page = (Path(__file__).parents[2] / "docs/adding-a-method.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"`my_dacs\.py`:\n\n```python\n(.*?)```", page, re.DOTALL)
    file = tmp_path / "my_dacs.py"
    file.write_text(text, encoding="utf-8")
    assert run(guard, "my_dacs", f"file={file}") == {"my_dacs": "ok"}


ADAPTATION, SELF_TRAINING = "stages.adaptation.objective", "stages.self_training.objective"


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        # As on an RTX 2080 Ti, with what saves memory.
        ["precision=fp16", "memory.checkpointing=all", "ema=0.99", "stages.adaptation.optimizer.name=sgd"],
        [
            "precision=fp32",
            "model.norm=frozen",
            "memory.micro_batch_size=1",
            f"{ADAPTATION}.adversary.scales=2",
            f"{ADAPTATION}.adversary.gan=lsgan",
            f"{ADAPTATION}.adversary.real=ensemble",
            f"{ADAPTATION}.translate=fda",
            f"{ADAPTATION}.mixing.paste=target",
            f"{SELF_TRAINING}.pseudo_labels.threshold=balanced",
            f"{SELF_TRAINING}.pseudo_labels.reduce=mean",
        ],
        [
            "model.head=deeplabv3plus",
            "model.align_corners=true",
            f"{ADAPTATION}.agreement.kl=symmetric",
            f"{ADAPTATION}.entropy={{weights: [0.1, 0.1], robust: 2.0}}",
            f"{SELF_TRAINING}.pseudo_labels.labels=disk",
            f"{SELF_TRAINING}.consistency={{weight: 1}}",
            f"{SELF_TRAINING}.pseudo_labels.flip_view=true",
            f"{SELF_TRAINING}.pseudo_labels.scales=[1.25]",
        ],
    ],
    ids=["fp16", "fp32", "disk"],
)
def test_options_stay_on_the_device(settings: list[str], guard: Path) -> None:
    assert run(guard, "udas", *settings) == {"udas": "ok"}


LINES = {
    "loss * torch.ones(3).sum()": "ok",  # a scalar of the CPU may join
    "loss + batch.image.new_tensor([1.0]).sum()": "a copy from the host that a CUDA graph cannot hold",
    "loss + torch.ones(3).to(loss.device, non_blocking=True).sum()": "a copy from the host that a CUDA graph",
    "loss + (batch.image[0, 0, 0].float() * torch.ones(96)).sum()": "device",
    "loss * float(loss)": "_local_scalar_dense",
    "loss + batch.label[batch.label < 3].sum()": "nonzero",
    "loss.cpu()": "a copy to cpu that waits",
}


@pytest.mark.slow
def test_a_step_that_does_not_is_told(guard: Path) -> None:
    found = run(guard, "no_adaptation", *(f"loss={line}" for line in LINES))
    assert found.keys() == LINES.keys()
    assert not {line: found[line] for line, expected in LINES.items() if expected not in found[line]}
