"""Surfaces: each function returns a flat swatch of colors and relief for `photograph`.

A swatch is (SIDE_Y, SIDE_X, 3) float32 colors in 0..1 and a (SIDE_Y, SIDE_X) float32 height in
about 0..1.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from featkit_demo.drawing.canvas import HEIGHT, WIDTH, Camera, Color, Light, darker, lighter, mix
from featkit_demo.drawing.stage import Palette

SIDE_Y, SIDE_X = 780, 1040

Field = NDArray[np.floating[Any]]


class Swatch(NamedTuple):
    """A flat surface: colors (SIDE_Y, SIDE_X, 3) in 0..1, relief (SIDE_Y, SIDE_X), its strength."""

    colors: Field
    relief: Field
    strength: float


def photograph(swatch: Swatch, light: Light, camera: Camera) -> Image.Image:
    """Render a swatch under a light; the camera's yaw and tilt turn the plane of the swatch."""
    slope_y, slope_x = np.gradient(swatch.relief)
    x, y = light.towards
    lit = 1 + np.clip(-(slope_x * x + slope_y * y) * swatch.strength, -0.55, 0.7)
    pool_y = np.linspace(-1, 1, SIDE_Y, dtype=np.float32)[:, None]
    pool_x = np.linspace(-1, 1, SIDE_X, dtype=np.float32)[None, :]
    pool = 1.06 - 0.16 * ((pool_x - x * 0.7) ** 2 + (pool_y - y * 0.7) ** 2)
    shadow = np.array(light.shadow, dtype=np.float32) / 255
    shaded = swatch.colors * np.minimum(lit * pool, 1)[..., None]
    shaded += (1 - np.minimum(lit, 1))[..., None] * shadow * 0.25
    shaded += np.clip(lit * pool - 1, 0, 1)[..., None] * (1 - swatch.colors) * 0.3
    flat = Image.fromarray((np.clip(shaded, 0, 1) * 255 + 0.5).astype(np.uint8))
    return flat.transform(
        (WIDTH, HEIGHT), Image.Transform.PERSPECTIVE, _perspective(camera), Image.Resampling.BICUBIC
    )


def _perspective(camera: Camera) -> list[float]:
    """Return Pillow's eight coefficients from image to swatch.

    The plane is turned by yaw (about y), leaned back by tilt and rolled.
    """
    roll, lean = math.radians(camera.roll_deg), (camera.tilt - 0.28) * 1.6
    scale = 1.72 / camera.zoom
    turn = np.array(
        [[math.cos(roll), -math.sin(roll), 0], [math.sin(roll), math.cos(roll), 0], [0, 0, 1]]
    )
    squeeze = np.array([[1, 0, 0], [0, 1, 0], [camera.yaw * 0.34, -lean * 0.34, 1]])
    to_plane = np.array(
        [[scale, 0, camera.pan[0] * 200], [0, scale, camera.pan[1] * 200], [0, 0, 1]]
    )
    center_in = np.array([[1, 0, -WIDTH / 2], [0, 1, -HEIGHT / 2], [0, 0, 1]])
    unit = np.diag([2 / WIDTH, 2 / WIDTH, 1])
    center_out = np.array([[1, 0, SIDE_X / 2], [0, 1, SIDE_Y / 2], [0, 0, 1]])
    matrix = center_out @ to_plane @ turn @ np.linalg.inv(unit) @ squeeze @ unit @ center_in
    numbers = (matrix / matrix[2, 2]).ravel()[:8]
    return [float(number) for number in numbers]


def grid() -> tuple[Field, Field]:
    """Return the pixel coordinates x and y of a swatch, each (SIDE_Y, SIDE_X)."""
    y, x = np.mgrid[0:SIDE_Y, 0:SIDE_X].astype(np.float32)
    return x, y


def noise(rng: np.random.Generator, cells: int, *, octaves: int = 4, stretch: float = 1.0) -> Field:
    """Return smooth noise in 0..1 with about `cells` bumps across, widened by `stretch`.

    Each octave has half the amplitude of the one before.
    """
    total = np.zeros((SIDE_Y, SIDE_X), dtype=np.float32)
    for octave in range(octaves):
        across = max(2, round(cells * 2**octave / stretch))
        down = max(2, round(cells * 2**octave * SIDE_Y / SIDE_X))
        lattice = Image.fromarray(rng.random((down + 2, across + 2), dtype=np.float32))
        total += np.asarray(lattice.resize((SIDE_X, SIDE_Y), Image.Resampling.BICUBIC)) / 2**octave
    scaled: Field = (total - total.min()) / (total.max() - total.min())
    return scaled


def ramp(values: Field, *colors: Color) -> Field:
    """Map values in 0..1 to colors (…, 3)."""
    stops = np.linspace(0, 1, len(colors))
    table = np.stack(
        [
            np.interp(np.linspace(0, 1, 1024), stops, channel)
            for channel in zip(*colors, strict=True)
        ],
        axis=1,
    )
    result: Field = (table.astype(np.float32) / 255)[
        (np.clip(values, 0, 1) * 1023).astype(np.int32)
    ]
    return result


def pick(choice: NDArray[np.int64], colors: list[Color]) -> Field:
    """Map indices to colors (…, 3)."""
    table = np.array(colors, dtype=np.float32) / 255
    result: Field = table[choice % len(colors)]
    return result


def step(values: Field, edge: float, soft: float) -> Field:
    """Return 0 below the edge and 1 above it, with a smooth transition of width `soft`."""
    t = np.clip((values - edge) / soft + 0.5, 0, 1)
    result: Field = t * t * (3 - 2 * t)
    return result


def blend(below: Field, above: Field, share: Field) -> Field:
    """Composite `above` over `below` with a mask."""
    result: Field = below + (above - below) * share[..., None]
    return result


def woven(rng: np.random.Generator, palette: Palette) -> Swatch:
    x, y = grid()
    pitch = float(rng.uniform(13, 17))
    check = int(rng.integers(5, 9))
    column, row = (x / pitch).astype(np.int64), (y / pitch).astype(np.int64)
    across, down = x / pitch % 1 - 0.5, y / pitch % 1 - 0.5
    over = ((column + row) % 2 == 0) if rng.random() < 0.5 else ((column + row) % 4 < 2)
    weft = np.cos(across * math.pi) * 0.4 + np.sqrt(np.maximum(0, 1 - (down * 2.1) ** 2))
    warp = np.cos(down * math.pi) * 0.4 + np.sqrt(np.maximum(0, 1 - (across * 2.1) ** 2))
    relief = np.where(over, weft, warp).astype(np.float32)
    tones = [palette.main, palette.second, palette.accent]
    thread = pick(np.where(over, row // check, column // check), tones)
    fiber = np.where(over, np.sin((y + x * 0.25) * 1.3), np.sin((x + y * 0.25) * 1.3)).astype(
        np.float32
    )
    shade = 0.5 + 0.38 * relief + 0.05 * fiber + 0.1 * (noise(rng, 60, octaves=2) - 0.5)
    return Swatch(thread * np.clip(shade, 0, 1.05)[..., None], relief, 1.6)


def marble(rng: np.random.Generator, palette: Palette) -> Swatch:
    x, y = grid()
    warp, finer = noise(rng, 3, octaves=5), noise(rng, 6, octaves=5)
    angle = float(rng.uniform(0.4, 1.2))
    phase = (x * math.cos(angle) + y * math.sin(angle)) / 150 + warp * 7 + finer * 2
    vein = np.abs(np.sin(phase)) ** 0.5
    hair = np.abs(np.sin(phase * 1.9 + finer * 6)) ** 0.35
    ground = lighter(palette.second, 0.4) if rng.random() < 0.6 else darker(palette.main, 0.35)
    dark = darker(palette.main, 0.2) if ground[0] > 150 else lighter(palette.accent, 0.4)
    colors = ramp(
        vein * 0.75 + finer * 0.25, dark, mix(ground, dark, 0.3), ground, lighter(ground, 0.25)
    )
    colors = blend(
        np.broadcast_to(
            np.array(lighter(palette.accent, 0.1), dtype=np.float32) / 255, colors.shape
        ),
        colors,
        step(hair, 0.18, 0.2),
    )
    return Swatch(colors, vein * 0.2, 0.8)


def wood(rng: np.random.Generator, palette: Palette) -> Swatch:
    x, y = grid()
    boards = int(rng.integers(4, 7))
    high = SIDE_Y / boards
    board = (y / high).astype(np.int64)
    shift = rng.uniform(0, 900, boards + 1).astype(np.float32)[board]
    tone = rng.uniform(-0.16, 0.16, boards + 1).astype(np.float32)[board]
    knots = rng.uniform(0.1, 0.9, (boards + 1, 2)).astype(np.float32)
    u, v = x + shift, y - board * high
    wobble = noise(rng, 3, octaves=4, stretch=2.5)
    distance = np.hypot(
        (x - knots[board, 0] * SIDE_X) / 3.2, v - (0.2 + 0.6 * knots[board, 1]) * high
    )
    rings = v / 9 + wobble * 9 + 16 * np.exp(-distance / 24) + np.sin(u / 170) * 1.2
    grainy = 0.5 + 0.5 * np.sin(rings * 2.2)
    fine = noise(rng, 26, octaves=3, stretch=22)
    base = (
        mix((176, 118, 70), palette.main, 0.18)
        if rng.random() < 0.5
        else mix((214, 176, 128), palette.floor, 0.25)
    )
    colors = ramp(
        grainy * 0.6 + fine * 0.4 + tone,
        darker(base, 0.5),
        darker(base, 0.12),
        lighter(base, 0.12),
        lighter(base, 0.34),
    )
    seam = step(np.minimum(v, high - v), 2.5, 3) * step(np.abs((u + board * 331) % 700 - 3), 3, 3)
    return Swatch(
        colors * (0.35 + 0.65 * seam)[..., None], seam * 3 + fine * 1.6 + grainy * 0.5, 0.6
    )


def tiles(rng: np.random.Generator, palette: Palette) -> Swatch:
    x, y = grid()
    side = float(rng.uniform(105, 150))
    a, b = x / side % 1, y / side % 1
    column, row = (x / side).astype(np.int64), (y / side).astype(np.int64)
    kind = int(rng.integers(3))
    soft = 2.2 / side
    flip_a, flip_b = np.where(column % 2 == 0, a, 1 - a), np.where(row % 2 == 0, b, 1 - b)
    tones = [
        np.array(c, dtype=np.float32) / 255
        for c in (palette.second, palette.main, palette.accent, palette.wall)
    ]
    base = np.broadcast_to(tones[0], (SIDE_Y, SIDE_X, 3))
    if kind == 0:
        r = np.hypot(flip_a, flip_b)
        colors = blend(
            blend(blend(base, tones[1], step(-r, -0.92, soft)), tones[3], step(-r, -0.66, soft)),
            tones[2],
            step(-r, -0.34, soft),
        )
    elif kind == 1:
        p, q = a - 0.5, b - 0.5
        star = np.maximum(np.abs(p) + np.abs(q), np.maximum(np.abs(p), np.abs(q)) * 1.35)
        colors = blend(
            blend(base, tones[1], step(-star, -0.56, soft)), tones[2], step(-star, -0.4, soft)
        )
        colors = blend(colors, tones[3], step(-np.hypot(p, q), -0.16, soft))
        corner = np.hypot(0.5 - np.abs(p), 0.5 - np.abs(q))
        colors = blend(colors, tones[1], step(-corner, -0.2, soft))
    else:
        turns = rng.integers(0, 2, (64, 64))[row, column]
        p = np.where(turns == 0, a, 1 - a)
        near, far = np.hypot(p, b), np.hypot(1 - p, 1 - b)
        ring = np.minimum(np.abs(near - 0.5), np.abs(far - 0.5))
        colors = blend(
            blend(base, tones[2], step(-np.minimum(near, far), -0.5, soft)),
            tones[1],
            step(-ring, -0.13, soft),
        )
    grout = step(np.minimum(np.minimum(a, 1 - a), np.minimum(b, 1 - b)), 0.018, 0.016)
    pale = np.array(lighter(palette.wall, 0.5), dtype=np.float32) / 255
    glaze = (
        0.93
        + 0.1 * noise(rng, 12, octaves=3)
        + 0.05 * rng.standard_normal((64, 64)).astype(np.float32)[row, column]
    )
    edge = step(np.minimum(np.minimum(a, 1 - a), np.minimum(b, 1 - b)), 0.035, 0.06)
    return Swatch(
        blend(np.broadcast_to(pale * 0.85, colors.shape), colors * glaze[..., None], grout),
        edge * 6,
        0.5,
    )


def nearest_two(rng: np.random.Generator, cells: int) -> tuple[NDArray[np.int64], Field, Field]:
    """Return a Voronoi diagram of a jittered lattice: index of the nearest seed, two distances.

    The distances are those to the nearest and to the second nearest seed.
    """
    pitch = SIDE_X / cells
    columns, rows = cells + 4, math.ceil(SIDE_Y / pitch) + 4
    seeds_x = (np.arange(columns)[None, :] - 2 + rng.uniform(0.08, 0.92, (rows, columns))).astype(
        np.float32
    ) * pitch
    seeds_y = (np.arange(rows)[:, None] - 2 + rng.uniform(0.08, 0.92, (rows, columns))).astype(
        np.float32
    ) * pitch
    x, y = grid()
    column, row = (x / pitch).astype(np.int64) + 2, (y / pitch).astype(np.int64) + 2
    first = np.full(x.shape, np.inf, dtype=np.float32)
    second, number = first.copy(), np.zeros(x.shape, dtype=np.int64)
    for down in (-1, 0, 1):
        for across in (-1, 0, 1):
            seed = (row + down) * columns + column + across
            distance = np.hypot(x - seeds_x.ravel()[seed], y - seeds_y.ravel()[seed])
            closer = distance < first
            second = np.where(closer, first, np.minimum(second, distance))
            number = np.where(closer, seed, number)
            first = np.minimum(first, distance)
    return number, first, second


def cells(rng: np.random.Generator, palette: Palette) -> Swatch:
    number, first, second = nearest_two(rng, int(rng.integers(9, 14)))
    border = second - first
    tones = [
        palette.main,
        palette.accent,
        palette.second,
        lighter(palette.main, 0.4),
        palette.floor,
        darker(palette.accent, 0.25),
    ]
    colors = pick(rng.integers(0, len(tones), number.max() + 1)[number], tones)
    dome = np.minimum(border, 34) / 34
    lead = np.array(darker(palette.main, 0.75), dtype=np.float32) / 255
    colors = colors * (0.72 + 0.4 * dome + 0.12 * noise(rng, 9, octaves=3))[..., None]
    return Swatch(
        blend(np.broadcast_to(lead, colors.shape), colors, step(border, 6, 3)),
        dome**0.5 * 14,
        0.55,
    )


def bricks(rng: np.random.Generator, palette: Palette) -> Swatch:
    x, y = grid()
    high = float(rng.uniform(46, 60))
    wide = high * 2.6
    row = (y / high).astype(np.int64)
    offset = x + (row % 2) * wide / 2
    column = (offset / wide).astype(np.int64)
    bump = noise(rng, 16, octaves=4)
    edge_x = np.minimum(offset % wide, wide - offset % wide)
    edge_y = np.minimum(y % high, high - y % high)
    inside = np.minimum(edge_x, edge_y) + (bump - 0.5) * 7
    clay = (
        mix((186, 82, 56), palette.main, 0.22)
        if rng.random() < 0.6
        else mix((196, 150, 104), palette.accent, 0.35)
    )
    choice = rng.integers(0, 5, 4000)[(row * 61 + column) % 4000]
    tones = [
        clay,
        darker(clay, 0.16),
        lighter(clay, 0.14),
        mix(clay, palette.accent, 0.3),
        darker(clay, 0.06),
    ]
    colors = (
        pick(choice, tones)
        * (0.82 + 0.32 * bump + 0.1 * (noise(rng, 90, octaves=2) - 0.5))[..., None]
    )
    mortar = np.array(mix((214, 204, 190), palette.floor, 0.2), dtype=np.float32) / 255
    face = step(inside, 4.5, 3)
    return Swatch(
        blend(mortar * (0.8 + 0.2 * bump)[..., None], colors, face),
        np.minimum(inside, 9) + bump * 3,
        0.09,
    )


def knit(rng: np.random.Generator, palette: Palette) -> Swatch:
    x, y = grid()
    wide, high = 30.0, 26.0
    column = (x / wide).astype(np.int64)
    u = x / wide % 1 - 0.5
    lean = y - np.abs(u) * high * 1.25
    row = np.floor(lean / high).astype(np.int64)
    v = lean / high - row - 0.5
    yarn = np.sqrt(np.maximum(0, 1 - (v * 1.95) ** 2)) * np.sqrt(
        np.maximum(0, 1 - ((np.abs(u) - 0.25) * 3.7) ** 2)
    )
    period = int(rng.integers(8, 14))
    motif = np.abs((column % period) - period // 2) + np.abs((row % period) - period // 2)
    stripes = (row // (period // 2)) % 3
    choice = (
        np.where(motif == period // 2 - 1, 1, np.where(motif < 2, 2, 0))
        if rng.random() < 0.6
        else stripes
    )
    ply = np.sin((v * 3.2 + np.abs(u) * 5) * 6.3).astype(np.float32)
    colors = pick(choice, [palette.main, palette.second, palette.accent])
    shade = 0.34 + 0.66 * yarn + 0.045 * ply + 0.1 * (noise(rng, 80, octaves=2) - 0.5)
    return Swatch(
        (colors * np.clip(shade, 0, 1.06)[..., None]).astype(np.float32),
        yarn.astype(np.float32) * 6,
        0.6,
    )


def terrazzo(rng: np.random.Generator, palette: Palette) -> Swatch:
    ground = lighter(palette.wall, 0.35)
    colors = ramp(noise(rng, 40, octaves=3), darker(ground, 0.06), ground, lighter(ground, 0.2))
    tones = [
        palette.main,
        palette.accent,
        palette.floor,
        darker(palette.main, 0.4),
        lighter(palette.main, 0.45),
        (250, 248, 242),
    ]
    for count, spacing in ((30, 5.5), (15, 9.0), (8, 17.0)):
        number, first, second = nearest_two(rng, count)
        present = rng.random(number.max() + 1) < 0.62
        chip = (
            step(second - first, spacing, 2.5)
            * step(-first, -SIDE_X / count * float(rng.uniform(0.36, 0.46)), 3)
            * present[number]
        )
        layer = pick(rng.integers(0, len(tones), number.max() + 1)[number], tones)
        colors = blend(
            colors,
            layer * (0.9 + 0.14 * noise(rng, 30, octaves=2))[..., None],
            chip.astype(np.float32),
        )
    return Swatch(colors, noise(rng, 50, octaves=2) * 2, 0.25)


def waves(rng: np.random.Generator, palette: Palette) -> Swatch:
    x, y = grid()
    radius = float(rng.uniform(62, 92))
    colors = np.zeros((SIDE_Y, SIDE_X, 3), dtype=np.float32)
    relief = np.zeros((SIDE_Y, SIDE_X), dtype=np.float32)
    done = np.zeros((SIDE_Y, SIDE_X), dtype=bool)
    tones = [
        palette.main,
        palette.second,
        mix(palette.main, palette.accent, 0.6),
        palette.second,
        palette.accent,
    ]
    row = np.floor(y / (radius / 2)).astype(np.int64)
    for ahead in range(3, -2, -1):  # scales of lower rows overlap the rows above
        line = row + ahead
        shift = (line % 2) * radius
        middle = np.round((x - shift) / (2 * radius)) * 2 * radius + shift
        distance = np.hypot(x - middle, y - (line + 1) * (radius / 2)) / radius
        now = (distance < 1) & ~done
        band = np.clip(distance * 5, 0, 4.99)
        inner = np.abs(band % 1 - 0.5) * 2
        paint = pick(4 - band.astype(np.int64), tones) * (1.04 - 0.2 * (inner**3))[..., None]
        colors[now], relief[now] = (
            paint[now],
            ((1 - distance) * 9 + np.cos(band * 2 * math.pi))[now],
        )
        done |= now
    colors *= (0.9 + 0.16 * noise(rng, 12, octaves=4))[..., None]
    return Swatch(colors, relief, 0.5)
