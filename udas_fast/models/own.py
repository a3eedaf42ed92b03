"""A user's own network by the name of the function that builds it, and the record of it in files."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import Field, StrictBool, StrictFloat, StrictInt
from torch import nn

from udas_fast.config import config_dataclass
from udas_fast.errors import InputError, bad, first_line

NetworkFunction: TypeAlias = Callable[..., nn.Module]
"""``build(num_classes, **options)``, which returns a network that :func:`udas_fast.models.to_output` understands."""
Option: TypeAlias = StrictBool | StrictInt | StrictFloat | Annotated[str, Field(max_length=200)] | None


@config_dataclass
class OwnNetwork:
    """Name and options of the function that built a run's network.

    Files hold it so that errors can show it and options need not be repeated; the function is never imported because a
    file names it.
    """

    function: Annotated[str, Field(max_length=200)]  # MODULE:FUNCTION
    options: dict[str, Option] = Field(default_factory=dict)

    @classmethod
    def of(cls, function: NetworkFunction) -> OwnNetwork:
        """Return the record of a function, or of a :func:`functools.partial` of one with its options as keywords."""
        options: Mapping[str, Any] = {}
        if isinstance(function, functools.partial):
            options, function = function.keywords, function.func
        name = f"{getattr(function, '__module__', '?')}:{getattr(function, '__qualname__', type(function).__name__)}"
        return cls(name, dict(options))

    def __str__(self) -> str:
        return " ".join([self.function, *(f"{name}={value}" for name, value in self.options.items())])


def import_network(name: str) -> NetworkFunction:
    """Import ``MODULE:FUNCTION``, also from the working folder.

    Raises:
        InputError: another form, or a module or function that cannot be imported; names the line that failed.
    """
    module_name, colon, function_name = name.partition(":")
    if not (colon and all(part.isidentifier() for part in (*module_name.split("."), function_name))):
        raise bad("--network", repr(name), "MODULE:FUNCTION, such as mynets.segformer:build")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's own code raises
        raise bad(
            f"--network {name}",
            f"{type(error).__name__}: {first_line(error)}",
            "a module that can be imported",
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise bad(
            f"--network {name}", f"no function {function_name} in {module.__file__}", "build(num_classes)"
        )
    return function


def build_network(function: NetworkFunction, num_classes: int, options: Mapping[str, Option]) -> nn.Module:
    """Return ``function(num_classes, **options)``.

    Raises:
        InputError: it fails, or returns something else than a network.
    """
    name = f"network {OwnNetwork.of(function).function}"
    try:
        model = function(num_classes, **options)
    except Exception as error:  # whatever the user's own code raises
        raise InputError(f"{name}: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(model, nn.Module):
        raise bad(f"{name} returns", type(model).__name__, "a torch.nn.Module")
    return model
