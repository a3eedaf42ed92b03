"""Runs phases into a run folder: records, checkpoints, and an end on request."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from udas_fast import distributed
from udas_fast.data import BadFile
from udas_fast.engine.callbacks import Callback
from udas_fast.engine.checkpoint import CheckpointFolder
from udas_fast.engine.interrupt import Interrupted, StopSignal
from udas_fast.engine.loop import Loop
from udas_fast.engine.recorder import Recorder
from udas_fast.errors import bad

DIVERGED = "finite numbers; lower stages.*.optimizer.lr in run.yaml and go on with --resume"


@dataclass(frozen=True)
class Runner:
    """One attempt at a run, from its start or its newest checkpoint on; made by :func:`open_runner`."""

    folder: Path
    checkpoints: CheckpointFolder
    recorder: Recorder
    stop: StopSignal
    checkpoint_every: int

    def check_stop(self) -> None:
        """End the run between two steps where that has been asked for.

        Raises:
            Interrupted: Ctrl-C or SIGTERM.
        """
        if self.stop.requested:
            raise Interrupted(f"stopped between two stages or rounds; go on with --resume {self.folder}")

    def run(self, loop: Loop, before: int, state: Callable[[], dict[str, Any]]) -> None:
        """Run the steps that are left of ``loop``'s phase, which comes after ``before`` steps of the run.

        A checkpoint is what ``state()`` returns with the loop's state as ``"loop"``.

        Raises:
            Interrupted: Ctrl-C or SIGTERM; a checkpoint has been written.
            BadFile: a file turned bad and no more may be skipped; a checkpoint has been written.
            InputError: a loss is not finite.
        """

        def checkpoint() -> None:
            self.recorder.flush()  # first: a loss that is not finite must not reach a checkpoint
            if not loop.weights_are_finite():  # the last step's gradient, which no loss has shown yet
                raise bad(f"weights after step {before + loop.done}", "one that is not finite", DIVERGED)
            milestone = loop.phase.name if loop.done == loop.phase.steps else None
            content = state() | {"loop": loop.state_dict()}
            # All wait: torchrun ends the others where one has ended, and that must not be while this is written.
            distributed.on_main(lambda: self.checkpoints.save(content, before + loop.done, milestone))

        def after_step(losses: dict[str, Tensor]) -> None:
            step = before + loop.done - 1
            self.recorder.step(
                step, loop.phase.name, loop.lr, losses, loop.samples, loop.data_wait, skipped=loop.skipped
            )
            last = loop.done == loop.phase.steps
            (stopping,) = distributed.all_reduce_any([self.stop.requested])
            if stopping or loop.done % self.checkpoint_every == 0 or last:
                checkpoint()
            if stopping:
                raise Interrupted(
                    f"stopped after step {before + loop.done}; go on with --resume {self.folder}"
                )

        self.recorder.begin_phase()
        try:
            loop.run(after_step)
        except BadFile as error:
            checkpoint()
            raise BadFile(
                f"{error}; stopped after step {before + loop.done}: repair the file, or raise max_bad_files in "
                f"{self.folder / 'run.yaml'} (train: --max-bad-files), and go on with --resume {self.folder}"
            ) from error


@contextmanager
def open_runner(
    folder: Path,
    checkpoints: CheckpointFolder,
    *,
    first: int,
    total: int,
    log_every: int,
    checkpoint_every: int,
    callbacks: Sequence[Callback] = (),
) -> Iterator[Runner]:
    """A :class:`Runner` whose next step is ``first`` of ``total``; signals are held back while it is open."""
    recorder = Recorder(folder, first=first, total=total, every=log_every, callbacks=callbacks)
    try:
        with StopSignal() as stop:
            yield Runner(folder, checkpoints, recorder, stop, checkpoint_every)
    finally:
        recorder.close()
