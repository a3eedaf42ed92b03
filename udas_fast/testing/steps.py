"""Single steps of a method on small random batches, for tests that compare them with an independent computation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from udas_fast.data import Batch
from udas_fast.models import NetworkInput, Normalization
from udas_fast.objectives import Batches, Losses, Objective, PrepareContext

#: Images of values from 0 to 1.
UNIT = NetworkInput(Normalization((0, 0, 0), (1, 1, 1)))
#: Gradients of one backward pass by parameter name.
Gradients = dict[str, Tensor]


class TinyNetwork(nn.Module):
    """A network of one convolution with two heads at a quarter of the resolution, for float64 comparisons.

    ``inputs`` holds the images ``[N, 3, H, W]`` of every forward in training mode.
    """

    def __init__(self, num_classes: int = 4) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.primary = nn.Conv2d(8, num_classes, 1)
        self.auxiliary = nn.Conv2d(8, num_classes, 1)
        self.inputs: list[Tensor] = []

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return (primary, auxiliary) logits ``[N, C, H/4, W/4]``."""
        if self.training:
            self.inputs.append(x.detach().clone())
        features = self.norm(self.body(x)).relu()
        return self.primary(features), self.auxiliary(features)


def random_batches(
    num_classes: int = 4, size: tuple[int, int] = (32, 48), count: int = 2, seed: int = 1
) -> Batches:
    """Return batches of ``count`` random images of ``size`` (H, W); the labels' first two rows are ignored."""
    generator = torch.Generator().manual_seed(seed)

    def images() -> Tensor:
        return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)

    def labels() -> Tensor:
        label = torch.randint(0, num_classes, (count, *size), dtype=torch.uint8, generator=generator)
        label[:, :2] = 255
        return label

    def ids(stream: str) -> list[str]:
        return [f"{stream[0]}{i}" for i in range(count)]

    return Batches(
        source=Batch(images(), labels(), ids("source")),
        labelled=Batch(images(), labels(), ids("labelled")),
        unlabelled=Batch(images(), None, ids("unlabelled")),
    )


def make_context(progress: float = 0.5, seed: int = 0, steps: int = 1000) -> PrepareContext:
    """Return a context of learning rate 0.1, ``backward`` ``loss.backward()`` and a network of images in [0, 1]."""
    return PrepareContext(
        step=round(progress * steps),
        steps=steps,
        lr=0.1,
        generator=torch.Generator().manual_seed(seed),
        backward=lambda loss: loss.backward(),
        input=UNIT,
    )


def take_step(objective: Objective, model: nn.Module, batches: Batches, context: PrepareContext) -> Losses:
    """Return the losses of one step: ``prepare_batch``, then ``training_step``."""
    return objective.training_step(model, objective.prepare_batch(batches, context), context)


def backward_passes(
    objective: Objective, model: nn.Module, batches: Batches, context: PrepareContext
) -> list[Gradients]:
    """Return the gradients of each ``ctx.backward`` of a step; parameters without a gradient are left out.

    Names begin with ``model.`` or ``objective.``.
    """
    parts: dict[str, nn.Module] = {"model": model, "objective": objective}
    found: list[Gradients] = []

    def backward(loss: Tensor) -> None:
        for _, parameter in named_parameters(parts):
            parameter.grad = None
        loss.backward()
        found.append({name: p.grad.clone() for name, p in named_parameters(parts) if p.grad is not None})

    take_step(objective, model, batches, replace(context, backward=backward))
    return found


def gradients(loss: Tensor, parts: Mapping[str, nn.Module]) -> Gradients:
    """Return the gradients of ``loss`` for the parameters of ``parts`` that it depends on."""
    names, parameters = zip(*named_parameters(parts), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return {name: grad for name, grad in zip(names, found, strict=True) if grad is not None}


def assert_same_gradients(
    found: Sequence[Gradients], expected: Sequence[Gradients], *, rounding: float = 1e-5
) -> None:
    """Assert that the passes of a float32 step equal those of a float64 computation.

    Float32's ``rounding`` is small beside the largest gradient of a pass.
    """
    assert len(found) == len(expected), f"{len(found)} backward passes, expected {len(expected)}"
    for got, want in zip(found, expected, strict=True):
        assert got.keys() == want.keys(), f"gradients of {sorted(got)}, expected of {sorted(want)}"
        most = max(grad.abs().max().item() for grad in want.values())
        assert most > 0, "the expected gradients are zero"
        for name, grad in want.items():
            torch.testing.assert_close(got[name].double(), grad.double(), rtol=1e-3, atol=rounding * most)


def named_parameters(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield (name, parameter) of all ``parts``; a name begins with its part's."""
    for part, module in parts.items():
        for name, parameter in module.named_parameters():
            yield f"{part}.{name}", parameter
