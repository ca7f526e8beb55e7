"""Elements that several images share: sky, sun, clouds, sea, ridges and pines."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageFilter

from featkit_demo.drawing.canvas import (
    HEIGHT,
    WIDTH,
    Canvas,
    Color,
    Gradient,
    Points,
    box,
    color,
    darker,
    ellipse,
    lighter,
    mix,
    points,
)


def sky(canvas: Canvas) -> None:
    """Paint the sky of the light, from zenith to horizon, with stars at night."""
    top, horizon = canvas.light.sky
    canvas.fill(
        box(-3, -2, 3, 1.0),
        Gradient((darker(top, 0.1), top, mix(top, horizon, 0.55), horizon)),
        depth=0.0,
    )
    if canvas.light.windows_lit > 0.8:
        places = np.random.default_rng(7).uniform((-1.4, -1), (1.4, 0.2), (90, 2))
        canvas.fill(
            [ellipse(x, y, 0.004 + 0.004 * (k % 3))[::8] for k, (x, y) in enumerate(places)],
            (255, 255, 255),
            depth=0.05,
            opacity=0.8,
        )


def sun(canvas: Canvas, x: float, *, low: float = 0.3) -> None:
    """Paint the sun or moon with its glow, at the light's height; `low` is the horizon."""
    y = low - canvas.light.sun_height * (low + 0.85)
    canvas.glow(x, y, 1.5, canvas.light.sun, opacity=0.45, depth=0.1)
    canvas.glow(x, y, 0.5, canvas.light.sun, opacity=0.6, depth=0.1)
    canvas.fill(ellipse(x, y, 0.13), lighter(canvas.light.sun, 0.4), depth=0.1)


def clouds(canvas: Canvas, rng: np.random.Generator, *, count: int, low: float) -> None:
    """Paint flat-bottomed clouds between the top and `low`."""
    for _ in range(count):
        x, y, size = rng.uniform(-1.5, 1.5), rng.uniform(-0.9, low), rng.uniform(0.6, 1.25)
        puffs = [
            ellipse(x + dx * size, y - dy * size, r * size)
            for dx, dy, r in (
                (-0.24, 0.0, 0.07),
                (-0.1, 0.05, 0.11),
                (0.05, 0.07, 0.13),
                (0.19, 0.02, 0.09),
            )
        ]
        puffs.append(ellipse(x, y + 0.025 * size, 0.36 * size, 0.055 * size))
        tone = mix((255, 255, 255), canvas.light.sky[1], 0.25)
        canvas.fill(
            puffs,
            Gradient((lighter(tone, 0.6), mix(tone, canvas.light.sky[0], 0.3))),
            depth=0.2,
            opacity=0.82,
            blur=0.008,
            rim=0.3,
        )


def sea(
    canvas: Canvas, rng: np.random.Generator, horizon: float, *, tint: Color = (38, 120, 150)
) -> None:
    """Paint water below the horizon, with a path of glitter."""
    near, far = mix(tint, canvas.light.sky[0], 0.3), mix(tint, canvas.light.sky[1], 0.6)
    canvas.fill(box(-3, horizon, 3, 2.5), Gradient((far, near, darker(near, 0.35))), depth=0.5)
    dashes = []
    for _ in range(130):
        share = rng.random() ** 1.6
        x, y = rng.uniform(-1.7, 1.7), horizon + 0.02 + share * 0.95
        dashes.append(ellipse(x, y, 0.03 + 0.1 * share, 0.003 + 0.007 * share)[::4])
    canvas.fill(dashes, lighter(far, 0.45), depth=0.6, opacity=0.5)


def ridge(
    rng: np.random.Generator, level: float, height: float, *, rough: float = 0.5, count: int = 129
) -> Points:
    """Return a mountain line (count, 2) from left to right, by midpoint displacement.

    It rises at most `height` above `level`.
    """
    line = np.array([rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0, 1)])
    spread = 0.5
    while len(line) < count:
        middle = (line[1:] + line[:-1]) / 2 + rng.uniform(-spread, spread, len(line) - 1)
        line = np.insert(line, np.arange(1, len(line)), middle)
        spread *= rough
    line = (line - line.min()) / max(1e-9, line.max() - line.min())
    return np.stack([np.linspace(-2.4, 2.4, len(line)), level - line * height], axis=1)


def land(line: Points, *, floor: float = 2.5) -> Points:
    """Return the outline of the area below a line."""
    return np.concatenate([line, points((line[-1, 0], floor), (line[0, 0], floor))])


def facets(line: Points, away: float, reach: float, *, step: int = 7) -> list[Points]:
    """Return the faces of a ridge that turn away from the light.

    Each face is the dark slope of a peak. Its inner edge zigzags from the peak to the foot, `reach`
    below.
    """
    found = []
    heights, side = line[:, 1], 1 if away > 0 else -1
    for k in range(step, len(line) - step):
        if heights[k] != heights[k - step : k + step + 1].min():
            continue
        x, y = line[k]
        end = k
        while 0 < end < len(line) - 1 and heights[end + side] >= heights[end] - 0.03:
            end += side
        slope = line[k : end + 1] if side > 0 else line[end : k + 1][::-1]
        wide = abs(float(slope[-1, 0]) - x)
        if wide < 0.04:
            continue
        edge = [
            (x + side * wide * share, y + reach * fall)
            for share, fall in ((0.22, 0.3), (-0.02, 0.42), (0.3, 0.72), (0.12, 0.86), (0.4, 1.3))
        ]
        foot = points((slope[-1, 0] + side * wide * 0.5, y + reach * 1.3))
        found.append(np.concatenate([slope, foot, np.array(edge)[::-1]]))
    return found


def pine(
    canvas: Canvas,
    x: float,
    y: float,
    height: float,
    *,
    depth: float = 1.0,
    tone: Color = (52, 104, 80),
    snow: bool = False,
) -> None:
    """Draw a fir whose foot is at (x, y)."""
    canvas.fill(
        box(x - 0.03 * height, y - 0.2 * height, x + 0.03 * height, y),
        color("5a4030"),
        depth=depth,
    )
    for k in range(4):
        top, wide = y - height * (1 - 0.2 * k), height * (0.14 + 0.06 * k)
        tier = points(
            (x, top),
            (x + wide * 0.55, top + 0.2 * height),
            (x + wide, top + 0.33 * height),
            (x, top + 0.29 * height),
            (x - wide, top + 0.33 * height),
            (x - wide * 0.55, top + 0.2 * height),
        )
        canvas.fill(
            tier, Gradient((lighter(tone, 0.22), darker(tone, 0.2))), depth=depth, shade=0.35
        )
        if snow:
            cap = points(
                (x, top),
                (x + wide * 0.62, top + 0.22 * height),
                (x + wide * 0.2, top + 0.16 * height),
                (x - wide * 0.15, top + 0.21 * height),
                (x - wide * 0.62, top + 0.22 * height),
            )
            canvas.fill(cap, (246, 250, 255), depth=depth, shade=0.2)


def reflect(canvas: Canvas, horizon: float, tint: Color, *, strength: float = 0.6) -> None:
    """Mirror the part above the horizon (world y, at depth 0.5) in still water below it."""
    (edge,) = canvas.camera.project(points((0, horizon)), 0.5)
    row = int(min(HEIGHT - 2, max(2, edge[1])))
    above = canvas.image.crop((0, max(0, 2 * row - HEIGHT), WIDTH, row)).transpose(
        Image.Transpose.FLIP_TOP_BOTTOM
    )
    pixels = np.asarray(above.filter(ImageFilter.GaussianBlur(1.2)), dtype=np.float32)
    rows = np.arange(pixels.shape[0], dtype=np.float32)
    waver = np.sin(rows * 0.55) * (0.8 + rows * 0.03) + np.sin(rows * 0.21 + 1) * (
        0.5 + rows * 0.02
    )
    columns = np.clip(np.arange(WIDTH)[None, :] + waver[:, None].astype(np.int32), 0, WIDTH - 1)
    pixels = np.take_along_axis(pixels, columns[..., None], axis=1)
    depth = (rows / max(1, pixels.shape[0]))[:, None, None]
    blended = pixels * (strength - 0.25 * depth) + np.array(tint, dtype=np.float32) * (
        1 - strength + 0.25 * depth
    )
    canvas.image.paste(Image.fromarray(np.clip(blended, 0, 255).astype(np.uint8)), (0, row))


def haze(
    canvas: Canvas, y: float, thickness: float, *, opacity: float = 0.5, depth: float = 0.4
) -> None:
    """Paint a bank of mist around the height y."""
    canvas.fill(
        box(-3, y - thickness / 2, 3, y + thickness / 2),
        lighter(canvas.light.sky[1], 0.2),
        depth=depth,
        opacity=opacity,
        blur=thickness * 0.4,
    )


def wave_line(y: float, swing: float, waves: float, phase: float) -> Points:
    """Return a gentle sine wave from left to right."""
    x = np.linspace(-2.4, 2.4, 60)
    return np.stack([x, y + swing * np.sin(x * waves * math.pi / 2 + phase)], axis=1)
