"""Errors for bad input: a sentence that names the argument, what was found and what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class InputError(ValueError):
    """Wrong input of the user; the message is written for the user, and the command line prints nothing else.

    Control characters in it, as a file name may hold them, are escaped: a terminal would obey them.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__(printable(str(message)))


def printable(text: str) -> str:
    """Return ``text`` with escapes for control characters, but for line ends, and for marks of writing direction."""
    if text.isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else ascii(c)[1:-1] for c in text)


def bad(thing: str, found: object, expected: object) -> InputError:
    """Return an InputError such as ``--small: found 12, expected HEIGHTxWIDTH``."""
    thing = thing.replace("\n", "\\n")  # a file name may hold one
    return InputError(f"{thing}: found {_line(found)}, expected {expected}")


def unknown(thing: str, name: str, known: Iterable[str]) -> InputError:
    """Return an InputError for a name that is not one of ``known``, with the nearest valid one."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"{thing}: found {_line(repr(name))}, expected one of {', '.join(known)}{hint}")


def first_problem(error: ValidationError, *place: str) -> str:
    """Return the first of pydantic's errors as ``KEY: problem (found VALUE)``, with ``place`` before the key."""
    first = error.errors()[0]
    return problem(".".join((*place, *map(str, first["loc"]))) or "the whole", first)


def problem(key: str, error: ErrorDetails) -> str:
    """Return one of pydantic's errors as ``KEY: problem (found VALUE)``."""
    return f"{key}: {error['msg'][0].lower()}{error['msg'][1:]} (found {error['input']!r:.80})"


def first_line(error: Exception) -> str:
    """Return the first line of a library's ``error``, or its class if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _line(found: object) -> str:
    """Return ``found``, which may be anything, on one line of limited length."""
    text = " ".join(str(found).splitlines())
    return text if len(text) <= 400 else f"{text[:400]}…"
