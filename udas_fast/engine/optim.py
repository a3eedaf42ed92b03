"""Optimisers, and the learning-rate schedule as a pure function of the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import MappingProxyType
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from udas_fast.config import config_dataclass
from udas_fast.errors import bad
from udas_fast.models import parameter_groups

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
MakeOptimizer = Callable[[nn.Module], torch.optim.Optimizer]
"""Function from a network to a user's own optimiser, with any parameter groups."""


@config_dataclass
class OptimizerConfig:
    """Optimiser of the model (SGD, Adam or AdamW) and of discriminators (Adam); the defaults are AdaptSegNet's."""

    name: Literal["sgd", "adam", "adamw", "apex_sgd"] = (
        "sgd"  # apex_sgd: NVIDIA Apex's, where it is installed
    )
    lr: Positive = 2.5e-4
    momentum: Share = 0.9
    betas: tuple[Share, Share] = (0.9, 0.999)  # of Adam and AdamW
    weight_decay: NonNegative = 5e-4
    head_lr_mult: NonNegative = 10.0
    backbone_lr_mult: NonNegative = 1.0  # 3 reproduces the repeated parameters of AdaptSegNet's code
    # Each block of the backbone learns by this factor slower than the one after it; 0.9 in VFM-UDA++, for ViTs.
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    decay_norms: bool = (
        True  # False: no weight decay of norms, biases, tokens and positions (SegFormer, ViTs)
    )
    max_norm: Positive | None = None  # of all gradients of the model together; larger ones are scaled down
    schedule: Literal["poly", "linear"] = (
        "poly"  # linear: constant for one half, then down to zero (CycleGAN)
    )
    power: NonNegative = 0.9  # polynomial decay
    horizon: Positive = 250 / 150  # the decay's length as a share of the stage: 250k, stopped at 150k
    warmup: Share = 0.0  # share of the stage with a linearly rising rate
    discriminator_lr: Positive = 1e-4
    discriminator_betas: tuple[Share, Share] = (0.9, 0.99)


def build_optimizers(
    model: nn.Module,
    discriminators: Sequence[nn.Parameter],
    config: OptimizerConfig,
    make: MakeOptimizer | None = None,
    companions: Mapping[str, nn.Module] = MappingProxyType({}),
) -> dict[str, torch.optim.Optimizer]:
    """Return ``{"model": …}``, one for each of ``companions`` and, if there are any, ``{"discriminators": …}``.

    Each parameter is in one group. ``make`` replaces the optimiser that ``config`` describes for a network; the
    schedule scales its rates as well.
    """
    optimizers = {}
    for name, network in {"model": model, **companions}.items():
        optimizer = _configured(network, config) if make is None else make(network)
        if not isinstance(optimizer, torch.optim.Optimizer):
            found = type(optimizer).__name__
            raise bad("optimizer(model)", found, "a torch.optim.Optimizer of its parameters")
        if isinstance(optimizer, torch.optim.SGD):
            _begin_momentum(optimizer)
        optimizers[name] = optimizer
    if discriminators:
        optimizers["discriminators"] = torch.optim.Adam(
            discriminators, lr=config.discriminator_lr, betas=config.discriminator_betas, fused=True
        )
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def _configured(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    groups = parameter_groups(
        model,
        config.lr,
        weight_decay=config.weight_decay,
        head_lr_mult=config.head_lr_mult,
        backbone_lr_mult=config.backbone_lr_mult,
        layer_decay=config.layer_decay,
        decay_norms=config.decay_norms,
    )
    if config.name == "sgd":
        return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, fused=True)
    if config.name == "apex_sgd":
        return apex_sgd()(groups, lr=config.lr, momentum=config.momentum)
    adam = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return adam(groups, lr=config.lr, betas=config.betas, fused=True)


def _begin_momentum(optimizer: torch.optim.SGD) -> None:
    """Set the momentum to zero before the first step, whose result stays the same to the bit.

    torch's fused SGD leaves it uninitialised where a scaler skips the first step, as fp16's mostly does, and fails
    where only some parameters have a gradient in the first step.
    """
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"] and not group["dampening"]:
            for parameter in group["params"]:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load ``state`` into ``optimizer``, each parameter's state in the parameter's own memory layout.

    A run may go on where networks have another layout (:func:`udas_fast.engine.precision.memory_format`), and fused
    optimisers read memory as it lies.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def apex_sgd() -> Callable[..., torch.optim.Optimizer]:
    """Return ``apex.optimizers.FusedSGD``.

    Raises:
        InputError: NVIDIA Apex is not installed with its compiled part; the PyPI package of that name is another.
    """
    try:
        import_module("amp_C")  # the kernels; apex imports without them and fails in the first step
        return import_module("apex.optimizers").FusedSGD
    except (ImportError, AttributeError) as error:
        raise bad(
            "optimizer apex_sgd",
            f"no compiled NVIDIA Apex ({error})",
            "it built with its CUDA extensions (github.com/NVIDIA/apex), or the optimizer sgd",
        ) from error


def lr_factor(progress: float, config: OptimizerConfig) -> float:
    """Return the schedule's decay with linear warm-up; ``progress`` is the share of the stage that is done.

    ``poly``: (1 − progress/horizon)^power. ``linear``: min(1, 2 · (1 − progress)).
    """
    if config.schedule == "linear":
        decay = min(1.0, 2.0 * (1.0 - progress))
    else:
        decay = max(0.0, 1.0 - progress / config.horizon) ** config.power
    return decay if progress >= config.warmup else decay * progress / config.warmup


def set_learning_rates(
    optimizers: dict[str, torch.optim.Optimizer], progress: float, config: OptimizerConfig
) -> None:
    """Set every group's learning rate for the step at ``progress``."""
    factor = lr_factor(progress, config)
    for optimizer in optimizers.values():
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
