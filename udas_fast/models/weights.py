"""Loading weights by name from the files that people have, and saying exactly what did not fit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor, nn

from udas_fast.errors import bad
from udas_fast.models import adaptsegnet
from udas_fast.models.tensor_file import SUFFIX, read_tensors

WRAPPERS = ("state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")  # DataParallel, torch.compile
CLASSIFIERS = ("fc.", adaptsegnet.OTHER_HEAD)  # heads of another task, never expected
WANTED = "a file with a torch state dict"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class WeightsReport:
    """What :func:`load_weights` did.

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

    def summary(self) -> str:
        """A few lines for a person; ``name.*`` stands for everything under that name."""
        model_keys = self.loaded + self.missing + tuple(name for name, _, _ in self.mismatched)
        lines = [f"{self.path}: {len(self.loaded)} of {len(model_keys)} tensors loaded"]
        if self.caffe_input:
            lines.append("  conv1 and bn1 converted from BGR of 0 to 255 (AdaptSegNet) to normalised RGB")
        if self.missing:
            lines.append(f"  not in the file, left as they were: {_collapse(self.missing, model_keys)}")
        for name, found, expected in self.mismatched:
            lines.append(f"  other shape, left as it was: {name} is {list(found)}, expected {list(expected)}")
        if self.unexpected:
            lines.append(f"  not in the model: {_collapse(self.unexpected, self.file_keys)}")
        if self.ignored:
            lines.append(f"  classifier of another task, ignored: {_collapse(self.ignored, self.file_keys)}")
        return "\n".join(lines)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> WeightsReport:
    """Copy into ``model`` every tensor of the file at ``path`` that fits by name and shape.

    The file (safetensors where its name says so, else torch's) holds a state dict (alone, or under "state_dict" or
    "model", with or without "module.") of this package's models, of a torchvision ResNet, whose ``fc`` is ignored,
    or of AdaptSegNet's DeepLab, whose names and input (BGR of 0 to 255) are converted.

    Raises InputError for a file that is missing or no state dict, for heads of another number of classes and
    where more than a tenth of the tensors has another shape or none fits; the model is untouched then.
    """
    state = _read(Path(path))
    require_finite(f"weights {path}", state)
    own = model.state_dict()
    renamed = adaptsegnet.rename(state)
    names = {key: _find(renamed.get(key, key), own) for key in state}
    tensors = {name: state[key] for key, name in names.items() if name is not None}
    for name, tensor in tensors.items():
        if own[name].is_floating_point() and not tensor.is_floating_point():
            raise bad(f"weights {path}: {name}", tensor.dtype, own[name].dtype)
    caffe_input = bool(renamed) and _convert_input(tensors, own)

    odd = {name: key for key, name in names.items() if name and state[key].shape != own[name].shape}
    heads = {id(p) for p in model.head_parameters()} if hasattr(model, "head_parameters") else set()
    for name, parameter in model.named_parameters():
        if name in odd and id(parameter) in heads and state[odd[name]].shape[:1] != parameter.shape[:1]:
            found = sum(state[odd[name]].shape[:1])  # 0 of a scalar
            raise bad(f"weights {path}", f"{found} classes in {odd[name]}", f"{len(parameter)} classes")
    mismatched = tuple((name, tuple(tensors[name].shape), tuple(own[name].shape)) for name in odd)

    fits = {name: tensor for name, tensor in tensors.items() if name not in odd}
    example = "".join(f" ({name} is {list(f)}, not {list(w)})" for name, f, w in mismatched[:1])
    if not any(tensor.is_floating_point() for tensor in fits.values()):
        raise bad(f"weights {path}", f"nothing that fits the model{example}", "weights of the same network")
    # A tensor or two may differ; of a ResNet-18 for a ResNet-50 it is a fifth, and the rest is no start.
    if 10 * len(mismatched) > len(tensors):
        found = f"another shape in {len(mismatched)} of {len(tensors)} tensors{example}"
        raise bad(f"weights {path}", found, "weights of the same network")
    model.load_state_dict(fits, strict=False)
    loaded = [name for name in own if name in fits or (name not in odd and _implied(name, fits))]
    missing = [name for name in own if name not in odd and name not in set(loaded)]

    unknown = tuple(key for key, name in names.items() if name is None)
    return WeightsReport(
        path=str(path),
        loaded=tuple(loaded),
        missing=tuple(missing),
        mismatched=mismatched,
        unexpected=tuple(key for key in unknown if not key.startswith(CLASSIFIERS)),
        ignored=tuple(key for key in unknown if key.startswith(CLASSIFIERS)),
        file_keys=tuple(state),
        caffe_input=caffe_input,
    )


def require_finite(where: str, state: Mapping[str, Tensor]) -> None:
    """Raise InputError where a tensor of a state dict has a number that is not finite."""
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise bad(f"{where}: {name}", "numbers that are not finite", "finite ones")


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors of the state dict in the file, by name without wrappers' prefixes."""
    if not path.is_file():
        raise bad(f"weights {path}", "no such file", WANTED)
    if path.suffix == SUFFIX:
        return _state_of(read_tensors("weights", path)[0], path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or hostile file can make the reader raise anything
        found = f"a file that torch cannot read safely ({type(error).__name__})"
        raise bad(f"weights {path}", found, WANTED) from error
    while isinstance(content, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if wrapper is None:
            break
        content = content[wrapper]
    if not isinstance(content, Mapping):
        raise bad(f"weights {path}", type(content).__name__, WANTED)
    return _state_of(content, path)


def _state_of(content: Mapping[object, object], path: Path) -> dict[str, Tensor]:
    state = {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
    if not state:
        raise bad(f"weights {path}", "no tensors", WANTED)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _find(name: str, own: Mapping[str, Tensor]) -> str | None:
    """The model's name for a tensor, which may sit in its backbone."""
    return next((n for n in (name, f"backbone.{name}") if n in own), None)


def _implied(name: str, fits: Mapping[str, Tensor]) -> bool:
    """Whether ``name`` is a statistic that its layer derives from an ordinary, perhaps old, checkpoint."""
    layer, _, last = name.rpartition(".")
    derived = last == "num_batches_tracked" or last.startswith("source_running_")
    return derived and f"{layer}.running_mean" in fits


def _convert_input(tensors: dict[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Convert the first layer in ``tensors`` if it is there; whether it was."""
    conv1, mean = _find("conv1.weight", own), _find("bn1.running_mean", own)
    if any(name not in tensors or tensors[name].shape != own[name].shape for name in (conv1, mean)):
        return False
    tensors[conv1], tensors[mean] = adaptsegnet.convert_input(tensors[conv1], tensors[mean])
    return True


def _collapse(keys: Iterable[str], universe: Iterable[str]) -> str:
    """``keys`` as text; a name under which all of ``universe`` is meant stands for them: "layer4.* (9)"."""
    keys = list(keys)
    partial = {prefix for key in set(universe) - set(keys) for prefix in _prefixes(key)}
    groups: dict[str, list[str]] = {}
    for key in keys:
        groups.setdefault(next((p for p in _prefixes(key) if p not in partial), key), []).append(key)
    return ", ".join(f"{name}.* ({len(g)})" if len(g) > 1 else g[0] for name, g in groups.items())


def _prefixes(key: str) -> list[str]:
    """The names above ``key``, outermost first: ["a", "a.b"] of "a.b.c"."""
    return list(accumulate(key.split(".")[:-1], "{}.{}".format))
