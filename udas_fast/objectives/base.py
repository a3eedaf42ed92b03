"""The interface between a method and the loop that runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias, TypeVar

import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from udas_fast import distributed
from udas_fast.data import Batch, SegmentationDataset
from udas_fast.data.augment import apply_each, draw_each

Rows = TypeVar("Rows", Tensor, list)

#: Of the configuration dataclasses: unknown keys and numbers that are not finite are errors.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
#: Of a loss's term; 0 leaves it out.
Weight: TypeAlias = Annotated[float, Field(ge=0)]


@dataclass(frozen=True, kw_only=True)
class Learning:
    """What the engine lends :meth:`Objective.learn`: nothing that differs from step to step."""

    backward: Callable[[Tensor], None]
    """Adds the gradient of a loss (scaled in mixed precision); call it once per forward to free activations."""
    normalize: Callable[[Tensor], Tensor]
    """uint8 ``[N, 3, H, W]`` to the network's floating input."""


@dataclass(frozen=True, kw_only=True)
class Step(Learning):
    """What the engine lends :meth:`Objective.inputs`: where the run is, and chance."""

    progress: float
    """Share of the stage's steps that are done, in [0, 1)."""
    generator: torch.Generator
    """CPU generator seeded by (seed, stage, round, step): the only source of randomness of a step beside dropout.

    It is the same in all processes: numbers for single images come through :meth:`draw`."""

    def draw(self, numbers: Callable[[int], Rows], n: int) -> Rows:
        """Random numbers for each of ``n`` images: this process's rows of ``numbers(m)``, m the images of all.

        So what happens to an image does not depend on how many processes share the batch.
        """
        first = distributed.get_rank() * n
        return numbers(distributed.get_world_size() * n)[first : first + n]

    def augment(self, images: Tensor) -> Tensor:
        """:func:`udas_fast.data.auto_augment` of uint8 ``[N, 3, H, W]``, by numbers of the step."""
        return apply_each(images, self.draw(lambda n: draw_each(n, self.generator), len(images)))


@dataclass(frozen=True)
class Round:
    """What the trainer lends an objective before the first step of a round and after its last."""

    name: str
    """The phase's."""
    unlabelled: SegmentationDataset | None
    """The target's training images, where the recipe uses them and they are a dataset."""
    size: tuple[int, int]
    """(H, W) that whole images have for the network."""
    folder: Path
    """For files of this round's pseudo-labels; it need not exist."""
    picture: Path
    """For a picture of them."""
    generator: Callable[..., torch.Generator]
    """CPU generator seeded by (seed, stage, round) and the place that it is called with."""
    normalize: Callable[[Tensor], Tensor]
    """uint8 ``[N, 3, H, W]`` to the network's floating input."""
    check_stop: Callable[[], None]
    """Ends the run where that has been asked for; to be called between the parts of what takes long."""


class Objective(nn.Module):
    """What one step optimises; sub-modules (discriminators, a teacher) are saved with every checkpoint.

    A method is one subclass with one :meth:`learn`, and :meth:`inputs` where it draws or mixes, built by its
    configuration (:class:`ObjectiveConfig`).
    """

    #: The run's networks by name (``Stage.network``), lent by the trainer: those that are not trained may teach.
    networks: Mapping[str, nn.Module] = MappingProxyType({})

    def start(self, model: nn.Module) -> None:
        """Called when a round begins: a teacher is taken from the student here.

        A resumed round calls it too, and the checkpoint's state then replaces what it set.
        """

    def prepare(self, round: Round) -> SegmentationDataset | None:
        """Called before the first step, and again when the round is resumed: the unlabelled images of the steps.

        An objective that labels them beforehand returns them with these labels.
        """
        return round.unlabelled

    def finish(self, round: Round) -> None:
        """Called after the last step, and again where the run was stopped before the next round's checkpoint."""

    def inputs(self, batches: Mapping[str, Batch], step: Step) -> Mapping[str, Any]:
        """What :meth:`learn` looks at, made of a step's ``batches``: all that chance or progress have a say in.

        Values are tensors and batches on the device, sequences and mappings of them, or plain values that seldom
        change.
        """
        return batches

    def learn(self, model: nn.Module, inputs: Mapping[str, Any], step: Learning) -> dict[str, Tensor]:
        """Run forward and backward passes; return detached scalar losses by name, left on the device.

        Which operations run may follow from the plain values and the shapes of ``inputs``, and from nothing else: a
        CUDA graph of them stands for all later steps.
        """
        raise TypeError(f"{type(self).__name__} has no learn()")

    def scored(self) -> Mapping[str, nn.Module]:
        """Networks beside the trained one that are scored when the round ends, by name."""
        return {}

    def discriminator_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters beside the model's own that the second optimiser updates (the discriminators')."""
        return ()


class ObjectiveConfig:
    """Base of the frozen dataclasses that describe an objective; ``kind`` is its name in a recipe's YAML."""

    kind: str
    views = 1
    """Photometric views of each unlabelled image that a step looks at, the image itself among them."""
    trains = "segmentation"
    """What the model of a step is: "segmentation", or "translation" (:class:`udas_fast.models.CycleGenerators`)."""
    teachers: tuple[str, ...] = ()
    """Networks of the run that the objective asks for, by name."""

    @property
    def by_number(self) -> bool:
        """Whether unlabelled images are read one by one before a round, which needs a dataset and not a UserLoader."""
        return False

    @property
    def shortest_side(self) -> int:
        """Of the images, in pixels, that its steps can take."""
        return 1

    @property
    def paired(self) -> tuple[str, ...]:
        """Streams whose images a step combines one by one: their batches are of one size."""
        return ()

    @property
    def two_heads(self) -> str | None:
        """What needs a network with an auxiliary head; None: one head is enough."""
        return None

    @property
    def stream_views(self) -> int:
        """How many of these the data stream makes, where its engine can."""
        return self.views

    @property
    def fresh_start(self) -> bool:
        """Whether each round trains the network from its initial weights; an objective's :meth:`start` is before."""
        return False

    @property
    def needs(self) -> tuple[str, ...]:
        """Streams that must be there, of "source" (labelled), "labelled" (target) and "unlabelled" (target)."""
        return ()

    @property
    def uses(self) -> tuple[str, ...]:
        """Streams that are used as well when they are there."""
        return ()

    def build(self, num_classes: int) -> Objective:
        """The objective for a model of ``num_classes`` classes."""
        raise TypeError(f"{type(self).__name__} has no build()")
