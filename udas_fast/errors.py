"""The one error for bad input: a sentence that names the thing, what was found and what is wanted."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """The user's input is wrong; the message is for the user, the command line prints it alone."""


def bad(thing: str, found: object, wanted: object) -> InputError:
    """An :class:`InputError` in the house's form, ``raise bad("--size", "12", "HEIGHTxWIDTH")``."""
    return InputError(f"{thing}: found {_line(found)}, wanted {wanted}")


def unknown(thing: str, name: str, known: Iterable[str]) -> InputError:
    """An :class:`InputError` for a name that is not one of ``known``, with the nearest valid one."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return InputError(f"{thing}: found {_line(repr(name))}, wanted one of {', '.join(known)}{hint}")


def _line(found: object) -> str:
    """What was found, which may be anything, on a line that is not too long."""
    text = " ".join(str(found).splitlines())
    return text if len(text) <= 400 else f"{text[:400]}…"
