"""benchmarks/cuda_model.py: instructions a pixel and occupancy of every kernel against the committed model."""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
CARD = "H200"


@pytest.fixture(scope="module")
def model() -> Iterator[ModuleType]:
    sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts there import each other by name
    yield importlib.import_module("cuda_model")
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.mark.slow
def test_kernels_have_the_instructions_and_blocks_of_the_committed_model(
    model: ModuleType, pytestconfig: pytest.Config
) -> None:
    if model.tool("nvcc") is None or model.tool("nvdisasm") is None:
        pytest.skip("no nvcc or no nvdisasm: the latter is in the package nvidia-cuda-nvdisasm")
    committed = json.loads(model.RESULT.read_text(encoding="utf-8"))
    if committed["nvcc"] != model.nvcc_release():
        pytest.skip(f"nvcc is {model.nvcc_release()}, the committed model is of {committed['nvcc']}")
    sources = [Path(model.__file__), *sorted(ROOT.glob("csrc/cuda/*")), *sorted(ROOT.glob("csrc/core/*"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    key = f"udas_fast/kernels-{digest}"
    found = pytestconfig.cache.get(key, None) or _predicted(model)
    pytestconfig.cache.set(key, found)
    expected = {row["kernel"]: row for row in committed["rows"] if (row["card"], row["batch"]) == (CARD, 1)}
    assert found.keys() == expected.keys()
    for name, (count, blocks) in found.items():
        row = expected[name]
        told = f"in {model.RESULT.name}; if that is meant, run {committed['command']}"
        assert count == pytest.approx(row["issue_per_pixel"], rel=0.05), (
            f"{name}: {count:.0f} instructions a pixel, {row['issue_per_pixel']:.0f} {told}"
        )
        assert blocks >= row["blocks"], f"{name}: {blocks} blocks a multiprocessor, {row['blocks']} {told}"


def _predicted(model: ModuleType) -> dict[str, tuple[float, int]]:
    compiled = model.compile_kernels(model.CARDS[CARD].arch, model.KERNELS)
    rows = {k.name: model.predict(k, compiled[k.name], model.CARDS[CARD], 1, 0.0) for k in model.KERNELS}
    return {name: (row["issue_per_pixel"], row["blocks"]) for name, row in rows.items()}


def test_lines_run_as_often_as_their_loops(model: ModuleType) -> None:
    """Three instructions of the row loop and two before it, one of these for another type; tiles of 16 rows."""
    loop = "void walk(int x) > for (int y = 0; y < tile_.rows; ++y) > x"
    code = [model.Instruction("FFMA", 0, loop)] * 3
    code += [model.Instruction("IADD3", 1, "void run() > x")]
    code += [model.Instruction("LDG", 2, "typed > body(static_cast<const __half*>(data));")]
    by_op, _ = model.counts(model.Compiled(32, code), model.KERNELS[0], 16)
    assert by_op == {"FFMA": 3.0, "IADD3": 1 / 16, "LDG": 0.0}


def test_occupancy_is_that_of_the_scarcest_resource(model: ModuleType) -> None:
    h200, turing = model.CARDS["H200"], model.CARDS["RTX 2080 Ti"]
    assert model.resident(h200, 168, 0, 128) == 3  # 65536 registers, 128 · 168 a block
    assert model.resident(h200, 32, 48 * 1024, 128) == 4  # 227 KiB, 49 a block
    assert model.resident(turing, 32, 0, 128) == 8  # 32 warps
