"""The two styles: which colours things have, how crowded a street is, and what light and lens do to the picture."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from udas_fast.data.streets.canvas import Canvas, Colour
from udas_fast.data.streets.things import (
    BUILDING,
    FENCE,
    ROAD,
    SIDEWALK,
    SKY,
    TERRAIN,
    VEGETATION,
    WALL,
    rgb,
)

Palette = tuple[Colour, ...]


def palette(text: str) -> Palette:
    """Colours from hexadecimal words."""
    return tuple(rgb(*bytes.fromhex(word)) for word in text.split())


@dataclass(frozen=True)
class Look:
    """One style. Palettes are drawn from once per thing; ``spread`` is the random brightness between things."""

    road: Palette
    sidewalk: Palette
    kerb: Palette
    terrain: Palette
    house: Palette
    roof: Palette
    window: Palette
    wall: Palette
    fence: Palette
    leaf: Palette
    car: Palette
    big: Palette
    cloth: Palette
    pole: Palette
    sign: Palette
    zenith: Palette
    low: Palette
    cloud: Palette
    mark: Palette
    spread: float
    crowd: float
    trees: float
    ragged: float
    density: tuple[float, float]
    soft: bool
    cloud_edge: float


SIM = Look(
    road=palette("4a4a62 545470 464a5c"),
    sidewalk=palette("c79a9a d0a890 c8b0a0"),
    kerb=palette("f0e8e0"),
    terrain=palette("a8c850 8ac848 c8c060"),
    house=palette("e8a050 d86848 e8d070 70a8d8 c880b8 f0c8a0 80c0a8"),
    roof=palette("b03830 803060 405898 8a4a28"),
    window=palette("284878 3870a8 204060"),
    wall=palette("b890d0 a878a0 9890c8"),
    fence=palette("e8c088 d89860 f0e0c0"),
    leaf=palette("30b030 48c038 209848"),
    car=palette("e02020 2040e0 f0d020 20c0d0 f08020 f0f0f0 c020a0"),
    big=palette("f04828 2878f0 f0b820 28b890"),
    cloth=palette("f03060 30a0f0 f0e040 60e060 f08030 a040e0"),
    pole=palette("a8b0c0 8890a8"),
    sign=palette("f02020 2050f0 f0d000"),
    zenith=palette("2878e8 3088f0 2068d8"),
    low=palette("a8d8ff c0e4ff"),
    cloud=palette("ffffff"),
    mark=palette("ffffff f8f060"),
    spread=0.06,
    crowd=1.0,
    trees=0.45,
    ragged=0.25,
    density=(0.0008, 0.003),
    soft=False,
    cloud_edge=30.0,
)

REAL = Look(
    road=palette("6a6a6a 767470 5c5e62 827e78"),
    sidewalk=palette("8c8780 97918a 7d7b7a a0968a"),
    kerb=palette("a8a49c 8e8a86"),
    terrain=palette("7a7850 6c7048 8a8060 66603f"),
    house=palette("a89c8a 8a8078 c0b4a0 7c6a5e 94604c b0a8a0 6e6a68 cabfae"),
    roof=palette("5a4a44 4c4c50 6e5a50 3e3a3a"),
    window=palette("3a3e42 50565c 2e2e30 8c96a0"),
    wall=palette("8c8478 77716c 9a9084"),
    fence=palette("6a6258 58544e 8a8274 4a4e4a"),
    leaf=palette("4a5a34 5c6438 3c4a30 78703a 6a5a34"),
    car=palette("202226 303438 8a8e92 c8cacc b4b6b8 5a5e62 6a2424 28344c 4c5a4a"),
    big=palette("c8c4b8 8a8c90 b09a40 a03c30 3c587c"),
    cloth=palette("2c2e36 3a3a3a 5a5248 28344a 6a4440 8a8478 47503f"),
    pole=palette("6c6c68 7c7a74 4c4e50"),
    sign=palette("b03a34 34508c c0a030"),
    zenith=palette("8a9cb0 a0a8b0 6c8cb4 98a0a8"),
    low=palette("d0d0cc dcd4c8 c4ccd4"),
    cloud=palette("e4e2de c8c8c8 b0b2b8"),
    mark=palette("c8c6c0 b0aea8"),
    spread=0.16,
    crowd=1.45,
    trees=0.6,
    ragged=0.8,
    density=(0.002, 0.012),
    soft=True,
    cloud_edge=2.5,
)

LOOKS = {"sim": SIM, "real": REAL}

# How strongly each class is mottled in the real style: leaves and grass more than paint and glass.
MOTTLE = np.full(256, 0.05, np.float32)
MOTTLE[[ROAD, SIDEWALK, BUILDING, WALL, FENCE, VEGETATION, TERRAIN, SKY]] = [
    0.10,
    0.14,
    0.12,
    0.16,
    0.14,
    0.30,
    0.26,
    0.02,
]


@lru_cache(maxsize=64)
def _taps(n: int, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where ``n`` pixels fall among ``cells`` lattice points: left neighbour, right neighbour, weight."""
    at = (np.arange(n) + 0.5) * (cells - 1) / n
    left = np.minimum(at.astype(np.int64), cells - 2)
    return left, left + 1, (at - left).astype(np.float32)


def noise(rng: np.random.Generator, cells: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Smooth noise in -1..1, ``size`` pixels: a lattice of ``cells`` uniform numbers, interpolated."""
    lattice = rng.random(cells, np.float32) * np.float32(2) - np.float32(1)
    top, below, wy = _taps(size[0], cells[0])
    left, right, wx = _taps(size[1], cells[1])
    rows = lattice[top] + (lattice[below] - lattice[top]) * wy[:, None]
    return rows[:, left] + (rows[:, right] - rows[:, left]) * wx


def blur(image: np.ndarray, amount: float) -> np.ndarray:
    """Three-tap blur along rows and columns; ``amount`` 0 leaves the picture, 1/3 is a box."""
    side, middle = np.float32(amount), np.float32(1 - 2 * amount)
    wide = image * middle
    wide[:, :, 1:] += side * image[:, :, :-1]
    wide[:, :, :-1] += side * image[:, :, 1:]
    wide[:, :, 0] += side * image[:, :, 0]
    wide[:, :, -1] += side * image[:, :, -1]
    out = wide * middle
    out[:, 1:] += side * wide[:, :-1]
    out[:, :-1] += side * wide[:, 1:]
    out[:, 0] += side * wide[:, 0]
    out[:, -1] += side * wide[:, -1]
    return out


def develop_sim(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Game-like: even light, a touch of contrast, nothing else. Returns uint8 ``[H, W, 3]``."""
    gain = np.float32(rng.uniform(0.97, 1.05))
    return to_bytes(canvas.image * gain)


def develop_real(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Light, lens and sensor: mottled surfaces, cast shadow, white balance, exposure, veil, blur, grain.

    Returns uint8 ``[H, W, 3]``.
    """
    mood = int(rng.choice(4, p=(0.42, 0.28, 0.16, 0.14)))  # overcast, sun, dusk, haze
    saturation = np.float32(rng.uniform(0.5, 0.95) * (1.0, 1.15, 0.8, 0.65)[mood])
    warmth, tint = rng.normal((0.0, 0.06, 0.09, 0.0)[mood], 0.06), rng.normal(0, 0.025)
    exposure = rng.uniform(*((0.85, 1.15), (0.95, 1.25), (0.55, 0.8), (0.9, 1.1))[mood])
    veil = np.float32(rng.uniform(*((0.02, 0.08), (0.0, 0.05), (0.03, 0.08), (0.14, 0.26))[mood]))
    soften, corners = rng.uniform(0.05, 0.2), round(float(rng.uniform(0.1, 0.4)), 1)
    sensor = np.float32(rng.uniform(0.008, 0.022) * (1.4 if mood == 2 else 1.0))
    image, size = canvas.image, canvas.label.shape
    drift = noise(rng, (4, 6), size)
    fine = noise(rng, (max(size[0] * 2 // 3, 2), max(size[1] * 2 // 3, 2)), size)
    image *= 1 + MOTTLE[canvas.label] * (
        noise(rng, (24, 48), size) * np.float32(0.5) + fine * np.float32(0.8)
    )
    if mood == 1:  # low sun: soft patches of shadow from what stands outside the picture
        shade = np.clip(drift * 4, -1, 1) * np.float32(0.22)
        image *= 1 - np.where(canvas.label == SKY, np.float32(0), np.float32(0.1) + shade)
    else:
        image *= 1 + np.float32(0.1) * drift
    grey = np.float32(0.3) * image[0] + np.float32(0.59) * image[1] + np.float32(0.11) * image[2]
    image = grey + (image - grey) * saturation
    balance = np.array((1 + warmth, 1 + tint, 1 - warmth), np.float32) * np.float32(exposure)
    image *= balance[:, None, None]
    image += veil * (np.float32(0.8) - image)
    image = blur(image, soften)
    image *= _vignette(size, corners)
    image += sensor * rng.standard_normal(image.shape, np.float32)
    return to_bytes(image)


@lru_cache(maxsize=16)
def _vignette(size: tuple[int, int], strength: float) -> np.ndarray:
    """How much light a lens leaves, falling off with the squared distance from the middle."""
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, size[1], dtype=np.float32)[None]
    return 1 - np.float32(strength / 2) * (x * x + y * y)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """``[3, H, W]`` in 0..1 to uint8 ``[H, W, 3]``."""
    eight = np.clip(image * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(eight.transpose(1, 2, 0))
