"""Matching the names of a file's tensors to a network's, among all layouts that are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from udas_fast.models.backbones import Backbone
from udas_fast.models.layouts import Layout, network_layouts, to_native
from udas_fast.models.names import ENCODER, plain_state

ADAPTSEGNET = "AdaptSegNet"
OTHER_HEAD = "Scale.layer5."  # the single head, of another task, in AdaptSegNet's initial weights
CLASSIFIERS = ("fc.", OTHER_HEAD)  # heads of another task, never expected


@dataclass(frozen=True)
class Match:
    """Tensors of a file under the model's names, and the file's keys that each was made of."""

    layout: str
    tensors: dict[str, Tensor]
    keys: dict[str, tuple[str, ...]]
    prefix: str = ""  # of the file's names


def match_names(state: Mapping[str, Tensor], model: nn.Module) -> Match:
    """Return the match of most tensors among all layouts and the prefixes that the file's names may have."""
    own, names_in_model = plain_state(model)
    renamed = _from_adaptsegnet(state)
    names = {key: name for key in state if (name := find_name(renamed.get(key, key), own)) is not None}
    plain = Match(
        ADAPTSEGNET if renamed else "",
        {name: state[key] for key, name in names.items()},
        {name: (key,) for key, name in names.items()},
    )
    shapes = {name: tensor.shape for name, tensor in own.items()}
    matches = [plain]
    wrapped = any(name != key for name, key in names_in_model.items())
    for layout, pairs in ({} if wrapped else network_layouts(model)).items():
        for prefix in sorted(_file_prefixes(state, pairs), key=len):
            inside = {k.removeprefix(prefix): tensor for k, tensor in state.items() if k.startswith(prefix)}
            keys = {
                name: tuple(prefix + key for key in file)
                for ours, file in pairs
                if all(key in inside for key in file)
                for name in ours
            }
            matches.append(Match(layout, to_native(inside, pairs, shapes), keys, prefix))
    return max(matches, key=lambda match: len(match.tensors))


def _file_prefixes(state: Mapping[str, Tensor], pairs: Layout) -> set[str]:
    """Return what may stand before a layout's names in ``state``, by its first few."""
    anchors = [file[0] for _, file in pairs[:8]]
    ends = [(key, anchor) for key in state for anchor in anchors if f".{key}".endswith(f".{anchor}")]
    return {key.removesuffix(anchor) for key, anchor in ends}


def not_needed(model: nn.Module) -> tuple[str, ...]:
    """Return how names of heads of another task begin, and of what else the backbone has no use for."""
    backbone = model if isinstance(model, Backbone) else getattr(model, "backbone", None)
    return (*CLASSIFIERS, *getattr(backbone, "not_needed", ()))


def find_name(name: str, own: Mapping[str, Tensor]) -> str | None:
    """Return the model's name for a tensor, which may be one of its backbone."""
    names = (name, name.removeprefix(ENCODER))
    return next((n for one in names for n in (one, f"backbone.{one}") if n in own), None)


def _from_adaptsegnet(keys: Iterable[str]) -> dict[str, str]:
    """Map AdaptSegNet's keys to those of :class:`udas_fast.models.DeepLabV2` (the backbone's without "backbone.").

    layer5 is the auxiliary head and layer6 the primary one; a single-level network has layer5 only, and it is
    the primary. Empty for the keys of any other file.
    """
    keys = list(keys)
    if not any(".conv2d_list." in key for key in keys):
        return {}
    multi_level = any(key.startswith("layer6.") for key in keys)
    heads = {"layer6": "primary", "layer5": "auxiliary"} if multi_level else {"layer5": "primary"}
    names = {}
    for key in keys:
        name = key if key.startswith(OTHER_HEAD) else key.removeprefix("Scale.")
        for layer, head in heads.items():
            prefix = f"{layer}.conv2d_list."
            if name.startswith(prefix):
                name = f"{head}.branches.{name.removeprefix(prefix)}"
        names[key] = name
    return names
