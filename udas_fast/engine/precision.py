"""Mixed precision by device: bf16 where the card has it, else fp16 with a scaler; fp32 on a CPU."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from udas_fast.errors import InputError
from udas_fast.models import NetworkInput, normalization_of

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Amp:
    """Autocast and loss scaling of one run."""

    device: torch.device
    name: str
    scaler: torch.amp.GradScaler
    skips: Tensor
    """Steps that the scaler has skipped because a gradient in fp16 was not finite; int64, on the device."""

    @property
    def dtype(self) -> torch.dtype:
        """Type in which convolutions compute."""
        return _DTYPES[self.name]

    def autocast(self) -> AbstractContextManager:
        """Return the context of every forward."""
        return torch.autocast(self.device.type, self.dtype, enabled=self.name != "fp32")

    def clip(self, optimizer: torch.optim.Optimizer, max_norm: float) -> None:
        """Scale the unscaled gradients of ``optimizer`` down to ``max_norm`` together; :meth:`step` comes after."""
        self.scaler.unscale_(optimizer)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        nn.utils.clip_grad_norm_(parameters, max_norm, foreach=True)

    def step(self, optimizers: Iterable[torch.optim.Optimizer]) -> None:
        """Step by the unscaled gradients; an optimiser with a non-finite one does not step, and the scale shrinks."""
        before = self._scale()
        for optimizer in optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.skips.add_(self._scale() < before)

    def _scale(self) -> Tensor:
        return self.scaler.scale(torch.ones((), device=self.device))  # get_scale() waits for the device


def build_amp(precision: Precision, device: torch.device) -> Amp:
    """Resolve ``auto`` for the device; the scaler does nothing outside fp16.

    Raises:
        InputError: fp16 on a CPU, where a step takes minutes.
    """
    if precision == "auto":
        precision = "fp32" if device.type == "cpu" else "bf16" if _has_bf16(device) else "fp16"
    if precision == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 is unusable on a CPU: expected bf16 or fp32")
    scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
    return Amp(device, precision, scaler, torch.zeros((), dtype=torch.int64, device=device))


def memory_format(amp: Amp, model: nn.Module) -> torch.memory_format:
    """Return channels_last on a GPU, and on a CPU where it is faster and safe; else contiguous.

    On a CPU it makes bf16 half as fast again, and float32 faster if many convolutions are depthwise, as in EfficientNet
    (else it gains nothing, or loses: DAFormer's head on a ResNet). There torch 2.13's channels_last convolutions crash
    with 8 channels, and in bf16 return NaN or crash for other numbers that are no multiple of 16. The three colours of
    an image are safe.
    """
    if amp.device.type == "cuda":
        return torch.channels_last
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    channels = {m.in_channels for m in convolutions} - {3}
    if amp.name == "bf16":
        fast = all(c % 16 == 0 for c in channels)
    else:
        many = 4 * sum(m.groups > 1 for m in convolutions) > len(convolutions)
        fast = many and all(c % 4 == 0 and c > 8 for c in channels)
    return torch.channels_last if fast else torch.contiguous_format


def network_input(amp: Amp, model: nn.Module) -> NetworkInput:
    """Return the form in which ``model`` takes images: that to which its first convolution would convert them."""
    channels_last = memory_format(amp, model) is torch.channels_last
    return NetworkInput(normalization_of(model), amp.dtype, channels_last)


def _has_bf16(device: torch.device) -> bool:
    # torch.cuda.is_bf16_supported() counts emulation, which is slower than fp32.
    return torch.cuda.get_device_capability(device) >= (8, 0)
