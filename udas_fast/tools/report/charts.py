"""Charts as inline SVG in the colours of the page, dark or light; tooltips give the numbers.

A chart is 400 units wide, about the width of a phone, so that its text is readable there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from matplotlib.ticker import MaxNLocator

from udas_fast.tools.report.markup import Element, colour, element, percent

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 48, 10, 22, 24
LETTER = 6.2  # approximate width of a letter

Position: TypeAlias = Callable[[float], float]
"""Map from a value to its place on an axis of the drawing."""


@dataclass(frozen=True)
class Line:
    """Line of a chart: (x, y) points and the number of its colour."""

    label: str
    colour: int
    points: Sequence[tuple[float, float]]


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    bounds: Mapping[float, str] = {},
    names: Sequence[str] = (),
    end: float = 1,
) -> Element:
    """Draw lines over one pair of axes.

    The x axis goes from 0 to ``end`` or further; ``bounds`` are marked positions on it. With ``names``, x counts them
    from 0 and every point is a dot. Raises ValueError where there is no point at all.
    """
    xs, ys = zip(*(point for line in lines for point in line.points), strict=True)
    y_ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(min(ys), max(ys))
    low, high = min(*ys, *y_ticks), max(*ys, *y_ticks)
    left, right = (-0.3, len(names) - 0.7) if names else (0.0, max(*xs, end))

    def at_x(x: float) -> float:
        return float(LEFT + (x - left) / (right - left) * (WIDTH - LEFT - RIGHT))

    def at_y(y: float) -> float:
        return float(TOP + (high - y) / (high - low) * (HEIGHT - TOP - BOTTOM))

    parts = [_grid(at_y(y), f"{y:.6g}") for y in y_ticks]
    parts += _x_axis(left, right, names, at_x) + _bounds(bounds, at_x)
    for line in lines:
        label = f"{line.label}: last {line.points[-1][1]:.4g}"
        path = "M" + "L".join(f"{at_x(x):.1f} {at_y(y):.1f}" for x, y in line.points)
        parts.append(element("path", element("title", label), d=path, class_=f"line {colour(line.colour)}"))
        if names or len(line.points) == 1:
            parts += [
                element(
                    "circle",
                    element("title", f"{line.label}: {y:.4g}"),
                    cx=at_x(x),
                    cy=at_y(y),
                    r=3.5,
                    class_=f"bar {colour(line.colour)}",
                )
                for x, y in line.points
            ]
    return _figure(title, WIDTH, HEIGHT, parts)


def bar_chart(title: str, names: Sequence[str], columns: Mapping[str, Sequence[float]]) -> Element:
    """Draw a group of horizontal bars for each of ``names``, one bar per column; values are fractions of 1."""
    bar, gap, label = 11.0, 7.0, _label_width(names)
    room = WIDTH - label - 34
    parts = []
    y = 4.0
    for row, name in enumerate(names):
        parts.append(_text(label - 6, y + len(columns) * bar / 2 + 3.5, name, "end"))
        for index, (column, values) in enumerate(columns.items()):
            value = values[row]
            length = 0.0 if math.isnan(value) else value * room
            rect = element(
                "rect", x=label, y=y, width=length, height=bar - 1.5, class_=f"bar {colour(index)}"
            )
            number = _text(label + length + 3, y + 8.5, percent(value), "start")
            tip = element("title", f"{name}, {column}: {percent(value)} %")
            parts.append(element("g", tip, rect, number))
            y += bar
        y += gap
    return _figure(title, WIDTH, y, parts)


def confusion(title: str, matrix: np.ndarray, names: Sequence[str]) -> Element:
    """Draw a confusion matrix int64 ``[C, C]``, each row (the true class) in fractions of its pixels."""
    cell, label = 24.0, _label_width(names)
    parts = []
    for i, (name, counts) in enumerate(zip(names, matrix.tolist(), strict=True)):
        middle = label + (i + 0.5) * cell
        parts.append(_text(label - 4, middle + 3.5, name, "end"))
        parts.append(
            _text(middle + 3.5, label - 4, name, "start", transform=f"rotate(-90 {middle + 3.5} {label - 4})")
        )
        for j, count in enumerate(counts):
            fraction = count / sum(counts) if sum(counts) else 0.0
            x, y = label + j * cell, label + i * cell
            tip = f"{name} predicted as {names[j]}: {percent(fraction)} % of {name}, {count:,} pixels"
            box = element("rect", x=x, y=y, width=cell - 1, height=cell - 1, fill_opacity=fraction)
            number = f"{100 * fraction:.0f}" if fraction >= 0.01 else ""
            kind = "strong" if fraction > 0.5 else None
            written = _text(x + cell / 2 - 0.5, y + cell / 2 + 3, number, "middle", class_=kind)
            parts.append(element("g", element("title", tip), box, written, class_="cell"))
    side = label + len(names) * cell
    return _figure(title, side, side, parts, class_="matrix", style=f"min-width:{side * 0.9:.0f}px")


def histogram(title: str, kept: Sequence[int], dropped: Sequence[int], threshold: float) -> Element:
    """Draw confidences from 0 to 1 in equal bins, kept ones on top of dropped ones, and the threshold."""
    width, height, base = 190.0, 90.0, 74.0
    top = max(max(k + d for k, d in zip(kept, dropped, strict=True)), 1)
    step = width / len(kept)

    def area(counts: Sequence[int], under: Sequence[int]) -> str:
        up = [base - (c + u) / top * (base - 4) for c, u in zip(counts, under, strict=True)]
        down = [base - u / top * (base - 4) for u in under]
        forth = "".join(f"L{i * step:.1f} {y:.1f}H{(i + 1) * step:.1f}" for i, y in enumerate(up))
        back = "".join(
            f"L{(i + 1) * step:.1f} {y:.1f}H{i * step:.1f}" for i, y in reversed([*enumerate(down)])
        )
        return "M" + forth[1:] + back + "Z"

    at = min(max(threshold, 0.0), 1.0) * width
    parts = [
        element("title", f"{title}: {sum(kept):,} kept, {sum(dropped):,} dropped, threshold {threshold:.3g}"),
        element("path", d=area(dropped, [0] * len(kept)), class_="bar dropped"),
        element("path", d=area(kept, dropped), class_="bar c0"),
        element("line", x1=at, x2=at, y1=2, y2=base, class_="bound"),
        _text(0, height - 4, "0", "start"),
        _text(width, height - 4, "1", "end"),
    ]
    return _figure(title, width, height, parts)


def reliability(title: str, right: Sequence[int], wrong: Sequence[int], index: int) -> Element:
    """Draw the share of right pixels by confidence in equal bins of 0 to 1; confidences are right on the diagonal.

    Bars of more pixels are darker. ``index`` is the number of the colour.
    """
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    count, bottom = len(right), HEIGHT - BOTTOM
    most = max(max(r + w for r, w in zip(right, wrong, strict=True)), 1)
    parts = [_grid(bottom - height * v / 100, f"{v}") for v in (0, 25, 50, 75, 100)]
    parts += [_text(LEFT + width * v / 100, HEIGHT - 8, f"{v}", "middle") for v in (0, 25, 50, 75, 100)]
    for i, (hits, misses) in enumerate(zip(right, wrong, strict=True)):
        if hits + misses == 0:
            continue
        share = hits / (hits + misses)
        low, high = 100 * i / count, 100 * (i + 1) / count
        tip = f"confidence {low:.0f} to {high:.0f} %: {percent(share)} % right of {hits + misses:,} pixels"
        bar = element(
            "rect",
            element("title", tip),
            x=LEFT + i * width / count,
            y=bottom - height * share,
            width=width / count - 1,
            height=height * share,
            fill_opacity=0.25 + 0.75 * (hits + misses) / most,
            class_=f"bar {colour(index)}",
        )
        parts.append(bar)
    parts.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=TOP, class_="bound"))
    return _figure(title, WIDTH, HEIGHT, parts)


def _figure(
    title: str, width: float, height: float, parts: Sequence[Element], **attributes: object
) -> Element:
    box = f"0 0 {width:.0f} {height:.0f}"
    drawing = element("svg", *parts, viewBox=box, role="img", aria_label=title, **attributes)
    return element("figure", element("figcaption", title), element("div", drawing, class_="scroll"))


def _text(x: float, y: float, text: str, anchor: str, **attributes: object) -> Element:
    return element("text", text, x=float(x), y=float(y), text_anchor=anchor, **attributes)


def _label_width(names: Sequence[str]) -> float:
    return min(max(len(name) for name in names) * LETTER + 8, WIDTH / 2)


def _grid(y: float, label: str) -> Element:
    line = element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid")
    return element("g", line, _text(LEFT - 5, y + 3.5, label, "end"))


def _x_axis(left: float, right: float, names: Sequence[str], at_x: Position) -> list[Element]:
    ticks: list[tuple[float, str]]
    if names:
        every = -(-len(names) * max(len(name) for name in names) * LETTER // (WIDTH - LEFT - RIGHT))
        ticks = [(i, name) for i, name in enumerate(names) if i % max(int(every), 1) == 0]
    else:
        values = MaxNLocator(5, integer=True).tick_values(left, right)
        ticks = [(x, f"{x:,.0f}") for x in values if left <= x <= right]
    return [_text(at_x(x), HEIGHT - 8, label, "middle") for x, label in ticks]


def _bounds(bounds: Mapping[float, str], at_x: Position) -> list[Element]:
    """Draw dashed lines, with their names where there is room."""
    parts, free = [], 0.0
    for x, name in sorted(bounds.items()):
        at = at_x(x)
        line = element(
            "line", element("title", name), x1=at, x2=at, y1=TOP - 4, y2=HEIGHT - BOTTOM, class_="bound"
        )
        parts.append(line)
        if at >= free and at + len(name) * LETTER < WIDTH:
            parts.append(_text(at + 2, TOP - 8, name, "start"))
            free = at + (len(name) + 1) * LETTER
    return parts
