"""The build: its report on itself, and the errors with which it stops."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import udas_fast
from udas_fast import ops
from udas_fast.ops import _library

ROOT = Path(__file__).resolve().parents[2]


def python(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``script`` in a fresh interpreter that imports udas_fast from ``folder``."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("udas_fast_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("UDAS_FAST_CUDA", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def toolkit(tmp_path: Path) -> Path:
    """A folder that looks like a CUDA 13.0 toolkit."""
    for folder in ("bin", "include"):
        (tmp_path / "cuda" / folder).mkdir(parents=True)
    (tmp_path / "cuda/include/cuda_runtime.h").touch()
    nvcc = tmp_path / "cuda/bin/nvcc"
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 13.0, V13.0.88'\n")
    nvcc.chmod(0o755)
    return tmp_path / "cuda"


class Torch:
    """Stand-in for a torch of some build."""

    def __init__(self, cuda: str | None = None, hip: str | None = None) -> None:
        self.__version__ = "2.13.0"
        self.version = type("version", (), {"cuda": cuda, "hip": hip})


def test_build_info_says_what_is_here() -> None:
    info = udas_fast.build_info()
    assert info["version"] == udas_fast.__version__
    assert info["torch"] == torch.__version__
    assert info["operators"] == ops.backends()
    assert info["extension"] == (not _library.REASON)
    if info["extension"]:
        assert info["simd"] in ("AVX-512", "AVX2", "baseline")
        assert info["torch_built"]
        assert bool(info["cuda"]) != bool(info["cuda_reason"])
        assert bool(info["cuda"]) == bool(info["archs"])


def test_import_is_quick_because_torch_waits() -> None:
    result = python("import sys, udas_fast; sys.exit('torch' in sys.modules)", ROOT)
    assert result.returncode == 0, result.stderr


def python_in_copy(folder: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run ``script`` on a copy of the package without its extension, which an editable install would still find."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "udas_fast", folder / "udas_fast", ignore=ignored, dirs_exist_ok=True)
    alone = "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)]\n"
    return python(alone + script, folder)


def warnings_of(result: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in result.stderr.splitlines() if "Warning: " in line]


def test_without_the_extension_one_line_warns_and_the_reference_runs(tmp_path: Path) -> None:
    script = """
import torch
from udas_fast import build_info, ops
x = torch.randn(1, 3, 2, 2, requires_grad=True)
ops.cross_entropy(x, torch.zeros(1, 4, 4, dtype=torch.uint8)).backward()
info = build_info()
assert not info["extension"] and info["simd"] is None
assert info["operators"]["cross_entropy"] == {"cpu": "reference", "cuda": "reference"}
print(info["reason"])
"""
    result = python_in_copy(tmp_path, script)
    assert result.returncode == 0, result.stderr
    assert "the extension was not built" in result.stdout
    (warning,) = warnings_of(result)
    assert "plain PyTorch runs instead" in warning


def test_an_extension_that_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "udas_fast").mkdir()
    broken = tmp_path / "udas_fast" / f"_C{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    broken.write_bytes(b"not a library")
    script = "import udas_fast; info = udas_fast.build_info(); print(info['extension'], info['reason'])"
    result = python_in_copy(tmp_path, script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("False the extension does not load")
    assert len(warnings_of(result)) == 1


def test_the_extension_needs_no_torch_beyond_the_stable_abi() -> None:
    """Nothing of c10 or of torch's C++ classes is imported, so that later torches load the same file."""
    spec = importlib.util.find_spec("udas_fast._C")
    if spec is None or shutil.which("nm") is None:
        pytest.skip("no extension, or no nm")
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", "-C", spec.origin], capture_output=True, text=True
    ).stdout
    assert "aoti_torch_" in symbols
    assert not re.search(r"\b(c10|at|torch)::", symbols)


def test_cuda_is_off_by_wish_or_for_a_reason(
    recipe: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert recipe.cuda_toolkit(Torch(cuda="13.2")) == (str(toolkit), "13.0", "")
    assert "CPU-only" in recipe.cuda_toolkit(Torch())[2]
    assert "majors must agree" in recipe.cuda_toolkit(Torch(cuda="12.8"))[2]
    assert "ROCm" in recipe.cuda_toolkit(Torch(hip="6.4"))[2]
    monkeypatch.setenv("UDAS_FAST_CUDA", "0")
    assert recipe.cuda_toolkit(Torch(cuda="13.0"))[2] == "UDAS_FAST_CUDA=0"


def test_forced_cuda_succeeds_or_stops(
    recipe: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UDAS_FAST_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert recipe.cuda_toolkit(Torch()) == (
        str(toolkit),
        "13.0",
        "",
    )  # a CPU-only torch compiles the sources too
    monkeypatch.setenv("CUDA_HOME", str(toolkit / "nowhere"))
    with pytest.raises(SystemExit, match=r"UDAS_FAST_CUDA=1 but no CUDA toolkit"):
        recipe.cuda_toolkit(Torch(cuda="13.0"))
    monkeypatch.setenv("UDAS_FAST_CUDA", "yes")
    with pytest.raises(SystemExit, match="found 'yes', expected auto, 1 or 0"):
        recipe.cuda_toolkit(Torch())


def test_torch_is_found_although_the_build_hides_it(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert recipe.find_torch() is torch
    monkeypatch.setattr(recipe, "OLDEST_TORCH", (99, 0))
    with pytest.raises(SystemExit, match=r"found torch .*, expected torch >= 99\.0"):
        recipe.find_torch()


def test_without_torch_the_build_says_what_to_do(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch now raises ImportError
    monkeypatch.setattr(recipe.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(recipe.site, "getsitepackages", list)
    with pytest.raises(SystemExit, match=r"install torch >= 2\.11 first.*--no-build-isolation"):
        recipe.find_torch()
