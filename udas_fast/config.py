"""Configuration dataclasses: frozen, validated, and refused in one sentence where a value is wrong."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any, TypeAlias, TypeVar, get_args

import yaml
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import dataclass_transform

from udas_fast.errors import InputError, bad, first_line, problem, unknown

T = TypeVar("T")
#: Weight of a loss term.
Weight: TypeAlias = Annotated[float, Field(ge=0)]

#: Numbers beyond these are slips, which would take memory or time without end.
Channels: TypeAlias = Annotated[int, Field(ge=1, le=1024)]
Side: TypeAlias = Annotated[int, Field(ge=1, le=2**16)]
BatchSize: TypeAlias = Annotated[int, Field(ge=1, le=2**16)]
MOST_VALUES = 100_000  # of a YAML file

#: Unknown keys and numbers that are not finite are errors.
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def config_dataclass(cls: type[T]) -> type[T]:
    """Make ``cls`` a frozen dataclass whose values are validated.

    Constructing it, or :func:`dataclasses.replace`, with an unknown key or a value that does not fit raises
    :class:`~udas_fast.errors.InputError` with one sentence that names the key.
    """
    made: Any = dataclass(frozen=True, config=STRICT)(cls)
    construct = made.__init__

    @functools.wraps(construct)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            construct(self, *args, **kwargs)
        except ValidationError as error:
            raise sentence(error, type(self).__name__, made) from None

    made.__init__ = __init__  # validation inside another dataclass does not use it
    return made


def load_yaml(text: str) -> Any:
    """Read YAML with the safe loader, within bounds of time and memory.

    Raises:
        ValueError: not YAML, nested too deeply, or with aliases that hold themselves or repeat without measure.
    """
    try:
        value = yaml.safe_load(text)
        size = _count(value, {})
    except yaml.YAMLError as error:
        raise ValueError(first_line(error)) from error
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if size > MOST_VALUES:
        raise ValueError(f"aliases that stand for more than {MOST_VALUES} values")
    return value


def _count(value: object, counted: dict[int, int]) -> int:
    """Return the number of values in ``value``, those of an alias each time; too many if it holds itself."""
    if not isinstance(value, (dict, list)):
        return 1
    if id(value) not in counted:
        counted[id(value)] = MOST_VALUES + 1  # as long as it is open
        parts = value.values() if isinstance(value, dict) else value
        counted[id(value)] = min(1 + sum(_count(part, counted) for part in parts), MOST_VALUES + 1)
    return counted[id(value)]


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    """Return pydantic's validator and serializer of a configuration class."""
    return TypeAdapter(cls)


def to_dict(value: Any) -> dict[str, Any]:
    """Return the fields of a configuration as plain data, as YAML holds it."""
    cls: Any = type(value)
    return _adapter(cls).dump_python(value, mode="json")


def from_dict(cls: type[T], data: object, origin: str) -> T:
    """Build ``cls`` from plain data, as YAML holds it.

    Raises:
        InputError: names the first key that is unknown (with the nearest valid one), missing or wrong, after
            ``origin``.
    """
    try:
        made: Any = cls
        return _adapter(made).validate_python(data)
    except ValidationError as error:
        raise sentence(error, origin, cls) from None


def sentence(error: ValidationError, origin: str, cls: type) -> InputError:
    """Return an InputError about the first problem that pydantic found in the data of ``cls``."""
    errors = error.errors()
    # A misspelt key that is required is two errors: this one says what to do.
    first = next((e for e in errors if e["type"] == "unexpected_keyword_argument"), errors[0])
    *parents, last = first["loc"] or ("",)
    unexpected = first["type"] == "unexpected_keyword_argument"
    path, node = _follow(cls, parents if unexpected else first["loc"])
    key = re.sub(r"\.(\d+)", r"[\1]", ".".join([*path, str(last)] if unexpected else path)) or "the whole"
    if unexpected:
        return unknown(f"{origin}: key {key}", str(last), _fields(node))
    if first["type"] == "tuple_type":
        return bad(f"{origin}: {key}", repr(first["input"]), "a list such as [512, 512]")
    if isinstance(cause := first.get("ctx", {}).get("error"), InputError):
        return InputError(f"{origin}: {key}: {cause}" if path else f"{origin}: {cause}")
    return InputError(f"{origin}: {problem(key, first)}")


def _follow(cls: type, loc: Sequence[int | str]) -> tuple[list[str], type]:
    """Return the keys in a path of pydantic's, without what it adds for unions, and the class that it leads to."""
    node = cls
    path: list[str] = []
    for part in loc:
        if isinstance(part, int) and not path and part < len(_fields(cls)):  # an argument by position
            part = _fields(cls)[part]
        if isinstance(part, int):
            path.append(str(part))
        elif part in _fields(node):
            path.append(part)
            kind = node.__pydantic_fields__[part].annotation  # type: ignore[attr-defined]  # set by pydantic
            node = next((c for c in _classes(kind) if hasattr(c, "__pydantic_fields__")), node)
    return path, node


def _fields(cls: type) -> list[str]:
    return list(cls.__pydantic_fields__)  # type: ignore[attr-defined]  # set by pydantic


def _classes(kind: Any) -> list[Any]:
    """Return the classes in an annotation, those in unions, tuples and Annotated types as well."""
    return [kind, *(c for argument in get_args(kind) for c in _classes(argument))]
