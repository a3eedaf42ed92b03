"""HTML and SVG as trees. Text and attribute values, which may come from files, are escaped when written."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypeAlias
from xml.etree import ElementTree

Element: TypeAlias = ElementTree.Element
COLOURS = 8
"""Number of colours in style.css (c0 to c7); the runs after them are dashed."""


def element(tag: str, *children: Element | str | None, **attributes: object) -> Element:
    """Make a node; ``class_`` and ``stroke_width`` become ``class`` and ``stroke-width``, None is left out."""
    named = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    node = ElementTree.Element(
        tag, {name: _plain(value) for name, value in named.items() if value is not None}
    )
    for child in children:
        if isinstance(child, ElementTree.Element):
            node.append(child)
        elif child is not None and len(node):
            node[-1].tail = (node[-1].tail or "") + child
        elif child is not None:
            node.text = (node.text or "") + child
    return node


def table(header: Iterable[Element | str], rows: Iterable[Iterable[Element | str]]) -> Element:
    """Make a table whose first column names the rows; it scrolls where it is wider than the page."""
    head = element("tr", *(element("th", cell, scope="col") for cell in header))
    body = [
        element("tr", element("th", first, scope="row"), *(element("td", cell) for cell in cells))
        for first, *cells in rows
    ]
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="scroll", tabindex=0)


def legend(names: Iterable[str]) -> Element:
    """Make a list of names, of runs or of the phases of one run, in their colours."""
    entries = []
    for index, name in enumerate(names):
        line = element("line", x1=0, x2=40, y1=9, y2=9, class_=f"line {colour(index)}")
        swatch = element("svg", line, viewBox="0 0 40 18", aria_hidden="true")
        entries.append(element("li", swatch, name))
    return element("ul", *entries, class_="legend")


def colour(index: int) -> str:
    """Return the CSS classes of the run or phase ``index``."""
    return f"c{index % COLOURS}" + (" dashed" if index >= COLOURS else "")


def percent(fraction: float | None) -> str:
    """Format ``0.4567`` as ``45.7``; a dash for None and NaN."""
    return "–" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f}"


def document(root: Element) -> str:
    """Return the page's text; lone surrogates, which JSON may hold and UTF-8 may not, are replaced."""
    text = "<!DOCTYPE html>\n" + ElementTree.tostring(root, encoding="unicode", method="html") + "\n"
    return text.encode("utf-8", "replace").decode("utf-8")


def _plain(value: object) -> str:
    """Format an attribute; two digits are enough for a drawing and keep pages small."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
