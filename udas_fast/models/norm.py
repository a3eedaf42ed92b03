"""Normalisation layers of the backbones: ordinary, frozen, per domain, and synchronised between processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udas_fast import distributed
from udas_fast.errors import unknown

DOMAINS = ("source", "target")


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that does not train: affine and statistics come from the checkpoint.

    Only sensible with loaded weights. AdaptSegNet's "frozen" layers freeze the affine only: they normalise by the
    statistics of the batch, and their running ones follow every batch, source and target.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in evaluation mode, whatever ``mode`` is."""
        return super().train(False)


class ConvNorm(nn.Sequential):
    """Convolution without bias, its norm, and the layers after them."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers to ``x`` [N, channels, H, W]."""
        conv, norm, *rest = self
        x = conv_norm(conv, norm, x)
        for module in rest:
            x = module(x)
        return x


def conv_norm(conv: nn.Module, norm: nn.Module, x: Tensor) -> Tensor:
    """Return ``norm(conv(x))``; a frozen norm is folded into the weights, which saves the map between them.

    ``conv`` has no bias and pads with zeros.
    """
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, FrozenBatchNorm2d)):
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - scale * norm.running_mean
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation, conv.groups)


class DomainBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with one set of running statistics per domain and a shared affine.

    The statistics half of domain-specific batch normalisation (Chang et al., CVPR 2019). In training,
    :func:`set_domain` sets the domain of the next batch, which is normalised by its own statistics and moves the
    running ones of that domain only. In evaluation mode the target's are used, whatever domain is set.

    ``running_mean`` and ``running_var`` are the target's, so that a checkpoint reads as an ordinary network for the
    target; an ordinary checkpoint loads into both domains.
    """

    running_mean: Tensor
    running_var: Tensor
    source_running_mean: Tensor
    source_running_var: Tensor
    momentum: float

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.domain = "source"
        self.register_buffer("source_running_mean", torch.zeros(channels))
        self.register_buffer("source_running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [N, channels, H, W] with the statistics of the current domain."""
        of_source = self.training and self.domain == "source"
        mean = self.source_running_mean if of_source else self.running_mean
        var = self.source_running_var if of_source else self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, self.momentum, self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: object) -> None:
        for name in ("running_mean", "running_var"):
            if prefix + name in state_dict:
                state_dict.setdefault(f"{prefix}source_{name}", state_dict[prefix + name])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class SyncBatchNorm2d(nn.SyncBatchNorm):
    """Batch normalisation by the batches of all processes, of equal shape; works on a CPU too, unlike torch's."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [N, channels, H, W]; in a single process, as ``nn.BatchNorm2d`` does."""
        if x.device.type != "cpu":
            return super().forward(x)
        if self.training and distributed.get_world_size() > 1:
            return self._by_all(x)
        return super(nn.SyncBatchNorm, self).forward(x)

    def _by_all(self, x: Tensor) -> Tensor:
        """Normalise by two sums over all processes that gradients pass: of x, then of the squares around the mean."""
        wide = x.double()  # as torch's CPU kernels accumulate
        n = x.numel() // x.shape[1] * distributed.get_world_size()
        mean = _SumOverAll.apply(wide.sum((0, 2, 3))) / n
        centred = wide - mean[:, None, None]
        var = _SumOverAll.apply(centred.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.float(), self.momentum)
            self.running_var.lerp_((var * n / (n - 1)).float(), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


class _SumOverAll(torch.autograd.Function):
    """Sum over all processes; its gradient is the sum of their gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return distributed.all_reduce_sum(x.clone())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return distributed.all_reduce_sum(gradient.clone())


@contextmanager
def keep_statistics(model: nn.Module) -> Iterator[None]:
    """Keep the running statistics of every batch norm of ``model`` in forwards inside.

    Batches are still normalised by their own statistics. For images that evaluation never sees, such as masked ones.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def set_domain(model: nn.Module, domain: str) -> None:
    """Set the domain of the next batch, "source" or "target", in every :class:`DomainBatchNorm2d` of ``model``.

    Does nothing to a model without such layers.

    Raises:
        InputError: another name.
    """
    if domain not in DOMAINS:
        raise unknown("domain", domain, DOMAINS)
    for module in model.modules():
        if isinstance(module, DomainBatchNorm2d):
            module.domain = domain


Norm: TypeAlias = Callable[[int], nn.BatchNorm2d | nn.SyncBatchNorm]

NORMS: dict[str, Norm] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "domain": DomainBatchNorm2d,
    "sync": SyncBatchNorm2d,
}


def head_norm(norm: str) -> Norm:
    """Return the norm layer of the heads: the backbone's, or "batch" where that is frozen, as a head is new."""
    return NORMS["batch" if norm == "frozen" else norm]
