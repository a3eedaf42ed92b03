"""The phases of a run, each through the one loop, and the state by which a run that was stopped goes on."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from udas_fast import distributed
from udas_fast.data import BadFiles, UserLoader
from udas_fast.data.domains import Domains
from udas_fast.engine.callbacks import Callback
from udas_fast.engine.checkpoint import CheckpointFolder
from udas_fast.engine.faults import BadSteps
from udas_fast.engine.graph import CudaCapture
from udas_fast.engine.loop import Loop, Phase
from udas_fast.engine.optim import MakeOptimizer
from udas_fast.engine.precision import memory_format
from udas_fast.engine.runner import Runner, open_runner
from udas_fast.models import normalize
from udas_fast.objectives import Objective, Round
from udas_fast.recipes import Recipe, Stage
from udas_fast.seeding import seed_step
from udas_fast.training.networks import Networks
from udas_fast.training.results import Results
from udas_fast.training.run_config import RunConfig
from udas_fast.training.run_folder import changed_since, run_document


@dataclass
class Phases:
    """Every round of every stage, in order, from the newest checkpoint on.

    Attributes:
        folder: the run's.
        recipe, config: what is done, as ``run.yaml`` says it.
        domains: the data.
        networks: are trained in their place.
        results: get the scores of each phase.
        checkpoints: where the state is.
        optimizer: the user's own; None: the recipe's.
        callbacks: are told of steps and phases.
    """

    folder: Path
    recipe: Recipe
    config: RunConfig
    domains: Domains
    networks: Networks
    results: Results
    checkpoints: CheckpointFolder
    optimizer: MakeOptimizer | None
    callbacks: tuple[Callback, ...]

    def __post_init__(self) -> None:
        self.faults = BadFiles(self.domains.max_bad_files)
        self.bad_steps = BadSteps(self.config.max_bad_steps)
        self._all = [
            (stage, Phase(_phase_name(stage, r), stage.steps, stage.optimizer))
            for stage in self.recipe.stages
            for r in range(stage.rounds)
        ]

    @property
    def names(self) -> list[str]:
        """Of the phases, in order."""
        return [phase.name for _, phase in self._all]

    @property
    def steps(self) -> int:
        """Optimisation steps of the whole run."""
        return sum(phase.steps for _, phase in self._all)

    def run(self) -> None:
        """Run every phase that is left.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
            InputError: a loss is not finite, a file turned bad, or the GPU's memory was not enough.
        """
        first, saved = self._newest_state()
        before = sum(phase.steps for _, phase in self._all[:first])
        config = self.config
        with open_runner(
            self.folder,
            self.checkpoints,
            first=before + (saved["loop"]["done"] if saved else 0),
            total=self.steps,
            log_every=config.log_every,
            checkpoint_every=config.checkpoint_every,
            callbacks=self.callbacks,
        ) as runner:
            for index in range(first, len(self._all)):
                _, phase = self._all[index]
                try:
                    self._run_phase(index, before, saved, runner)
                except torch.OutOfMemoryError as error:
                    raise self.networks.out_of_memory(phase.name, error) from error
                before, saved = before + phase.steps, None

    def _run_phase(self, index: int, before: int, saved: dict[str, Any] | None, runner: Runner) -> None:
        """Run phase ``index``, after ``before`` steps of the run, from its start or from the state ``saved``."""
        (stage, phase), networks = self._all[index], self.networks
        networks.trained = networks[stage.network]
        objective = self._start_objective(stage, phase, saved)
        around = self._round(phase, runner)
        with networks.amp.autocast():
            unlabelled = objective.prepare(around)
        streams = self.domains.streams(
            (*stage.objective.needs, *stage.objective.uses),
            self.recipe.input,
            mixed="source" in stage.objective.needs,
            seed=self.config.seed,
            phase=phase.name,
            views=stage.objective.stream_views,
            faults=self.faults,
            unlabelled=unlabelled,
        )
        loop = Loop(
            phase,
            networks.trained,
            objective,
            streams,
            networks.amp,
            self.config.seed,
            ema=self.recipe.ema,
            optimizer=self.optimizer,
            bad_steps=self.bad_steps,
            faults=self.faults,
            capture=CudaCapture(networks.amp.device) if self.recipe.cuda_graphs else None,
        )
        if saved is not None:
            loop.load_state_dict(saved["loop"])
        first = loop.done
        runner.run(loop, before, lambda: self._state(index))
        if loop.graph is not None:
            replays = f"{loop.graph.replays} of {phase.steps - first} steps"
            tqdm.write(f"{phase.name}: {replays} replayed a CUDA graph", file=sys.stderr)
        loop.release()
        with networks.amp.autocast():
            objective.finish(around)
        runner.recorder.pseudo_labels(before + phase.steps, around)
        self._score(phase, objective, before + phase.steps, runner)

    def _start_objective(self, stage: Stage, phase: Phase, saved: dict[str, Any] | None) -> Objective:
        networks = self.networks
        seed_step(self.config.seed, phase.name, "objective")
        objective = stage.objective.build(len(self.results.classes))
        networks.memory.apply(objective)
        objective.networks = networks
        objective.start(networks.trained)
        objective.to(networks.amp.device)
        if stage.objective.fresh_start:
            networks.trained.load_state_dict(networks.build(phase.name, "student").state_dict())
        if saved is not None:
            objective.load_state_dict(saved["loop"]["objective"])  # labels are made by the teacher that was
        return objective

    def _round(self, phase: Phase, runner: Runner) -> Round:
        networks, unlabelled = self.networks, self.domains.unlabelled
        layout = memory_format(networks.amp, networks.trained)
        return Round(
            name=phase.name,
            unlabelled=None if isinstance(unlabelled, UserLoader) else unlabelled,
            size=self.recipe.input.target.size,
            folder=self.folder / "pseudo_labels" / phase.name,
            picture=self.folder / "pictures" / f"{phase.name}-pseudo.png",
            generator=partial(seed_step, self.config.seed, phase.name),
            normalize=lambda image: normalize(image).contiguous(memory_format=layout),
            check_stop=runner.check_stop,
        )

    def _score(self, phase: Phase, objective: Objective, step: int, runner: Runner) -> None:
        """Score what the phase has trained, write it and tell of it."""
        networks = {f"{phase.name}.{name}": network for name, network in objective.scored().items()}
        networks[phase.name] = self.networks.trained
        scores = {}
        if self.results.val is not None:
            scores = {name: self.results.score(network) for name, network in networks.items()}
            self.results.scores.update(scores)
            runner.recorder.scores(step, {f"{phase.name}/miou": scores[phase.name].miou})
            distributed.on_main(self.results.write_scores)
            distributed.on_main(lambda: self.results.draw(phase.name, self.networks.trained))
            runner.recorder.picture("validation", step, self.results.picture)
        for callback in self.callbacks:
            callback.on_phase_end(phase.name, step, {name: score.miou for name, score in scores.items()})

    def _state(self, index: int) -> dict[str, Any]:
        """What a checkpoint in phase ``index`` holds beside the loop's state."""
        networks = self.networks
        return {
            "phase": index,
            "scores": self.results.scores_to_dict(),
            "bad_files": self.faults.found,
            "bad_steps": self.bad_steps.found,
            "networks": {k: n.state_dict() for k, n in networks.items() if n is not networks.trained},
            "run": run_document(self.recipe, self.config),
        }

    def _newest_state(self) -> tuple[int, dict[str, Any] | None]:
        """(index of the phase to run, the checkpoint's state or None)."""
        state = self.checkpoints.load()
        if state is None:
            return 0, None
        now = run_document(self.recipe, self.config)
        for change in changed_since(state.get("run", now), now):  # older checkpoints do not say
            if distributed.is_main():
                tqdm.write(f"run.yaml was edited since the checkpoint: {change}", file=sys.stderr)
        self.faults.found[:] = state["bad_files"]
        self.bad_steps.found = state.get("bad_steps", 0)
        for name, weights in state.get("networks", {}).items():
            self.networks[name].load_state_dict(weights)
        self.results.take_scores(state["scores"])
        return state["phase"], state


def _phase_name(stage: Stage, round_index: int) -> str:
    return stage.name if stage.rounds == 1 else f"{stage.name}.{round_index + 1}"
