"""Ground, sky, skyline, and the fronts of houses, walls and fences along both sides of the street."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from udas_fast.data.streets.canvas import Canvas, Colour, Face
from udas_fast.data.streets.things import BUILDING, FENCE, ROAD, SKY, VEGETATION, WALL, rgb

Point = tuple[float, float]
"""A point on the ground as (street X, Z), in metres."""


@dataclass(frozen=True)
class Ground:
    """Bands of the ground, left to right: ``edges`` in street metres, a class and a colour for each band."""

    edges: np.ndarray
    classes: np.ndarray
    colours: np.ndarray
    marks: tuple[tuple[float, float, float], ...]
    """Lane markings as (X, dash length, period); a period of 0 is a continuous line."""
    mark: Colour
    crossing: float
    """Depth of a zebra crossing in metres, 0 for none."""
    rails: float | None
    """X of the middle of a tram's rails."""


def paint_ground(canvas: Canvas, ground: Ground) -> None:
    """Paint road, kerbs, pavements, verges and markings, for every pixel below the horizon at once."""
    first, x, z = canvas.ground()
    band = np.searchsorted(ground.edges, x)
    image, label = canvas.image[:, first:], canvas.label[first:]
    image[:] = ground.colours.T[:, band]
    label[:] = ground.classes[band]
    road = label == ROAD
    pixel = z / np.float32(canvas.scale)
    for at, dash, period in ground.marks:
        line = np.abs(x - np.float32(at)) < np.maximum(0.09, 0.5 * pixel)
        if period:
            line &= (z % np.float32(period)) < dash
        np.copyto(image, ground.mark[:, None, None], where=line & road)
    if ground.crossing:
        stripes = (np.abs(z - ground.crossing) < 1.6) & ((x % np.float32(1.1)) < 0.55)
        np.copyto(image, ground.mark[:, None, None], where=stripes & road)
    if ground.rails is not None:
        off = np.abs(np.abs(x - np.float32(ground.rails)) - np.float32(0.72))
        rail = off < np.maximum(0.08, 0.5 * pixel)
        np.copyto(image, rgb(150, 150, 156)[:, None, None], where=rail & road)
    haze = np.exp(np.float32(-canvas.density) * z)[None]
    image *= haze
    image += canvas.haze_colour * (1 - haze)


def paint_sky(
    canvas: Canvas,
    clouds: np.ndarray,
    zenith: Colour,
    horizon: Colour,
    cloud: Colour,
    cover: float,
    sharp: float,
) -> None:
    """Paint a gradient from ``zenith`` to ``horizon``, with clouds where ``clouds`` (-1..1) exceeds 1 - ``cover``."""
    last = min(max(int(np.ceil(canvas.hy + 0.5)), 1), canvas.height)
    t = np.linspace(0, 1, last, dtype=np.float32)[None, :, None] ** np.float32(0.8)
    sky = zenith[:, None, None] * (1 - t) + horizon[:, None, None] * t
    field = clouds[:last]
    share = np.clip((field - np.float32(1 - cover)) * np.float32(sharp), 0, 1)
    canvas.image[:, :last] = sky + (cloud[:, None, None] - sky) * share
    canvas.label[:last] = SKY


@dataclass(frozen=True)
class House:
    """A house front: its colours, its height and the grid of its windows in metres."""

    wall: Colour
    roof: Colour
    window: Colour
    shop: Colour
    height: float
    bay: float
    storey: float
    fill: float
    style: int


def paint_house(face: Face, house: House, shade: float) -> None:
    """Paint one side of a house: wall, windows larger than a pixel, a ground floor and a roof edge."""
    face.paint(face.v < house.height, house.wall * shade, BUILDING)
    u, v = face.u / np.float32(house.bay), (face.v - np.float32(3.2)) / np.float32(house.storey)
    lo, hi = 0.5 - house.fill / 2, 0.5 + house.fill / 2
    inside = v - np.floor(v)
    across = u - np.floor(u)
    rows = (inside > lo) & (inside < hi + 0.1) & (v > 0) & (face.v < house.height - 1.0)
    seen = face.pixels * np.float32(house.bay) > 2.2
    columns = (across > lo) & (across < hi) if house.style != 1 else across > 0.06
    face.paint(rows & columns & seen, house.window * shade)
    if house.style == 2:
        face.paint((face.v < 2.6) & (face.v > 0.5) & (((u * 0.5) % 1) < 0.8) & seen, house.shop * shade)
    else:
        face.paint((face.v < 2.3) & (((u * 0.5) % 1) < 0.18) & seen, house.roof * (0.8 * shade))
    face.paint((face.v < house.height) & (face.v > house.height - 0.7), house.roof * shade)


def wall(canvas: Canvas, a: Point, b: Point, height: float, colour: Colour) -> None:
    """Paint a garden or retaining wall with a coping and joints between two ground points."""
    face = canvas.face(a, b, height)
    if face is None:
        return
    face.paint(face.v < height, colour, WALL)
    seen = face.pixels > 6
    course = ((face.v / np.float32(0.5)) % 1) < 0.12
    face.paint(course & (face.v < height) & seen, colour * 0.8)
    face.paint((face.v < height) & (face.v > height - 0.18), colour * 1.15)


def fence(canvas: Canvas, a: Point, b: Point, height: float, colour: Colour) -> None:
    """Paint a fence of boards or bars; the gaps between them belong to it, as annotators draw it."""
    face = canvas.face(a, b, height)
    if face is None:
        return
    face.paint(face.v < height, colour * 0.62, FENCE)
    bars = ((face.u / np.float32(0.5)) % 1) < 0.55
    face.paint(bars & (face.v < height) & (face.pixels > 4), colour)
    rail = (np.abs(face.v - np.float32(0.85 * height)) < 0.09) | (
        np.abs(face.v - np.float32(0.2 * height)) < 0.09
    )
    face.paint(rail, colour * 1.1)


def paint_skyline(canvas: Canvas, heights: np.ndarray, houses: Colour, leaf: Colour) -> None:
    """Paint the skyline at 130 m, ``heights`` metres every 6 m: a block, then two trees, repeated."""
    span = 6.0 * len(heights)
    face = canvas.face((-span / 2, 130.0), (span / 2, 130.0), float(heights.max()) * 1.1 + 1)
    if face is None:
        return
    step = np.clip((face.u / 6.0).astype(np.int64), 0, len(heights) - 1)
    top = heights[step]
    green = step % 3 != 0
    face.paint((face.v < top) & ~green, houses, BUILDING)
    rough = top * (0.55 + np.float32(0.25) * face.noise)
    face.paint((face.v < rough) & green, leaf, VEGETATION)
