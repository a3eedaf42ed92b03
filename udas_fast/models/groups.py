"""Parameter groups for optimisers: rates of heads and blocks, and what does not decay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from udas_fast.errors import bad
from udas_fast.models.backbones import Backbone


def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float,
    head_lr_mult: float = 10.0,
    backbone_lr_mult: float = 1.0,
    layer_decay: float = 1.0,
    decay_norms: bool = True,
) -> list[dict[str, Any]]:
    """Return groups for a torch optimiser, each trainable parameter in exactly one of them.

    The heads are what ``model.head_parameters()`` yields and learn at ``lr * head_lr_mult``, the rest, "backbone", at
    ``lr * backbone_lr_mult``; a model without that method is one group "all" at ``lr``. AdaptSegNet's code lists each
    backbone convolution three times: ``backbone_lr_mult=3`` gives its effective rate.

    Args:
        model: the network.
        lr: base rate.
        weight_decay: of every group that decays.
        head_lr_mult: rate of the heads.
        backbone_lr_mult: rate of the backbone.
        layer_decay: each block of the backbone learns by this factor slower than the one after it, the last one than
            at ``backbone_lr_mult``; the stem slowest (BEiT, Bao et al. 2022; VFM-UDA++: 0.9). Groups are then named
            "backbone.0" (the stem) to "backbone.N".
        decay_norms: False: no decay of norms, biases, layer scales, tokens and position embeddings, which are groups of
            their own, ".no_decay" after the name.

    Raises:
        InputError: the model has no trainable parameter, or ``layer_decay`` is set for one without a backbone.
    """
    head_parameters = getattr(model, "head_parameters", None)
    heads = None if head_parameters is None else {id(p) for p in head_parameters()}
    blocks = _factors(model, layer_decay) if layer_decay != 1 else {}
    groups: dict[str, dict[str, Any]] = {}
    names = (
        ["all"]
        if heads is None
        else ["backbone", *dict.fromkeys(name for name, _ in blocks.values()), "heads"]
    )
    for name in names:
        for suffix in ("", ".no_decay"):
            groups[name + suffix] = {"name": name + suffix, "params": []}
    for name, parameter in _trainable(model):
        if heads is None:
            group, rate = "all", lr
        elif id(parameter) in heads:
            group, rate = "heads", lr * head_lr_mult
        else:
            group, factor = blocks.get(name, ("backbone", 1.0))
            rate = lr * backbone_lr_mult * factor
        decays = decay_norms or _decays(name, parameter)
        made = groups[group if decays else f"{group}.no_decay"]
        made["params"].append(parameter)
        made |= {"lr": rate, "weight_decay": weight_decay if decays else 0.0}
    found = [group for group in groups.values() if group["params"]]
    if not found:
        raise bad("model", "no trainable parameter", "at least one with requires_grad")
    return found


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Check whether a parameter is the weight of a layer: tokens and positions are not called weight."""
    return parameter.dim() > 1 and name.endswith("weight")


def _factors(model: nn.Module, layer_decay: float) -> dict[str, tuple[str, float]]:
    """Return (group, factor of the rate) of each parameter of the backbone, from the stem on."""
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, Backbone):
        raise bad("layer_decay", f"{type(model).__name__} without a backbone of known blocks", "1")
    numbers = {f"backbone.{name}": backbone.block_of(name) for name, _ in backbone.named_parameters()}
    return {
        name: (f"backbone.{number}", layer_decay ** (backbone.num_blocks + 1 - number))
        for name, number in sorted(numbers.items(), key=lambda item: item[1])
    }
