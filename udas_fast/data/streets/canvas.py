"""Camera over a flat world and the basic shapes of Streets, which paint image and label together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NEAR = 1.2
"""Near clipping distance in metres."""

Colour = np.ndarray
"""RGB in 0..1: ``[3]``, or an array that broadcasts to ``[3, h, w]`` of the painted face."""


@dataclass(frozen=True)
class Camera:
    """A level pinhole camera. World axes in metres: X right, Y up from the ground, Z forward.

    ``focal`` is in half image widths, ``height`` in metres; ``horizon`` and ``centre`` place the vanishing
    point as shares of the image's height and width. The street bends sideways by ``curve``·Z² metres.
    """

    focal: float
    height: float
    horizon: float
    centre: float
    curve: float


class Canvas:
    """The picture during painting: ``image`` float32 ``[3, H, W]`` in 0..1 and ``label`` uint8 ``[H, W]``.

    Distant objects fade to ``haze_colour`` by ``exp(-density·Z)``. ``noise`` is a field ``[H, W]`` in -1..1 whose
    cells scale with the image, so that outlines that follow it agree between image sizes.
    """

    def __init__(
        self, camera: Camera, size: tuple[int, int], haze: tuple[Colour, float], noise: np.ndarray
    ) -> None:
        self.camera = camera
        self.height, self.width = size
        self.scale = camera.focal * self.width / 2
        self.cx = camera.centre * self.width
        self.hy = camera.horizon * self.height
        self.haze_colour = haze[0].astype(np.float32)[:, None, None]
        self.density = haze[1]
        self.noise = noise
        self.image = np.zeros((3, *size), np.float32)
        self.label = np.full(size, 255, np.uint8)

    def bend(self, z: float) -> float:
        """Return the sideways shift of the street's middle at depth ``z``, in metres."""
        return self.camera.curve * z * z

    def ground(self) -> tuple[int, np.ndarray, np.ndarray]:
        """Return the first row below the horizon, and street X ``[h, W]`` and Z ``[h, 1]`` from there on."""
        first = min(max(math.ceil(self.hy + 0.5), 0), self.height - 1)
        below = np.arange(first, self.height, dtype=np.float32)[:, None] + np.float32(0.5 - self.hy)
        z = np.float32(self.scale * self.camera.height) / np.maximum(below, np.float32(0.05))
        x = (np.arange(self.width, dtype=np.float32)[None] + np.float32(0.5 - self.cx)) / np.float32(
            self.scale
        )
        return first, x * z - np.float32(self.camera.curve) * z * z, z

    def face(self, a: tuple[float, float], b: tuple[float, float], height: float) -> Face | None:
        """Return the upright rectangle over ground points ``a`` to ``b``, (street X, Z) in metres; None out of view."""
        (xa, za), (xb, zb) = a, b
        xa, xb = xa + self.bend(za), xb + self.bend(zb)
        length, start, end = math.hypot(xb - xa, zb - za), 0.0, 1.0
        if max(za, zb) <= NEAR:
            return None
        if za < NEAR:
            start = (NEAR - za) / (zb - za)
        elif zb < NEAR:
            end = (NEAR - za) / (zb - za)
        ends = [(xa + t * (xb - xa), za + t * (zb - za), t * length) for t in (start, end)]
        if ends[0][0] / ends[0][1] > ends[1][0] / ends[1][1]:
            ends.reverse()
        return Face.cut(self, ends[0], ends[1], height)

    def stand(self, x: float, z: float, width: float, height: float) -> Face | None:
        """Return a face towards the camera, ``width`` wide around street position ``x``; u is 0 in its middle."""
        face = self.face((x - width / 2, z), (x + width / 2, z), height)
        if face is not None:
            face.u -= width / 2
            face.origin += width / 2 * face.metre
        return face

    def shadow(self, at: tuple[float, float], size: tuple[float, float], strength: float, soft: bool) -> None:
        """Darken a rectangle of the ground around (street X, Z), ``size`` metres wide and deep."""
        (x, z), (wide, deep) = at, size
        near, far = max(z - deep / 2, NEAR), z + deep / 2
        if far <= near:
            return
        reach = self.scale * self.camera.height
        top = max(math.floor(self.hy + reach / far), 0)
        low = min(math.ceil(self.hy + reach / near) + 1, self.height)
        ends = [
            self.cx + self.scale * (x + self.bend(d) + s * wide / 2) / d for d in (near, far) for s in (-1, 1)
        ]
        first, last = max(math.floor(min(ends)), 0), min(math.ceil(max(ends)) + 1, self.width)
        if top >= low or first >= last:
            return
        rows = np.arange(top, low, dtype=np.float32)[:, None] + np.float32(0.5 - self.hy)
        depth = np.float32(reach) / np.maximum(rows, np.float32(0.05))
        cols = np.arange(first, last, dtype=np.float32)[None] + np.float32(0.5 - self.cx)
        across = cols * depth / np.float32(self.scale) - np.float32(self.camera.curve) * depth * depth
        inside = np.minimum(1 - np.abs(across - x) * (2 / wide), 1 - np.abs(depth - z) * (2 / deep))
        shade = np.clip(4 * inside, 0, 1) if soft else (inside > 0).astype(np.float32)
        self.image[:, top:low, first:last] *= 1 - np.float32(strength) * shade


class Face:
    """An upright rectangle of the world as the camera sees it: pixels with their position on it in metres.

    ``u`` ``[1, w]`` runs along it from its first point, ``v`` (``[h, 1]`` if it faces the camera, else
    ``[h, w]``) is the height above the ground. Painting writes directly into the canvas.
    """

    def __init__(self, canvas: Canvas, rows: slice, cols: slice, u: np.ndarray, q: np.ndarray) -> None:
        self.image = canvas.image[:, rows, cols]
        self.label = canvas.label[rows, cols]
        self.noise = canvas.noise[rows, cols]
        self.u, self.q = u, q
        y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] + np.float32(0.5 - canvas.hy)
        self.v = np.float32(canvas.camera.height) - y / (np.float32(canvas.scale) * q)
        self.pixels = np.float32(canvas.scale) * q
        self.clear = np.exp(np.float32(-canvas.density) / q)
        self.fog = canvas.haze_colour * (1 - self.clear)
        self.metre = float(self.pixels[0, 0])
        self.frontal, self.origin = False, 0.0
        self.floor = canvas.hy + canvas.camera.height * self.metre - rows.start

    @classmethod
    def cut(cls, canvas: Canvas, left: Sequence[float], right: Sequence[float], height: float) -> Face | None:
        """Return the face between two ends (X, Z, u), in screen order; None if it covers no pixel."""
        (xl, zl, ul), (xr, zr, ur) = left, right
        pl, pr = canvas.cx + canvas.scale * xl / zl, canvas.cx + canvas.scale * xr / zr
        first, last = max(math.ceil(pl - 0.5), 0), min(math.ceil(pr - 0.5), canvas.width)
        if first >= last:  # an object thinner than a pixel is still drawn as one pixel
            first = min(max(math.floor((pl + pr) / 2), 0), canvas.width - 1)
            last = first + 1
            if pr <= 0 or pl >= canvas.width:
                return None
        rise, fall = canvas.camera.height - height, canvas.camera.height
        top = canvas.hy + canvas.scale * min(rise / zl, rise / zr)
        bottom = canvas.hy + canvas.scale * max(fall / zl, fall / zr)
        rows = slice(max(math.ceil(top - 0.5), 0), min(math.ceil(bottom - 0.5), canvas.height))
        if rows.start >= rows.stop:
            return None
        x = np.arange(first, last, dtype=np.float32)[None] + np.float32(0.5)
        if zl == zr:
            u = np.float32(ul) + (x - np.float32(pl)) * np.float32(zl / canvas.scale)
            face = cls(canvas, rows, slice(first, last), u, np.full((1, 1), 1 / zl, np.float32))
            face.frontal, face.origin = True, pl - first - ul * face.metre
            return face
        t = np.clip((x - np.float32(pl)) / np.float32(max(pr - pl, 1e-3)), 0, 1)
        q = np.float32(1 / zl) + np.float32(1 / zr - 1 / zl) * t
        u = (np.float32(ul / zl) + np.float32(ur / zr - ul / zl) * t) / q
        return cls(canvas, rows, slice(first, last), u, q)

    def hazed(self, colour: Colour) -> np.ndarray:
        """Return ``colour`` with the haze of this distance."""
        colour = colour[:, None, None] if colour.ndim == 1 else colour
        return colour * self.clear + self.fog

    def paint(self, mask: np.ndarray, colour: Colour, cls: int | None = None) -> None:
        """Paint where ``mask`` (broadcast to ``[h, w]``) is true; with ``cls`` None the label is unchanged."""
        if not self.frontal:  # its rows extend below the ground at the far end
            mask = mask & (self.v >= 0)
        np.copyto(self.image, self.hazed(colour), where=mask)
        if cls is not None:
            np.copyto(self.label, np.uint8(cls), where=mask)

    def box(self, u0: float, u1: float, v0: float, v1: float, colour: Colour, cls: int | None = None) -> None:
        """Paint a rectangle in metres; on a face towards the camera at least one pixel wide and high."""
        if not self.frontal:
            self.paint((self.u >= u0) & (self.u < u1) & (self.v >= v0) & (self.v < v1), colour, cls)
            return
        left, top = self.origin + u0 * self.metre, self.floor - v1 * self.metre
        first, upper = math.ceil(left - 0.5), math.ceil(top - 0.5)
        last = max(math.ceil(self.origin + u1 * self.metre - 0.5), first + 1)
        lower = max(math.ceil(self.floor - v0 * self.metre - 0.5), upper + 1)
        if last <= 0 or lower <= 0:
            return
        rows, cols = slice(max(upper, 0), lower), slice(max(first, 0), last)
        self.image[:, rows, cols] = self.hazed(colour)
        if cls is not None:
            self.label[rows, cols] = cls

    def disc(self, u: float, v: float, ru: float, rv: float, colour: Colour, cls: int | None = None) -> None:
        """Paint an ellipse around (``u``, ``v``) in metres."""
        self.paint(((self.u - u) / ru) ** 2 + ((self.v - v) / rv) ** 2 < 1, colour, cls)

    def ring(self, u: float, v: float, radius: float, width: float, colour: Colour, cls: int) -> None:
        """Paint a wheel seen from its side: the rim of a circle, ``width`` metres but at least a pixel thick."""
        width = max(width, 1.1 / self.metre)
        far = (self.u - u) ** 2 + (self.v - v) ** 2
        self.paint((far < radius * radius) & (far > max(radius - width, 0) ** 2), colour, cls)

    def line(
        self, a: tuple[float, float], b: tuple[float, float], width: float, colour: Colour, cls: int
    ) -> None:
        """Paint a bar from ``a`` to ``b`` in (u, v), ``width`` metres but at least a pixel thick."""
        width = max(width, 1.1 / self.metre)
        du, dv = b[0] - a[0], b[1] - a[1]
        length = math.hypot(du, dv)
        du, dv = du / length, dv / length
        u, v = self.u - a[0], self.v - a[1]
        along, across = u * du + v * dv, u * dv - v * du
        self.paint((along >= 0) & (along <= length) & (np.abs(across) <= width / 2), colour, cls)

    def under(
        self, us: Sequence[float], vs: Sequence[float], base: float, colour: Colour, cls: int | None = None
    ) -> None:
        """Paint everything above ``base`` and under the outline that connects the points (``us``, ``vs``)."""
        top = np.interp(self.u[0], us, vs, left=-1.0, right=-1.0)[None]
        self.paint((self.v >= base) & (self.v < top), colour, cls)
