"""One scene: the objects along a street, drawn from a seed and painted from far to near."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from udas_fast.data.streets import scenery, things
from udas_fast.data.streets.canvas import Camera, Canvas, Colour
from udas_fast.data.streets.look import LOOKS, Look, Palette, noise, postprocess_real, postprocess_sim

Paint = Callable[[], None]
Painter = tuple[float, Paint]
"""The depth of an object, by which it is sorted, and the function that paints it."""
Lot = tuple[tuple[float, float], tuple[float, float]]
"""The near and the far end of a frontage, as (street X, Z)."""
FAR = 75.0
"""Depth in metres beyond which there is only the skyline."""
LANE = 3.5


@dataclass(frozen=True)
class Side:
    """One side of the street, in metres of |X|: where road and pavement end, and the house line."""

    sign: float
    road: float
    walk: float
    front: float
    parking: bool


def render(style: str, seed: Sequence[int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Render scene ``seed`` as image uint8 ``[H, W, 3]`` and label uint8 ``[H, W]``.

    All objects are drawn from a first random stream of ``seed``, independent of ``size``, so one scene has one
    layout at all sizes; light and sensor noise are drawn from a second.
    """
    layout, light = (np.random.default_rng(child) for child in np.random.SeedSequence(seed).spawn(2))
    look = LOOKS[style]
    canvas = _canvas(layout, look, size)
    _sky(canvas, layout, look)
    sides = _side(layout, -1.0), _side(layout, 1.0)
    tram = layout.random() < 0.16
    tracks = -LANE if tram or layout.random() < 0.08 else None
    crossing = float(layout.uniform(6, 12)) if layout.random() < 0.35 else 0.0
    _ground(canvas, layout, look, sides, tracks, crossing)
    for side in sides:
        for paint in _frontage(canvas, layout, look, side):
            paint()
    painters = _traffic(canvas, layout, look, tram, crossing) + _cyclist(canvas, layout, look, sides[1])
    for side in sides:
        painters += _parked(canvas, layout, look, side, crossing)
        painters += _furniture(canvas, layout, look, side)
        painters += _people(canvas, layout, look, side)
    if crossing:
        painters += _crossers(canvas, layout, look, sides, crossing)
    for _, paint in sorted(painters, key=lambda p: -p[0]):
        paint()
    _bonnet(canvas, layout, look)
    return (postprocess_sim if style == "sim" else postprocess_real)(canvas, light), canvas.label


def pick(rng: np.random.Generator, colours: Palette, spread: float = 0.0) -> Colour:
    """Draw one of ``colours``, made brighter or darker at random by up to about ``spread``."""
    colour = colours[int(rng.integers(len(colours)))]
    return np.clip(colour * np.float32(1 + spread * rng.uniform(-1.5, 1.5)), 0, 1)


def _canvas(rng: np.random.Generator, look: Look, size: tuple[int, int]) -> Canvas:
    camera = Camera(
        focal=float(rng.uniform(1.0, 1.35)),
        height=float(rng.uniform(1.5, 1.85)),
        horizon=float(rng.uniform(0.36, 0.5)),
        centre=float(rng.uniform(0.4, 0.6)),
        curve=float(rng.normal(0, 0.0012)) if rng.random() < 0.6 else 0.0,
    )
    haze = pick(rng, look.horizon), float(rng.uniform(*look.density))
    return Canvas(camera, size, haze, noise(rng, (48, 96), size))


def _sky(canvas: Canvas, rng: np.random.Generator, look: Look) -> None:
    size = canvas.label.shape
    clouds = noise(rng, (9, 8), size) * np.float32(0.7) + noise(rng, (20, 18), size) * np.float32(0.3)
    cover = float(rng.uniform(0.3, 0.95)) if look.soft else float(rng.uniform(0.5, 0.8))
    colours = pick(rng, look.zenith), pick(rng, look.horizon), pick(rng, look.cloud)
    scenery.paint_sky(canvas, clouds, *colours, cover, look.cloud_edge)
    heights = rng.uniform(4, 16, 64)
    scenery.paint_skyline(canvas, heights, pick(rng, look.house), pick(rng, look.leaf) * 0.9)


def _side(rng: np.random.Generator, sign: float) -> Side:
    parking = rng.random() < 0.55
    road = (1.9 if sign > 0 else 1.9 + LANE) + (2.2 if parking else 0.3)
    walk = road + rng.uniform(1.8, 3.6)
    front = walk + (rng.uniform(1.5, 6.0) if rng.random() < 0.45 else 0.3)
    return Side(sign, float(road), float(walk), float(front), bool(parking))


def _ground(
    canvas: Canvas,
    rng: np.random.Generator,
    look: Look,
    sides: tuple[Side, Side],
    tracks: float | None,
    crossing: float,
) -> None:
    left, right = sides
    road, walk = pick(rng, look.road, look.spread), pick(rng, look.sidewalk, look.spread)
    kerb, grass = pick(rng, look.kerb), pick(rng, look.terrain, look.spread)
    edges = [-left.walk, -left.road - 0.22, -left.road, right.road, right.road + 0.22, right.walk]
    classes = (
        [things.TERRAIN] + 2 * [things.SIDEWALK] + [things.ROAD] + 2 * [things.SIDEWALK] + [things.TERRAIN]
    )
    colours = [grass, walk, kerb, road, kerb, walk, grass]
    marks = [(-LANE / 2, 3.0, 7.5)] if rng.random() < 0.8 else [(-LANE / 2, 1.0, 0.0)]
    for side in sides:
        if side.parking:
            marks.append((side.sign * (side.road - 2.15), 1.0, 0.0 if rng.random() < 0.5 else 2.0))
    ground = scenery.Ground(
        np.array(edges, np.float32),
        np.array(classes, np.uint8),
        np.stack(colours),
        tuple(marks),
        pick(rng, look.mark),
        crossing,
        tracks,
    )
    scenery.paint_ground(canvas, ground)


def _house(rng: np.random.Generator, look: Look) -> scenery.House:
    return scenery.House(
        wall=pick(rng, look.house, look.spread),
        roof=pick(rng, look.roof, look.spread),
        window=pick(rng, look.window, look.spread),
        shop=pick(rng, look.window, look.spread) * np.float32(1.2),
        height=float(rng.uniform(6, 20)),
        bay=float(rng.uniform(1.8, 3.4)),
        storey=float(rng.uniform(2.8, 3.6)),
        fill=float(rng.uniform(0.4, 0.65)),
        style=int(rng.integers(3)),
    )


def _frontage(canvas: Canvas, rng: np.random.Generator, look: Look, side: Side) -> list[Paint]:
    """Draw houses, walls, fences and gardens along one side, from the far end to the near one."""
    paints: list[Paint] = []
    z = FAR
    while z > 1.5:
        start, kind = max(z - float(rng.uniform(7, 17)), 1.0), rng.random()
        x = side.sign * (side.front + float(rng.uniform(0, 0.6)))
        lot = (x, start), (x, z)
        if kind < 0.62:
            paints.append(partial(_house_at, canvas, lot, side.sign, _house(rng, look)))
        else:
            paints += _garden(canvas, rng, look, lot, side.sign, kind)
        z = start
    return paints


def _house_at(canvas: Canvas, lot: Lot, sign: float, house: scenery.House) -> None:
    (x, start), _ = lot
    gable = canvas.face((min(x, x + sign * 10), start), (max(x, x + sign * 10), start), house.height)
    front = canvas.face(*lot, house.height)
    if gable is not None:
        scenery.paint_house(gable, house, 0.78)
    if front is not None:
        scenery.paint_house(front, house, 1.0)


def _garden(
    canvas: Canvas, rng: np.random.Generator, look: Look, lot: Lot, sign: float, kind: float
) -> list[Paint]:
    """Draw a lot without a house: trees at its back, and a wall, a fence or a hedge in front."""
    (x, start), (_, end) = lot
    trees: list[Painter] = []
    for _ in range(int(rng.integers(1, 3))):
        z = float(rng.uniform(start, end))
        trees.append((z, _tree(canvas, rng, look, x + sign * float(rng.uniform(3, 8)), z)))
    paints = [paint for _, paint in sorted(trees, key=lambda p: -p[0])]
    height = float(rng.uniform(1.3, 2.6))
    if kind < 0.75:
        paints.append(partial(scenery.wall, canvas, *lot, height, pick(rng, look.wall, look.spread)))
    elif kind < 0.9:
        paints.append(partial(scenery.fence, canvas, *lot, height, pick(rng, look.fence, look.spread)))
    else:
        leaf = pick(rng, look.leaf, look.spread)
        paints.append(partial(things.hedge, canvas, *lot, height, leaf, look.ragged))
    return paints


def _tree(canvas: Canvas, rng: np.random.Generator, look: Look, x: float, z: float) -> Paint:
    height = float(rng.uniform(4.5, 9))
    blobs = np.stack((rng.uniform(-0.2, 0.2, 4), rng.uniform(0.5, 0.8, 4), rng.uniform(0.15, 0.24, 4)), 1)
    leaf = pick(rng, look.leaf, look.spread)
    return partial(things.tree, canvas, x, z, height, leaf, blobs.astype(np.float32), look.ragged)


def _clothes(rng: np.random.Generator, look: Look) -> tuple[Colour, ...]:
    hair = (things.rgb(40, 30, 26), things.rgb(92, 64, 40), things.rgb(150, 140, 130))
    skin = things.SKIN[int(rng.integers(3))]
    return (
        pick(rng, look.cloth, look.spread),
        pick(rng, look.cloth, look.spread) * 0.7,
        skin,
        hair[int(rng.integers(3))],
    )


def _grounded(
    canvas: Canvas, look: Look, x: float, z: float, wide: float, deep: float, paint: Paint
) -> Painter:
    """Return a painter that paints the shadow on the ground first; ``z`` is its near end, by which it is sorted."""

    def both() -> None:
        canvas.shadow((x, z + deep / 2), (wide + 0.35, deep + 0.5), 0.6 if look.soft else 0.4, look.soft)
        paint()

    return z, both


def _vehicle(
    canvas: Canvas,
    rng: np.random.Generator,
    look: Look,
    body: things.Body,
    x: float,
    z: float,
    oncoming: bool,
) -> Painter:
    colours = look.car if body.cls == things.CAR else look.large_vehicle
    paint = pick(rng, colours, look.spread)
    draw = partial(things.vehicle, canvas, body, x, z, paint, pick(rng, look.large_vehicle), oncoming)
    return _grounded(canvas, look, x, z, body.width, body.length, draw)


def _two_wheeler(
    canvas: Canvas,
    rng: np.random.Generator,
    look: Look,
    cls: int,
    x: float,
    z: float,
    view: str,
    ridden: bool,
) -> Painter:
    paint = pick(rng, look.car, look.spread)
    colours = _clothes(rng, look) if ridden else None
    draw = partial(things.two_wheeler, canvas, cls, x, z, paint, colours, view)
    return _grounded(canvas, look, x, z, 1.7 if view in ("left", "right") else 0.7, 0.5, draw)


def _traffic(
    canvas: Canvas, rng: np.random.Generator, look: Look, tram: bool, crossing: float
) -> list[Painter]:
    """Draw the traffic in the two lanes, and a tram in the left one; all of it beyond the crossing."""
    painters: list[Painter] = []
    for lane, oncoming in ((0.0, False), (-LANE, True)):
        z = float(rng.uniform(6, 14)) if not crossing else crossing + float(rng.uniform(2, 7))
        if oncoming and tram:
            painters.append(_vehicle(canvas, rng, look, things.TRAM_BODY, lane, z, bool(rng.random() < 0.5)))
            continue
        while z < 55 and rng.random() < 0.75:
            kind = rng.random()
            if kind < 0.2:
                cls = things.MOTORCYCLE if rng.random() < 0.55 else things.BICYCLE
                at = lane + float(rng.uniform(-0.8, 0.8))
                painters.append(
                    _two_wheeler(canvas, rng, look, cls, at, z, "front" if oncoming else "back", True)
                )
                z += 5
                continue
            bodies = (things.CAR_BODY, things.VAN_BODY, things.TRUCK_BODY, things.BUS_BODY)
            body = bodies[int(np.searchsorted((0.5, 0.62, 0.83), kind))]
            at = lane + float(rng.uniform(-0.25, 0.25))
            painters.append(_vehicle(canvas, rng, look, body, at, z, oncoming))
            z += body.length + float(rng.uniform(3, 16))
    return painters


def _cyclist(canvas: Canvas, rng: np.random.Generator, look: Look, side: Side) -> list[Painter]:
    """Draw, in 40% of the scenes, a rider ahead at the edge of the lane."""
    if rng.random() > 0.4:
        return []
    cls = things.BICYCLE if rng.random() < 0.6 else things.MOTORCYCLE
    x, z = side.sign * float(rng.uniform(1.2, 1.8)), float(rng.uniform(5.5, 12))
    return [_two_wheeler(canvas, rng, look, cls, x, z, "back", True)]


def _parked(
    canvas: Canvas, rng: np.random.Generator, look: Look, side: Side, crossing: float
) -> list[Painter]:
    painters: list[Painter] = []
    z = float(rng.uniform(3, 12)) if not crossing else crossing + float(rng.uniform(2, 5))
    while side.parking and z < 50:
        if rng.random() < min(0.6 * look.crowd, 0.9):
            body = things.VAN_BODY if rng.random() < 0.2 else things.CAR_BODY
            at = side.sign * (side.road - 1.1)
            painters.append(_vehicle(canvas, rng, look, body, at, z, side.sign < 0))
        z += float(rng.uniform(5.5, 8))
    return painters


def _furniture(canvas: Canvas, rng: np.random.Generator, look: Look, side: Side) -> list[Painter]:
    """Draw lamps, traffic lights, signs, trees, parked two-wheelers and bins on the pavement."""
    painters: list[Painter] = []
    kerb, pole = side.sign * (side.road + 0.5), pick(rng, look.pole, look.spread)
    for z in np.arange(rng.uniform(6, 18), 60, rng.uniform(15, 24)):
        arm = -side.sign * 1.8
        painters.append((float(z), partial(things.lamp, canvas, kerb, float(z), 6.5, pole, arm)))
    if rng.random() < 0.5:
        z, lit = float(rng.uniform(8, 22)), int(rng.integers(3))
        low = float(rng.uniform(2.2, 3.2))
        painters.append((z, partial(things.traffic_light, canvas, kerb, z, low, pole, lit)))
    for _ in range(int(rng.poisson(0.7 * look.crowd))):
        z, low = float(rng.uniform(7, 26)), float(rng.uniform(1.9, 2.6))
        kind = ("disc", "triangle", "square", "board")[int(rng.integers(4))]
        colour = pick(rng, look.sign, look.spread)
        painters.append((z, partial(things.sign, canvas, kerb, z, low, kind, colour, pole)))
    if rng.random() < look.trees:
        for z in np.arange(rng.uniform(6, 14), 60, rng.uniform(8, 14)):
            at = side.sign * (side.walk + (0.5 if side.front - side.walk > 1.2 else -0.5))
            painters.append((float(z), _tree(canvas, rng, look, at, float(z))))
    if rng.random() < 0.35 * look.crowd:
        z, cls = float(rng.uniform(5.5, 11)), things.BICYCLE if rng.random() < 0.65 else things.MOTORCYCLE
        view = ("left", "right")[int(rng.integers(2))]
        for step in range(int(rng.integers(1, 4))):
            at = side.sign * (side.road + 1.0)
            painters.append(_two_wheeler(canvas, rng, look, cls, at, z + 1.4 * step, view, False))
    if rng.random() < 0.25 * look.crowd:
        z, at = float(rng.uniform(6, 25)), side.sign * (side.walk - 0.5)
        painters.append(
            (z, partial(things.litter_bin, canvas, at, z, pick(rng, look.large_vehicle, look.spread) * 0.8))
        )
    return painters


def _people(canvas: Canvas, rng: np.random.Generator, look: Look, side: Side) -> list[Painter]:
    painters: list[Painter] = []
    for _ in range(int(rng.poisson(1.3 * look.crowd))):
        z, x = float(rng.uniform(5.5, 20)), side.sign * float(rng.uniform(side.road + 0.7, side.walk - 0.3))
        painters += [_person(canvas, rng, look, x, z)]
        if rng.random() < 0.3:
            painters += [_person(canvas, rng, look, x + 0.65, z + 0.1)]
    return painters


def _person(canvas: Canvas, rng: np.random.Generator, look: Look, x: float, z: float) -> Painter:
    height, stride = float(rng.uniform(1.55, 1.9)), float(rng.uniform(0.1, 0.6))
    draw = partial(things.person, canvas, x, z, height, _clothes(rng, look), stride)
    return _grounded(canvas, look, x, z, 0.6, 0.4, draw)


def _crossers(
    canvas: Canvas, rng: np.random.Generator, look: Look, sides: tuple[Side, Side], z: float
) -> list[Painter]:
    """Draw pedestrians, and in 60% of the cases a rider, on the zebra crossing."""
    left, right = sides
    painters = [
        _person(canvas, rng, look, float(rng.uniform(-left.road, right.road)), z + float(rng.uniform(-1, 1)))
        for _ in range(int(rng.integers(0, 3)))
    ]
    if rng.random() < 0.6:
        cls = things.BICYCLE if rng.random() < 0.6 else things.MOTORCYCLE
        x, view = float(rng.uniform(-left.road, right.road)), "left" if rng.random() < 0.5 else "right"
        painters.append(_two_wheeler(canvas, rng, look, cls, x, z, view, True))
    return painters


def _bonnet(canvas: Canvas, rng: np.random.Generator, look: Look) -> None:
    """Paint the ego vehicle's bonnet along the lower edge, labelled void."""
    shown, rise, colour = rng.random() < 0.5, float(rng.uniform(0.05, 0.1)), pick(rng, look.car, look.spread)
    if not shown:
        return
    height, width = canvas.label.shape
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(width, dtype=np.float32)[None] + 0.5) / width - 0.5
    mask = y > 1 - rise * (1 - 1.8 * x * x)
    glow = 0.55 + 2.0 * (1 - y)
    np.copyto(canvas.image, colour[:, None, None] * glow * np.float32(0.9), where=mask)
    np.copyto(canvas.label, np.uint8(things.VOID), where=mask)
