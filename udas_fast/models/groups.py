"""Parameter groups for the optimiser."""

from __future__ import annotations

from typing import Any

from torch import nn

from udas_fast.errors import bad


def parameter_groups(
    model: nn.Module,
    lr: float,
    *,
    weight_decay: float,
    head_lr_mult: float = 10.0,
    backbone_lr_mult: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups "backbone" and "heads" for a torch optimiser, each trainable parameter in exactly one of them.

    The heads are what ``model.head_parameters()`` yields and learn at ``lr * head_lr_mult``, the rest at
    ``lr * backbone_lr_mult``; a model without that method is one group "all" at ``lr``. AdaptSegNet's code
    lists each backbone convolution three times: ``backbone_lr_mult=3`` gives its effective rate.
    Raises InputError for a model without trainable parameters.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise bad("model", "no trainable parameter", "at least one with requires_grad")
    if not hasattr(model, "head_parameters"):
        return [{"name": "all", "params": trainable, "lr": lr, "weight_decay": weight_decay}]
    heads = {id(p) for p in model.head_parameters()}
    groups = [
        ("backbone", [p for p in trainable if id(p) not in heads], lr * backbone_lr_mult),
        ("heads", [p for p in trainable if id(p) in heads], lr * head_lr_mult),
    ]
    return [
        {"name": name, "params": params, "lr": rate, "weight_decay": weight_decay}
        for name, params, rate in groups
        if params
    ]
