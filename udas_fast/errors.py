"""The one error for bad input: a sentence that names the thing, what was found and what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class InputError(ValueError):
    """The user's input is wrong; the message is for the user, the command line prints it alone."""


def bad(thing: str, found: object, expected: object) -> InputError:
    """An :class:`InputError` in the house's form, ``raise bad("--small", "12", "HEIGHTxWIDTH")``."""
    return InputError(f"{thing}: found {_line(found)}, expected {expected}")


def unknown(thing: str, name: str, known: Iterable[str]) -> InputError:
    """An :class:`InputError` for a name that is not one of ``known``, with the nearest valid one."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"{thing}: found {_line(repr(name))}, expected one of {', '.join(known)}{hint}")


def first_problem(error: ValidationError, *place: str) -> str:
    """``KEY: what is wrong (found VALUE)`` of the first thing that pydantic refuses, its key below ``place``."""
    first = error.errors()[0]
    return problem(".".join((*place, *map(str, first["loc"]))) or "the whole", first)


def problem(key: str, error: ErrorDetails) -> str:
    """One of pydantic's errors as ``KEY: what is wrong (found VALUE)``."""
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]} (found {error['input']!r:.80})"


def first_line(error: Exception) -> str:
    """What a library's ``error`` says, in a line; its class where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _line(found: object) -> str:
    """What was found, which may be anything, on a line that is not too long."""
    text = " ".join(str(found).splitlines())
    return text if len(text) <= 400 else f"{text[:400]}…"
