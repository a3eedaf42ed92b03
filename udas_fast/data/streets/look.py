"""The two styles: colours of objects, how crowded streets are, and the effects of light and lens."""

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
    """Return colours from hexadecimal words."""
    return tuple(rgb(*bytes.fromhex(word)) for word in text.split())


@dataclass(frozen=True)
class Look:
    """One style: each object draws its colour from a palette and its brightness within ``spread``."""

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
    large_vehicle: Palette
    cloth: Palette
    pole: Palette
    sign: Palette
    zenith: Palette
    horizon: Palette
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
    road=palette("4c4c5e 585868 46485a 606068"),
    sidewalk=palette("c49c98 c8a890 c0b0a4 b8a8a0"),
    kerb=palette("f0e8e0"),
    terrain=palette("a4bc58 8cb850 b8b464"),
    house=palette("e0a058 cc6848 e0cc78 78a4cc c088b0 e8c8a4 88b8a4 c8c0b8 a8a4a8"),
    roof=palette("b03830 803060 405898 8a4a28"),
    window=palette("284878 3870a8 204060"),
    wall=palette("b890d0 a878a0 9890c8"),
    fence=palette("e8c088 d89860 f0e0c0"),
    leaf=palette("38a038 50ac3c 2c9048 6ca840"),
    car=palette("e02020 2040e0 f0d020 20c0d0 f08020 f0f0f0 c020a0"),
    large_vehicle=palette("f04828 2878f0 f0b820 28b890"),
    cloth=palette("f03060 30a0f0 f0e040 60e060 f08030 a040e0"),
    pole=palette("a8b0c0 8890a8"),
    sign=palette("f02020 2050f0 f0d000"),
    zenith=palette("4884d8 5890e0 4078c8 88a8d0"),
    horizon=palette("b0d4f0 c4e0f4 d8e4ec"),
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
    road=palette("606064 6a6a6c 565860 72706e"),
    sidewalk=palette("9c948c a89c90 948c88 b0a290"),
    kerb=palette("a8a49c 8e8a86"),
    terrain=palette("808450 72804a 8e8a58 6c7446"),
    house=palette("a89c8a 8a8078 c0b4a0 7c6a5e 94604c b0a8a0 6e6a68 cabfae"),
    roof=palette("5a4a44 4c4c50 6e5a50 3e3a3a"),
    window=palette("3a3e42 50565c 2e2e30 8c96a0"),
    wall=palette("8c7c84 7c7076 9a8c90"),
    fence=palette("84705a 70604e 94846c 645848"),
    leaf=palette("4a6434 5a6e38 3c5630 707438 5e6a3a"),
    car=palette("202226 303438 8a8e92 c8cacc b4b6b8 5a5e62 6a2424 28344c 4c5a4a"),
    large_vehicle=palette("c8c4b8 8a8c90 b09a40 a03c30 3c587c"),
    cloth=palette("2c2e36 3a3a3a 5a5248 28344a 6a4440 8a8478 47503f"),
    pole=palette("6c6c68 7c7a74 4c4e50"),
    sign=palette("b03a34 34508c c0a030"),
    zenith=palette("8a9cb0 a0a8b0 6c8cb4 98a0a8"),
    horizon=palette("d0d0cc dcd4c8 c4ccd4"),
    cloud=palette("e4e2de c8c8c8 b0b2b8"),
    mark=palette("c8c6c0 b0aea8"),
    spread=0.13,
    crowd=1.25,
    trees=0.6,
    ragged=0.8,
    density=(0.0015, 0.008),
    soft=True,
    cloud_edge=2.5,
)

LOOKS = {"sim": SIM, "real": REAL}

# Strength of the mottling of each class in the real style: leaves and grass more than paint and glass.
MOTTLE = np.full(256, 0.06, np.float32)
MOTTLE[[ROAD, SIDEWALK, BUILDING, WALL, FENCE]] = 0.11, 0.14, 0.13, 0.16, 0.15
MOTTLE[[VEGETATION, TERRAIN, SKY]] = 0.32, 0.26, 0.02


@lru_cache(maxsize=64)
def _taps(n: int, cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the positions of ``n`` pixels among ``cells`` lattice points: left neighbour, right neighbour, weight."""
    at = (np.arange(n) + 0.5) * (cells - 1) / n
    left = np.minimum(at.astype(np.int64), cells - 2)
    return left, left + 1, (at - left).astype(np.float32)


def noise(rng: np.random.Generator, cells: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Return smooth noise in -1..1, ``size`` pixels: a lattice of ``cells`` uniform numbers, interpolated."""
    lattice = rng.random(cells, np.float32) * np.float32(2) - np.float32(1)
    top, below, wy = _taps(size[0], cells[0])
    left, right, wx = _taps(size[1], cells[1])
    rows = lattice[top] + (lattice[below] - lattice[top]) * wy[:, None]
    return rows[:, left] + (rows[:, right] - rows[:, left]) * wx


def blur(image: np.ndarray, amount: float) -> np.ndarray:
    """Blur with three taps along rows and columns; ``amount`` 0 changes nothing, 1/3 is a box filter."""
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


def postprocess_sim(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Return a game-like picture, uint8 ``[H, W, 3]``: even light and a change of contrast, nothing else."""
    image = canvas.image * np.float32(rng.uniform(0.8, 1.08))
    grey = np.float32(0.3) * image[0] + np.float32(0.59) * image[1] + np.float32(0.11) * image[2]
    return to_bytes(grey + (image - grey) * np.float32(rng.uniform(0.65, 1.0)))


def postprocess_real(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Simulate light, lens and sensor; return uint8 ``[H, W, 3]``.

    Mottled surfaces, cast shadow, white balance, exposure, veil, blur, vignette and grain.
    """
    mood = int(rng.choice(4, p=(0.42, 0.28, 0.16, 0.14)))  # overcast, sun, dusk, haze
    saturation = np.float32(rng.uniform(0.65, 1.1) * (1.0, 1.15, 0.85, 0.75)[mood])
    warmth, tint = rng.normal((0.0, 0.05, 0.08, 0.0)[mood], 0.045), rng.normal(0, 0.02)
    exposure = rng.uniform(*((0.95, 1.2), (1.0, 1.3), (0.65, 0.85), (0.95, 1.15))[mood])
    veil = np.float32(rng.uniform(*((0.02, 0.08), (0.0, 0.05), (0.03, 0.08), (0.1, 0.2))[mood]))
    soften, corners = rng.uniform(0.05, 0.2), round(float(rng.uniform(0.1, 0.4)), 1)
    sensor = np.float32(rng.uniform(0.004, 0.014) * (1.4 if mood == 2 else 1.0))
    image, size = canvas.image, canvas.label.shape
    drift = noise(rng, (4, 6), size)
    fine = noise(rng, (max(size[0] * 2 // 3, 2), max(size[1] * 2 // 3, 2)), size)
    image *= 1 + MOTTLE[canvas.label] * (
        noise(rng, (24, 48), size) * np.float32(0.5) + fine * np.float32(0.8)
    )
    if mood == 1:  # low sun: soft patches of shadow from objects outside the picture
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
    """Return the light that a lens transmits, which falls off with the squared distance from the middle."""
    y = np.linspace(-1, 1, size[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, size[1], dtype=np.float32)[None]
    return 1 - np.float32(strength / 2) * (x * x + y * y)


def to_bytes(image: np.ndarray) -> np.ndarray:
    """Convert ``[3, H, W]`` in 0..1 to uint8 ``[H, W, 3]``."""
    eight = np.clip(image * np.float32(255) + np.float32(0.5), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(eight.transpose(1, 2, 0))
