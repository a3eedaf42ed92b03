"""Experiment trackers beside TensorBoard: Weights & Biases and MLflow, whichever the user has installed."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tqdm import tqdm

from udas_fast.atomic import atomic_write
from udas_fast.engine.callbacks import Callback
from udas_fast.errors import bad, first_line

if TYPE_CHECKING:
    from udas_fast.evaluation import Scores

FILE = "trackers.json"
"""File in a run folder: each tracker's id of the run, so that a resumed run goes on in the same place."""


class Tracker(Callback):
    """Base class of trackers: every step's losses, every score and every picture.

    An exception of the tracker's library is reported once on stderr and ends the tracking, not the run.

    Raises:
        InputError: the library is not installed.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        if importlib.util.find_spec(self.name) is None:
            raise bad(f"--log {self.name}", "a package that is not installed", f"`pip install {self.name}`")
        self._works = True

    def begin(self, run_id: str | None, title: str, document: Mapping[str, Any]) -> str:
        """Start the run named ``title``, or go on with ``run_id``; return the tracker's id of it."""
        raise NotImplementedError

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` by name."""
        raise NotImplementedError

    def picture(self, name: str, step: int, path: Path) -> None:
        """Log the PNG ``path``."""
        raise NotImplementedError

    def end(self) -> None:
        """Finish the run."""
        raise NotImplementedError

    def on_run_begin(self, run_dir: Path, document: Mapping[str, Any]) -> None:
        """Start or go on, by the id that the run folder keeps."""
        self._try(lambda: self._begin(run_dir, document))

    def on_step(self, record: Mapping[str, float | str]) -> None:
        """Log the numbers of a step."""
        values = {name: value for name, value in record.items() if not isinstance(value, str)}
        step = int(values.pop("step"))
        self._try(lambda: self.log(values, step))

    def on_picture(self, name: str, step: int, path: Path) -> None:
        """Log a picture."""
        self._try(lambda: self.picture(name, step, path))

    def on_scores(self, phase: str, step: int, scores: Scores) -> None:
        """Log mIoU and the IoU of each class that the labels or predictions show."""
        by_class = zip(scores.classes, scores.iou.tolist(), strict=True)
        values = {f"score/iou/{name}": iou for name, iou in by_class if not math.isnan(iou)}
        self._try(lambda: self.log({"score/miou": scores.miou, **values}, step))

    def on_run_end(self, run_dir: Path) -> None:
        """Finish the tracker's run."""
        self._try(self.end)

    def _begin(self, run_dir: Path, document: Mapping[str, Any]) -> None:
        path = run_dir / FILE
        ids = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        ids[self.name] = self.begin(ids.get(self.name), run_dir.name, document)
        atomic_write(json.dumps(ids, indent=2) + "\n", path)

    def _try(self, action: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            action()
        except Exception as error:  # the library's own, of any class
            self._works = False
            tqdm.write(
                f"{self.name} failed, the run goes on without it: {first_line(error)}", file=sys.stderr
            )


class WandbTracker(Tracker):
    """Logs a run to Weights & Biases; its own settings are the environment's (``WANDB_PROJECT``, ``WANDB_MODE``)."""

    name = "wandb"

    def begin(self, run_id: str | None, title: str, document: Mapping[str, Any]) -> str:
        """Start the run, with the content of ``run.yaml`` as its configuration."""
        import wandb

        self._run = wandb.init(id=run_id, resume="allow", name=title, config=dict(document))
        # Scores of a step come before its losses, which are read in groups; wandb's own step may not go back.
        self._run.define_metric("*", step_metric="step")
        return str(self._run.id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values`` over the run's steps."""
        self._run.log({"step": step, **values})

    def picture(self, name: str, step: int, path: Path) -> None:
        """Log an image."""
        import wandb

        self._run.log({"step": step, f"picture/{name}": wandb.Image(str(path))})

    def end(self) -> None:
        """Wait until everything is sent."""
        self._run.finish()


class MlflowTracker(Tracker):
    """Logs a run to MLflow; its own settings are the environment's (``MLFLOW_TRACKING_URI``, ``…_EXPERIMENT_NAME``)."""

    name = "mlflow"

    def begin(self, run_id: str | None, title: str, document: Mapping[str, Any]) -> str:
        """Start the run, with ``run.yaml`` among its artifacts."""
        import mlflow

        run = mlflow.start_run(run_id=run_id, run_name=title)
        mlflow.log_dict(dict(document), "run.yaml")
        return str(run.info.run_id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log ``values``, without waiting for the server."""
        import mlflow

        named = {re.sub(r"[^\w\-./ ]", "_", name): value for name, value in values.items()}
        mlflow.log_metrics(named, step=step, synchronous=False)

    def picture(self, name: str, step: int, path: Path) -> None:
        """Log an image as an artifact."""
        import mlflow

        mlflow.log_artifact(str(path), "pictures")

    def end(self) -> None:
        """Wait until everything is sent."""
        import mlflow

        mlflow.flush_async_logging()
        mlflow.end_run()


TRACKERS: dict[str, type[Tracker]] = {tracker.name: tracker for tracker in (WandbTracker, MlflowTracker)}
"""Trackers by the name of ``--log``, which is that of their library."""
