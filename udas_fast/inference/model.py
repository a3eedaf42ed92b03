"""A trained model in one file of safetensors: weights, and in the header all that is needed to use them."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from pydantic import ConfigDict, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn

from udas_fast.atomic import atomic_write
from udas_fast.data import ClassSet
from udas_fast.errors import InputError, bad, first_problem
from udas_fast.evaluation import Protocol, predict
from udas_fast.models import MEAN, STD, ModelConfig, build_model, require_finite
from udas_fast.models.weights import SUFFIX, read_tensors

MODEL_FILE = f"model{SUFFIX}"
"""Of a run; it is written last, so a run that has it is complete."""
KEY = "udas_fast"  # of the header's metadata, JSON


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Normalisation:
    """What is done to RGB in [0, 1] before the network: (x - mean) / std."""

    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Header:
    """What a model file says of its weights; see :class:`TrainedModel`. ``checksum``: :func:`_checksum` of them."""

    classes: ClassSet
    size: tuple[PositiveInt, PositiveInt]
    config: ModelConfig | None
    protocol: Protocol | None
    checksum: int
    normalisation: Normalisation = Normalisation()


HEADER = TypeAdapter(Header)


@dataclass
class TrainedModel:
    """``model.safetensors`` of a run.

    Attributes:
        model: the network, in evaluation mode after :meth:`load`.
        config: how to build it; None where the user gave their own network, which then has to be given again.
        classes: names and palette.
        size: (height, width) that images are resized to before the network sees them.
        protocol: under which the run scored it; None where it was not scored.
    """

    model: nn.Module
    config: ModelConfig | None
    classes: ClassSet
    size: tuple[int, int]
    protocol: Protocol | None = None

    def save(self, path: Path) -> None:
        """Write to ``path`` atomically. Raises InputError as :func:`check_state`."""
        check_state(self.model)
        # Each tensor by itself: a file of safetensors has no shared ones.
        tensors = {
            name: value.cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.model.state_dict().items()
        }
        header = Header(self.classes, self.size, self.config, self.protocol, _checksum(tensors))
        metadata = {KEY: HEADER.dump_json(header).decode()}
        atomic_write(safetensors.torch.save(tensors, metadata), path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        model: nn.Module | None = None,
    ) -> TrainedModel:
        """Read ``path``, or ``model.safetensors`` in it where it is a run's folder.

        Raises:
            InputError: no such file, a run that is not finished, not a model file or a damaged one, or a network of
                the user's own that was not given.
        """
        path = Path(path)
        if path.is_dir():
            run, path = path, path / MODEL_FILE
            if not path.is_file() and (run / "run.yaml").is_file():
                expected = f"a finished run (--resume {run})"
                raise bad(f"run {run}", f"no {MODEL_FILE}, as it is not finished", expected)
        tensors, metadata = read_tensors("model", path)
        header = _header(path, metadata)
        if _checksum(tensors) != header.checksum:
            raise bad(f"model {path}", "damaged weights (another checksum)", "the file as it was written")
        require_finite(f"model {path}", tensors)
        if model is not None:
            _fill(model, tensors, path)
        elif header.config is None:
            raise InputError(f"{path}: its network was the user's own; give it as `model`")
        else:
            model = _build(header, tensors, path)
        return cls(model.to(device).eval(), header.config, header.classes, header.size, header.protocol)

    def predict(
        self, image: np.ndarray, *, native: bool = False, tile: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(train ids uint8, confidence float32), both ``[H, W]``, of a uint8 RGB image ``[H, W, 3]``.

        native: the network sees the image at its own size instead of :attr:`size`. tile: (H, W) of the parts that it
        sees one by one, for images larger than memory (:mod:`udas_fast.evaluation.tiles`). Raises InputError for
        another dtype or shape.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise bad("image", f"{image.dtype} {list(image.shape)}", "uint8 RGB [H, W, 3]")
        pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # OpenCV's [..., ::-1] is not
        size = image.shape[:2] if native else self.size
        label, confidence = predict(self.model, pixels, size, tile=tile)
        return label.cpu().numpy(), confidence.cpu().numpy()


def check_state(model: nn.Module) -> None:
    """Raise InputError where ``model`` has a state that is no dense tensor, which its file could not hold."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            raise bad(
                f"state {name!r} of {type(model).__name__}",
                type(value).__name__,
                "dense tensors alone, to be saved",
            )


def _header(path: Path, metadata: Mapping[str, str]) -> Header:
    if KEY not in metadata:
        raise bad(f"model {path}", f"no {KEY!r} in its header", "a model file of udas_fast")
    try:
        header = HEADER.validate_json(metadata[KEY])
    except ValidationError as error:
        raise InputError(f"model {path}: damaged header ({first_problem(error)})") from None
    if header.normalisation != Normalisation():
        raise bad(f"normalisation of {path}", header.normalisation, Normalisation())
    return header


def _build(header: Header, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """The network of ``header`` around ``tensors``; nothing is allocated for what a header claims."""
    try:
        with torch.device("meta"):
            model = build_model(header.config, len(header.classes))
    except (RuntimeError, TypeError) as error:  # sizes beyond what a tensor can have
        raise InputError(f"model {path}: damaged header ({str(error).splitlines()[0]})") from error
    for name, value in model.state_dict().items():
        if name in tensors and tensors[name].dtype != value.dtype:
            raise bad(f"{name} of {path}", tensors[name].dtype, value.dtype)
    _fill(model, tensors, path, assign=True)
    return model


def _fill(model: nn.Module, tensors: dict[str, Tensor], path: Path, assign: bool = False) -> None:
    try:
        model.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: does not fit the network ({reason:.200})") from error


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    """CRC-32 of every name and value, in the order of the names."""
    crc = 0
    for name in sorted(tensors):
        values = tensors[name].reshape(-1).view(torch.uint8).numpy()
        crc = zlib.crc32(values, zlib.crc32(name.encode(), crc))
    return crc
