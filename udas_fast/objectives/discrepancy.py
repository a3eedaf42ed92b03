"""Agreement of the two heads on target images: the KL terms of UDAS and MRNet (Seg-Uncertainty)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from udas_fast import ops
from udas_fast.errors import InputError
from udas_fast.models import to_output


def head_discrepancy(output: object, size: tuple[int, int], kind: Literal["mean", "symmetric"]) -> Tensor:
    """L_kl between the heads, averaged over the pixels of ``size``.

    ``mean``: KL(m‖primary) + KL(m‖auxiliary) with m = softmax(0.5·auxiliary + primary) detached (MRNet's code).
    ``symmetric``: KL(auxiliary‖primary) + KL(primary‖auxiliary), nothing detached (UDAS, the paper).

    Raises:
        InputError: the network has no auxiliary head.
    """
    primary, auxiliary = logits = to_output(output)
    if auxiliary is None:
        raise InputError(
            "the KL between heads needs a network with an auxiliary head; set kl_weight to 0 without one"
        )
    if kind == "mean":
        return ops.ensemble_kl(primary, auxiliary, size, align_corners=logits.align_corners)
    return ops.symmetric_kl(auxiliary, primary, size, align_corners=logits.align_corners)
