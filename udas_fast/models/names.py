"""Names of tensors in state dicts, without what wrappers of a network add to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

WRAPPERS = ("module", "_orig_mod")  # of DataParallel and DistributedDataParallel, and of torch.compile
ENCODER = "encoder."  # of files in which the backbone is one part of several


def plain_name(name: str) -> str:
    """Return ``name`` without the parts that wrappers add, of the whole network or of a module in it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Map plain names to ``names``; where two would be the same, all stay as they are."""
    names = list(names)
    plain = {plain_name(name): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def plain_state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the state of ``model`` by plain names, and its own name of each."""
    state = model.state_dict()
    own = plain_names(state)
    return {name: state[key] for name, key in own.items()}, own


def fit_names(tensors: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return ``tensors`` by the names of ``model``, where these differ by wrappers or a leading ``encoder.`` alone.

    Either side may be wrapped. All names stay as they are unless every one of them is found.
    """
    own = plain_names(model.state_dict())
    without = {name.removeprefix(ENCODER): key for name, key in own.items()}
    fitted = {}
    for name, tensor in tensors.items():
        plain = plain_name(name)
        key = own.get(plain) or own.get(plain.removeprefix(ENCODER)) or without.get(plain)
        if key is None or key in fitted:
            return dict(tensors)
        fitted[key] = tensor
    return fitted


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the network inside wrappers; ``model`` itself without any."""
    while [name for name, _ in model.named_children()] in ([wrapper] for wrapper in WRAPPERS):
        (model,) = model.children()
    return model
