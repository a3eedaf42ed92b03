"""Check that several processes train as one does."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, multiprocessing, nn
from torch.multiprocessing.spawn import ProcessException

from udas_fast import distributed
from udas_fast.errors import bad
from udas_fast.recipes import Recipe, methods, recipe_from_dict
from udas_fast.testing.checks import assert_equal
from udas_fast.testing.phases import BATCH, random_phase

PROCESSES, STEPS = 2, 4
# Where a server forks them, importing torch is done once.
START = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
assert BATCH % PROCESSES == 0
#: Allowed difference between one process and several, as a share of what the steps changed …
DIFFERENCE = 0.01
#: … and of the numbers themselves.
ROUNDING = 1e-6
HINT = (
    "means over pixels count by their pixels (segmentation_loss, distributed.loss_scale_for_valid_pixels), counters "
    "and means that are kept are summed (distributed.all_reduce_sum), and numbers for images come from ctx.draw"
)
NETWORK = {"model": "the network", "objective": "the objective"}

States = list[dict[str, Any]]


def assert_processes_agree(recipe: Recipe) -> None:
    """Assert that two processes with half of each batch train as one process does.

    They are started on the CPU (gloo), take the first steps of every stage, must hold the same bits after them, and
    must have changed weights and state as one process does, up to rounding. Batch norms are synchronised, dropout is
    off and the optimiser is SGD, which does not enlarge rounding. A program that calls this does so under
    ``if __name__ == "__main__":``, as the processes import it.

    Args:
        recipe: a recipe such as :func:`tiny` makes, with at least 4 steps a stage.

    Raises:
        InputError: this is one of several processes already.
    """
    if distributed.get_world_size() > 1:
        raise bad(
            "assert_processes_agree", f"{distributed.get_world_size()} processes", "one, which starts its own"
        )
    recipe = _comparable(recipe)
    with TemporaryDirectory() as folder:
        arguments = (_free_port(), recipe.to_dict(), methods.origins(recipe), folder)
        try:
            multiprocessing.start_processes(_process, arguments, PROCESSES, start_method=START)
        except ProcessException as error:
            reason = str(error).strip().splitlines()[-1]
            raise AssertionError(f"{recipe.name}: one of {PROCESSES} processes failed: {reason}") from error
        first, *others = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(PROCESSES))
    for other in others:
        for stage, one, two in zip(recipe.stages, first, other, strict=True):
            try:
                assert_equal(two["after"], one["after"], f"{stage.name}: state of process 1")
            except AssertionError as error:
                raise AssertionError(f"{error}, as process 0 has them ({HINT})") from None
    for stage, found, expected in zip(recipe.stages, first, _states(recipe), strict=True):
        _assert_same_change(found["after"], expected["before"], expected["after"], stage.name)


def _comparable(recipe: Recipe) -> Recipe:
    """Return ``recipe`` with settings that allow a comparison between numbers of processes."""
    norm = recipe.model.norm if recipe.model.norm == "frozen" else "sync"
    stages = []
    for stage in recipe.stages:
        if stage.steps < STEPS:
            raise bad(f"steps of stage {stage.name}", stage.steps, f"at least {STEPS}")
        optimizer = replace(stage.optimizer, name="sgd", lr=1e-2, warmup=0.0, discriminator_lr=1e-5)
        stages.append(replace(stage, optimizer=optimizer))
    return replace(
        recipe, stages=tuple(stages), model=replace(recipe.model, norm=norm, dropout=0.0), precision="fp32"
    )


def _process(rank: int, port: int, recipe: dict[str, Any], origins: Sequence[str], folder: str) -> None:
    """Be one of the processes; write the states before and after the steps of each stage."""
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(PROCESSES))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.join("cpu")
    kinds = [stage["objective"]["kind"] for stage in recipe["stages"]]  # those of a script are here with it
    methods.import_origins(origins, "assert_processes_agree", kinds)
    torch.save(_states(recipe_from_dict(recipe)), Path(folder) / f"{rank}.pt")
    distributed.leave()


def _states(recipe: Recipe) -> States:
    """Return the state before and after the first steps of each stage."""
    found = []
    for index in range(len(recipe.stages)):
        phase = random_phase(recipe, index)
        parts: dict[str, nn.Module] = {"model": phase.step.model, "objective": phase.step.objective}
        for part in parts.values():
            for module in part.modules():
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.p = 0.0  # each process has its own dropout
        before = _copy(parts)
        for _ in range(STEPS):
            phase.take_step()
        found.append({"before": before, "after": _copy(parts)})
    return found


def _copy(parts: Mapping[str, nn.Module]) -> dict[str, dict[str, dict[str, Tensor]]]:
    """Return parameters and buffers of the parts by name."""
    return {
        part: {
            "parameters": {name: p.detach().clone() for name, p in module.named_parameters()},
            "buffers": {name: b.clone() for name, b in module.named_buffers()},
        }
        for part, module in parts.items()
    }


def _assert_same_change(found: Any, before: Any, after: Any, stage: str) -> None:
    """Assert that ``found`` differs from ``after`` by no more than rounding, beside the change from ``before``."""
    for part, kinds in after.items():
        for kind, tensors in kinds.items():
            differences = {name: _norm(found[part][kind][name], value) for name, value in tensors.items()}
            change = math.hypot(*(_norm(before[part][kind].get(name), v) for name, v in tensors.items()))
            size = math.hypot(*(_norm(None, value) for value in tensors.values()))
            if math.hypot(*differences.values()) <= DIFFERENCE * change + ROUNDING * size:
                continue
            worst = max(differences, key=differences.__getitem__)
            share = differences[worst] / (_norm(before[part][kind].get(worst), tensors[worst]) or math.inf)
            raise AssertionError(
                f"{stage}: {kind} of {NETWORK[part]}: {PROCESSES} processes change {worst} otherwise than one does, by "
                f"{share:.0%} of its change ({HINT})"
            )


def _norm(one: Tensor | None, other: Tensor) -> float:
    """Return the norm of the difference; None and NaN, of state that is not there yet, count as zero."""
    one = torch.zeros_like(other) if one is None else one
    return (other.double().nan_to_num() - one.double().nan_to_num()).norm().item()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
