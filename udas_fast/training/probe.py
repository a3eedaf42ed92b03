"""One look at a user's own network before anything is written or trained."""

from __future__ import annotations

import torch
from torch import nn

from udas_fast.engine.precision import Amp
from udas_fast.errors import InputError, bad, first_line
from udas_fast.evaluation import evaluating
from udas_fast.models import to_output


def check_network(
    model: nn.Module, num_classes: int, size: tuple[int, int], amp: Amp, two_heads: str | None
) -> None:
    """Run ``model`` once on a blank image of ``size`` (H, W), in evaluation mode, and look at what comes back.

    Args:
        model: a user's network, on the device.
        num_classes: channels that its logits are to have.
        size: of the images that it will see.
        amp: device and precision.
        two_heads: what needs an auxiliary head; None where nothing does.

    Raises:
        InputError: the forward fails, or its output is not logits of these classes, or has too few heads.
    """
    name = f"model {type(model).__name__}"
    blank = torch.zeros(1, 3, *size, device=amp.device)
    try:
        with evaluating(model), torch.no_grad(), amp.autocast():
            logits = to_output(model(blank))
    except InputError:
        raise
    except Exception as error:  # whatever a user's forward raises
        raise bad(f"{name} on an image [1, 3, {size[0]}, {size[1]}]", first_line(error), "logits") from error
    if logits.primary.shape[1] != num_classes:
        raise bad(f"output of {name}", f"{logits.primary.shape[1]} classes", f"the data's {num_classes}")
    if two_heads is not None and logits.auxiliary is None:
        raise bad(
            name,
            "one head",
            f"an auxiliary head too, for {two_heads}: (primary, auxiliary) or a dict with 'out' and 'aux'",
        )
