"""The loops of a run: phases, and in each its steps, with logging, checkpoints and an end on request in sight."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from tqdm import tqdm

from udas_fast import distributed
from udas_fast.data import BadFile, BadFiles, LoaderStopped, TrainLoader, UserTrainLoader
from udas_fast.data.domains import Domains
from udas_fast.data.identity import FileList, compare_files
from udas_fast.engine.callbacks import Callback
from udas_fast.engine.checkpoint import CheckpointFolder
from udas_fast.engine.faults import BadSteps
from udas_fast.engine.graph import CudaCapture
from udas_fast.engine.interrupt import Interrupted, StopSignal
from udas_fast.engine.optim import MakeOptimizer
from udas_fast.engine.precision import Amp
from udas_fast.engine.recorder import Recorder
from udas_fast.engine.step import TrainStep, global_batches, require_same_batches
from udas_fast.errors import bad, first_line
from udas_fast.evaluation import Scores
from udas_fast.objectives import Batches, Objective
from udas_fast.recipes import Phase, Recipe
from udas_fast.training.run_folder import RunSettings, changed_since, run_document

Loaders = Mapping[str, TrainLoader | UserTrainLoader]
Saved = dict[str, Any]
"""State in a checkpoint."""

DIVERGED = "finite numbers; lower stages.*.optimizer.lr in run.yaml and go on with --resume"


@dataclass
class Run:
    """A run in its folder, with everything that outlives a phase.

    Attributes:
        run_dir: its folder.
        recipe, settings: content of ``run.yaml``.
        domains: the data.
        networks: networks by name (``Stage.network``), on the device.
        amp: device and precision.
        make_optimizer: the user's own optimiser; None: the recipe's.
        callbacks: called for steps, pictures and phases.
        scores: scores by phase.
        bad_files, bad_steps: counters of skipped files and steps.
        files: names and sizes of the files of each dataset.
        allow_other_data: go on with other files than those that the checkpoint was made with.
    """

    run_dir: Path
    recipe: Recipe
    settings: RunSettings
    domains: Domains
    networks: Mapping[str, nn.Module]
    amp: Amp
    make_optimizer: MakeOptimizer | None = None
    callbacks: Sequence[Callback] = ()
    scores: dict[str, Scores] = field(default_factory=dict)
    allow_other_data: bool = False

    def __post_init__(self) -> None:
        self.files = distributed.on_main(self.domains.file_lists)
        self.checkpoints = CheckpointFolder(self.run_dir / "checkpoints")
        self.bad_files = BadFiles(self.domains.max_bad_files)
        self.bad_steps = BadSteps(self.settings.max_bad_steps)

    def use(self, domains: Domains) -> None:
        """Train on other ``domains`` from here on (collective)."""
        self.domains, self.files = domains, distributed.on_main(domains.file_lists)

    def load(self) -> tuple[list[Phase], Saved | None]:
        """Take over the newest checkpoint; return the phases that are left, and the state of the first of them.

        Edits of ``run.yaml`` since the checkpoint are reported on stderr.

        Raises:
            InputError: no checkpoint can be read, or it is of another run or of other data.
        """
        phases = list(self.recipe.phases())
        saved = self.checkpoints.load()
        if saved is None:
            return phases, None
        _check_content(self.run_dir, saved, phases)
        self._require_same_files(saved["files"])
        for change in changed_since(saved["run"], run_document(self.recipe, self.settings)):
            if distributed.is_main():
                tqdm.write(f"run.yaml was edited since the checkpoint: {change}", file=sys.stderr)
        self.bad_files.found[:] = saved["bad_files"]
        self.bad_steps.found = saved["bad_steps"]
        try:
            for name, weights in saved["networks"].items():
                self.networks[name].load_state_dict(weights)
            self.scores.update((name, Scores.from_dict(content)) for name, content in saved["scores"].items())
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise bad(
                f"checkpoint of run {self.run_dir}", first_line(error), "networks and scores of that run"
            ) from error
        return phases[saved["phase"] :], saved

    def _require_same_files(self, before: dict[str, FileList]) -> None:
        """Raise InputError for other files than ``before``; those that may be skipped or are allowed are reported."""
        if not (differences := compare_files(before, self.files)):
            return
        text = "; ".join(map(str, differences))
        changed = sum(len(difference.changed) for difference in differences)
        same_images = not any(d.gone or d.new or d.format for d in differences)
        if not self.allow_other_data and not (same_images and changed <= self.bad_files.limit):
            expected = (
                "the files of its checkpoint, or --allow-other-data (Trainer.resume: allow_other_data=True)"
            )
            raise bad(f"data of run {self.run_dir}", text, expected)
        if distributed.is_main():
            tqdm.write(f"data has changed since the checkpoint: {text}", file=sys.stderr)

    def state(self, phase: Phase, step: TrainStep, loaders: Loaders) -> Saved:
        """Return everything that the run needs to go on from here."""
        return {
            "phase": self.recipe.phases().index(phase),
            "step": step.state_dict(),
            "global_batch": global_batches(loaders),
            "scores": {name: scores.to_dict() for name, scores in self.scores.items()},
            "bad_files": self.bad_files.found,
            "bad_steps": self.bad_steps.found,
            "networks": {k: n.state_dict() for k, n in self.networks.items() if n is not step.model},
            "run": run_document(self.recipe, self.settings),
            "files": self.files,
        }


CONTENT: dict[str, type] = {
    **dict.fromkeys(("step", "global_batch", "scores", "networks", "run", "files"), dict),
    "phase": int,
    "bad_files": list,
    "bad_steps": int,
}


def _check_content(run_dir: Path, saved: Saved, phases: Sequence[Phase]) -> None:
    """Raise InputError for a checkpoint that can be read and is none of this run: it may be of another version."""
    thing = f"checkpoint of run {run_dir}"
    for key, kind in CONTENT.items():
        if not isinstance(saved.get(key), kind):
            raise bad(f"{thing}: {key}", type(saved.get(key)).__name__, f"a {kind.__name__}")
    if not 0 <= saved["phase"] < len(phases):
        raise bad(f"{thing}: phase", saved["phase"], f"0 to {len(phases) - 1}, of the recipe in run.yaml")
    done, steps = saved["step"].get("done"), phases[saved["phase"]].steps
    if not isinstance(done, int) or not 0 <= done <= steps:
        raise bad(f"{thing}: steps of {phases[saved['phase']].name}", repr(done), f"0 to {steps}")


@dataclass(frozen=True)
class Attempt:
    """One attempt at a run, from its start or its newest checkpoint on: with its recorder and the request to stop."""

    run_dir: Path
    recorder: Recorder
    stop: StopSignal

    def check_stop(self) -> None:
        """Raise Interrupted between two steps where Ctrl-C or SIGTERM has asked for it."""
        if self.stop.requested:
            raise Interrupted(f"stopped between two stages or rounds; go on with --resume {self.run_dir}")


@contextmanager
def attempting(run: Run, phases: Sequence[Phase], saved: Saved | None) -> Iterator[Attempt]:
    """Open an attempt at ``phases``; signals are held back while it is open."""
    first = phases[0].first_step + (saved["step"]["done"] if saved else 0)
    settings = run.settings
    recorder = Recorder(
        run.run_dir,
        first=first,
        total=run.recipe.steps,
        every=settings.log_every,
        callbacks=run.callbacks,
    )
    try:
        with StopSignal() as stop:
            yield Attempt(run.run_dir, recorder, stop)
    finally:
        recorder.close()


def start_step(
    run: Run, phase: Phase, objective: Objective, loaders: Loaders, saved: Saved | None
) -> TrainStep:
    """Return the step of ``phase``, from the state ``saved`` where there is one."""
    stage = phase.stage
    step = TrainStep(
        phase.name,
        phase.steps,
        run.networks[stage.network],
        objective,
        stage.optimizer,
        run.amp,
        run.settings.seed,
        ema=run.recipe.ema,
        make_optimizer=run.make_optimizer,
        bad_steps=run.bad_steps,
        capture=CudaCapture(run.amp.device) if run.recipe.cuda_graphs else None,
    )
    if saved is not None:
        require_same_batches(loaders, saved["global_batch"])
        step.load_state_dict(saved["step"])
    return step


def train_phase(
    run: Run,
    attempt: Attempt,
    phase: Phase,
    step: TrainStep,
    loaders: Loaders,
    before_step: Callable[[], None] = lambda: None,
) -> None:
    """Take the steps that are left of ``phase``; ``before_step`` is called before each, after any checkpoint.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
        BadFile: a file turned bad and no more may be skipped; a checkpoint has been written.
        InputError: a loss or weight is not finite.
    """
    recorder = attempt.recorder
    first = step.done
    batches = {name: loader.batches(step.done, run.amp.device) for name, loader in loaders.items()}
    step.model.train()
    recorder.start_clock()
    while step.done < phase.steps:
        before_step()
        asked = time.perf_counter()
        try:
            with run.bad_files.synchronized():
                batch = {name: next(iterator) for name, iterator in batches.items()}
        except BadFile as error:
            _save(run, attempt, phase, step, loaders)
            raise _where_it_stopped(error, run, phase, step) from error
        data_wait = time.perf_counter() - asked

        losses = step(Batches(**batch))

        ids = {name: images.ids for name, images in batch.items()}
        number = phase.first_step + step.done
        recorder.step(number - 1, phase.name, step.lr, losses, ids, data_wait, skipped=step.skipped)
        (stopping,) = distributed.all_reduce_any([attempt.stop.requested])
        due = step.done % run.settings.checkpoint_every == 0 or step.done == phase.steps
        if stopping or due:
            _save(run, attempt, phase, step, loaders)
        if stopping:
            raise Interrupted(f"stopped after step {number}; go on with --resume {run.run_dir}")
    if step.graph is not None:
        replays = f"{step.graph.replays} of {phase.steps - first} steps"
        tqdm.write(f"{phase.name}: {replays} replayed a CUDA graph", file=sys.stderr)
    step.finish()


def _save(run: Run, attempt: Attempt, phase: Phase, step: TrainStep, loaders: Loaders) -> None:
    """Write a checkpoint."""
    attempt.recorder.flush()  # first: a loss that is not finite must not reach a checkpoint
    number = phase.first_step + step.done
    if not step.weights_are_finite():  # the last step's gradient, which no loss has shown yet
        raise bad(f"weights after step {number}", "one that is not finite", DIVERGED)
    milestone = phase.name if step.done == phase.steps else None
    state = run.state(phase, step, loaders)
    # All wait: torchrun ends the others where one has ended, and that must not be while this is written.
    distributed.on_main(lambda: run.checkpoints.save(state, number, milestone))


def _where_it_stopped(error: BadFile, run: Run, phase: Phase, step: TrainStep) -> BadFile:
    stopped, resume = f"{error}; stopped after step {phase.first_step + step.done}", f"--resume {run.run_dir}"
    if isinstance(error, LoaderStopped):
        return LoaderStopped(f"{stopped}; a checkpoint is written, go on with {resume}")
    return BadFile(
        f"{stopped}: repair the file, or raise max_bad_files in {run.run_dir / 'run.yaml'} (train: --max-bad-files), "
        f"and go on with {resume}"
    )
