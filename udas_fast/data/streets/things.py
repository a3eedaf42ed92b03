"""Objects in a street: one function each, which paints image and label together."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from udas_fast.data.streets.canvas import NEAR, Canvas, Colour, Face

(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN) = range(10)
(SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(10, 19)
VOID = 255


def rgb(red: float, green: float, blue: float) -> Colour:
    """Return a colour from 8-bit numbers."""
    return np.array((red, green, blue), np.float32) / np.float32(255)


BLACK, TYRE, METAL = rgb(14, 14, 16), rgb(24, 24, 27), rgb(120, 124, 130)
HEADLIGHT, TAILLIGHT, PLATE = rgb(250, 245, 220), rgb(205, 28, 26), rgb(232, 230, 215)
SKIN = (rgb(236, 190, 160), rgb(190, 140, 105), rgb(120, 82, 60))


@dataclass(frozen=True)
class Body:
    """Box of a vehicle: class, width, height, length, lower edge of the windows and ground clearance, in metres."""

    cls: int
    width: float
    height: float
    length: float
    waist: float
    clear: float = 0.3


CAR_BODY = Body(CAR, 1.85, 1.5, 4.3, 0.9)
VAN_BODY = Body(CAR, 2.0, 2.05, 4.8, 1.15)
TRUCK_BODY = Body(TRUCK, 2.6, 3.5, 8.0, 1.5, 0.6)
BUS_BODY = Body(BUS, 2.6, 3.1, 11.5, 1.25, 0.35)
TRAM_BODY = Body(TRAIN, 2.7, 3.6, 26.0, 1.4, 0.2)
GLASS = rgb(52, 66, 84)


def vehicle(
    canvas: Canvas, body: Body, x: float, z: float, paint: Colour, accent: Colour, oncoming: bool
) -> None:
    """Paint a vehicle along the street: its visible flank, then the end that faces the camera."""
    half, far = body.width / 2, z + body.length
    side = x - half if x + canvas.bend(z) > 0 else x + half
    flank = canvas.face((side, z), (side, far), body.height)
    if flank is not None and flank.u.size > 1:
        profile(flank, body, paint * 0.82, accent * 0.82, oncoming)
    if z <= NEAR:
        return
    if body.cls == CAR:
        cabin = canvas.stand(x, z + cabin_start(body, oncoming) * body.length, body.width, body.height)
        if cabin is not None:
            car_cabin(cabin, body, paint)
    end = canvas.stand(x, z, body.width, body.waist if body.cls == CAR else body.height)
    if end is not None:
        if body.cls == CAR:
            car_end(end, body, paint, oncoming)
        else:
            large_vehicle_end(end, body, paint, accent, oncoming)


def profile(face: Face, body: Body, paint: Colour, accent: Colour, oncoming: bool) -> None:
    """Paint the side of a vehicle; u runs from the end nearer to the camera."""
    n, top = body.length, body.height
    if body.cls == CAR:
        rear, front = cabin_start(body, False), 1 - cabin_start(body, True)
        us = [0, rear, rear + 0.03, front - 0.1, front, 1]
        vs = [body.waist, body.waist, top, top, body.waist + 0.04, body.waist - 0.1]
        if oncoming:
            us, vs = [1 - u for u in us[::-1]], vs[::-1]
            us[1:3] = [us[1], us[1] + 0.03]
        us = [u * n for u in us]
        face.under(us, vs, body.clear, paint, CAR)
        inner = [v - 0.12 if v == top else v - 0.05 for v in vs]
        face.under(us, inner, body.waist + 0.04, GLASS)
        face.box(0.42 * n, 0.45 * n, body.waist, top - 0.1, paint)
    else:
        face.box(0, n, body.clear, top, paint, body.cls)
        if body.cls == TRUCK:
            cab = (0.0, 0.24 * n) if oncoming else (0.76 * n, n)
            face.box(0, n, body.clear, 0.9, BLACK)
            face.box(*cab, 0.7, top - 0.5, accent)
            face.box(cab[0] + 0.3, cab[1] - 0.3, 1.7, 2.5, GLASS)
        else:
            face.box(0, n, body.clear + 0.1, body.clear + 0.45, accent)
            pillar = (face.u / 1.6) % 1 > 0.12
            face.paint(pillar & (face.v > body.waist) & (face.v < top - 0.6), GLASS)
            face.box(0, n, top - 0.22, top, accent)
    if body.cls != TRAIN:
        radius = 0.34 if body.cls == CAR else 0.5
        for at in (0.19, 0.81):
            face.disc(at * n, radius, radius * 1.1, radius, TYRE, body.cls)


def cabin_start(body: Body, oncoming: bool) -> float:
    """Return the distance of the cabin from a car's visible end, as a fraction of its length."""
    boxy = body.height > 1.8
    return (0.16 if boxy else 0.27) if oncoming else (0.01 if boxy else 0.07)


def car_cabin(face: Face, body: Body, paint: Colour) -> None:
    """Paint a car above its waist, and the bonnet or boot in front of it."""
    w, top, waist = body.width / 2, body.height, body.waist
    face.box(-w, w, body.clear, waist, paint * 1.08, CAR)
    face.under([-w, -0.88 * w, 0.88 * w, w], [waist, top, top, waist], waist - 0.05, paint, CAR)
    face.under(
        [-0.92 * w, -0.8 * w, 0.8 * w, 0.92 * w], [waist, top - 0.1, top - 0.1, waist], waist + 0.05, GLASS
    )


def car_end(face: Face, body: Body, paint: Colour, oncoming: bool) -> None:
    """Paint the back or front of a car below its waist."""
    w, waist = body.width / 2, body.waist
    face.box(-w, w, body.clear, waist, paint, CAR)
    lamp = HEADLIGHT if oncoming else TAILLIGHT
    for left in (-w + 0.04, w - 0.4):
        face.box(left, left + 0.36, waist - 0.3, waist - 0.1, lamp)
    face.box(-w, w, body.clear, body.clear + 0.2, paint * 0.5)
    face.box(-0.27, 0.27, body.clear + 0.2, body.clear + 0.33, PLATE)
    for left in (-w + 0.03, w - 0.3):
        face.box(left, left + 0.27, 0, body.clear, TYRE, CAR)


def large_vehicle_end(face: Face, body: Body, paint: Colour, accent: Colour, oncoming: bool) -> None:
    """Paint the back or front of a truck, a bus or a tram."""
    w, top = body.width / 2, body.height
    face.box(-w, w, body.clear, top, paint, body.cls)
    if body.cls == TRUCK and not oncoming:
        face.box(-0.03, 0.03, 0.9, top - 0.15, paint * 0.5)
        face.box(-w, w, body.clear, 0.85, BLACK)
    elif body.cls == TRUCK:
        face.box(-w + 0.1, w - 0.1, body.clear, top - 0.7, accent)
        face.box(-w + 0.25, w - 0.25, 1.6, 2.5, GLASS)
    else:
        face.box(-w + 0.15, w - 0.15, body.waist, top - 0.55, GLASS)
        face.box(-w + 0.5, w - 0.5, top - 0.42, top - 0.12, rgb(240, 170, 40) if oncoming else accent)
        face.box(-w, w, body.clear + 0.1, body.clear + 0.4, accent)
    lamp = HEADLIGHT if oncoming else TAILLIGHT
    for left in (-w + 0.1, w - 0.5):
        face.box(left, left + 0.4, 0.75, 1.0, lamp)
        if body.cls != TRAIN:
            face.box(left, left + 0.4, 0, body.clear, TYRE, body.cls)


def person(
    canvas: Canvas, x: float, z: float, height: float, colours: tuple[Colour, ...], stride: float
) -> None:
    """Paint a pedestrian; ``colours``: coat, trousers, skin and hair; ``stride``: metres between the feet."""
    face = canvas.stand(x, z, 1.1, height)
    if face is None:
        return
    coat, trousers, skin, hair = colours
    for foot in (-stride, stride):
        face.line(
            (foot / 2 + math.copysign(0.06, foot), 0),
            (math.copysign(0.09, foot), 0.5 * height),
            0.2,
            trousers,
            PERSON,
        )
    torso(face, 0.0, 0.47 * height, height, coat, skin, hair, PERSON)


def torso(
    face: Face, u: float, low: float, height: float, coat: Colour, skin: Colour, hair: Colour, cls: int
) -> None:
    """Paint a torso with arms and a head, from height ``low`` to ``height``."""
    neck = height - 0.27
    face.box(u - 0.3, u + 0.3, low + 0.1, neck - 0.05, coat * 0.8, cls)
    face.box(u - 0.22, u + 0.22, low, neck, coat, cls)
    face.disc(u, height - 0.14, 0.13, 0.15, skin, cls)
    face.paint((face.v > height - 0.12) & (np.abs(face.u - u) < 0.12), hair, cls)


def two_wheeler(
    canvas: Canvas, cls: int, x: float, z: float, paint: Colour, colours: tuple[Colour, ...] | None, view: str
) -> None:
    """Paint a bicycle or motorcycle, ridden if ``colours`` are given; ``view``: left, right, back or front."""
    face = canvas.stand(x, z, 2.2, 1.85)
    if face is None:
        return
    if view in ("back", "front"):
        wide = 0.16 if cls == BICYCLE else 0.28
        face.box(-wide, wide, 0.0, 0.75, TYRE, cls)
        if cls == MOTORCYCLE:
            face.box(-0.34, 0.34, 0.45, 0.95, paint, cls)
            face.disc(0, 0.75, 0.12, 0.12, HEADLIGHT if view == "front" else TAILLIGHT)
        face.box(-0.36, 0.36, 0.95, 1.06, METAL, cls)
        if colours is not None:
            coat, trousers, skin, hair = colours
            for side in (-0.2, 0.2):
                face.box(side - 0.1, side + 0.1, 0.35, 0.95, trousers, RIDER)
            torso(face, 0.0, 0.85, 1.8, coat, skin, hair, RIDER)
        return
    ahead = 1.0 if view == "right" else -1.0
    (motorcycle_side if cls == MOTORCYCLE else bicycle_side)(face, ahead, paint)
    if colours is not None:
        coat, trousers, skin, hair = colours
        face.line((-0.15 * ahead, 0.95), (0.18 * ahead, 0.62), 0.22, trousers, RIDER)
        face.line((0.18 * ahead, 0.65), (0.05 * ahead, 0.25), 0.18, trousers, RIDER)
        face.line((0.1 * ahead, 1.4), (0.48 * ahead, 1.05), 0.13, coat * 0.8, RIDER)
        torso(face, -0.04 * ahead, 0.85, 1.8, coat, skin, hair, RIDER)


def bicycle_side(face: Face, ahead: float, paint: Colour) -> None:
    """Paint a bicycle seen from its side."""
    for hub in (-0.55, 0.55):
        face.ring(hub, 0.36, 0.37, 0.11, TYRE, BICYCLE)
    for a, b in (((-0.55, 0.36), (0.0, 0.4)), ((0.0, 0.4), (0.4, 0.85)), ((-0.2, 0.85), (0.4, 0.85))):
        face.line((a[0] * ahead, a[1]), (b[0] * ahead, b[1]), 0.09, paint, BICYCLE)
    face.line((0.55 * ahead, 0.36), (0.38 * ahead, 1.02), 0.09, paint, BICYCLE)
    face.box(-0.32, -0.08, 0.86, 0.95, BLACK, BICYCLE)
    face.box(min(0.3 * ahead, 0.5 * ahead), max(0.3 * ahead, 0.5 * ahead), 0.98, 1.06, BLACK, BICYCLE)


def motorcycle_side(face: Face, ahead: float, paint: Colour) -> None:
    """Paint a motorcycle seen from its side."""
    for hub in (-0.68, 0.68):
        face.disc(hub, 0.33, 0.34, 0.34, TYRE, MOTORCYCLE)
        face.disc(hub, 0.33, 0.14, 0.14, METAL)
    face.box(-0.45, 0.45, 0.28, 0.62, METAL * 0.6, MOTORCYCLE)
    us = [-0.95, -0.5, 0.05, 0.35, 0.62, 0.7]
    vs = [0.85, 0.85, 0.88, 1.0, 0.85, 0.6]
    if ahead < 0:
        us, vs = [-u for u in us[::-1]], vs[::-1]
    face.under(us, vs, 0.55, paint, MOTORCYCLE)
    face.line((0.68 * ahead, 0.33), (0.42 * ahead, 1.1), 0.1, METAL, MOTORCYCLE)


def tree(
    canvas: Canvas, x: float, z: float, height: float, leaf: Colour, blobs: np.ndarray, ragged: float
) -> None:
    """Paint a tree: a trunk and a crown of ellipses, ``blobs`` rows (u, v, radius) as fractions of the height."""
    face = canvas.stand(x, z, 1.1 * height, height)
    if face is None:
        return
    face.box(-0.028 * height, 0.028 * height, 0, 0.6 * height, rgb(78, 60, 44), VEGETATION)
    u, v = face.u / np.float32(height), face.v / np.float32(height)
    rough = 1 + np.float32(ragged) * face.noise
    crown = np.zeros(face.label.shape, bool)
    for bu, bv, radius in blobs:
        far = ((u - bu) / (1.2 * radius)) ** 2 + ((v - bv) / radius) ** 2
        crown |= far < rough
    light = 0.62 + 0.55 * np.clip((v - 0.3) / 0.65, 0, 1) + np.float32(0.35 * ragged) * face.noise
    face.paint(crown, leaf[:, None, None] * light, VEGETATION)


def hedge(
    canvas: Canvas, a: tuple[float, float], b: tuple[float, float], height: float, leaf: Colour, ragged: float
) -> None:
    """Paint a row of bushes between two ground points."""
    face = canvas.face(a, b, height * 1.2)
    if face is None:
        return
    top = height * (0.85 + 0.12 * np.sin(face.u * 2.1) + np.float32(0.3 * ragged) * face.noise)
    light = 0.65 + 0.4 * np.clip(face.v / height, 0, 1) + np.float32(0.35 * ragged) * face.noise
    face.paint(face.v < top, leaf[:, None, None] * light, VEGETATION)


def lamp(canvas: Canvas, x: float, z: float, height: float, colour: Colour, arm: float) -> None:
    """Paint a street lamp whose arm reaches ``arm`` metres sideways."""
    face = canvas.stand(x, z, 2 * abs(arm) + 0.5, height)
    if face is not None:
        face.box(-0.13, 0.13, 0, height, colour, POLE)
        face.box(min(arm, 0), max(arm, 0), height - 0.2, height, colour, POLE)


def traffic_light(canvas: Canvas, x: float, z: float, low: float, colour: Colour, lit: int) -> None:
    """Paint a traffic light on a pole; ``lit`` is 0 red, 1 amber or 2 green."""
    face = canvas.stand(x, z, 0.9, low + 1.5)
    if face is None:
        return
    face.box(-0.13, 0.13, 0, low + 0.1, colour, POLE)
    face.box(-0.34, 0.34, low, low + 1.5, BLACK, LIGHT)
    lamps = (rgb(255, 60, 40), rgb(255, 190, 40), rgb(60, 240, 130))
    for place, shade in enumerate(lamps):
        glow = shade if place == lit else shade * 0.22
        face.disc(0, low + 1.25 - 0.5 * place, 0.24, 0.22, glow, LIGHT)


def sign(canvas: Canvas, x: float, z: float, low: float, kind: str, colour: Colour, pole: Colour) -> None:
    """Paint a traffic sign on a pole: a disc or triangle with a rim, a square, or a wide board."""
    face = canvas.stand(x, z, 2.2, low + 1.1)
    if face is None:
        return
    face.box(-0.1, 0.1, 0, low + 0.5, pole, POLE)
    white = rgb(238, 238, 232)
    if kind == "disc":
        face.disc(0, low + 0.5, 0.5, 0.5, colour, SIGN)
        face.disc(0, low + 0.5, 0.31, 0.31, white, SIGN)
    elif kind == "triangle":
        face.under([-0.58, 0, 0.58], [low, low + 1.0, low], low, colour, SIGN)
        face.under([-0.3, 0, 0.3], [low + 0.16, low + 0.68, low + 0.16], low + 0.16, white, SIGN)
    elif kind == "square":
        face.box(-0.45, 0.45, low, low + 0.95, colour, SIGN)
        face.box(-0.2, 0.2, low + 0.2, low + 0.75, white, SIGN)
    else:
        face.box(-1.0, 1.0, low + 0.1, low + 0.85, colour, SIGN)
        face.box(-0.8, 0.8, low + 0.42, low + 0.56, white, SIGN)


def litter_bin(canvas: Canvas, x: float, z: float, colour: Colour) -> None:
    """Paint a litter bin or an advertising box, which have no class: void."""
    face = canvas.stand(x, z, 0.8, 1.15)
    if face is not None:
        face.box(-0.4, 0.4, 0, 1.0, colour, VOID)
        face.box(-0.4, 0.4, 1.0, 1.15, colour * 0.6, VOID)
