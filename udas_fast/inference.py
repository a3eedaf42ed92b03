"""A trained model in one file, and what is done with it: label images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from torch import nn
from tqdm import tqdm

from udas_fast.data import IMAGE_SUFFIXES, ClassSet, read_image
from udas_fast.engine.checkpoint import atomic_save, read_state
from udas_fast.errors import InputError, bad
from udas_fast.evaluation import colorize, predict
from udas_fast.models import ModelConfig, build_model


@dataclass
class TrainedModel:
    """``model.pt`` of a run.

    Attributes:
        model: the network, in evaluation mode after :meth:`load`.
        config: how to build it; None where the user gave their own network, which then has to be given again.
        classes: names and palette.
        size: (height, width) that images are resized to before the network sees them.
    """

    model: nn.Module
    config: ModelConfig | None
    classes: ClassSet
    size: tuple[int, int]

    def save(self, path: Path) -> None:
        """Write to ``path`` atomically."""
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "config": None if self.config is None else asdict(self.config),
            "classes": asdict(self.classes),
            "size": list(self.size),
        }
        atomic_save(state, path)

    @classmethod
    def load(cls, path: Path, device: torch.device, model: nn.Module | None = None) -> TrainedModel:
        """Read ``path``, or ``model.pt`` in it where it is a run's folder.

        Raises:
            InputError: no such file, a run that is not finished, not a model file, or a network of the user's own
                that was not given.
        """
        if path.is_dir():
            run, path = path, path / "model.pt"
            if not path.is_file() and (run / "run.yaml").is_file():
                raise bad(
                    f"run {run}", "no model.pt, as it is not finished", f"a finished run (--resume {run})"
                )
        state = read_state(path)
        try:
            config = (
                None if state["config"] is None else TypeAdapter(ModelConfig).validate_python(state["config"])
            )
            classes = TypeAdapter(ClassSet).validate_python(state["classes"])
            size, weights = (int(state["size"][0]), int(state["size"][1])), state["model"]
        except (KeyError, TypeError, ValidationError) as error:
            raise InputError(
                f"{path}: not a model file of udas_fast ({str(error).splitlines()[0]})"
            ) from error
        if model is None:
            if config is None:
                raise InputError(f"{path}: its network was the user's own; give it as `model`")
            model = build_model(config, len(classes))
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise InputError(
                f"{path}: weights do not fit the network ({str(error).splitlines()[-1].strip()})"
            ) from error
        return cls(model.to(device).eval(), config, classes, size)

    def predict(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(train ids uint8, confidence float32), both ``[H, W]``, of a uint8 RGB image ``[H, W, 3]``."""
        label, confidence = predict(self.model, torch.from_numpy(image).permute(2, 0, 1), self.size)
        return label.cpu().numpy(), confidence.cpu().numpy()


def image_files(paths: Iterable[Path]) -> list[Path]:
    """The image files among ``paths`` and in the folders among them, in order.

    Raises:
        InputError: a path that does not exist, a folder without images, or two images of one name.
    """
    files: list[Path] = []
    for path in paths:
        found = [path]
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
        if not found or not path.exists():
            raise bad(
                f"image {path}",
                "nothing" if path.exists() else "no such path",
                "an image or a folder of images",
            )
        files += found
    stems = [file.stem for file in files]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise bad(
            "images", f"two of the name {twice[0]!r}", "names that differ, as the results are named by them"
        )
    return files


def predict_files(trained: TrainedModel, files: Sequence[Path], out: Path) -> int:
    """Write ``NAME_ids.png`` (train ids) and ``NAME_colour.png`` for each file, at its size; the number.

    Raises:
        InputError: an image cannot be read; names it.
    """
    out.mkdir(parents=True, exist_ok=True)
    for file in tqdm(files, unit="image", disable=len(files) == 1):
        label, _ = trained.predict(read_image(file))
        Image.fromarray(label).save(out / f"{file.stem}_ids.png")
        Image.fromarray(colorize(label, trained.classes)).save(out / f"{file.stem}_colour.png")
    return len(files)
