"""Properties of every operator: the same bits for any threads and strides, little memory, CUDA graphs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from op_cases import (
    ACTIVATIONS,
    DEVICES,
    LOSS_PARAMS,
    LOSSES,
    NO_GPU,
    Loss,
    random_labels,
    random_map,
    upsampled_with_gradient,
    with_gradients,
)
from torch import Tensor

from udas_fast import build_info, ops
from udas_fast.ops import _library

MIB = 2**20


def results(device: str, layout: str = "contiguous") -> list[Tensor]:
    """Return all results of the operators for one set of inputs, several bands and tiles large."""
    maps = [random_map((2, 7, 9, 14), i).to(device) for i in range(2)]
    if layout == "channels_last":
        maps = [m.contiguous(memory_format=torch.channels_last) for m in maps]
    elif layout == "strided":
        maps = [torch.stack((m, m), dim=-1)[..., 0] for m in maps]
    target = random_labels((2, 100, 150), 7, 0).to(device)
    found: list[Tensor] = []
    for loss in LOSSES:
        value, gradients = with_gradients(loss, ops, maps[: loss.maps], target)
        found += [value, *gradients]
    for reduce in ("max", "mean"):
        found += ops.pseudo_label(maps, (100, 150), reduce=reduce, flips=[False, True])
    found.append(ops.confusion_matrix(maps[0], target, 7))
    incoming = random_map((2, 7, 100, 150), 2, layout="channels_last").to(device)
    for activation in ACTIVATIONS:
        found += upsampled_with_gradient(ops, maps[0], incoming, activation=activation)
    return found


@pytest.fixture
def threads() -> object:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_same_bits_for_any_number_of_threads(threads: Callable[[int], None]) -> None:
    threads(1)
    one = results("cpu")
    for count in (2, 3, 5):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(one, results("cpu"), strict=True))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_same_bits_again_and_for_any_strides(device: str, layout: str) -> None:
    first = results(device)
    assert all(torch.equal(a, b) for a, b in zip(first, results(device, layout), strict=True))


@pytest.mark.slow
@pytest.mark.skipif(bool(_library.REASON), reason="nothing compiled")
@pytest.mark.parametrize("isa", ["baseline", "avx2"])
def test_lower_instruction_sets_agree(isa: str) -> None:
    """A fresh process with a lower UDAS_FAST_SIMD computes the same, up to rounding."""
    if build_info()["simd"] == "baseline":
        pytest.skip("this processor has nothing but the baseline")
    script = (
        "import sys, torch; sys.path.insert(0, sys.argv[1]); import test_properties as t, udas_fast\n"
        "torch.save([udas_fast.build_info()['simd'], *t.results('cpu')], sys.argv[2])"
    )
    here = Path(__file__).resolve().parent
    out = Path(os.environ.get("TMPDIR", "/tmp")) / f"udas_fast_{isa}_{os.getpid()}.pt"
    environment = {**os.environ, "UDAS_FAST_SIMD": isa, "PYTHONPATH": str(here.parents[1])}
    try:
        subprocess.run([sys.executable, "-c", script, str(here), str(out)], check=True, env=environment)
        name, *lower = torch.load(out, weights_only=True)
    finally:
        out.unlink(missing_ok=True)
    assert name == {"baseline": "baseline", "avx2": "AVX2"}[isa]
    for a, b in zip(results("cpu"), lower, strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6)
        else:
            assert int((a != b).sum()) <= a.numel() // 1000 + 2


def peak_growth(action: Callable[[], object]) -> float:
    """Return the largest growth of the process's resident memory during ``action``, in MiB."""

    def resident(key: str) -> int:
        return int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = resident("VmRSS")
    result = action()
    del result
    return (resident("VmHWM") - before) / MIB


def full_resolution_cases(device: str) -> dict[str, Callable[[], object]]:
    """19×90×160 to 720×1280, where one full-resolution map is 66.8 MiB and a low-resolution one 1.04 MiB."""
    maps = [random_map((1, 19, 90, 160), i).to(device).requires_grad_() for i in range(3)]
    target = random_labels((1, 720, 1280), 19, 0).to(device)
    flat = [m.detach() for m in maps]
    cases: dict[str, Callable[[], object]] = {
        loss.name: lambda loss=loss: with_gradients(loss, ops, maps[: loss.maps], target) for loss in LOSSES
    }
    cases["pseudo_label"] = lambda: ops.pseudo_label(flat, (720, 1280))
    cases["confusion_matrix"] = lambda: ops.confusion_matrix(flat[0], target, 19)
    return cases


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
@pytest.mark.skipif(bool(_library.REASON), reason="nothing compiled")
def test_no_full_resolution_map_on_the_cpu() -> None:
    for name, action in full_resolution_cases("cpu").items():
        action()
        growth = peak_growth(action)
        assert growth < 16, f"{name}: {growth:.1f} MiB"


@NO_GPU
@pytest.mark.cuda
def test_no_full_resolution_map_on_the_gpu() -> None:
    for name, action in full_resolution_cases("cuda").items():
        action()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        action()
        growth = (torch.cuda.max_memory_allocated() - before) / MIB
        assert growth < 16, f"{name}: {growth:.1f} MiB"


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.skipif(bool(_library.REASON), reason="nothing compiled")
def test_upsample_makes_nothing_full_beside_its_result(device: str, activation: str) -> None:
    """19×90×160 to 720×1280: the result takes 66.8 MiB, and the way back only reads a gradient of that size."""
    logits = random_map((1, 19, 90, 160), 0).to(device).requires_grad_()
    incoming = torch.ones((1, 19, 720, 1280), device=device)

    def forward() -> Tensor:
        return ops.upsample(logits, (720, 1280), activation=activation)

    seen = forward()

    def backward() -> object:
        return torch.autograd.grad(seen, logits, incoming, retain_graph=True)

    for action, result in ((forward, incoming.nbytes / MIB), (backward, 0)):
        action()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            action()
            growth = (torch.cuda.max_memory_allocated() - before) / MIB
        elif Path("/proc/self/clear_refs").exists():
            growth = peak_growth(action)
        else:
            pytest.skip("reads Linux's /proc")
        assert growth < result + 16


@NO_GPU
@pytest.mark.cuda
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_cuda_graphs_capture_upsample_without_synchronisation(activation: str) -> None:
    logits = random_map((1, 19, 9, 16), 0).cuda()
    incoming = random_map((1, 19, 72, 128), 1, layout="channels_last").cuda()
    stream = torch.cuda.Stream()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            eager = upsampled_with_gradient(ops, logits, incoming, activation=activation)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = upsampled_with_gradient(ops, logits, incoming, activation=activation)
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, eager, strict=True))


@NO_GPU
@pytest.mark.cuda
@pytest.mark.parametrize("loss", LOSS_PARAMS)
def test_cuda_graphs_capture_and_no_synchronisation(loss: Loss) -> None:
    maps = [random_map((1, 19, 9, 16), i).cuda().requires_grad_() for i in range(loss.maps)]
    target = random_labels((1, 72, 128), 19, 0).cuda()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        with_gradients(loss, ops, maps, target)
    stream.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        loss.call(ops, maps, target).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = loss.call(ops, maps, target)
        gradients = torch.autograd.grad(value, maps)
    graph.replay()
    eager = loss.call(ops, maps, target)
    torch.testing.assert_close(value, eager, rtol=0, atol=0)
    for captured, again in zip(gradients, torch.autograd.grad(eager, maps), strict=True):
        assert torch.equal(captured, again)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
def test_more_than_two_to_the_31_bytes(device: str) -> None:
    """Logits strewn over 4 GiB, of which hardly a page is touched: the offsets need 64 bits."""
    values = random_map((2, 2, 2, 2), 0).to(device)
    storage = torch.empty(2**30, dtype=torch.float32, device=device)
    far = storage.as_strided((2, 2, 2, 2), (2**29, 2**28, 2**27, 2**26)).copy_(values)
    target = random_labels((2, 9, 11), 2, 0).to(device)
    assert torch.equal(ops.cross_entropy(far, target), ops.cross_entropy(values, target))
    assert torch.equal(ops.upsample(far, (9, 11)), ops.upsample(values, (9, 11)))
    assert torch.equal(ops.pseudo_label([far], (9, 11)).label, ops.pseudo_label([values], (9, 11)).label)
