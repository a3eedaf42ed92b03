"""csrc/core as a Python module."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = Path(__file__).with_name("core.cpp")


@pytest.fixture(scope="session")
def core() -> ModuleType:
    """The module of core.cpp, compiled again only where a source is newer."""
    pybind11 = pytest.importorskip("pybind11")
    if shutil.which("c++") is None:
        pytest.skip("no C++ compiler")
    made = ROOT / "build/native" / f"udas_core{importlib.machinery.EXTENSION_SUFFIXES[0]}"
    newest = max(path.stat().st_mtime for path in (SOURCE, *(ROOT / "csrc/core").iterdir()))
    if not made.exists() or made.stat().st_mtime < newest:
        made.parent.mkdir(parents=True, exist_ok=True)
        unfinished = made.with_suffix(f".{os.getpid()}")
        flags = ["-O1", "-std=c++17", "-fPIC", "-fwrapv", "-shared", "-fvisibility=hidden"]
        include = [f"-isystem{path}" for path in (pybind11.get_include(), sysconfig.get_path("include"))]
        subprocess.run(["c++", *flags, *include, str(SOURCE), "-o", str(unfinished)], check=True)
        unfinished.replace(made)
    spec = importlib.util.spec_from_file_location("udas_core", made)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
