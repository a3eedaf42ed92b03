"""Export of a trained model to a file that runs without this package: torch.export or ONNX."""

from __future__ import annotations

import copy
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
from udas_fast.evaluation import evaluating
from udas_fast.inference.model import TrainedModel
from udas_fast.models import normalization_of, to_output

SUFFIXES = {"torch": ".pt2", "onnx": ".onnx"}
ONNX_NEEDS = ("onnx", "onnxscript", "onnxruntime")
OUTPUTS = {
    "logits": ("logits",),
    "logits-small": ("logits",),
    "labels": ("labels",),
    "labels,confidence": ("labels", "confidence"),
}
"""What an exported file may return, and the names of its tensors."""
TOLERANCE = {False: 1e-4, True: 2e-2}
"""Part of the largest logit, in float32 and in half precision: other kernels round differently; a wrong operator
differs by far more."""

Run: TypeAlias = Callable[[Tensor], tuple[Tensor, ...]]


class Exported(nn.Module):
    """Network with normalisation from an image to one of :data:`OUTPUTS`, in plain operators.

    Takes RGB uint8 ``[N, 3, H, W]``, which is not resized: a model works best on images of its training size.

    Args:
        model: the network.
        output: "logits": float32 ``[N, C, H, W]``; "logits-small": float32 ``[N, C, h, w]`` as the network gives them;
            "labels": train ids uint8 ``[N, H, W]``; "labels,confidence": those, and float16 ``[N, H, W]``.
        half: compute in float16, but for normalisation and upsampling.
        temperature: of the softmax of the confidence.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: nn.Module, output: str = "logits", *, half: bool = False, temperature: float = 1.0
    ) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).half() if half else model
        self.output, self.half_precision, self.temperature = output, half, temperature
        expected = normalization_of(model)
        self.register_buffer("mean", torch.tensor(expected.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(expected.std).view(3, 1, 1))

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise ``image``, run the network, and make the output of its primary logits."""
        normal = (image.float() / 255 - self.mean) / self.std
        found = to_output(self.model(normal.half() if self.half_precision else normal))
        logits = found.primary.float()
        if self.output == "logits-small":
            return logits
        logits = F.interpolate(logits, image.shape[-2:], mode="bilinear", align_corners=found.align_corners)
        if self.output == "logits":
            return logits
        labels = logits.argmax(1).to(torch.uint8)
        if self.output == "labels":
            return labels
        return labels, (logits / self.temperature).softmax(1).amax(1).half()


@dataclass(frozen=True)
class Agreement:
    """Agreement of an exported file with the model in float32, on images of noise of the sizes ``shapes``.

    ``largest_difference`` is that of the logits. Where the file returns labels, it is how far the logit of a label is
    below the pixel's largest one: other labels than the model's are ties within it.
    """

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


def export_model(
    trained: TrainedModel,
    path: str | os.PathLike[str],
    form: str,
    *,
    output: str = "logits",
    size: tuple[int, int] | None = None,
    half: bool = False,
) -> Agreement:
    """Write ``trained`` to ``path`` in the format ``form``, and its description to ``path`` with ``.json`` added.

    The number of images stays dynamic. The result is loaded and compared with the model before it is written.

    Args:
        trained: on the CPU.
        path: of the file; the name ends in the format's suffix. Its folder is made.
        form: "torch" (``torch.export``, .pt2) or "onnx".
        output: what the file returns, one of :data:`OUTPUTS` (:class:`Exported`).
        size: (H, W) of all images; None: any.
        half: compute in float16.

    Raises:
        InputError: the format or output is unknown, its packages are not installed, the network cannot be exported, or
            the exported one disagrees with the model.
    """
    path = Path(path)
    if form not in SUFFIXES:
        raise unknown("--format", form, SUFFIXES)
    if output not in OUTPUTS:
        raise unknown("--output", output, OUTPUTS)
    if path.suffix != SUFFIXES[form]:
        raise bad(f"--out for format {form}", path, f"a name that ends in {SUFFIXES[form]}")
    if form == "onnx" and any(importlib.util.find_spec(name) is None for name in ONNX_NEEDS):
        raise bad("--format onnx", "not all of " + ", ".join(ONNX_NEEDS), 'pip install "udas-fast[export]"')
    make_folder(path.parent)
    whole = Exported(trained.model, output, half=half, temperature=trained.temperature).eval()
    try:
        program = _trace(whole, size or trained.size, is_fixed=size is not None)
        data, run = _onnx(program, OUTPUTS[output], size) if form == "onnx" else _torch(program)
    except Exception as error:  # any network, any operator, any exception
        found = f"{type(trained.model).__name__} cannot be exported to {form} ({first_line(error):.200})"
        raise InputError(f"export: {found}") from error
    agreement = _compare(trained, run, output, size)
    if not (agreement.largest_difference <= TOLERANCE[half] * agreement.largest_logit):
        raise bad("exported model", f"one that disagrees with the model: {agreement}", "the same")
    card = _card(trained, form, output, size, half, agreement)
    atomic_write(data, path)
    atomic_write(json.dumps(card, indent=2) + "\n", path.with_name(f"{path.name}.json"))
    return agreement


def _trace(whole: Exported, size: tuple[int, int], *, is_fixed: bool) -> torch.export.ExportedProgram:
    example = torch.zeros(2, 3, *size, dtype=torch.uint8)
    free = dict.fromkeys((0,) if is_fixed else (0, 2, 3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        return torch.export.export(whole, (example,), dynamic_shapes={"image": free})


def _torch(program: torch.export.ExportedProgram) -> tuple[bytes, Run]:
    file = io.BytesIO()
    torch.export.save(program, file)
    data = file.getvalue()
    module = torch.export.load(io.BytesIO(data)).module()
    return data, lambda image: _as_tuple(module(image))


def _as_tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found


def _onnx(
    program: torch.export.ExportedProgram, outputs: tuple[str, ...], size: tuple[int, int] | None
) -> tuple[bytes, Run]:
    logging.getLogger("torch.onnx").setLevel(
        logging.ERROR
    )  # it would report that torchvision is not installed
    names = {0: "batch"} if size is not None else {0: "batch", 2: "height", 3: "width"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # about torch's own code
        made = torch.onnx.export(
            program, dynamo=True, output_names=outputs, dynamic_shapes={"image": names}, verbose=False
        )
    if made is None:
        raise TypeError("torch.onnx.export returned no program")
    data = made.model_proto.SerializeToString()
    return data, onnx_run(data)


def onnx_run(model: bytes | str) -> Run:
    """Return the function that runs an ONNX model, its content or its path, on the CPU by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return lambda image: tuple(torch.from_numpy(v) for v in session.run(None, {"image": image.numpy()}))


@torch.no_grad()
def _compare(trained: TrainedModel, run: Run, output: str, size: tuple[int, int] | None) -> Agreement:
    """Compare the exported outputs with the logits of the model, at the images' size."""
    height, width = size or trained.size
    more = (0, 0) if size is not None else (9, 21)  # other than the traced one
    shapes = ((1, 3, height, width), (3, 3, height + more[0], width + more[1]))
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator) for shape in shapes]
    own = "logits-small" if output == "logits-small" else "logits"
    reference = Exported(trained.model, own).eval()
    differences, largest, equal = [], [], []
    for image in images:
        logits, (found, *others) = reference(image), run(image)
        top, labels = logits.max(1)
        largest.append(logits.abs())
        if found.is_floating_point():
            differences.append((logits - found).abs())
            equal.append((labels == found.argmax(1)).flatten())
        else:
            differences.append(top - logits.gather(1, found[:, None].long())[:, 0])
            equal.append((labels == found).flatten())
        if others:
            expected = (logits / trained.temperature).softmax(1).amax(1)
            # At ten times the tolerance, as a part of 1 in place of the largest logit: float16 has three digits.
            differences.append((others[0].float() - expected).abs() / 10 * logits.abs().max())
    return Agreement(
        shapes,
        largest_difference=_maximum(differences),
        largest_logit=_maximum(largest),
        equal_classes=torch.cat(equal).float().mean().item(),
    )


def _maximum(parts: list[Tensor]) -> float:
    """Return the maximum, NaN if there is one, which Python's max would lose."""
    return torch.stack([part.max() for part in parts]).max().item()


@torch.no_grad()
def _aligns_corners(trained: TrainedModel) -> bool:
    with evaluating(trained.model):
        return to_output(trained.model(torch.zeros(1, 3, *trained.size))).align_corners


DESCRIPTIONS = {
    "logits": "logits: float32 [N, C, H, W]; the arg-max over C is the class",
    "logits-small": "logits: float32 [N, C, h, w], to be upsampled bilinearly; the arg-max over C is the class",
    "labels": "labels: uint8 [N, H, W], the number of the class",
    "labels,confidence": "labels: uint8 [N, H, W], the number of the class; confidence: float16 [N, H, W], 0 to 1",
}


def _card(
    trained: TrainedModel,
    form: str,
    output: str,
    size: tuple[int, int] | None,
    half: bool,
    agreement: Agreement,
) -> dict[str, object]:
    height, width = size or trained.size
    sides = f"{height}, {width}" if size is not None else "H, W"
    resized = "to which images must be resized before" if size is not None else "H, W are best"
    return {
        "format": form,
        "input": f"image: RGB uint8 [N, 3, {sides}]; normalisation is included, resizing is not: "
        f"{height}x{width} {resized}",
        "output": output,
        "description": DESCRIPTIONS[output],
        "precision": "fp16" if half else "fp32",
        "align_corners": _aligns_corners(trained),
        "temperature": trained.temperature,
        "classes": trained.classes.names,
        "palette": trained.classes.palette,
        "size": (height, width),
        "size_is_fixed": size is not None,
        "bit_depth": trained.bit_depth,
        "protocol": None if trained.protocol is None else asdict(trained.protocol),
        "agreement": asdict(agreement),
        "torch": torch.__version__,
    }
