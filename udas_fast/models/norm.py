"""Normalisation layers of the backbones: ordinary, frozen, per domain, and over all processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from udas_fast import distributed
from udas_fast.errors import unknown

DOMAINS = ("source", "target")


class FrozenBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation that training leaves as it is: affine and statistics come from the checkpoint.

    Only sensible with loaded weights. AdaptSegNet's "frozen" layers froze the affine alone: their statistics
    went on following every batch, source and target, and the batch's own statistics normalised it.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> FrozenBatchNorm2d:
        """Stay in evaluation mode whatever the model around does."""
        return super().train(False)


class ConvNorm(nn.Sequential):
    """A convolution without bias, its norm, and what comes after them."""

    def forward(self, x: Tensor) -> Tensor:
        """All of them on ``x`` [N, channels, H, W]."""
        conv, norm, *rest = self
        x = conv_norm(conv, norm, x)
        for module in rest:
            x = module(x)
        return x


def conv_norm(conv: nn.Conv2d, norm: nn.Module, x: Tensor) -> Tensor:
    """``norm(conv(x))``; a frozen norm goes into the weights, and there is no map of its input to keep.

    ``conv`` has no bias and pads with zeros.
    """
    if not isinstance(norm, FrozenBatchNorm2d):
        return norm(conv(x))
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    shift = norm.bias - scale * norm.running_mean
    weight = conv.weight * scale[:, None, None, None]
    return F.conv2d(x, weight, shift, conv.stride, conv.padding, conv.dilation)


class DomainBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with one set of running statistics per domain and a shared affine.

    The statistics half of domain-specific batch normalisation (Chang et al., CVPR 2019). While training,
    :func:`set_domain` says whose batch comes next: its own statistics normalise it and move that domain's
    running ones only. In evaluation mode the target's are used, whatever was set.

    ``running_mean`` and ``running_var`` are the target's, so a checkpoint reads as an ordinary network that
    was made for the target; an ordinary checkpoint loads into both domains.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.domain = "source"
        self.register_buffer("source_running_mean", torch.zeros(channels))
        self.register_buffer("source_running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [N, channels, H, W] with the statistics of the domain that is set."""
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
    """Batch normalisation by the batches of all processes, of equal shape, on a CPU as well, where torch's refuses."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` [N, channels, H, W]; in a program that is alone as ``nn.BatchNorm2d`` does."""
        if x.device.type != "cpu":
            return super().forward(x)
        if self.training and distributed.get_world_size() > 1:
            return self._by_all(x)
        return super(nn.SyncBatchNorm, self).forward(x)

    def _by_all(self, x: Tensor) -> Tensor:
        """Two sums over all processes that gradients pass: of x, then of the squares around the mean."""
        wide = x.double()  # what torch's CPU kernels add up in
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
    """The sum over the processes; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return distributed.all_reduce_sum(x.clone())

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return distributed.all_reduce_sum(gradient.clone())


def set_domain(model: nn.Module, domain: str) -> None:
    """Tell every :class:`DomainBatchNorm2d` of ``model`` whose batch comes next, "source" or "target".

    Does nothing to a model without such layers. Raises InputError for another name.
    """
    if domain not in DOMAINS:
        raise unknown("domain", domain, DOMAINS)
    for module in model.modules():
        if isinstance(module, DomainBatchNorm2d):
            module.domain = domain


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "domain": DomainBatchNorm2d,
    "sync": SyncBatchNorm2d,
}
