"""Changes that any recipe can take: image size, number of steps, batch size and learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

from udas_fast.data import Geometry
from udas_fast.data.inputs import StreamBatchSize
from udas_fast.errors import bad, unknown
from udas_fast.recipes.recipe import Recipe, Stage
from udas_fast.recipes.small_recipes import small
from udas_fast.recipes.translation import Translation, with_translation


@dataclass(frozen=True)
class Changes:
    """Changes of a recipe by the command line's options of the same names; None leaves a number as it is."""

    small: tuple[int, int] | None = None
    size: tuple[int, int] | None = None
    steps: int | None = None
    batch_size: int | None = None
    stream_batch_size: StreamBatchSize = field(default_factory=StreamBatchSize)
    lr: float | None = None
    translate: Translation | None = None

    def apply(self, recipe: Recipe) -> Recipe:
        """Return ``recipe`` with these changes, :func:`udas_fast.recipes.small` first.

        Raises:
            InputError: fewer steps than rounds, a learning rate of 0 or less, or a stream that the recipe does not use.
        """
        if self.small is not None:
            lengths = {} if self.steps is None else {"steps": self.steps}
            recipe = small(recipe, size=self.small, **lengths)
        elif self.steps is not None:
            recipe = with_steps(recipe, self.steps)
        if self.size is not None:
            recipe = with_size(recipe, self.size)
        if self.translate is not None:
            recipe = with_translation(recipe, self.translate, small=self.small is not None)
        recipe = with_batch_size(recipe, self.batch_size, self.stream_batch_size)
        return recipe if self.lr is None else with_lr(recipe, self.lr)

    def for_recipe(self, recipe: Recipe) -> Changes:
        """Return these changes without the batch sizes of streams that ``recipe`` does not use."""
        sizes = asdict(self.stream_batch_size)
        used = {name: size for name, size in sizes.items() if name in recipe.batch_sizes}
        return replace(self, stream_batch_size=StreamBatchSize(**used))

    def options(self) -> list[str]:
        """Return the words of a command line that make these changes."""
        streams = [f"{name}={size}" for name, size in asdict(self.stream_batch_size).items() if size]
        batch = [] if self.batch_size is None else [str(self.batch_size)]
        texts = {
            "--small": self.small and "{}x{}".format(*self.small),
            "--size": self.size and "{}x{}".format(*self.size),
            "--steps": self.steps and str(self.steps),
            "--batch-size": ",".join([*batch, *streams]),
            "--lr": self.lr and repr(self.lr),
            "--translate": self.translate,
        }
        return [word for option, text in texts.items() if text for word in (option, text)]


def with_size(recipe: Recipe, size: tuple[int, int]) -> Recipe:
    """Return ``recipe`` with the images of both domains resized to ``size``, (H, W).

    A crop that is larger than ``size`` shrinks as its image does. Domains that the recipe shows at one size, whole or
    cropped, are still shown at one: both are cropped to the smaller of their new sizes.
    """
    before = recipe.input
    source, target = _resized(before.source, size), _resized(before.target, size)
    if _shown(before.source) == _shown(before.target) and _shown(source) != _shown(target):
        crop = min(_shown(source), _shown(target), key=math.prod)
        source, target = replace(source, crop=crop), replace(target, crop=crop)
    return replace(recipe, input=replace(before, source=source, target=target))


def _shown(geometry: Geometry) -> tuple[int, int]:
    """Return the (H, W) of the images that the network is given."""
    return geometry.crop or geometry.size


def _resized(geometry: Geometry, size: tuple[int, int]) -> Geometry:
    crop = geometry.crop
    if crop is not None and (crop[0] > size[0] or crop[1] > size[1]):
        height, width = (
            max(1, round(side * after / before))
            for side, after, before in zip(crop, size, geometry.size, strict=True)
        )
        crop = height, width
    return replace(geometry, size=size, crop=crop)


def with_steps(recipe: Recipe, steps: int) -> Recipe:
    """Return ``recipe`` with ``steps`` optimisation steps of each network over all stages and rounds.

    Stages and rounds keep their proportions, but for what rounding leaves to the first stage.

    Raises:
        InputError: fewer steps than rounds.
    """
    lengths: dict[str, int] = {}
    for network in dict.fromkeys(stage.network for stage in recipe.stages):
        lengths |= _lengths(recipe.name, [s for s in recipe.stages if s.network == network], steps)
    return replace(recipe, stages=tuple(replace(s, steps=lengths[s.name]) for s in recipe.stages))


def _lengths(recipe: str, stages: Sequence[Stage], steps: int) -> dict[str, int]:
    """Return the steps of a round of each of the ``stages`` that train one network, by name."""
    rounds = sum(stage.rounds for stage in stages)
    if steps < rounds:
        raise bad("--steps", steps, f"at least {rounds}, one for each round of {recipe}")
    whole, left = sum(stage.steps * stage.rounds for stage in stages), steps
    lengths: dict[str, int] = {}
    for stage in reversed(stages[1:]):
        rounds -= stage.rounds  # of the stages whose steps are not set yet
        most = (left - rounds) // stage.rounds
        lengths[stage.name] = min(max(1, steps * stage.steps // whole), most)
        left -= lengths[stage.name] * stage.rounds
    return lengths | {stages[0].name: left // stages[0].rounds}


def with_batch_size(recipe: Recipe, size: int | None, streams: StreamBatchSize | None = None) -> Recipe:
    """Return ``recipe`` with batches of ``size`` images, and those of ``streams`` where it names a number.

    ``size`` is of every other stream; None leaves them as they are.

    Raises:
        InputError: ``streams`` names one that the recipe does not use.
    """
    named = {name: number for name, number in asdict(streams or StreamBatchSize()).items() if number}
    for name in named:
        if name not in recipe.batch_sizes:
            raise unknown(f"--batch-size: stream of {recipe.name}", name, recipe.batch_sizes)
    own = {} if size is not None else asdict(recipe.input.stream_batch_size)
    inputs = replace(
        recipe.input,
        batch_size=recipe.input.batch_size if size is None else size,
        stream_batch_size=StreamBatchSize(**own | named),
    )
    return replace(recipe, input=inputs)


def with_lr(recipe: Recipe, lr: float) -> Recipe:
    """Return ``recipe`` with the learning rate ``lr`` in its first stage; later stages keep their proportion to it.

    Rates of discriminators stay as they are.

    Raises:
        InputError: ``lr`` is not a number above 0.
    """
    if not 0 < lr < math.inf:
        raise bad("--lr", lr, "a number above 0")
    first = recipe.stages[0].optimizer.lr
    stages = [
        replace(stage, optimizer=replace(stage.optimizer, lr=lr * (stage.optimizer.lr / first)))
        for stage in recipe.stages
    ]
    return replace(recipe, stages=tuple(stages))
