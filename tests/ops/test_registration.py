"""The operators' registration with PyTorch: schemas, fakes, gradients, compilation, autocast."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from op_cases import DEVICES, LOSS_PARAMS, LOSSES, Loss, oracle, random_labels, random_map, with_gradients
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from udas_fast import ops
from udas_fast.errors import InputError
from udas_fast.ops import _library, reference

BUILT = pytest.mark.skipif(bool(_library.REASON), reason=_library.REASON)


def samples(device: str) -> dict[str, list[tuple[Any, ...]]]:
    """Arguments for each operator of torch.ops.udas_fast."""
    a, b = (random_map((2, 5, 3, 4), i).to(device) for i in range(2))
    plain = random_map((2, 5, 2, 3), 2).to(device)
    target = random_labels((2, 7, 9), 5, 0).to(device)
    weight = torch.rand((2, 7, 9), device=device)
    classes = torch.rand(5, device=device)
    size = [7, 9]
    flips = torch.tensor([[True, False], [False, True]], device=device)
    image = torch.randint(0, 256, (2, 3, 7, 9), device=device).to(torch.uint8)
    boxes = torch.tensor([[1, 1, 5, 6], [0, 0, 9, 7]], dtype=torch.int32, device=device)
    two = [(a, b, size, w, False, r, r > 0) for w, r in ((None, 1), (weight, 0), (weight, 2))]
    return {
        "cross_entropy": [
            (a, target, c, w, 255, False, r, r > 0)
            for c, w, r in ((None, None, 1), (classes, weight, 0), (classes, None, 2))
        ],
        "rectified_cross_entropy": [
            (a, b, target, w, 255, True, r, r > 0) for w, r in ((None, 1), (weight, 0))
        ],
        "symmetric_kl": two,
        "ensemble_kl": two,
        "distillation_kl": [
            (a, [plain, plain * 2], size, 2.0, m, None, False, r, r > 0)
            for m, r in ((None, 1), (weight > 0.5, 0))
        ],
        "soft_cross_entropy": [
            (a, plain.softmax(1), size, m, None, False, r, r > 0) for m, r in ((None, 1), (weight > 0.5, 0))
        ],
        "squared_error": [
            (a, plain.softmax(1), size, None, weight, 255, True, 1, True),
            (a, target, size, weight > 0.5, None, 255, False, 0, False),
        ],
        "entropy": [(a, size, w, False, r, r > 0) for w, r in ((None, 1), (weight, 0))],
        "pseudo_label": [
            ([plain, plain * 2], size, 0.6, None, 1.0, None, 2, False, False, 255),
            ([plain, plain * 2], size, 0.0, classes, 1.0, flips, 0, True, True, 255),
        ],
        "confusion_matrix": [(plain, target, 255, False)],
        "upsample": [(a, size, code, code == 1) for code in range(3)],
        "upsample_backward": [(random_map((2, 5, *size), 3).to(device), plain, 2, False)],
        "region_mix": [
            (image, image.flip(0), target, target.flip(0), boxes, [0.5] * 3, [0.2] * 3, torch.float32, True),
            (image, image.flip(0), target, target.flip(0), boxes, [], [], torch.uint8, False),
        ],
    }


@pytest.mark.slow
@BUILT
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", [*_library.COMPILED, "upsample_backward"])
def test_opcheck(name: str, device: str) -> None:
    for arguments in samples(device)[name]:
        torch.library.opcheck(getattr(torch.ops.udas_fast, name).default, arguments)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", LOSS_PARAMS)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.filterwarnings("ignore:Input #. requires gradient and is not a double")
def test_gradcheck(loss: Loss, device: str, reduction: str) -> None:
    """The gradient against differences of the operator itself, in float32: wide steps, loose bounds."""
    if loss.constant:
        pytest.skip("a part is held constant, which differences do not know; the float64 reference does")
    maps = [random_map((1, 3, 2, 3), i, scale=1).to(device).requires_grad_() for i in range(loss.maps)]
    target = random_labels((1, 5, 6), 3, 0).to(device)

    def value(*leaves: Tensor) -> Tensor:
        return loss.call(ops, leaves, target, reduction=reduction).double()

    assert torch.autograd.gradcheck(value, maps, eps=1e-2, atol=5e-3, rtol=1e-2, nondet_tol=0.0)


@pytest.mark.parametrize("loss", LOSS_PARAMS)
def test_reference_gradcheck(loss: Loss) -> None:
    if loss.constant:
        pytest.skip("a part is held constant")
    maps = [random_map((1, 3, 2, 3), i, scale=1).double().requires_grad_() for i in range(loss.maps)]
    target = random_labels((1, 5, 6), 3, 0)
    assert torch.autograd.gradcheck(lambda *leaves: loss.call(reference, leaves, target), maps)


def differentiable(device: str) -> dict[str, tuple[Callable[..., Tensor], int]]:
    """Each operator with a gradient as a function to a scalar, and the number of maps that it takes."""
    target = random_labels((1, 5, 6), 3, 0).to(device)
    functions: dict[str, tuple[Callable[..., Tensor], int]] = {
        "upsample": (lambda module, a: module.upsample(a, (5, 6), activation="softmax").square().sum(), 1)
    }
    for reduction in ("mean", "none"):
        for loss in LOSSES:
            functions[f"{loss.name}-{reduction}"] = (
                lambda module, *maps, loss=loss, reduction=reduction: loss.call(
                    module, maps, target, reduction=reduction
                ).sum(),
                loss.maps,
            )
    return functions


@BUILT
@pytest.mark.parametrize("device", DEVICES)
def test_a_second_derivative_is_refused(device: str) -> None:
    """A gradient penalty beside another loss would lose its term in silence."""
    for name, (function, maps) in differentiable(device).items():
        leaves = [random_map((1, 3, 2, 3), i).to(device).requires_grad_() for i in range(maps)]
        first = torch.autograd.grad(function(ops, *leaves), leaves, create_graph=True, allow_unused=True)
        plain = torch.autograd.grad(function(ops, *leaves), leaves, allow_unused=True)
        for ours, other in zip(first, plain, strict=True):
            assert (ours is None) == (other is None), name
            assert ours is None or torch.equal(ours, other), name
        penalty = sum(g.square().sum() for g in first if g is not None) + leaves[0].square().sum()
        operator = name.partition("-")[0]
        with pytest.raises(
            RuntimeError, match=f"{operator}: found a second derivative, .*reference.{operator}"
        ):
            penalty.backward()
        double = [leaf.detach().double().requires_grad_() for leaf in leaves]
        assert torch.autograd.grad(function(reference, *double), double[0], create_graph=True)[
            0
        ].requires_grad


@BUILT
def test_a_second_derivative_of_compiled_code_is_refused() -> None:
    leaf, target = random_map((1, 3, 2, 3), 0).requires_grad_(), random_labels((1, 5, 6), 3, 0)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: ops.cross_entropy(x, target), fullgraph=True, backend="aot_eager")
    (first,) = torch.autograd.grad(compiled(leaf), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        first.square().sum().backward()


@BUILT
@pytest.mark.parametrize("device", DEVICES)
def test_forward_mode_is_refused(device: str) -> None:
    for name, (function, maps) in differentiable(device).items():
        operator = name.partition("-")[0]
        leaves = tuple(random_map((1, 3, 2, 3), i).to(device) for i in range(maps))
        tangents = tuple(torch.ones_like(leaf) for leaf in leaves)
        with pytest.raises(InputError, match=f"{operator}: found forward-mode differentiation"):
            torch.func.jvp(lambda *maps, f=function: f(ops, *maps), leaves, tangents)
        with forward_ad.dual_level():
            dual = [forward_ad.make_dual(*pair) for pair in zip(leaves, tangents, strict=True)]
            with pytest.raises(InputError, match=f"{operator}: found forward-mode differentiation"):
                function(ops, *dual)
            function(ops, *leaves)  # nothing is asked of these
            value = forward_ad.unpack_dual(function(reference, *dual))
            assert value.tangent is not None, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("loss", LOSS_PARAMS)
def test_compiles_without_a_break(loss: Loss, device: str) -> None:
    maps = [random_map((2, 5, 3, 4), i).to(device) for i in range(loss.maps)]
    target = random_labels((2, 7, 9), 5, 0).to(device)

    def step(*leaves: Tensor) -> Tensor:
        return loss.call(ops, [leaf * 2 for leaf in leaves], target)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for function in (step, compiled):
        leaves = [m.clone().requires_grad_() for m in maps]
        value = function(*leaves)
        value.backward()
        results.append((value.detach(), *(leaf.grad for leaf in leaves)))
    for eager, traced in zip(*results, strict=True):
        torch.testing.assert_close(traced, eager)


@pytest.mark.parametrize("device", DEVICES)
def test_the_others_compile_without_a_break(device: str) -> None:
    view = random_map((2, 5, 3, 4), 0).to(device)
    target = random_labels((2, 7, 9), 5, 0).to(device)
    image = torch.randint(0, 256, (2, 3, 7, 9), device=device).to(torch.uint8)
    region = torch.rand((2, 5), device=device) < 0.5

    def step(view: Tensor, target: Tensor, image: Tensor) -> tuple[Tensor, ...]:
        labels = ops.pseudo_label([view, view.flip(-1)], (7, 9), flips=[False, True])
        mixed = ops.region_mix(
            image, image.flip(0), target, labels.label, region, mean=[0.5] * 3, std=[0.2] * 3
        )
        return (*labels, *mixed, ops.confusion_matrix(view, target, 5))

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for eager, traced in zip(step(view, target, image), compiled(view, target, image), strict=True):
        assert torch.equal(eager, traced)


@pytest.mark.slow
def test_compiles_with_inductor() -> None:
    logits = random_map((1, 5, 3, 4), 0).requires_grad_()
    target = random_labels((1, 7, 9), 5, 0)
    compiled = torch.compile(lambda x: ops.cross_entropy(x * 2, target) * 3, fullgraph=True)
    value = compiled(logits)
    value.backward()
    torch.testing.assert_close(value, ops.cross_entropy(logits.detach() * 2, target) * 3)
    assert logits.grad is not None


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_hands_half_logits_over_as_they_are(device: str) -> None:
    body = torch.nn.Conv2d(4, 5, 1).to(device)
    x = random_map((1, 4, 3, 4), 0).to(device)
    target = random_labels((1, 9, 11), 5, 0).to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        logits = body(x)
        assert logits.dtype == torch.bfloat16
        loss = ops.cross_entropy(logits, target) + ops.entropy(logits, (9, 11))
    assert loss.dtype == torch.float32
    loss.backward()
    assert bool(body.weight.grad.isfinite().all())


@pytest.mark.parametrize("loss", LOSS_PARAMS)
def test_heads_of_two_dtypes(loss: Loss) -> None:
    if loss.maps == 1:
        pytest.skip("one head")
    a, b = random_map((1, 4, 3, 5), 0), random_map((1, 4, 3, 5), 1).bfloat16()
    target = random_labels((1, 8, 9), 4, 0)
    found, gradients = with_gradients(loss, ops, [a, b], target)
    expected, expected_gradients = oracle(loss, [a, b], target)
    torch.testing.assert_close(found.double(), expected)
    assert [g.dtype for g in gradients] == [torch.float32, torch.bfloat16]
    torch.testing.assert_close(gradients[1].double(), expected_gradients[1], rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("loss", LOSS_PARAMS)
def test_only_the_head_that_asks_gets_a_gradient(loss: Loss) -> None:
    if loss.maps == 1:
        pytest.skip("one head")
    a, b = (random_map((1, 4, 3, 5), i) for i in range(2))
    target = random_labels((1, 8, 9), 4, 0)
    a.requires_grad_()
    loss.call(ops, [a, b], target).backward()
    assert a.grad is not None
    assert b.grad is None
    with torch.no_grad():
        assert not loss.call(ops, [a, b], target).requires_grad


def test_backends_name_every_operator_and_the_missing_ones_run_as_reference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert set(ops.backends()) == set(_library.COMPILED)
    if not _library.REASON:
        assert {where["cpu"] for where in ops.backends().values()} == {"compiled"}
    logits, target = random_map((1, 4, 3, 5), 0), random_labels((1, 8, 9), 4, 0)
    compiled = ops.cross_entropy(logits, target)
    monkeypatch.setitem(_library.COMPILED, "cross_entropy", frozenset())
    assert ops.backends()["cross_entropy"] == {"cpu": "reference", "cuda": "reference"}
    torch.testing.assert_close(ops.cross_entropy(logits, target), compiled)


def test_the_reference_equals_torch() -> None:
    """The oracle itself against torch.nn.functional, in float64."""
    f = torch.nn.functional
    a, b = (random_map((2, 5, 3, 4), i).double() for i in range(2))
    target = random_labels((2, 7, 9), 5, 0)
    weight = torch.rand(5, dtype=torch.float64)
    up_a, up_b = (f.interpolate(x, (7, 9), mode="bilinear", align_corners=True) for x in (a, b))
    found = reference.cross_entropy(a, target, weight=weight, align_corners=True)
    torch.testing.assert_close(found, f.cross_entropy(up_a, target.long(), weight=weight, ignore_index=255))
    p, q = up_a.log_softmax(1), up_b.log_softmax(1)
    pixels = 2 * 7 * 9
    forth, back = (f.kl_div(y, x, reduction="sum", log_target=True) / pixels for x, y in ((p, q), (q, p)))
    torch.testing.assert_close(reference.symmetric_kl(a, b, (7, 9), align_corners=True), forth + back)
    distilled = reference.distillation_kl(a, [b], (7, 9), align_corners=True)
    torch.testing.assert_close(distilled, f.kl_div(p, q, reduction="sum", log_target=True) / pixels)
    uniform = reference.entropy(torch.zeros_like(a), (7, 9))
    torch.testing.assert_close(uniform, torch.ones((), dtype=torch.float64))
    one_hot = reference.entropy(torch.eye(5, dtype=torch.float64)[:1, :, None, None] * 100, (7, 9))
    assert math.isclose(float(one_hot), 0.0, abs_tol=1e-12)


class _WithGrad(TorchDispatchMode):
    """Records, for each call of the compiled cross_entropy, whether it computes the gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[bool] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func._schema.name == "udas_fast::cross_entropy":
            self.seen.append(args[-1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("reduction", "expected"), [("none", [False, True]), ("mean", [True])])
def test_each_gradient_is_computed_once(reduction: str, expected: list[bool]) -> None:
    if _library.REASON:
        pytest.skip(_library.REASON)
    logits, target = random_map((1, 3, 2, 2), 0).requires_grad_(), random_labels((1, 4, 5), 3, 1)
    with _WithGrad() as calls:
        ops.cross_entropy(logits, target, reduction=reduction).sum().backward()
    assert calls.seen == expected
