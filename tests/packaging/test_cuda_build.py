"""nvcc's output for the kernels: every architecture and class count is there, and nothing spills.

No GPU is needed: the compiler's resource report is in the extension, and cuobjdump (of the toolkit, or of the package
nvidia-cuda-cuobjdump) prints it.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

import udas_fast
from udas_fast._build import LIBRARY

UNROLLED = (2, 11, 13, 16, 19, 21)
ACTIVATIONS = range(3)
LOSSES = (
    *("CrossEntropy", "RectifiedCrossEntropy", "SymmetricKl", "EnsembleKl", "DistillationKl"),
    *("SoftCrossEntropy", "SquaredError", "Entropy"),
)


class Kernel(NamedTuple):
    """One kernel for one architecture; ``name`` is mangled."""

    arch: str
    name: str
    registers: int
    stack: int
    local: int


def cuobjdump() -> str | None:
    """The tool's path, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home) / "bin" for home in homes if home]
    for packages in site.getsitepackages():
        places += sorted(Path(packages).glob("nvidia/*/bin"))
    return shutil.which("cuobjdump") or next(
        (str(p / "cuobjdump") for p in places if os.access(p / "cuobjdump", os.X_OK)), None
    )


def parse(report: str) -> list[Kernel]:
    """The kernels in the output of ``cuobjdump --dump-resource-usage``."""
    found, arch, name = [], "", ""
    for line in report.splitlines():
        if match := re.search(r"arch = (sm_\d+)", line):
            arch = match[1]
        elif match := re.search(r"Function (\w+):", line):
            name = match[1]
        elif match := re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", line):
            found.append(Kernel(arch, name, int(match[1]), int(match[2]), int(match[3])))
    return found


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    info = udas_fast.build_info()
    if not info["cuda"]:
        pytest.skip(f"built without CUDA: {info['cuda_reason']}")
    tool = cuobjdump()
    if tool is None:
        pytest.skip(
            "no cuobjdump: it comes with the CUDA toolkit or with `pip install nvidia-cuda-cuobjdump`"
        )
    command = [tool, "--dump-resource-usage", str(LIBRARY)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return parse(report)


def test_no_kernel_spills_or_uses_local_memory(kernels: list[Kernel]) -> None:
    assert kernels
    wrong = [kernel for kernel in kernels if kernel.stack > 0 or kernel.local > 0]
    assert not wrong
    for arch in sorted({kernel.arch for kernel in kernels}):
        most = max((k for k in kernels if k.arch == arch), key=lambda k: k.registers)
        print(f"{arch}: at most {most.registers} registers, {most.name}")


def test_every_architecture_has_every_kernel(kernels: list[Kernel]) -> None:
    archs = {f"sm_{a.removesuffix('+PTX').replace('.', '')}" for a in udas_fast.build_info()["archs"]}
    assert {kernel.arch for kernel in kernels} == archs
    for arch in archs:
        names = [kernel.name for kernel in kernels if kernel.arch == arch]
        for classes in (0, *UNROLLED):
            for gradient in (0, 1):
                for loss in LOSSES:
                    pattern = rf"loss_kernel.*{len(loss)}{loss}ELi{classes}ELb{gradient}E"
                    assert sum(bool(re.search(pattern, name)) for name in names) == 1
                pattern = rf"pseudo_label_kernelILi{classes}ELb{gradient}E"
                assert sum(bool(re.search(pattern, name)) for name in names) == 1
            for activation in ACTIVATIONS:
                constant = rf"ActivationE{activation}E"
                for pattern in (
                    rf"upsample_kernelI.*{constant}Li{classes}E",
                    rf"loss_kernel.*UpsampleGradientI.*{constant}EELi{classes}ELb1E",
                ):
                    assert sum(bool(re.search(pattern, name)) for name in names) == 1
            assert sum(bool(re.search(rf"confusion_matrix_kernelILi{classes}E", n)) for n in names) == 1
        for single in ("finish_kernel", "region_mix_kernel"):
            assert sum(single in name for name in names) == 1
        assert sum("region_mix_rgb_kernel" in name for name in names) == 4  # types of the result
