"""The CUDA kernels, compiled unchanged for the CPU (emulation/), against the CPU operators.

What a GPU would do differently is left out (its exp, its rounding, its timing), but every index, stride, flip, tile
edge, patch and barrier of csrc/cuda is run: the entries in torch's terms, the launches, and the kernels with a block's
threads as fibers that take turns in any order. Shared memory and new tensors start as NaN, and in every test a detector
watches for races, accesses beyond shared memory, misaligned ones, and different barriers (emulation/races.cpp).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from op_cases import assert_close, random_labels, random_map
from torch import Tensor
from torch.utils import cpp_extension

from udas_fast.ops import _library

ROOT = Path(__file__).resolve().parents[2]
FLAGS = [
    "-std=c++17",
    "-O1",
    "-fPIC",
    "-w",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-DUDAS_CUDA_KEY=CPU",
    "-fno-gnu-unique",  # two libraries with these kernels are loaded
    f"-I{Path(__file__).parent / 'emulation'}",
]
ORDERS = [0, 1, 7]  # of threads and blocks: first to last, last to first, a seed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++"),
    pytest.mark.skipif(bool(_library.REASON), reason="the CPU operators to compare with are not built"),
]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The emulated kernels, registered as ``torch.ops.udas_emulated``."""
    return build(tmp_path_factory.mktemp("emulation"), "udas_emulated", ["-DUDAS_UNROLLED=2,19"])


@pytest.fixture(scope="module")
def device_library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The same with a device's mathematics and other class counts unrolled, as ``torch.ops.udas_device``."""
    kernel_flags = ["-include", "device_math.h", "-mfma", "-ffp-contract=fast"]
    flags = ["-DUDAS_UNROLLED=11,21"]
    return build(tmp_path_factory.mktemp("device_math"), "udas_device", flags, kernel_flags)


def build(folder: Path, namespace: str, flags: list[str], kernel_flags: Sequence[str] = ()) -> ctypes.CDLL:
    sources = [
        ROOT / "csrc/ops.cpp",
        *sorted(ROOT.glob("csrc/cuda/*.c*")),
        *sorted(ROOT.glob("tests/ops/emulation/*.c*")),
    ]
    sources = [s for s in sources if s.suffix in (".cpp", ".cu")]
    system = [f"-isystem{path}" for path in cpp_extension.include_paths()]

    def compile_one(source: Path) -> str:
        to = str(folder / f"{source.name}.o")
        own = ["-fsanitize=thread", *kernel_flags] if source.suffix == ".cu" else []
        command = ["g++", *FLAGS, f"-Dudas_fast={namespace}", *flags, *own, *system]
        subprocess.run([*command, "-x", "c++", "-c", str(source), "-o", to], check=True)
        return to

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, sources))
    made = str(folder / f"{namespace}.so")
    torch_libraries = str(Path(torch.__file__).parent / "lib")
    subprocess.run(
        ["g++", "-shared", *objects, "-o", made, f"-L{torch_libraries}", "-ltorch", "-ltorch_cpu"], check=True
    )
    torch.ops.load_library(made)
    return ctypes.CDLL(made)


@pytest.fixture(autouse=True)
def _new_tensors_are_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def ops(library: ctypes.CDLL) -> Iterator[SimpleNamespace]:
    """``emulated`` and ``cpu``, with the same schemas, and ``order`` to change the turns."""
    yield from watched(library, torch.ops.udas_emulated)


@pytest.fixture
def device_ops(device_library: ctypes.CDLL) -> Iterator[SimpleNamespace]:
    yield from watched(device_library, torch.ops.udas_device)


def watched(library: ctypes.CDLL, emulated: Any) -> Iterator[SimpleNamespace]:
    library.emulated_order(0)
    yield SimpleNamespace(emulated=emulated, cpu=torch.ops.udas_fast, order=library.emulated_order)
    assert library.emulated_races() == 0
    assert library.emulated_accesses() > 0


FAULTS = ["none", "no barrier", "beyond shared memory", "misaligned", "two barriers", "two blocks"]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_detector_finds_what_is_wrong(library: ctypes.CDLL, fault: str) -> None:
    library.emulated_order(0)
    library.emulated_fault(FAULTS.index(fault), (ctypes.c_int * 9)())
    assert (library.emulated_races() > 0) == (fault != "none")


def test_every_layout_fits_into_shared_memory(library: ctypes.CDLL, device_library: ctypes.CDLL) -> None:
    """Every number of classes with every number of views and teachers, for maps smaller and larger than the image."""
    assert library.emulated_refused() == 0
    assert device_library.emulated_refused() == 0


class Draw:
    """Random arguments, the same for the same seed."""

    def __init__(self, seed: int, classes: int | None = None) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.seed = seed
        self.classes = classes or self.one_of([2, 3, 7, 19, 19, 40])
        self.n = self.one_of([1, 2, 3])
        self.h, self.w = self.side(), self.side()
        self.size = self.one_of(
            [
                [8 * self.h, 8 * self.w],  # stride 8
                [8 * self.h - 7, 8 * self.w - 7],  # stride 8 of a network with aligned corners
                [self.below(self.h) + 1, self.below(self.w) + 1],  # downwards
                [self.below(90) + 1, self.below(300) + 1],
            ]
        )
        self.align_corners = self.flag()
        self.dtype = self.one_of([torch.float32, torch.float32, torch.float16, torch.bfloat16])

    def below(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.generator))

    def one_of(self, choices: Sequence[Any]) -> Any:
        return choices[self.below(len(choices))]

    def flag(self) -> bool:
        return self.below(2) == 1

    def side(self) -> int:
        return self.one_of([1, 2, 3, 9, 20])

    def logits(self, own_size: bool = False) -> Tensor:
        h, w = (self.side(), self.side()) if own_size else (self.h, self.w)
        layout = self.one_of(["contiguous", "channels_last", "transposed", "sliced"])
        self.seed += 1
        return random_map((self.n, self.classes, h, w), self.seed, dtype=self.dtype, layout=layout)

    def labels(self) -> Tensor:
        self.seed += 1
        dtype = self.one_of([torch.uint8, torch.int64])
        return random_labels((self.n, *self.size), self.classes, self.seed, dtype=dtype)

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator)

    def maybe(self, value: Tensor) -> Tensor | None:
        return value if self.flag() else None


def loss_arguments(name: str, draw: Draw, reduction: int, with_grad: bool) -> tuple[Any, ...]:
    """Arguments of ``name`` as the schema in csrc/ops.cpp has them."""
    weight = draw.maybe(draw.uniform(draw.n, *draw.size))
    end = (weight, draw.align_corners, reduction, with_grad)
    labelled = (weight, 255, draw.align_corners, reduction, with_grad)
    first, second = draw.logits(), draw.logits(own_size=draw.flag())
    if name == "cross_entropy":
        return (first, draw.labels(), draw.maybe(draw.uniform(draw.classes) + 0.1), *labelled)
    if name == "rectified_cross_entropy":
        return (first, second, draw.labels(), *labelled)
    if name == "distillation_kl":
        teachers = [second, *(draw.logits(own_size=True) for _ in range(draw.below(3)))]
        return (first, teachers, draw.size, 1.7, draw.maybe(draw.uniform(draw.n, *draw.size) < 0.7), *end)
    mask = draw.maybe(draw.uniform(draw.n, *draw.size) < 0.7)
    if name == "soft_cross_entropy":
        return (first, second.clamp(0, 1), draw.size, mask, *end)
    if name == "squared_error":
        target = draw.labels() if draw.flag() else second.clamp(0, 1)
        return (first, target, draw.size, mask, *labelled)
    if name == "entropy":
        return (first, draw.size, *end)
    return (first, second, draw.size, *end)


def prediction_arguments(draw: Draw) -> tuple[Any, ...]:
    views = [draw.logits(), *(draw.logits(own_size=True) for _ in range(draw.below(4)))]
    flips = draw.maybe(draw.uniform(len(views), draw.n) < 0.5)
    limits = draw.maybe(draw.uniform(draw.classes))
    return (
        views,
        draw.size,
        0.6,
        limits,
        1.3,
        flips,
        draw.below(1 << len(views)),
        draw.flag(),
        draw.align_corners,
        255,
    )


def upsample_arguments(draw: Draw) -> tuple[Any, ...]:
    return draw.logits(), draw.size, draw.below(3), draw.align_corners


def gradient_arguments(draw: Draw) -> tuple[Any, ...]:
    """Those of upsample_backward."""
    logits = draw.logits()
    layout = draw.one_of(["contiguous", "channels_last", "transposed", "sliced"])
    incoming = random_map((draw.n, draw.classes, *draw.size), draw.seed + 1, layout=layout)
    return incoming, logits, draw.below(3), draw.align_corners


def mix_arguments(draw: Draw) -> tuple[Any, ...]:
    (height, width), channels = draw.size, draw.one_of([1, 3, 3, 4])
    from_bytes = draw.flag()
    dtype = torch.uint8 if from_bytes else draw.dtype

    def image() -> Tensor:
        whole = (draw.uniform(draw.n, channels, height + 1, width + 3) * 255).to(dtype)
        if draw.flag():
            return whole[:, :, 1:, 2:-1]
        part = whole[:, :, :height, :width]
        return part.contiguous(memory_format=draw.one_of([torch.channels_last, torch.contiguous_format]))

    region = draw.one_of(
        [
            (draw.uniform(draw.n, 4) * (max(draw.size) + 1)).to(torch.int32),
            draw.uniform(draw.n, draw.classes) < 0.5,
            draw.uniform(draw.n, height, width) < 0.5,
        ]
    )
    inside, outside = draw.labels(), draw.labels()
    out = draw.one_of(
        [torch.float32, torch.float16, torch.bfloat16, torch.uint8 if from_bytes else torch.float32]
    )
    plain = out == torch.uint8 or draw.flag()
    mean, std = ([], []) if plain else ([0.4] * channels, [0.2 + 0.1 * c for c in range(channels)])
    return (image(), image(), inside, outside.to(inside.dtype), region, mean, std, out, draw.flag())


LOSSES = [
    "cross_entropy",
    "rectified_cross_entropy",
    "symmetric_kl",
    "ensemble_kl",
    "distillation_kl",
    "soft_cross_entropy",
    "squared_error",
    "entropy",
]


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients(ops: SimpleNamespace, name: str) -> None:
    for seed in range(24):
        ops.order(seed % 5)
        arguments = loss_arguments(name, Draw(100 * seed), seed % 3, with_grad=seed % 4 != 3)
        found, expected = getattr(ops.emulated, name)(*arguments), getattr(ops.cpu, name)(*arguments)
        for one, other in zip(found, expected, strict=True):
            assert one.dtype == other.dtype
            assert_close(one, other, 2e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_neighbours_that_are_sure_of_different_classes(ops: SimpleNamespace, name: str) -> None:
    """Between them the largest score is far below that of either, where a shared shift loses all exponentials."""
    for seed in range(4):
        draw = Draw(100 * seed, classes=19)
        arguments = [sure(a) for a in loss_arguments(name, draw, 2, with_grad=True)]
        found, expected = getattr(ops.emulated, name)(*arguments), getattr(ops.cpu, name)(*arguments)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, 1e-4)


def sure(argument: Any) -> Any:
    """Logits with 150 more for one class of each place; any other argument as it is."""
    if isinstance(argument, list):
        return [sure(a) for a in argument]
    if not isinstance(argument, Tensor) or argument.dim() != 4:
        return argument
    generator = torch.Generator().manual_seed(argument.shape[3])
    chosen = torch.randint(
        argument.shape[1], (argument.shape[0], 1, *argument.shape[2:]), generator=generator
    )
    return argument.scatter_add(1, chosen, torch.full(chosen.shape, 150.0, dtype=argument.dtype))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_with_a_devices_mathematics(device_ops: SimpleNamespace, name: str) -> None:
    for seed in range(6):
        draw = Draw(100 * seed, classes=[11, 21, 5][seed % 3])
        arguments = loss_arguments(name, draw, seed % 3, with_grad=seed != 5)
        found = getattr(device_ops.emulated, name)(*arguments)
        expected = getattr(device_ops.cpu, name)(*arguments)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other, 2e-5)


def test_predictions_with_a_devices_mathematics(device_ops: SimpleNamespace) -> None:
    for seed in range(9):
        draw = Draw(100 * seed, classes=[11, 21, 5][seed % 3])
        arguments = upsample_arguments(draw)
        assert_close(device_ops.emulated.upsample(*arguments), device_ops.cpu.upsample(*arguments), 2e-5)
        arguments = prediction_arguments(draw)
        found = device_ops.emulated.pseudo_label(*arguments)
        assert_close(found[1], device_ops.cpu.pseudo_label(*arguments)[1], 2e-5)


def test_upsampling_and_its_gradient(ops: SimpleNamespace) -> None:
    for seed in range(40):
        ops.order(seed % 5)
        draw = Draw(100 * seed)
        for name, arguments in (
            ("upsample", upsample_arguments(draw)),
            ("upsample_backward", gradient_arguments(draw)),
        ):
            found, expected = getattr(ops.emulated, name)(*arguments), getattr(ops.cpu, name)(*arguments)
            assert found.dtype == torch.float32
            assert found.is_contiguous()
            assert_close(found, expected, 2e-5)


def test_pseudo_labels(ops: SimpleNamespace) -> None:
    for seed in range(40):
        ops.order(seed % 5)
        draw = Draw(100 * seed)
        arguments = prediction_arguments(draw)
        found, expected = ops.emulated.pseudo_label(*arguments), ops.cpu.pseudo_label(*arguments)
        pixels = found[0].numel()
        assert_close(found[1], expected[1], 2e-5)
        assert int((found[0] != expected[0]).sum()) <= 2 + pixels // 1000  # at ties and thresholds
        assert int(found[2].sum()) == pixels
        assert int((found[2] - expected[2]).abs().sum()) <= 8 + pixels // 250  # the same, and edges of bins


def test_confusion_matrices(ops: SimpleNamespace) -> None:
    for seed in range(40):
        ops.order(seed % 5)
        draw = Draw(100 * seed, classes=100 if seed == 0 else None)
        arguments = (draw.logits(), draw.labels(), 255, draw.align_corners)
        found, expected = ops.emulated.confusion_matrix(*arguments), ops.cpu.confusion_matrix(*arguments)
        assert int(found.sum()) == int((arguments[1] != 255).sum())
        assert int((found - expected).abs().sum()) <= 2 + int(expected.sum()) // 500


def test_region_mixes(ops: SimpleNamespace) -> None:
    for seed in range(60):
        draw = Draw(100 * seed)
        arguments = mix_arguments(draw)
        found, expected = ops.emulated.region_mix(*arguments), ops.cpu.region_mix(*arguments)
        assert torch.equal(found[1], expected[1])
        assert found[0].stride() == expected[0].stride()
        assert_close(found[0].float(), expected[0].float(), 1e-6 if found[0].dtype == torch.float32 else 4e-3)


@pytest.mark.parametrize("region", ["box", "classes", "mask"])
def test_region_mixes_of_rgb_bytes(ops: SimpleNamespace, region: str) -> None:
    """Widths in fours, whole images and windows into wider ones, for which four pixels are read at once."""
    outs = [torch.uint8, torch.float32, torch.float16, torch.bfloat16]
    for seed in range(16):
        draw = Draw(100 * seed)
        n, height, width = draw.n, draw.size[0], draw.one_of([4, 60, 256, 300])
        draw.size = [height, width]
        images = (draw.uniform(2, n, 3, height + 1, width + 8) * 256).to(torch.uint8)
        pair = images[..., 1:, 4:-4] if draw.flag() else images[..., :height, :width].contiguous()
        regions = {
            "box": ((draw.uniform(n, 4) * 1.4 - 0.2) * (width + 1)).to(torch.int32),
            "classes": draw.uniform(n, draw.classes) < 0.5,
            "mask": draw.uniform(n, height, width) < 0.5,
        }
        labels = [draw.labels().to(torch.uint8) for _ in range(2)]
        out = outs[seed % 4]
        plain = out == torch.uint8 or draw.flag()
        mean, std = ([], []) if plain else ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4])
        arguments = (*pair, *labels, regions[region], mean, std, out, draw.flag())
        found, expected = ops.emulated.region_mix(*arguments), ops.cpu.region_mix(*arguments)
        assert torch.equal(found[1], expected[1])
        assert found[0].stride() == expected[0].stride()
        if out == torch.uint8:
            assert torch.equal(found[0], expected[0])
        assert_close(found[0].float(), expected[0].float(), 1e-6 if out == torch.float32 else 4e-3)


@pytest.mark.parametrize("name", [*LOSSES, "upsample_backward", "pseudo_label", "region_mix"])
def test_the_order_of_threads_and_blocks_changes_no_bit(ops: SimpleNamespace, name: str) -> None:
    for seed, classes in enumerate([19, 5]):
        draw = Draw(seed, classes)
        draw.size = [50, 270]
        if name in LOSSES:
            arguments = loss_arguments(name, draw, 1, with_grad=True)
        elif name == "upsample_backward":
            arguments = gradient_arguments(draw)
        else:
            arguments = prediction_arguments(draw) if name == "pseudo_label" else mix_arguments(draw)
        results = []
        for order in ORDERS:
            ops.order(order)
            results.append(getattr(ops.emulated, name)(*arguments))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("classes", [19, 250])
def test_sixteen_views(ops: SimpleNamespace, classes: int) -> None:
    """The most that shared memory has to hold."""
    views = [random_map((1, classes, 2 + k, 3), k) for k in range(16)]
    arguments = (views[0], views, [20, 150], 1.5, None, None, False, 1, True)
    found, expected = ops.emulated.distillation_kl(*arguments), ops.cpu.distillation_kl(*arguments)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 2e-5)
    for mean in (False, True):
        arguments = (views, [20, 150], 0.3, None, 1.5, None, 0, mean, False, 255)
        found, expected = ops.emulated.pseudo_label(*arguments), ops.cpu.pseudo_label(*arguments)
        assert_close(found[1], expected[1], 2e-5)


@pytest.mark.parametrize("label", [19, 200, -1, 2**40])
def test_a_label_that_is_no_class_reads_nothing(ops: SimpleNamespace, label: int) -> None:
    logits, target = random_map((1, 19, 3, 4), 0), torch.zeros((1, 20, 30), dtype=torch.int64)
    target[0, 5, 7] = label
    for weight in (None, torch.ones(19)):
        loss, _, gradient = ops.emulated.cross_entropy(logits, target, weight, None, 255, False, 1, True)
        assert loss.isnan()
        assert gradient.isnan().any()
    assert ops.emulated.rectified_cross_entropy(logits, logits, target, None, 255, False, 1, True)[0].isnan()
    assert ops.emulated.confusion_matrix(logits, target, 255, False).sum() == target.numel() - 1
    image = torch.ones(1, 3, 20, 30)
    mixed, _ = ops.emulated.region_mix(
        image, image, target, target, torch.ones(1, 19, dtype=torch.bool), [], [], torch.float32, False
    )
    assert torch.equal(mixed.isnan()[0, 0], target[0] == label)


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_byte_label_that_is_no_class_makes_its_rgb_pixel_nan(
    ops: SimpleNamespace, channels_last: bool
) -> None:
    label = torch.randint(0, 19, (2, 5, 8), dtype=torch.uint8)
    label[0, 1, 2] = label[1, 4, 7] = 19
    label[1, 0, 0] = 255  # ignored, and in no set
    image, table = torch.ones(2, 3, 5, 8, dtype=torch.uint8), torch.ones(2, 19, dtype=torch.bool)
    for out in (torch.float32, torch.bfloat16):
        mixed, _ = ops.emulated.region_mix(image, 2 * image, label, label, table, [], [], out, channels_last)
        assert torch.equal(mixed.isnan(), (label == 19)[:, None].expand(-1, 3, -1, -1))
        assert float(mixed[1, 0, 0, 0]) == pytest.approx(2 / 255, rel=4e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_beside_the_logits_is_read(ops: SimpleNamespace, name: str) -> None:
    """Logits are a window into NaN; one value read beyond it would show in the loss or a gradient."""
    for seed in range(6):
        draw = Draw(seed)
        arguments = list(loss_arguments(name, draw, 1, with_grad=True))
        for i, argument in enumerate(arguments):
            if isinstance(argument, Tensor) and argument.dim() == 4:
                arguments[i] = window(argument)
        assert all(bool(result.isfinite().all()) for result in getattr(ops.emulated, name)(*arguments))


def window(values: Tensor) -> Tensor:
    """``values`` within NaN on all sides."""
    n, c, h, w = values.shape
    around = torch.full((n + 2, c + 2, 2 * h + 3, w + 2), float("nan"), dtype=values.dtype)
    return around[1:-1, 1:-1, 1 : 2 * h : 2, 1:-1].copy_(values)


def test_upsampling_reads_nothing_beside_its_maps(ops: SimpleNamespace) -> None:
    for seed in range(12):
        incoming, logits, *options = gradient_arguments(Draw(seed))
        back = ops.emulated.upsample_backward(window(incoming), window(logits), *options)
        seen = ops.emulated.upsample(window(logits), list(incoming.shape[2:]), *options)
        assert bool(back.isfinite().all())
        assert bool(seen.isfinite().all())  # and every element is written: new tensors are NaN


def test_empty_batches_and_pixels_that_do_not_count(ops: SimpleNamespace) -> None:
    none = torch.zeros(0, 19, 3, 4)
    target = torch.zeros((0, 20, 30), dtype=torch.uint8)
    for reduction, scale in [(0, 1), (1, 0), (2, 1)]:
        loss, factor, gradient = ops.emulated.cross_entropy(
            none, target, None, None, 255, False, reduction, True
        )
        assert float(loss.sum()) == 0
        assert float(factor) == scale
        assert gradient.shape == none.shape
    assert ops.emulated.confusion_matrix(none, target, 255, False).sum() == 0
    assert (
        ops.emulated.pseudo_label([none], [20, 30], 0.5, None, 1.0, None, 0, False, False, 255)[2].sum() == 0
    )
    assert ops.emulated.upsample(none, [20, 30], 1, False).shape == (0, 19, 20, 30)
    back = ops.emulated.upsample_backward(torch.zeros(0, 19, 20, 30), none, 1, False)
    assert back.shape == none.shape
    ignored = torch.full((2, 20, 30), 255, dtype=torch.uint8)
    loss, factor, gradient = ops.emulated.cross_entropy(
        random_map((2, 19, 3, 4), 0), ignored, None, None, 255, False, 1, True
    )
    assert float(loss) == float(factor) == float(gradient.abs().sum()) == 0
