"""Normalisation layers of the backbones: ordinary, frozen, per domain, and over all processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    "sync": nn.SyncBatchNorm,  # statistics over the batches of all processes; "batch" where there is one
}
