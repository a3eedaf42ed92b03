"""An exported ONNX file as a model that can be scored and predicts, to show that it does what the original did."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import ConfigDict, PositiveFloat, PositiveInt, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass
from torch import Tensor, nn

from udas_fast.data import ClassSet
from udas_fast.errors import InputError, bad, first_line, first_problem
from udas_fast.evaluation import Protocol
from udas_fast.inference.export import Run, onnx_run
from udas_fast.inference.model import BitDepth, TrainedModel
from udas_fast.models import Normalization, SegmentationOutput

SUFFIX = ".onnx"
LEAST = 1e-6  # probability of the classes that a confidence of 1 leaves


@checked_dataclass(frozen=True, config=ConfigDict(extra="ignore"))
class Card:
    """The part of an exported file's description that its use needs (:func:`udas_fast.inference.export_model`)."""

    output: Literal["logits", "logits-small", "labels", "labels,confidence"]
    classes: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    size: tuple[PositiveInt, PositiveInt]
    size_is_fixed: bool
    align_corners: bool
    temperature: PositiveFloat
    protocol: Protocol | None
    bit_depth: BitDepth = None


class OnnxNetwork(nn.Module):
    """Network that runs an exported file on the CPU.

    Labels become logits whose arg-max they are, and whose softmax is the confidence where the file gives one.

    Args:
        run: uint8 ``[N, 3, H, W]`` to the file's outputs.
        card: the file's description.
    """

    normalization = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # the file has its own

    def __init__(self, run: Run, card: Card) -> None:
        super().__init__()
        self.run, self.card = run, card
        self.gives_confidence = card.output != "labels"

    def forward(self, image: Tensor) -> SegmentationOutput:
        """Return the output for images in 0 to 1, ``[N, 3, H, W]``."""
        card, size = self.card, tuple(image.shape[-2:])
        if card.size_is_fixed and size != card.size:
            raise bad("image for the exported file", "{}x{}".format(*size), "{}x{}".format(*card.size))
        found, *others = self.run((image * 255).round().to(torch.uint8))
        if card.output.startswith("logits"):
            return SegmentationOutput(found, align_corners=card.align_corners)
        classes = len(card.classes)
        sure = others[0].float() if others else torch.ones(found.shape)
        rest = ((1 - sure) / (classes - 1)).clamp(min=LEAST)[:, None]
        chosen = F.one_hot(found.long(), classes).movedim(-1, 1).bool()
        chance = torch.where(chosen, sure.clamp(min=2 * LEAST)[:, None], rest)
        return SegmentationOutput(card.temperature * chance.log())


def load_onnx(path: Path) -> TrainedModel:
    """Read an exported ONNX file and the description beside it, ``NAME.onnx.json``.

    Raises:
        InputError: no such file, no description or a damaged one, or no onnxruntime to run it.
    """
    description = path.with_name(f"{path.name}.json")
    try:
        card = TypeAdapter(Card).validate_json(description.read_bytes())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise bad(
            f"description {description}", reason, "the file that `export` wrote beside the model"
        ) from error
    except ValidationError as error:
        raise InputError(f"{description}: damaged ({first_problem(error)})") from None
    if importlib.util.find_spec("onnxruntime") is None:
        raise bad(f"model {path}", "no onnxruntime to run it", 'pip install "udas-fast[export]"')
    if not path.is_file():
        raise bad(f"model {path}", "no such file", "a file that `export` wrote")
    try:
        run = onnx_run(str(path))
    except Exception as error:  # onnxruntime's own
        raise InputError(f"model {path}: cannot be run ({first_line(error):.200})") from error
    classes = ClassSet(path.stem, card.classes, card.palette)
    return TrainedModel(
        OnnxNetwork(run, card),
        None,
        classes,
        card.size,
        card.protocol,
        card.bit_depth,
        temperature=card.temperature,
    )
