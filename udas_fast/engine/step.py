"""One training step: prepare, forward and backward, optimise; the same for every method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from udas_fast import distributed
from udas_fast.engine.faults import BadSteps
from udas_fast.engine.graph import Capture, StepGraph
from udas_fast.engine.memory import MemoryConfig
from udas_fast.engine.optim import (
    MakeOptimizer,
    OptimizerConfig,
    build_optimizers,
    load_optimizer,
    set_learning_rates,
)
from udas_fast.engine.precision import Amp, network_input
from udas_fast.errors import InputError, bad
from udas_fast.models import MeanTeacher
from udas_fast.objectives import Batches, Losses, Objective, ObjectiveConfig, PrepareContext, StepContext
from udas_fast.objectives.base import StreamName, build_objective
from udas_fast.seeding import seed_step


def start_objective(
    config: ObjectiveConfig,
    model: nn.Module,
    networks: Mapping[str, nn.Module],
    *,
    num_classes: int,
    memory: MemoryConfig,
    class_weights: Sequence[float] | None = None,
    class_names: Sequence[str] = (),
    images: Mapping[StreamName, int] = MappingProxyType({}),
    device: torch.device | None = None,
) -> Objective:
    """Return the objective of a round, set up for ``model``, on ``device``.

    Args:
        config: the method's configuration.
        model: the network that is trained.
        networks: all networks of the run by name.
        num_classes: classes of the data.
        memory: activation checkpointing and micro-batches of its parts.
        class_weights: factors of the classes in the cross-entropy of labelled images; None: all count alike.
        class_names: names of the classes, where there is data.
        images: number of images of each stream whose number is known.
        device: where it goes; None: it stays where it was built.
    """
    objective = build_objective(config, num_classes)
    objective.networks, objective.images, objective.class_names = networks, images, class_names
    if class_weights is not None:
        objective.class_weights = torch.tensor(class_weights, dtype=torch.float32, device=device)
    objective.on_round_start(model)
    memory.apply(objective)
    return objective if device is None else objective.to(device)


class TrainStep:
    """Takes the steps of one phase; :meth:`state_dict` is everything that the phase needs to go on.

    Where there are several processes (:mod:`udas_fast.distributed`), all take the same steps, each on its part of
    every batch, and hold the same state after each.

    Args:
        name: the phase's.
        steps: number of steps of the phase, which the schedule follows.
        model: the segmentation network, on the device.
        objective: the method, on the device.
        optimizer: the recipe's settings.
        amp: device and precision.
        seed: the run's seed.
        ema: decay of the average of the weights, which takes the model's place when the phase ends; None: none.
        make_optimizer: the user's own optimiser of the model; None: the recipe's.
        bad_steps: counts skipped steps; by default none is skipped.
        capture: records steps as CUDA graphs; None: they run as they are.

    Attributes:
        done: number of steps taken.
        skipped: whether the last step was skipped.
    """

    def __init__(
        self,
        name: str,
        steps: int,
        model: nn.Module,
        objective: Objective,
        optimizer: OptimizerConfig,
        amp: Amp,
        seed: int,
        *,
        ema: float | None = None,
        make_optimizer: MakeOptimizer | None = None,
        bad_steps: BadSteps | None = None,
        capture: Capture | None = None,
    ) -> None:
        self.name, self.steps, self.model, self.objective = name, steps, model, objective
        self.config, self.amp, self.seed = optimizer, amp, seed
        self.input = network_input(amp, model)
        distributed.same_everywhere(model)  # a user's network need not have been made with one seed
        distributed.same_everywhere(objective)
        self._networks = {"model": model, **objective.companions()}
        self.optimizers = build_optimizers(
            model,
            objective.discriminator_parameters(),
            optimizer,
            make_optimizer,
            objective.companions(),
        )
        self.average = None if ema is None else MeanTeacher(model, ema)
        self.bad_steps = bad_steps or BadSteps()
        self.graph = None if capture is None else StepGraph(self.parameters(), capture)
        self.done = 0
        self.skipped = False
        self._backwards: int | None = 0  # counted in the first step only

    def __call__(self, batches: Batches) -> Losses:
        """Take one step; return its losses, still on the device."""
        progress = self.done / self.steps
        set_learning_rates(self.optimizers, progress, self.config)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        context = PrepareContext(
            step=self.done,
            steps=self.steps,
            lr=self.lr,
            generator=self._seed_step(),
            backward=self._backward,
            input=self.input,
        )
        before = self._state_to_restore()

        with self.amp.autocast():
            batch = self.objective.prepare_batch(batches, context)
        if self.graph is None:
            with self.amp.autocast():
                losses = self.objective.training_step(self.model, batch, self._step_context())
        else:
            losses = self.graph.step(self._training_step, batch)
        self._check_first(losses)

        distributed.average_gradients(self.parameters())
        self.done += 1
        self.skipped = before is not None and self.bad_steps.undo(losses, self._gradients(), before)
        if self.skipped:
            return losses
        if self.config.max_norm is not None:
            for name in self._networks:
                self.amp.clip(self.optimizers[name], self.config.max_norm)
        self.amp.step(self.optimizers.values())
        for network in self._networks.values():
            distributed.average_buffers(network)
        self.objective.after_step(self.model)
        if self.average is not None:
            self.average.follow(self.model)
        return losses | {"scaler_skips": self.amp.skips.clone()} if self.amp.scaler.is_enabled() else losses

    def finish(self) -> None:
        """End the phase: the average takes the model's place, and memory that only further steps need is freed."""
        if self.average is not None:
            self.model.load_state_dict(self.average.network.state_dict())
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        if self.graph is not None:
            self.graph.forget()

    @property
    def lr(self) -> float:
        """Learning rate of the model's first parameter group in the last step."""
        return self.optimizers["model"].param_groups[0]["lr"]

    def parameters(self) -> list[nn.Parameter]:
        """Return every parameter that an optimiser updates."""
        groups = [group for optimizer in self.optimizers.values() for group in optimizer.param_groups]
        return [p for group in groups for p in group["params"]]

    def weights_are_finite(self) -> bool:
        """Return whether every trained weight is a finite number; waits for the device."""
        return bool(torch.stack([p.isfinite().all() for p in self.parameters()]).all())

    def _training_step(self, batch: Any) -> Losses:
        """Run forward and backward, the part of a step that a CUDA graph records."""
        with self.amp.autocast():
            return self.objective.training_step(self.model, batch, self._step_context())

    def _step_context(self) -> StepContext:
        """Return a new context: one that is kept would hold the step in a cycle, and its graph's memory with it."""
        return StepContext(backward=self._backward, input=self.input)

    def _seed_step(self) -> torch.Generator:
        """Return the step's generator, the same in all processes; torch's own, of dropout, differs between them."""
        place = (self.seed, self.name, self.done)
        generator = seed_step(*place)
        if not distributed.is_main():
            seed_step(*place, "rank", distributed.get_rank())
        return generator

    def _state_to_restore(self) -> list[tuple[Tensor, Tensor]] | None:
        """Return (tensor, its value) of all state beside the trained weights; None where no step may be skipped."""
        if self.bad_steps.found >= self.bad_steps.limit:
            return None
        trained = {id(p) for p in self.parameters()}
        tensors = (*self.model.buffers(), *self.objective.buffers(), *self.objective.parameters())
        return [(t, t.detach().clone()) for t in tensors if id(t) not in trained]

    def _gradients(self) -> list[Tensor]:
        """Return the gradients, but none where a scaler looks after them itself."""
        if self.amp.scaler.is_enabled():
            return []
        return [p.grad for p in self.parameters() if p.grad is not None]

    def _backward(self, loss: Tensor) -> None:
        if self._backwards is not None:
            self._backwards += 1
        # The objective calls this inside its forward's autocast, where a backward does not belong.
        with torch.autocast(self.amp.device.type, enabled=False):
            self.amp.scaler.scale(loss).backward()

    def _check_first(self, losses: object) -> None:
        """Raise InputError where the first step of the process is not what the engine can work with."""
        if self._backwards is None:
            return
        method = f"{type(self.objective).__name__}.training_step"
        if not isinstance(losses, Mapping) or not losses:
            found = "none" if losses is None or losses == {} else type(losses).__name__
            raise bad(f"losses of {method}", found, "a dict of detached scalar tensors by name")
        for name, loss in losses.items():
            if not isinstance(loss, Tensor) or loss.dim():
                found = f"a tensor {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise bad(f"loss {name!r} of {method}", found, "a scalar tensor, on the device")
            if loss.requires_grad:
                raise bad(f"loss {name!r} of {method}", "one with a gradient history", f"{name}.detach()")
        if not self._backwards:
            raise InputError(
                f"{method}: found no call of ctx.backward(loss), expected one a forward; losses that are returned "
                "are logged, not minimised"
            )
        self._backwards = None

    def state_dict(self) -> dict[str, Any]:
        """Return weights, optimisers, scaler and position; random states follow from seed and position."""
        return {
            "done": self.done,
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "scaler": self.amp.scaler.state_dict(),
            "scaler_skips": self.amp.skips,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the result of :meth:`state_dict`.

        Raises:
            InputError: network, objective or optimiser are not those of the checkpoint.
        """
        self.done = state["done"]
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.objective.load_state_dict(state["objective"])
            for name, optimizer in self.optimizers.items():
                load_optimizer(optimizer, state["optimizers"][name])
            if state["scaler"]:  # empty where the run was in another precision until now
                self.amp.scaler.load_state_dict(state["scaler"])
            self.amp.skips.fill_(state["scaler_skips"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            found = str(error).splitlines()[-1].strip()
            raise bad(
                f"checkpoint of {self.name}", found, "network, objective and optimiser of that run"
            ) from error


def require_same_batches(loaders: Mapping[str, Any], saved: Mapping[str, int]) -> None:
    """Raise InputError where a step has not as many images as when the checkpoint was written."""
    for name, loader in loaders.items():
        if (before := saved.get(name)) != loader.global_batch:
            raise bad(
                f"images of {name} in a step over all processes",
                loader.global_batch,
                f"{before}, as when the checkpoint was written",
            )


def global_batches(loaders: Mapping[str, Any]) -> dict[str, int]:
    """Return the number of images of a step over all processes, by stream."""
    return {name: loader.global_batch for name, loader in loaders.items()}
