"""Export of a trained model to a file that runs without this package: torch.export or ONNX."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udas_fast.atomic import atomic_write, make_folder
from udas_fast.errors import InputError, bad, first_line, unknown
from udas_fast.inference.model import TrainedModel
from udas_fast.models import normalization_of, to_output

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4
"""Part of the largest logit: other kernels round float32 differently; a wrong operator differs by far more."""

Run: TypeAlias = Callable[[Tensor], Tensor]


class Exported(nn.Module):
    """Network from an image to logits of its size, normalisation included, in plain operators.

    Takes RGB uint8 ``[N, 3, H, W]`` and returns float32 ``[N, C, H, W]``. The image is not resized: a model works best
    on images of its training size.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        expected = normalization_of(model)
        self.register_buffer("mean", torch.tensor(expected.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(expected.std).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        """Normalise ``image``, run the network and upsample its primary logits."""
        logits = to_output(self.model((image.float() / 255 - self.mean) / self.std))
        size = image.shape[-2:]
        return F.interpolate(logits.primary, size, mode="bilinear", align_corners=logits.align_corners)


@dataclass(frozen=True)
class Agreement:
    """Agreement of an exported file's logits with the model's, on images of noise of the sizes ``shapes``."""

    shapes: tuple[tuple[int, ...], ...]
    largest_difference: float
    largest_logit: float
    equal_classes: float  # share of pixels with the same arg-max

    def __str__(self) -> str:
        return (
            f"largest difference {self.largest_difference:.1e} where logits reach {self.largest_logit:.3g}, "
            f"arg-max equal in {self.equal_classes:.4%} of pixels, on images "
            f"{', '.join('x'.join(map(str, shape)) for shape in self.shapes)}"
        )


def export_model(trained: TrainedModel, path: str | os.PathLike[str], form: str) -> Agreement:
    """Write ``trained`` to ``path`` in the format ``form``, and its description to ``path`` with ``.json`` added.

    Number, height and width of the images stay dynamic (:class:`Exported`). The result is loaded and compared with the
    model on images of two sizes before it is written.

    Args:
        trained: on the CPU.
        path: of the file; the name ends in the format's suffix. Its folder is made.
        form: "torch" (``torch.export``, .pt2) or "onnx".

    Raises:
        InputError: the format is unknown, its packages are not installed, the network cannot be exported, or the
            exported one disagrees with the model.
    """
    path = Path(path)
    if form not in SUFFIXES:
        raise unknown("--format", form, SUFFIXES)
    if path.suffix != SUFFIXES[form]:
        raise bad(f"--out for format {form}", path, f"a name that ends in {SUFFIXES[form]}")
    if form == "onnx" and any(importlib.util.find_spec(name) is None for name in ONNX_NEEDS):
        raise bad("--format onnx", "not all of " + ", ".join(ONNX_NEEDS), 'pip install "udas-fast[export]"')
    make_folder(path.parent)
    whole = Exported(trained.model).eval()
    try:
        program = _trace(whole, trained.size)
        data, run = _onnx(program) if form == "onnx" else _torch(program)
    except Exception as error:  # any network, any operator, any exception
        found = f"{type(trained.model).__name__} cannot be exported to {form} ({first_line(error):.200})"
        raise InputError(f"export: {found}") from error
    agreement = _compare(whole, run, trained.size)
    if not (agreement.largest_difference <= TOLERANCE * agreement.largest_logit):
        raise bad("exported model", f"one that disagrees with the model: {agreement}", "the same logits")
    atomic_write(data, path)
    atomic_write(
        json.dumps(_card(trained, form, agreement), indent=2) + "\n", path.with_name(f"{path.name}.json")
    )
    return agreement


def _trace(whole: Exported, size: tuple[int, int]) -> torch.export.ExportedProgram:
    example = torch.zeros(2, 3, *size, dtype=torch.uint8)
    free = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        return torch.export.export(whole, (example,), dynamic_shapes={"image": free})


def _torch(program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
    file = io.BytesIO()
    torch.export.save(program, file)
    data = file.getvalue()
    return data, torch.export.load(io.BytesIO(data)).module()


def _onnx(program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it would report that torchvision is not installed
    names = {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about torch's own code
        made = torch.onnx.export(
            program, dynamo=True, output_names=["logits"], dynamic_shapes={"image": names}, verbose=False
        )
    if made is None:
        raise TypeError("torch.onnx.export returned no program")
    data = made.model_proto.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return data, lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


@torch.no_grad()
def _compare(whole: Exported, run: Run, size: tuple[int, int]) -> Agreement:
    height, width = size
    shapes = ((1, 3, height, width), (3, 3, height + 9, width + 21))  # other than the traced one
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]
    pairs = [(whole(image), run(image)) for image in images]
    equal = torch.cat([(own.argmax(1) == exported.argmax(1)).flatten() for own, exported in pairs])
    return Agreement(
        shapes,
        largest_difference=_maximum([(own - exported).abs() for own, exported in pairs]),
        largest_logit=_maximum([own.abs() for own, _ in pairs]),
        equal_classes=equal.float().mean().item(),
    )


def _maximum(parts: list[Tensor]) -> float:
    """Return the maximum, NaN if there is one, which Python's max would lose."""
    return torch.stack([part.max() for part in parts]).max().item()


def _card(trained: TrainedModel, form: str, agreement: Agreement) -> dict[str, object]:
    return {
        "format": form,
        "input": "image: RGB uint8 [N, 3, H, W]; normalisation is included, resizing is not",
        "output": "logits: float32 [N, C, H, W]; the arg-max over C is the class",
        "classes": trained.classes.names,
        "palette": trained.classes.palette,
        "size": trained.size,
        "protocol": None if trained.protocol is None else asdict(trained.protocol),
        "agreement": asdict(agreement),
        "torch": torch.__version__,
    }
