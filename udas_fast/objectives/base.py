"""The interface between a method and the engine that runs its steps."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from udas_fast import distributed
from udas_fast.data import Batch
from udas_fast.data.augment import ViewKind, apply_each, apply_to_pairs, draw_each, draw_whole
from udas_fast.data.types import StreamName
from udas_fast.errors import InputError, bad
from udas_fast.models import NetworkInput, SegmentationOutput, require_backbone, set_domain, to_output
from udas_fast.models.backbones import Maps
from udas_fast.objectives.pseudo_labels import PseudoLabeller

Rows = TypeVar("Rows", Tensor, list)
Domain: TypeAlias = Literal["source", "target"]
#: Detached scalar losses by name, on the device.
Losses: TypeAlias = dict[str, Tensor]

STREAMS: tuple[StreamName, ...] = ("source", "labelled", "unlabelled")


class Batches:
    """The batches of one step: ``source`` (labelled), ``labelled`` and ``unlabelled`` target images.

    A stream that the method requires is always there; an optional one is asked for by :meth:`get`.
    """

    def __init__(
        self, source: Batch | None = None, labelled: Batch | None = None, unlabelled: Batch | None = None
    ) -> None:
        self._batches = {"source": source, "labelled": labelled, "unlabelled": unlabelled}

    @property
    def source(self) -> Batch:
        """Labelled source images."""
        return self._required("source")

    @property
    def labelled(self) -> Batch:
        """Labelled target images."""
        return self._required("labelled")

    @property
    def unlabelled(self) -> Batch:
        """Unlabelled target images; their ``label`` is None, or the pseudo-labels made before the round."""
        return self._required("unlabelled")

    def get(self, name: StreamName) -> Batch | None:
        """Return the batch of stream ``name``, None where the run does not have that stream."""
        return self._batches[name]

    def __iter__(self) -> Iterator[tuple[str, Batch]]:
        return ((name, batch) for name, batch in self._batches.items() if batch is not None)

    def _required(self, name: str) -> Batch:
        batch = self._batches[name]
        if batch is None:
            there = ", ".join(name for name, _ in self) or "none"
            raise bad("streams of the step", there, f"{name!r}: name it in the method's requirements")
        return batch


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """Services for :meth:`Objective.training_step`, the same in every step."""

    backward: Callable[[Tensor], None]
    """Add the gradient of a loss (scaled in mixed precision); call it once a forward, so that activations are freed."""
    input: NetworkInput
    """Form in which the network takes images."""

    def normalize(self, images: Tensor) -> Tensor:
        """Return the network's input, floating ``[N, 3, H, W]``, of uint8 ``images`` of that shape."""
        return self.input.normalize(images)

    def mix(self, inside: Batch, outside: Batch, region: Tensor) -> tuple[Tensor, Tensor]:
        """Return M⊙inside + (1−M)⊙outside of two labelled batches as the network's input and its label, in one pass.

        ``region``: M, as in :func:`udas_fast.ops.region_mix`. Where the mixed images are augmented before the network
        takes them, that operator gives uint8 ones.
        """
        return self.input.mix(
            inside.image, outside.image, inside.required_label, outside.required_label, region
        )

    def forward(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        domain: Domain = "target",
        visible: Tensor | None = None,
        added: Tensor | None = None,
    ) -> SegmentationOutput:
        """Return the output of ``model`` on ``images`` ``[N, 3, H, W]``: uint8, or the network's input by :meth:`mix`.

        ``domain``: whose statistics domain-specific batch norms use and update while training; evaluation uses the
        target's. ``visible``: float ``[N, 1, H, W]``, 0 where the network
        sees the mean colour in the image's place, else 1. ``added``: float ``[N, 3, H, W]``, added to the normalised
        images.
        """
        set_domain(model, domain)
        x = self._taken(images)
        if visible is not None:
            x = x * visible
        return to_output(model(x if added is None else x + added))

    def encode(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        domain: Domain = "target",
        hidden: Tensor | None = None,
    ) -> Maps:
        """Return the maps of the backbone of ``model`` on ``images``; :meth:`decode` makes the output of them.

        ``images``, ``domain``: as in :meth:`forward`. ``hidden``: bool ``[N, 1, h, w]``, patches of a vision
        transformer in whose place it sees its mask token. Raises InputError for a network whose backbone and head do
        not run apart.
        """
        set_domain(model, domain)
        return require_backbone(model, "ctx.encode").encode(self._taken(images), hidden)

    def _taken(self, images: Tensor) -> Tensor:
        """Return ``images`` as the network takes them; :meth:`mix` has made such ones already."""
        x = images if images.is_floating_point() else self.normalize(images)
        # A method may leave autocast for a pass in float32, where weights are float32 too.
        return x if torch.is_autocast_enabled(x.device.type) else x.float()

    def decode(self, model: nn.Module, maps: Maps) -> SegmentationOutput:
        """Return the output of the heads of ``model`` on ``maps`` of :meth:`encode`."""
        network = require_backbone(model, "ctx.decode")
        return SegmentationOutput(*network.decode(maps), network.align_corners)


@dataclass(frozen=True, kw_only=True)
class PrepareContext(StepContext):
    """Services for :meth:`Objective.prepare_batch`: the place in the run and its random numbers."""

    step: int
    """Number of this step in its phase, from 0."""
    steps: int
    """Number of steps of the phase."""
    lr: float
    """Learning rate of the model in this step, of its first parameter group."""
    generator: torch.Generator
    """CPU generator seeded by (seed, phase, step): the only source of random numbers of a step beside dropout.

    It is the same in all processes; numbers for single images come through :meth:`draw`."""

    @property
    def progress(self) -> float:
        """Share of the phase's steps that are done, in [0, 1)."""
        return self.step / self.steps

    def draw(self, numbers: Callable[[int], Rows], n: int) -> Rows:
        """Return random numbers for ``n`` images: this process's rows of ``numbers(m)``, m the images of all processes.

        What happens to an image then does not depend on how many processes share the batch.
        """
        first = distributed.get_rank() * n
        return numbers(distributed.get_world_size() * n)[first : first + n]

    def augment(self, images: Tensor, kind: ViewKind = "strong") -> Tensor:
        """Return a view of ``kind`` of each of uint8 ``images`` ``[N, 3, H, W]``, by numbers of the step.

        "strong" is :func:`udas_fast.data.auto_augment`.
        """
        return apply_each(images, self.draw(lambda n: draw_each(n, self.generator, kind), len(images)))

    def augment_pairs(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and labels uint8 ``[N, H, W]`` under whole AutoAugment, which turns both together."""
        operations = self.draw(lambda n: draw_whole(n, self.generator), len(images))
        return apply_to_pairs(images, labels, operations)


class Objective(nn.Module):
    """The method: what one training step optimises.

    A method is a subclass with a :meth:`training_step`, and a :meth:`prepare_batch` where randomness or training
    progress decides something; its configuration (:class:`ObjectiveConfig`) builds it. Submodules and buffers
    (discriminators, a teacher, counters) are saved with every checkpoint and restored where a step is skipped.
    """

    #: The run's networks by name (``Stage.network``); those that are not trained now may teach.
    networks: Mapping[str, nn.Module] = MappingProxyType({})
    #: Number of images of each stream, but for those that a user's own loader gives.
    images: Mapping[StreamName, int] = MappingProxyType({})
    #: Factors of the classes in the cross-entropy of labelled images, float32 ``[C]``; None: all count alike.
    class_weights: Tensor | None = None
    #: Names of the classes, where there is data.
    class_names: Sequence[str] = ()

    def __init__(self) -> None:
        super().__init__()
        # Labels unlabelled images before the round, or in every step; None: the method has no pseudo-labels.
        # Not a class attribute, which would hide a submodule of this name.
        self.labeller: PseudoLabeller | None = None

    def on_round_start(self, model: nn.Module) -> None:
        """Set up state that depends on the network that will be trained: a teacher copied from it, for example.

        Called when a round begins. A resumed round calls it too; the checkpoint's state then replaces what it set.
        """

    def on_round_end(self, model: nn.Module) -> None:
        """Act on the trained network after the round's last step; called again where a finished round is resumed."""

    def prepare_batch(self, batch: Batches, ctx: PrepareContext) -> Any:
        """Return the ``batch`` of :meth:`training_step`: everything that depends on randomness or training progress.

        Mixing, augmentation and the choice of terms belong here. Values are tensors, batches, plain values, and
        dataclasses, sequences and mappings of them.
        """
        return batch

    def training_step(self, model: nn.Module, batch: Any, ctx: StepContext) -> Losses:
        """Run forward and backward passes; return detached scalar losses by name, left on the device.

        The operations that run may depend on the shapes and plain values in ``batch`` and on nothing else: a CUDA
        graph of them stands for all later steps.
        """
        raise NotImplementedError

    def after_step(self, model: nn.Module) -> None:
        """Follow the network after the optimiser has stepped, as a mean teacher does; not called for skipped steps."""

    def result(self, model: nn.Module) -> nn.Module:
        """Return the network that a round which ended now would give: the trained ``model``, or its teacher."""
        return model

    def scored(self) -> Mapping[str, nn.Module]:
        """Return networks beside the trained one that are scored at the end of a round, by name."""
        return {}

    def companions(self) -> Mapping[str, nn.Module]:
        """Return networks that learn beside the model, by name: each has an optimiser of the model's settings."""
        return {}

    def discriminator_parameters(self) -> Sequence[nn.Parameter]:
        """Return the parameters that the second optimiser updates."""
        return ()


@dataclass(frozen=True)
class Requirements:
    """Requirements of a method on data and network, checked before a run begins.

    Attributes:
        streams: streams that must be there.
        optional_streams: streams that are used where they are given.
        paired: streams whose images are combined one by one, so that their batches are of one size.
        equal_sizes: streams whose images must have one (H, W), as they are mixed.
        several: streams whose images of one batch are mixed, so that it has two or more over all processes.
        min_size: shortest side of the images, in pixels.
        auxiliary_head: reason for a network with an auxiliary head; None: one head is enough.
        backbone: option of the method for which backbone and head of the network run apart
            (:class:`udas_fast.models.BackboneNetwork`); None: any network will do.
        tokens: option of the method that hides tokens of a vision transformer.
        pretrained: option of the method that keeps near the first weights, so that these may not be random.
        any_class: names of classes of which the data has one at least; empty: any classes do.
        networks: networks of the run that the method reads, by name.
        views: kinds of the augmented views of each unlabelled image that the loader makes.
        whole_images: whether unlabelled images are read one by one before a round, which needs a dataset.
        fresh_start: whether each round trains the network from its initial weights.
        source_sized: target streams that have the source's geometry where the method reads both, as their images are
            mixed or learnt together.
        model: kind of the network: "segmentation", or "translation"
            (:class:`udas_fast.models.CycleGenerators`).
    """

    streams: tuple[StreamName, ...]
    optional_streams: tuple[StreamName, ...] = ()
    paired: tuple[StreamName, ...] = ()
    equal_sizes: tuple[StreamName, ...] = ()
    several: tuple[StreamName, ...] = ()
    min_size: int = 1
    auxiliary_head: str | None = None
    backbone: str | None = None
    tokens: str | None = None
    pretrained: str | None = None
    any_class: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    views: tuple[ViewKind, ...] = ()
    whole_images: bool = False
    fresh_start: bool = False
    source_sized: tuple[StreamName, ...] = ("labelled",)
    model: Literal["segmentation", "translation"] = "segmentation"

    def __post_init__(self) -> None:
        for name in (*self.streams, *self.optional_streams, *self.paired, *self.equal_sizes, *self.several):
            if name not in STREAMS:
                raise bad("stream in a method's requirements", repr(name), f"one of {', '.join(STREAMS)}")

    def geometry(self, stream: StreamName) -> Domain:
        """Return the domain whose input size ``stream`` has."""
        mixed = stream in self.source_sized and "source" in self.streams
        return "source" if stream == "source" or mixed else "target"


class ObjectiveConfig:
    """Base of the configurations of methods, which register themselves under ``kind``, their name in YAML.

    Example::

        @config_dataclass
        class MyConfig(ObjectiveConfig, kind="my_method"):
            weight: float = 0.1
    """

    kind: ClassVar[str] = ""
    #: Learning rate of ``--small``, where AdamW trains a narrow network from random weights.
    small_lr: ClassVar[float] = 4e-3

    def __init_subclass__(cls, *, kind: str | None = None) -> None:
        super().__init_subclass__()
        if kind is not None:
            _register(cls, kind)

    @property
    def requirements(self) -> Requirements:
        """Requirements of the method on data and network."""
        raise NotImplementedError

    def build(self, num_classes: int) -> Objective:
        """Return the objective for a network of ``num_classes`` classes."""
        raise NotImplementedError

    def small(self) -> ObjectiveConfig:
        """Return the configuration for the small networks and short runs of ``--small``."""
        return self


#: Configuration classes by kind.
KINDS: dict[str, type[ObjectiveConfig]] = {}


def _register(cls: type[ObjectiveConfig], kind: str) -> None:
    known = KINDS.get(kind)
    if known is not None and _place(known) != _place(cls):  # the same class again: its file was loaded twice
        raise bad(
            f"kind of {_place(cls)}",
            repr(kind),
            f"another name, as {_place(known)} is registered under this one",
        )
    cls.kind = kind
    KINDS[kind] = cls


def _place(cls: type) -> str:
    try:
        return f"{cls.__qualname__} in {inspect.getfile(cls)}"
    except (TypeError, OSError):  # defined where there is no file
        return f"{cls.__module__}.{cls.__qualname__}"


def check_config(config: ObjectiveConfig) -> None:
    """Raise InputError unless ``config`` is of a complete, registered configuration class."""
    cls = type(config)
    if KINDS.get(cls.kind) is not cls:
        raise bad(
            f"objective {cls.__name__}",
            "no kind of its own",
            f'class {cls.__name__}({cls.__mro__[1].__name__}, kind="NAME"), its name in YAML',
        )
    if not is_dataclass(config) or "__dataclass_fields__" not in vars(cls):
        raise bad(
            f"objective {cls.__name__}",
            "a plain class",
            "one with the decorator @udas_fast.config.config_dataclass",
        )
    for name in ("requirements", "build"):
        if getattr(cls, name) is getattr(ObjectiveConfig, name):
            raise bad(f"objective {cls.__name__}", f"no {name}", f"a method or property {name} of its own")
    requirements = config.requirements
    if not isinstance(requirements, Requirements):
        raise bad(f"requirements of {cls.__name__}", type(requirements).__name__, "a Requirements(streams=…)")


def build_objective(config: ObjectiveConfig, num_classes: int) -> Objective:
    """Return ``config.build(num_classes)``.

    Raises:
        InputError: it is no :class:`Objective`, or has no ``training_step``.
    """
    objective = config.build(num_classes)
    name = type(objective).__name__
    if not isinstance(objective, Objective):
        raise bad(f"{type(config).__name__}.build()", name, "an udas_fast.objectives.Objective")
    if type(objective).training_step is Objective.training_step:
        raise InputError(
            f"objective {name}: found no training_step, expected training_step(self, model, batch, ctx)"
        )
    return objective


def parts(value: object) -> Mapping[str, object] | None:
    """Return the fields of a dataclass instance that a method prepared, None of anything else."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    return None
