"""Loading weights by name from published and own files, with an exact report of what did not fit."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from udas_fast.errors import InputError, bad, first_line
from udas_fast.models.backbones.vit import resize_positions
from udas_fast.models.matching import ADAPTSEGNET, find_name, match_names, not_needed
from udas_fast.models.names import ENCODER, plain_name, plain_names, plain_state, unwrapped
from udas_fast.models.normalization import MEAN, STD
from udas_fast.models.unsafe_files import describe_unsafe

SUFFIX = ".safetensors"
WRAPPERS = ("state_dict", "model")
MOST_WRAPPERS = 8  # around each other
EXPECTED = "a file with a torch state dict"

# Checkpoints of AdaptSegNet's DeepLab and the many projects that copied it.
CAFFE_MEAN = (122.67891434, 116.66876762, 104.00698793)  # RGB of 0 to 255, subtracted by their loaders
Shape = tuple[int, ...]


@dataclass(frozen=True)
class WeightsReport:
    """Result of :func:`load_weights`.

    ``loaded``, ``missing`` and ``mismatched`` use the model's names, the others the file's.
    """

    path: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[tuple[str, Shape, Shape], ...]  # name, shape in the file, in the model
    unexpected: tuple[str, ...]
    ignored: tuple[str, ...]  # the classifier of another task
    file_keys: tuple[str, ...]
    caffe_input: bool  # conv1 was converted from BGR of 0 to 255 to this package's normalisation
    reset: tuple[tuple[str, Shape, Shape], ...] = ()  # of the head, left out on purpose: as in mismatched
    layout: str = ""  # of the names in the file: "transformers", "mmsegmentation", …; empty: this package's
    notes: tuple[str, ...] = ()

    def summary(self) -> str:
        """Describe the result in a few lines; ``name.*`` stands for everything under that name."""
        model_keys = self.loaded + self.missing + tuple(n for n, _, _ in self.mismatched + self.reset)
        named = f", named as in {self.layout}" if self.layout else ""
        lines = [f"{self.path}: {len(self.loaded)} of {len(model_keys)} tensors loaded{named}"]
        if self.caffe_input:
            lines.append("  conv1 and bn1 converted from BGR of 0 to 255 (AdaptSegNet) to normalised RGB")
        lines += [f"  {note}" for note in self.notes]
        if self.reset:
            names, classes = [name for name, _, _ in self.reset], self.reset[0][1][0]
            lines.append(f"  head of {classes} classes left out, reset: {_collapse(names, model_keys)}")
        if self.missing:
            lines.append(f"  not in the file, unchanged: {_collapse(self.missing, model_keys)}")
        for name, found, expected in self.mismatched:
            lines.append(f"  other shape, unchanged: {name} is {list(found)}, expected {list(expected)}")
        if self.unexpected:
            lines.append(f"  not in the model: {_collapse(self.unexpected, self.file_keys)}")
        if self.ignored:
            lines.append(f"  classifier of another task, ignored: {_collapse(self.ignored, self.file_keys)}")
        return "\n".join(lines)


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, reset_head: bool = False
) -> WeightsReport:
    """Copy into ``model`` every tensor of the file at ``path`` that fits by name and shape.

    The file (safetensors if its name ends so, else torch's) holds a state dict, alone, or under "state_dict" or
    "model": of this package's models; of a backbone or network by the names of torchvision, timm, transformers,
    mmsegmentation and others (:mod:`udas_fast.models.layouts`), whose classifier is ignored; or of AdaptSegNet's
    DeepLab, whose names and input (BGR of 0 to 255) are converted. What DataParallel, DistributedDataParallel and
    torch.compile add to names is of no effect on either side, nor a leading "encoder.". Position embeddings of
    another grid are interpolated.

    With ``reset_head`` the layers that return a value for each class are left out, whatever the classes of the file.

    Raises:
        InputError: the file is missing or no state dict, its heads have another number of classes, more than a tenth
            of its tensors have another shape, none fits, or ``reset_head`` finds no head. The model is unchanged then.
    """
    state = _read(Path(path))
    require_finite(f"weights {path}", state)
    model = unwrapped(model)
    own, real = plain_state(model)
    match = match_names(state, model)
    tensors = dict(match.tensors)
    reset = _take_head(model, path, tensors, own) if reset_head else ()
    for name, tensor in tensors.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise bad(f"weights {path}: {name}", tensor.dtype, own[name].dtype)
    caffe_input = match.layout == ADAPTSEGNET and _convert_input(tensors, own)
    notes = _fit_positions(tensors, own)

    odd = {name: match.keys[name][0] for name, t in tensors.items() if t.shape != own[name].shape}
    _require_same_classes(model, path, {name: (key, tensors[name]) for name, key in odd.items()})
    mismatched = tuple((name, tuple(tensors[name].shape), tuple(own[name].shape)) for name in odd)

    fits = {name: tensor for name, tensor in tensors.items() if name not in odd}
    example = "".join(f" ({name} is {list(f)}, not {list(e)})" for name, f, e in mismatched[:1])
    if not any(tensor.is_floating_point() for tensor in fits.values()):
        raise bad(f"weights {path}", f"nothing that fits the model{example}", "weights of the same network")
    # One or two tensors may differ; between ResNet-18 and ResNet-50 a fifth does, and the rest is of no use.
    if 10 * len(mismatched) > len(tensors):
        found = f"another shape in {len(mismatched)} of {len(tensors)} tensors{example}"
        raise bad(f"weights {path}", found, "weights of the same network")
    model.load_state_dict({real[name]: tensor for name, tensor in fits.items()}, strict=False)
    loaded = [name for name in own if name in fits or (name not in odd and _implied(name, fits))]
    left = {*odd, *loaded, *(name for name, _, _ in reset)}
    missing = [name for name in own if name not in left]

    used = {key for keys in match.keys.values() for key in keys}
    unknown = [key for key in state if key not in used]
    left_out = not_needed(model)
    ignored = {
        key for key in unknown if key.removeprefix(match.prefix).removeprefix(ENCODER).startswith(left_out)
    }
    return WeightsReport(
        path=str(path),
        loaded=tuple(loaded),
        missing=tuple(missing),
        mismatched=mismatched,
        unexpected=tuple(key for key in unknown if key not in ignored),
        ignored=tuple(key for key in unknown if key in ignored),
        file_keys=tuple(state),
        caffe_input=caffe_input,
        layout=match.layout,
        notes=tuple(notes),
        reset=reset,
    )


def _take_head(
    model: nn.Module, path: str | os.PathLike[str], tensors: dict[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[tuple[str, Shape, Shape], ...]:
    """Take the layers that return a value for each class out of ``tensors``; return (name, shape there, shape here).

    Of a network without ``head_parameters()`` and ``num_classes`` these are the layers that have another number of
    outputs in the file.

    Raises:
        InputError: there is no such layer.
    """
    classes, head_parameters = (getattr(model, name, None) for name in ("num_classes", "head_parameters"))
    if classes is not None and head_parameters is not None:
        heads = {id(parameter) for parameter in head_parameters()}
        names = [
            plain_name(n) for n, p in model.named_parameters() if id(p) in heads and p.shape[:1] == (classes,)
        ]
    else:
        names = [n for n, t in tensors.items() if t.shape != own[n].shape and t.shape[1:] == own[n].shape[1:]]
        if not names:
            found = f"{type(model).__name__} without head_parameters() and num_classes, and no other classes in {path}"
            raise bad("reset_head", found, "a network that names its head, or a file of other classes")
    return tuple((n, tuple(tensors.pop(n).shape), tuple(own[n].shape)) for n in names if n in tensors)


def require_finite(where: str, state: Mapping[str, Tensor]) -> None:
    """Raise InputError if a tensor of a state dict has a number that is not finite."""
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise bad(f"{where}: {name}", "numbers that are not finite", "finite ones")


def _require_same_classes(
    model: nn.Module, path: str | os.PathLike[str], odd: Mapping[str, tuple[str, Tensor]]
) -> None:
    """Raise InputError if a head's tensor among ``odd``, by the model's name (key and tensor of the file), differs."""
    heads = {id(p) for p in getattr(model, "head_parameters", tuple)()}
    for name, parameter in ((plain_name(n), p) for n, p in model.named_parameters()):
        if name in odd and id(parameter) in heads:
            key, tensor = odd[name]
            if tensor.shape[:1] != parameter.shape[:1]:
                classes = sum(tensor.shape[:1])  # 0 of a scalar
                expected = f"{len(parameter)} classes; --reset-head (reset_head=True) loads all but the head"
                raise bad(f"weights {path}", f"{classes} classes in {key}", expected)


def read_tensors(thing: str, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a file of safetensors, which holds no code: (tensors by name, on the CPU; the header's metadata).

    Raises:
        InputError: no such file, or one that is damaged or of another kind; it begins with ``thing`` and the path.
    """
    expected = f"a {SUFFIX} file"
    if not path.is_file():
        raise bad(f"{thing} {path}", "no such file", expected)
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise bad(f"{thing} {path}", f"unreadable data ({first_line(error)})", expected) from error


def _read(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a state dict, by name without wrappers' prefixes."""
    if not path.is_file():
        raise bad(f"weights {path}", "no such file", EXPECTED)
    if path.suffix == SUFFIX:
        return _state_of(read_tensors("weights", path)[0], path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader raise anything
        raise _unsafe(path, error) from error
    for _ in range(MOST_WRAPPERS):  # a dictionary may hold itself
        if not isinstance(content, Mapping):
            break
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise bad(f"weights {path}", type(content).__name__, EXPECTED)
    return _state_of(content, path)


def _unsafe(path: Path, error: Exception) -> InputError:
    """Return an error about a file that a safe load has refused: what is in it, and the lines that convert it."""
    classes, lines = describe_unsafe(path)
    found = "a file that torch cannot read safely"
    if not classes:
        return bad(f"weights {path}", f"{found} ({type(error).__name__})", EXPECTED)
    names = [name if re.fullmatch(r"[\w.]{1,80}", name) else f"{name!r:.80}" for name in classes[:4]]
    held = ", ".join([*names, *(["…"] if len(classes) > 4 else [])])
    expected = f"{EXPECTED}; if you trust the file, these lines convert it:\n{lines}"
    return bad(f"weights {path}", f"{found}, as it holds {held}", expected)


def _state_of(content: Mapping[Any, object], path: Path) -> dict[str, Tensor]:
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise bad(f"weights {path}", "no tensors", EXPECTED)
    for name, value in state.items():
        if odd := _oddity(value):
            raise bad(f"weights {path}: {name}", odd, "a dense tensor with all its values")
    return {name: state[key] for name, key in plain_names(state).items()}


def _oddity(value: Tensor) -> str:
    """Describe a tensor that does not store each of its values, so that a small file may claim any size; else ''."""
    if value.is_nested or value.is_quantized or value.is_meta or value.layout != torch.strided:
        kinds = {"nested": value.is_nested, "quantised": value.is_quantized, "meta": value.is_meta}
        kind = next(
            (kind for kind, found in kinds.items() if found), str(value.layout).removeprefix("torch.")
        )
        return f"a {kind} tensor"
    stored = value.untyped_storage().nbytes() // value.element_size()
    return f"{value.numel()} values of which {stored} are stored" if value.numel() > stored else ""


def _implied(name: str, fits: Mapping[str, Tensor]) -> bool:
    """Check whether ``name`` is a statistic that its layer derives from an ordinary, perhaps old, checkpoint."""
    layer, _, last = name.rpartition(".")
    derived = last == "num_batches_tracked" or last.startswith("source_running_")
    return derived and f"{layer}.running_mean" in fits


def _fit_positions(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> list[str]:
    """Bring position embeddings [1, tokens, channels] in ``tensors`` to the model's; return what was done."""
    notes = []
    for name, tensor in tensors.items():
        if not name.endswith("pos_embed") or tensor.dim() != 3 or tensor.shape == own[name].shape:
            continue
        found, expected = tensor.shape[1], own[name].shape[1]
        if found == math.isqrt(found) ** 2:  # timm's with registers: the class token has its own added
            tensor = torch.cat([torch.zeros_like(tensor[:, :1]), tensor], 1)
            found += 1
        side, target = math.isqrt(found - 1), math.isqrt(expected - 1)
        if side**2 + 1 != found or tensor.shape[2] != own[name].shape[2]:
            continue
        if side != target:
            tensor = resize_positions(tensor, side, target)
            notes.append(f"{name} interpolated from {side}x{side} to {target}x{target} patches")
        tensors[name] = tensor
    return notes


def _convert_input(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Convert AdaptSegNet's first layer in ``tensors`` to :func:`udas_fast.models.normalize`'s input; False if absent.

    AdaptSegNet's input is BGR, 255·x − CAFFE_MEAN; ours RGB, (x − MEAN) / STD. The scale goes into the weights, the
    difference of the means through them into the batch norm's mean. Exact except for the padding at the border,
    which is zero in either input.
    """
    conv, mean = find_name("conv1.weight", own), find_name("bn1.running_mean", own)
    if conv is None or mean is None:
        return False
    if any(name not in tensors or tensors[name].shape != own[name].shape for name in (conv, mean)):
        return False
    rgb = tensors[conv].float().flip(1)
    scale = 255 * torch.tensor(STD).view(1, 3, 1, 1)
    shift = 255 * torch.tensor(MEAN) - torch.tensor(CAFFE_MEAN)
    tensors[conv] = rgb * scale
    tensors[mean] = tensors[mean] - rgb.sum((2, 3)) @ shift
    return True


def _collapse(keys: Iterable[str], universe: Iterable[str]) -> str:
    """Return ``keys`` as text; a name under which all of ``universe`` is meant stands for them: "layer4.* (9)"."""
    keys = list(keys)
    partial = {prefix for key in set(universe) - set(keys) for prefix in _prefixes(key)}
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(next((p for p in _prefixes(key) if p not in partial), key), []).append(key)
    return ", ".join(f"{name}.* ({len(g)})" if len(g) > 1 else g[0] for name, g in groups.items())


def _prefixes(key: str) -> list[str]:
    """Return the names above ``key``, outermost first: ["a", "a.b"] of "a.b.c"."""
    return list(accumulate(key.split(".")[:-1], "{}.{}".format))
