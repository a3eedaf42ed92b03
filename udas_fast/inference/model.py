"""A trained model in one file of safetensors: weights, and a header with everything needed to use them."""

from __future__ import annotations

import os
import warnings
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, TypeAlias

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from pydantic import ConfigDict, Field, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn

from udas_fast.atomic import atomic_write
from udas_fast.data import ClassSet, read_image
from udas_fast.data.regions import Regions, open_regions
from udas_fast.errors import InputError, bad, first_line, first_problem
from udas_fast.evaluation import Protocol, image_logits, label_and_confidence
from udas_fast.models import (
    ModelConfig,
    NetworkFunction,
    Normalization,
    OwnNetwork,
    SegmentationOutput,
    build_model,
    build_network,
    normalization_of,
    require_finite,
)
from udas_fast.models.names import fit_names
from udas_fast.models.weights import SUFFIX, read_tensors

MODEL_FILE = f"model{SUFFIX}"
"""File name in a run folder; it is written last, so a run that has it is complete."""
BEST_FILE = f"best{SUFFIX}"
"""File name in a run folder of the network with the highest scores on the val split (``keep_best``)."""
KEY = "udas_fast"  # of the header's metadata, JSON; the only one, as safetensors writes several in any order

ImageInput: TypeAlias = np.ndarray | Image.Image | str | os.PathLike[str] | Regions


BitDepth: TypeAlias = Annotated[int, Field(ge=8, le=16)] | None


@checked_dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Header:
    """Header of a model file; see :class:`TrainedModel`. ``checksum``: :func:`_checksum` of the whole content."""

    classes: ClassSet
    size: tuple[PositiveInt, PositiveInt]
    config: ModelConfig | None
    protocol: Protocol | None
    normalisation: Normalization = Normalization()
    bit_depth: BitDepth = None
    network: OwnNetwork | None = None
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    checksum: str = ""


HEADER = TypeAdapter(Header)


@dataclass
class TrainedModel:
    """Trained model of a run, saved as ``model.safetensors``.

    Attributes:
        model: the network, in evaluation mode after :meth:`load`.
        config: of the network; None for a user's own network, which :meth:`load` needs as ``model``.
        classes: names and palette.
        size: (height, width) that images are resized to for the network.
        protocol: of the run's scores; None if the model was not scored.
        bit_depth: bits of the sensor whose images are files of 16 bits; None: all 16.
        network: name and options of the function that built a user's own network, where it was one.
        temperature: of the softmax of confidences (:func:`udas_fast.evaluation.fit_temperature`).
    """

    model: nn.Module
    config: ModelConfig | None
    classes: ClassSet
    size: tuple[int, int]
    protocol: Protocol | None = None
    bit_depth: int | None = None
    network: OwnNetwork | None = None
    temperature: float = 1.0

    @property
    def selected(self) -> str | None:
        """Rule by which the model was chosen in its run, such as ``best on val at step 500``; None: it is the last."""
        return None if self.protocol is None else self.protocol.selected

    def save(self, path: Path) -> None:
        """Write to ``path`` atomically. Raises InputError as :func:`check_state` does."""
        check_state(self.model)
        # Copies: a file of safetensors has no shared tensors.
        tensors = {
            name: value.cpu().clone(memory_format=torch.contiguous_format)
            for name, value in self.model.state_dict().items()
        }
        header = Header(
            self.classes,
            self.size,
            self.config,
            self.protocol,
            normalization_of(self.model),
            self.bit_depth,
            self.network,
            self.temperature,
        )
        header = replace(header, checksum=_checksum(HEADER.dump_json(header), tensors))
        atomic_write(safetensors.torch.save(tensors, {KEY: HEADER.dump_json(header).decode()}), path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str = "cpu",
        model: nn.Module | NetworkFunction | None = None,
    ) -> TrainedModel:
        """Read a model file.

        Args:
            path: of the file, or of the run folder with a ``model.safetensors``.
            device: of the network.
            model: the user's own network, if the run trained one, or the function ``build(num_classes, **options)``
                that makes it; the options are those of the run.

        Raises:
            InputError: no such file, a run that is not finished, not a model file or a damaged one, or a user's own
                network that was not passed.
        """
        if not isinstance(path, (str, os.PathLike)):
            raise bad("model", type(path).__name__, "the path of a run's folder or of a model.safetensors")
        if model is not None and not callable(model):
            expected = "a torch.nn.Module, or the function that builds one"
            raise bad("TrainedModel.load: model", type(model).__name__, expected)
        path = Path(path)
        if path.is_dir():
            run, path = path, path / MODEL_FILE
            if not path.is_file() and (run / "run.yaml").is_file():
                expected = f"a finished run (--resume {run})"
                raise bad(f"run {run}", f"no {MODEL_FILE}, as it is not finished", expected)
        tensors, metadata = read_tensors("model", path)
        header = _header(path, metadata)
        # Of the header as it is written: an older file lacks what headers have been given since.
        written = metadata[KEY].replace(f'"checksum":"{header.checksum}"', '"checksum":""')
        if _checksum(written.encode(), tensors) != header.checksum:
            raise bad(f"model {path}", "damage (another checksum)", "the unchanged file")
        require_finite(f"model {path}", tensors)
        if model is not None and not isinstance(model, nn.Module):
            model = build_network(
                model, len(header.classes), header.network.options if header.network else {}
            )
        if model is not None:
            _fill(model, tensors, path)
        elif header.config is None:
            own = f", {header.network}" if header.network else ""
            name = header.network.function if header.network else "MODULE:FUNCTION"
            raise InputError(
                f"{path}: the run trained a network of your own{own}; pass it as `model`, or `--network {name}`"
            )
        else:
            model = _build(header.config, len(header.classes), tensors, path)
        if header.normalisation != normalization_of(model):
            raise bad(f"normalisation of {path}", header.normalisation, normalization_of(model))
        model = model.to(device).eval()
        return cls(
            model,
            header.config,
            header.classes,
            header.size,
            header.protocol,
            header.bit_depth,
            header.network,
            header.temperature,
        )

    def predict(
        self, image: ImageInput, *, native: bool = False, tile: tuple[int, int] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (train ids uint8, confidence float32), both ``[H, W]``, of an image.

        Args:
            image: uint8 RGB ``[H, W, 3]``, a Pillow image or the path of an image file. The latter two are turned
                upright by their EXIF orientation, and so is the result.
            native: run the network at the image's own size instead of :attr:`size`.
            tile: (H, W) of the parts that go through the network one by one, for images larger than memory
                (:mod:`udas_fast.evaluation.tiles`). With ``native`` a TIFF file of tiles or strips is decoded part by
                part, whatever its size; other files beyond Pillow's limit, ``PIL.Image.MAX_IMAGE_PIXELS``, are refused.

        Raises:
            InputError: another type, dtype or shape, or a file that cannot be read.
        """
        output, size = self.logits(image, native=native, tile=tile)
        label, confidence = label_and_confidence(output, size, self.temperature)
        return label.cpu().numpy(), confidence.cpu().numpy()

    def logits(
        self, image: ImageInput, *, native: bool = False, tile: tuple[int, int] | None = None
    ) -> tuple[SegmentationOutput, tuple[int, int]]:
        """Return the network's output for an image, as small as the network gives it, and the image's own (H, W).

        Arguments and errors are those of :meth:`predict`.
        """
        _check_tile(tile)
        if native and tile is not None and isinstance(image, (str, os.PathLike)):
            image = open_regions(image, self.bit_depth) or image
        if isinstance(image, Regions):
            return image_logits(self.model, image, (image.height, image.width), tile)
        pixels = read_pixels(image, self.bit_depth)
        size = (pixels.shape[0], pixels.shape[1]) if native else self.size
        return image_logits(self.model, torch.from_numpy(pixels).permute(2, 0, 1), size, tile)


def read_pixels(image: ImageInput, bit_depth: int | None = None) -> np.ndarray:
    """Return an image as uint8 RGB ``[H, W, 3]``, contiguous and writable; see :meth:`TrainedModel.predict`."""
    if isinstance(image, (str, os.PathLike, Image.Image)):
        with warnings.catch_warnings():  # Pillow's, about sizes, palettes and metadata
            warnings.simplefilter("ignore")
            opened = image if isinstance(image, Image.Image) else Path(image)
            return read_image(opened, bit_depth=bit_depth)
    if not isinstance(image, np.ndarray):
        raise bad("image", type(image).__name__, "a uint8 RGB array [H, W, 3], a Pillow image or a path")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise bad("image", f"{image.dtype} {list(image.shape)}", "uint8 RGB [H, W, 3]")
    # OpenCV's [..., ::-1] is not contiguous; Pillow's arrays are read-only, which torch warns about.
    return np.require(image, requirements=["C_CONTIGUOUS", "WRITEABLE"])


def _check_tile(tile: object) -> None:
    """Raise InputError for what is no size."""
    if tile is None:
        return
    sides = tile if isinstance(tile, (tuple, list)) and len(tile) == 2 else ()
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise bad("tile", repr(tile)[:60], "(H, W) in pixels, or None")


def check_state(model: nn.Module) -> None:
    """Raise InputError if ``model`` has a state that is no dense tensor, which a model file cannot hold."""
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout != torch.strided:
            state = f"state {name!r} of {type(model).__name__}"
            raise bad(state, type(value).__name__, "dense tensors only, which can be saved")


def _header(path: Path, metadata: Mapping[str, str]) -> Header:
    if KEY not in metadata:
        raise bad(f"model {path}", f"no {KEY!r} in its header", "a model file of udas_fast")
    try:
        header = HEADER.validate_json(metadata[KEY])
    except ValidationError as error:
        raise InputError(f"model {path}: damaged header ({first_problem(error)})") from None
    return header


def _build(config: ModelConfig, num_classes: int, tensors: dict[str, Tensor], path: Path) -> nn.Module:
    """Build the network of a header around ``tensors``, without allocating the sizes that a header claims."""
    try:
        with (
            nullcontext() if config.name == "hf" else torch.device("meta")
        ):  # transformers computes some buffers
            model = build_model(config, num_classes)
    except (RuntimeError, TypeError) as error:  # sizes beyond those of a tensor
        raise InputError(f"model {path}: damaged header ({first_line(error)})") from error
    tensors = fit_names(tensors, model)
    for name, value in model.state_dict().items():
        if name in tensors and tensors[name].dtype != value.dtype:
            raise bad(f"{name} of {path}", tensors[name].dtype, value.dtype)
    _fill(model, tensors, path, assign=True)
    return model


def _fill(model: nn.Module, tensors: dict[str, Tensor], path: Path, assign: bool = False) -> None:
    try:
        model.load_state_dict(fit_names(tensors, model), assign=assign)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: does not fit the network ({reason:.200})") from error


def _checksum(header: bytes, tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of a header with an empty checksum, and of name, dtype, shape and values of every tensor.

    ``header`` is JSON; tensors come in the order of their names.
    """
    crc = zlib.crc32(header)
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"
