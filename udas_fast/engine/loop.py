"""The training loop. There is one; methods differ in the objective that it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from udas_fast import distributed
from udas_fast.data import BadFiles, TrainLoader, UserTrainLoader
from udas_fast.distributed import average_buffers, average_gradients, same_everywhere
from udas_fast.engine.ema import WeightAverage
from udas_fast.engine.faults import BadSteps
from udas_fast.engine.graph import Capture, StepGraph
from udas_fast.engine.optim import (
    MakeOptimizer,
    OptimizerConfig,
    build_optimizers,
    load_optimizer,
    set_learning_rates,
)
from udas_fast.engine.precision import Amp, memory_format
from udas_fast.errors import bad
from udas_fast.models import normalize
from udas_fast.objectives import Learning, Objective, Step
from udas_fast.seeding import seed_step


@dataclass(frozen=True)
class Phase:
    """One round of one stage: what :class:`Loop` runs from its first step to its last."""

    name: str
    steps: int
    optimizer: OptimizerConfig


class Loop:
    """Runs one phase; :meth:`state_dict` is everything that the phase needs to go on.

    Where there are several processes (:mod:`udas_fast.distributed`), all run the same steps, each on its part of
    every batch, and hold the same state after each.

    Args:
        phase: what to run.
        model: the segmentation network, on the device.
        objective: the method, on the device.
        streams: batches by name; a batch is a pure function of the step.
        amp: device and precision.
        seed: the run's seed.
        ema: decay of the average of the weights, which takes the model's place when the phase ends; None: none.
        optimizer: the user's own for the model; None: what the phase says.
        bad_steps: counts the steps that are left out; by default none is.
        faults: counts the bad files of ``streams``.
        capture: records steps as CUDA graphs; None: they run as they are.
    """

    def __init__(
        self,
        phase: Phase,
        model: nn.Module,
        objective: Objective,
        streams: dict[str, TrainLoader | UserTrainLoader],
        amp: Amp,
        seed: int,
        ema: float | None = None,
        optimizer: MakeOptimizer | None = None,
        bad_steps: BadSteps | None = None,
        faults: BadFiles | None = None,
        capture: Capture | None = None,
    ) -> None:
        self.phase, self.model, self.objective, self.streams = phase, model, objective, streams
        self.amp, self.seed = amp, seed
        self.memory_format = memory_format(amp, model)
        same_everywhere(model)  # a user's network need not have been made with one seed
        same_everywhere(objective)
        self.optimizers = build_optimizers(
            model, objective.discriminator_parameters(), phase.optimizer, optimizer
        )
        self.average = None if ema is None else WeightAverage(model, ema)
        self.bad_steps = bad_steps or BadSteps()
        self.faults = faults or BadFiles()
        self.graph = None if capture is None else StepGraph(_parameters(self.optimizers), capture)
        self.done = 0
        self.skipped = False
        """Whether the last step was left out."""
        self.data_wait = 0.0
        """Seconds that the last step waited for its batches."""
        self.samples: dict[str, list[str]] = {}
        """Ids of the last step's images by stream."""

    def run(self, after_step: Callable[[dict[str, Tensor]], None]) -> None:
        """Run the steps that are left; ``after_step`` gets each step's losses, still on the device."""
        device = self.amp.device
        batches = {name: stream.batches(self.done, device) for name, stream in self.streams.items()}
        self.model.train()
        while self.done < self.phase.steps:
            asked = time.perf_counter()
            with self.faults.synchronized():
                step_batches = {name: next(it) for name, it in batches.items()}
            self.data_wait = time.perf_counter() - asked
            self.samples = {name: batch.ids for name, batch in step_batches.items()}
            losses = self._step(step_batches)
            self.done += 1
            if self.average is not None:
                self.average.update(self.model, self.done)
            after_step(losses)
        if self.average is not None:
            self.model.load_state_dict(self.average.model.state_dict())

    def release(self) -> None:
        """Give back the memory that nothing but further steps needs: gradients, and what is recorded of a step."""
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        if self.graph is not None:
            self.graph.forget()

    @property
    def lr(self) -> float:
        """The rate of the model's first parameter group in the last step."""
        return self.optimizers["model"].param_groups[0]["lr"]

    def weights_are_finite(self) -> bool:
        """Whether every trained weight is a finite number; waits for the device."""
        return bool(torch.stack([p.isfinite().all() for p in _parameters(self.optimizers)]).all())

    def _step(self, batches: dict[str, Any]) -> dict[str, Tensor]:
        progress = self.done / self.phase.steps
        set_learning_rates(self.optimizers, progress, self.phase.optimizer)
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        step = Step(
            progress=progress,
            generator=self._seed_step(),
            backward=self._backward,
            normalize=self._input,
        )
        may_skip = self.bad_steps.found < self.bad_steps.limit
        buffers = [(b, b.clone()) for b in (*self.model.buffers(), *self.objective.buffers()) if may_skip]
        with self.amp.autocast():
            inputs = self.objective.inputs(batches, step)
        losses = self._learn(inputs) if self.graph is None else self.graph.step(self._learn, inputs)
        average_gradients(_parameters(self.optimizers))
        self.skipped = may_skip and self.bad_steps.undo(losses, self._gradients(), buffers)
        if self.skipped:
            return losses
        self.amp.step(self.optimizers.values())
        average_buffers(self.model)
        return losses | {"scaler_skips": self.amp.skips.clone()} if self.amp.scaler.is_enabled() else losses

    def _learn(self, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
        with self.amp.autocast():
            return self.objective.learn(
                self.model, inputs, Learning(backward=self._backward, normalize=self._input)
            )

    def _seed_step(self) -> torch.Generator:
        """The step's generator is the same in all processes; torch's own, of dropout, is not."""
        place = (self.seed, self.phase.name, self.done)
        generator = seed_step(*place)
        if not distributed.is_main():
            seed_step(*place, "rank", distributed.get_rank())
        return generator

    def _gradients(self) -> list[Tensor]:
        """All of them but those that a scaler looks after itself."""
        if self.amp.scaler.is_enabled():
            return []
        return [p.grad for p in _parameters(self.optimizers) if p.grad is not None]

    def _input(self, image: Tensor) -> Tensor:
        return normalize(image).contiguous(memory_format=self.memory_format)

    def _backward(self, loss: Tensor) -> None:
        # The objective calls this inside its forward's autocast, where a backward does not belong.
        with torch.autocast(self.amp.device.type, enabled=False):
            self.amp.scaler.scale(loss).backward()

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimisers, scaler and position; random states follow from seed and position."""
        return {
            "done": self.done,
            "global_batch": {name: stream.global_batch for name, stream in self.streams.items()},
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizers": {name: o.state_dict() for name, o in self.optimizers.items()},
            "scaler": self.amp.scaler.state_dict(),
            "scaler_skips": self.amp.skips,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`'s result.

        Raises:
            InputError: a step has not as many images as before, so that no step would be where the run stopped; or
                network, objective or optimiser are not those of the checkpoint.
        """
        for name, stream in self.streams.items():
            if (before := state["global_batch"].get(name)) != stream.global_batch:
                raise bad(
                    f"images of {name} in a step over all processes",
                    stream.global_batch,
                    f"{before}, as when the checkpoint was written",
                )
        self.done = state["done"]
        try:
            self.model.load_state_dict(state["model"])
            if self.average is not None:
                self.average.model.load_state_dict(state["average"])
            self.objective.load_state_dict(state["objective"])
            for name, optimizer in self.optimizers.items():
                load_optimizer(optimizer, state["optimizers"][name])
            if state["scaler"]:  # empty where the run was in another precision until now
                self.amp.scaler.load_state_dict(state["scaler"])
            self.amp.skips.fill_(state.get("scaler_skips", 0))  # older checkpoints do not say
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            found = str(error).splitlines()[-1].strip()
            expected = "network, objective and optimiser of that run"
            raise bad(f"checkpoint of {self.phase.name}", found, expected) from error


def _parameters(optimizers: Mapping[str, torch.optim.Optimizer]) -> list[nn.Parameter]:
    groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
    return [p for group in groups for p in group["params"]]
