"""The build: its report on itself, and the errors with which it stops."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import udas_fast
from udas_fast import ops
from udas_fast._build import LIBRARY
from udas_fast.ops import _library
from udas_fast.tools.doctor import diagnose

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
    for name in ("UDAS_FAST_CUDA", "CUDA_HOME", "CUDA_PATH", "CXX"):
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


def test_build_info_says_what_is_here() -> None:
    info = udas_fast.build_info()
    assert info["version"] == udas_fast.__version__
    assert info["torch"] == torch.__version__
    assert info["operators"] == ops.backends()
    assert info["extension"] == (not _library.REASON)
    if info["extension"]:
        assert info["simd"] in ("AVX-512", "AVX2", "baseline")
        assert bool(info["cuda"]) == bool(info["archs"])
        assert info["cuda"] or "no CUDA operators were built" in info["cuda_reason"]


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_extension_that_does_not_load_says_why(tmp_path: Path) -> None:
    (tmp_path / "udas_fast").mkdir()
    (tmp_path / "udas_fast" / LIBRARY.name).write_bytes(b"not a library")
    script = "import udas_fast; info = udas_fast.build_info(); print(info['extension'], info['reason'])"
    result = python_in_copy(tmp_path, script)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("False the extension does not load")
    assert "invalid ELF header" in result.stdout or "too short" in result.stdout  # the loader's own words
    assert len(warnings_of(result)) == 1


@pytest.mark.skipif(not LIBRARY.exists() or shutil.which("nm") is None, reason="no extension, or no nm")
def test_the_extension_needs_neither_python_nor_torch_beyond_the_stable_abi() -> None:
    """Nothing of Python, of c10 or of torch's C++ classes, so that every Python and later torch loads this file."""
    command = ["nm", "-D", "--undefined-only", "-C", str(LIBRARY)]
    symbols = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "aoti_torch_" in symbols
    assert not re.search(r"\b(c10|at|torch)::| _?Py", symbols)


def test_cuda_is_off_by_wish_or_for_a_reason(
    recipe: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert recipe.cuda_toolkit("13.2") == (str(toolkit), "13.0", "")
    assert recipe.cuda_toolkit(None) == (str(toolkit), "13.0", "")  # where no torch is seen
    assert "torch has no CUDA" in recipe.cuda_toolkit("")[2]
    monkeypatch.setenv("UDAS_FAST_CUDA", "0")
    assert recipe.cuda_toolkit("13.0")[2] == "UDAS_FAST_CUDA=0"


def test_another_cuda_major_than_torchs_is_a_warning(
    recipe: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert recipe.cuda_toolkit("12.8") == (str(toolkit), "13.0", "")
    assert re.search(
        r"warning: nvcc is 13\.0 and .* CUDA 12\.8; .* driver for CUDA 13", capsys.readouterr().err
    )


def test_forced_cuda_succeeds_or_stops(
    recipe: ModuleType, toolkit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UDAS_FAST_CUDA", "1")
    monkeypatch.setenv("CUDA_HOME", str(toolkit))
    assert recipe.cuda_toolkit("") == (str(toolkit), "13.0", "")  # beside a torch without CUDA too
    monkeypatch.setenv("CUDA_HOME", str(toolkit / "nowhere"))
    with pytest.raises(SystemExit, match=r"UDAS_FAST_CUDA=1 but no CUDA toolkit"):
        recipe.cuda_toolkit("13.0")
    monkeypatch.setenv("UDAS_FAST_CUDA", "yes")
    with pytest.raises(SystemExit, match="found 'yes', expected auto, 1 or 0"):
        recipe.cuda_toolkit(None)


def test_the_installed_torch_is_read_and_not_imported(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # import torch now raises ImportError
    assert recipe.torch_cuda() == (torch.version.cuda or "")
    monkeypatch.setattr(recipe.sysconfig, "get_path", lambda _: str(tmp_path))
    monkeypatch.setattr(recipe.site, "getsitepackages", list)
    assert recipe.torch_cuda() is None


def test_architectures_are_those_of_torch_cuda_arch_list(recipe: ModuleType) -> None:
    assert recipe.gencode(["8.6", "9.0a", "12.0+PTX"]) == [
        "-gencode=arch=compute_86,code=sm_86",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_120,code=sm_120",
        "-gencode=arch=compute_120,code=compute_120",
    ]
    with pytest.raises(SystemExit, match="TORCH_CUDA_ARCH_LIST: found 'Hopper', expected"):
        recipe.gencode(["Hopper"])


def test_without_a_compiler_one_sentence_has_both_ways_on(
    recipe: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match=r"no C\+\+ compiler .*`apt install g\+\+`.*UDAS_FAST_EXTENSION=0"):
        recipe.compiler()


@pytest.fixture
def small_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the build with two sources of a line each in place of the operators."""
    shutil.copy(ROOT / "setup.py", tmp_path)
    for folder in ("csrc", "udas_fast"):
        (tmp_path / folder).mkdir()
    (tmp_path / "csrc/one.h").write_text("inline int one() { return 1; }\n")
    (tmp_path / "csrc/info.cpp").write_text(
        '#include "one.h"\nconst char* reason() { return UDAS_CUDA_REASON; }\n'
    )
    (tmp_path / "csrc/ops.cpp").write_text("int two() { return 2; }\n")
    monkeypatch.setenv("UDAS_FAST_CUDA", "0")
    monkeypatch.setenv("MAX_JOBS", "1")  # so that the output of two compilers does not mix
    return tmp_path


def compiled(folder: Path, **environment: str) -> set[str]:
    """Build in ``folder``; return the sources that were compiled."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    lines = [shlex.split(line) for line in done.stdout.splitlines() if " -c " in line]
    return {line[line.index("-c") + 1] for line in lines}


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_second_build_compiles_what_has_changed_and_nothing_else(small_source: Path) -> None:
    both = {"csrc/info.cpp", "csrc/ops.cpp"}
    assert compiled(small_source) == both
    assert (small_source / "udas_fast/_ops.so").exists()
    assert compiled(small_source) == set()
    os.utime(small_source / "csrc/one.h", (2**31, 2**31))
    assert compiled(small_source) == {"csrc/info.cpp"}  # which includes it
    os.utime(small_source / "csrc/one.h", (0, 0))
    assert compiled(small_source, CXXFLAGS="-DOTHER") == both


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_compilers_error_ends_the_build_with_the_source_that_has_it(small_source: Path) -> None:
    (small_source / "csrc/ops.cpp").write_text("int two() { return 2\n")
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=small_source, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "udas_fast: the compiler failed to make csrc/ops.cpp; its messages are above"
    )
    assert "Traceback" not in done.stderr


def test_the_copied_headers_are_those_of_the_oldest_torch_and_enough() -> None:
    """Every header of torch that csrc names is there, with torch's licence, and says it is of 2.11."""
    copied = ROOT / "csrc/third_party/torch-2.11"
    sources = [path for path in (ROOT / "csrc").glob("c*/*") if path.is_file()] + [
        *(ROOT / "csrc").glob("*.*")
    ]
    named = {
        name for s in sources for name in re.findall(r"#include <(torch/.*?)>", s.read_text(encoding="utf-8"))
    }
    assert named
    assert {name for name in named if not (copied / name).exists()} == set()
    version = (copied / "torch/headeronly/version.h").read_text(encoding="utf-8")
    assert re.findall(r"#define TORCH_VERSION_(?:MAJOR|MINOR) (\d+)", version) == ["2", "11"]
    assert "Redistributions in binary form" in (copied / "LICENSE").read_text(encoding="utf-8")


FACTS = {"cuda": "13.0", "cuda_reason": "", "archs": "7.5;9.0;12.0+PTX", "driver": "13000", "simd": "AVX2"}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that torch finds a GPU of the given capability, and a driver, beside operators of CUDA 13.0."""

    def pretend(capability: tuple[int, int], driver: int = 13000, **facts: str) -> None:
        monkeypatch.setattr(_library, "REASON", "")
        monkeypatch.setattr(_library, "_facts", lambda: {**FACTS, "driver": str(driver), **facts})
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GeForce GTX 1080 Ti")
        everywhere = {name: frozenset({"cpu", "cuda"}) for name in _library.COMPILED}
        monkeypatch.setattr(_library, "COMPILED", everywhere)

    return pretend


def test_operators_run_on_a_gpu_that_they_were_built_for(
    gpu: Callable[..., None], recwarn: pytest.WarningsRecorder
) -> None:
    gpu((9, 0))
    _library.check_gpus()
    assert not recwarn.list
    assert _library.cuda_reason() == ""
    assert ops.backends()["cross_entropy"]["cuda"] == "compiled"


@pytest.mark.parametrize(
    ("capability", "driver", "words"),
    [
        (
            (6, 1),
            13000,
            ["GTX 1080 Ti", "6.1", "7.5, 9.0, 12.0+PTX", "TORCH_CUDA_ARCH_LIST=6.1", "CUDA 12 toolkit"],
        ),
        ((9, 0), 12020, ["driver runs CUDA up to 12.2", "built with CUDA 13.0", "update the driver"]),
    ],
)
def test_on_a_gpu_or_driver_that_does_not_fit_the_reference_runs_and_one_warning_says_why(
    gpu: Callable[..., None],
    capability: tuple[int, int],
    driver: int,
    words: list[str],
) -> None:
    gpu(capability, driver)
    with pytest.warns(RuntimeWarning, match="plain PyTorch runs on the GPU") as caught:
        _library.check_gpus()
    (warning,) = caught
    for word in words:
        assert word in str(warning.message)
    assert {tuple(where.items()) for where in ops.backends().values()} == {
        (("cpu", "compiled"), ("cuda", "reference"))
    }
    assert not _library.is_compiled("cross_entropy", SimpleNamespace(device=torch.device("cuda", 0)))
    text = diagnose()
    assert all(word in text for word in words)


def test_without_cuda_operators_a_gpu_gets_the_command_that_builds_them(gpu: Callable[..., None]) -> None:
    gpu((9, 0), cuda="", archs="", cuda_reason="no CUDA toolkit")
    with pytest.warns(RuntimeWarning, match=r"no CUDA toolkit.*`UDAS_FAST_CUDA=1 pip install \.`"):
        _library.check_gpus()
    assert "`UDAS_FAST_CUDA=1 pip install .`" in diagnose()


def test_machine_code_runs_on_later_minors_and_ptx_on_everything_later() -> None:
    archs = ["7.5", "8.0", "9.0a", "12.0+PTX"]
    fits = {
        c: _library.runs_on(c, archs, compiles=True)
        for c in [(7, 0), (7, 5), (8, 9), (9, 0), (10, 0), (13, 1)]
    }
    assert fits == {(7, 0): False, (7, 5): True, (8, 9): True, (9, 0): True, (10, 0): False, (13, 1): True}
    assert not _library.runs_on((13, 1), archs, compiles=False)
    assert not _library.runs_on((9, 1), ["9.0a"], compiles=True)


def test_gpus_are_checked_when_cuda_starts_and_not_before() -> None:
    script = """
import torch
from udas_fast import ops
from udas_fast.ops import _library
from udas_fast.tools.doctor import diagnose
assert not torch.cuda.is_initialized()
assert _library.check_gpus in [call for call, _ in torch.cuda._queued_calls]
"""
    result = python(script, ROOT)
    assert result.returncode == 0, result.stderr
