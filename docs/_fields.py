"""Lists the fields of configurations in the API reference: their comments in the source are the documentation."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Fields(griffe.Extension):
    """Add the fields of dataclasses, with comments and defaults, to the class's docstring as its attributes."""

    def on_class(self, *, cls: griffe.Class, **_: Any) -> None:
        decorators = [str(decorator.value) for decorator in cls.decorators]
        if not any("dataclass" in decorator for decorator in decorators) or cls.docstring is None:
            return
        found = [field for name, field in cls.attributes.items() if is_field(name, field)]
        if not found or "\nAttributes:" in cls.docstring.value:
            return
        lines = ["", "", "Attributes:", *(f"    {field.name}: {describe(field, cls)}" for field in found)]
        head, raises, rest = cls.docstring.value.partition("\n\nRaises:")
        cls.docstring.value = head + "\n".join(lines) + raises + rest


def is_field(name: str, attribute: griffe.Attribute) -> bool:
    """Tell whether an attribute is a public field of its dataclass that has no docstring of its own."""
    annotation = str(attribute.annotation or "ClassVar")
    return not name.startswith("_") and "ClassVar" not in annotation and attribute.docstring is None


def describe(field: griffe.Attribute, cls: griffe.Class) -> str:
    """Return the field's comments, above and beside it, and its default."""
    source = cls.lines[: field.endlineno - cls.lineno + 1]
    last = source.pop()
    del source[len(source) - (field.endlineno - field.lineno) :]
    above: list[str] = []
    while source and source[-1].lstrip().startswith("#"):
        above.insert(0, source.pop().lstrip(" #"))
    beside = re.search(r"  # (.*)$", last)
    words = [*above, *([beside[1]] if beside else [])]
    default = re.sub(r"^field\(default_factory=(.*)\)$", r"\1()", str(field.value or ""))
    if default:
        words.append(f"(default: ``{default}``)")
    return " ".join(words) or "required."
