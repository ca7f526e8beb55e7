"""Landscapes above and below water. The functions have the signature of those in objects.py."""

from __future__ import annotations

import math

import numpy as np

from featkit_demo.drawing.canvas import (
    Canvas,
    Gradient,
    box,
    color,
    darker,
    ellipse,
    lighter,
    mix,
    points,
    smooth,
)
from featkit_demo.drawing.scenery import (
    clouds,
    facets,
    haze,
    land,
    pine,
    reflect,
    ridge,
    sea,
    sky,
    sun,
    wave_line,
)
from featkit_demo.drawing.stage import Palette


def lake(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    sun(canvas, rng.uniform(-0.5, 0.5), low=0.1)
    base = mix(color("5a6f8f"), palette.main, 0.45)
    for k in range(3):
        line = ridge(rng, 0.2, 0.72 - 0.2 * k, rough=0.48)
        tone = mix(mix(base, canvas.light.sky[1], 0.55), darker(base, 0.35), k / 2)
        canvas.fill(land(line, floor=0.25), Gradient((lighter(tone, 0.15), tone)), depth=0.5)
        canvas.fill(
            facets(line, -canvas.light.towards[0], 0.3),
            canvas.light.shadow,
            depth=0.5,
            opacity=0.25,
            within=land(line),
        )
    for x in np.arange(-2, 2.1, 0.09):
        pine(
            canvas,
            x + rng.uniform(-0.03, 0.03),
            0.215,
            rng.uniform(0.1, 0.22),
            depth=0.5,
            tone=darker(mix(base, (40, 96, 76), 0.7), 0.15),
        )
    reflect(canvas, 0.2, mix(darker(canvas.light.sky[0], 0.25), base, 0.2), strength=0.72)
    haze(canvas, 0.2, 0.03, opacity=0.6, depth=0.5)
    for x, y, size in ((rng.uniform(-0.9, -0.2), 0.42, 0.16), (rng.uniform(0.2, 1.0), 0.6, 0.26)):
        sail = points((x, y - size * 1.5), (x + size * 0.62, y - size * 0.12), (x, y - size * 0.12))
        jib = points(
            (x - size * 0.06, y - size * 1.25),
            (x - size * 0.46, y - size * 0.12),
            (x - size * 0.06, y - size * 0.12),
        )
        hull = points(
            (x - size * 0.66, y - size * 0.06),
            (x + size * 0.7, y - size * 0.06),
            (x + size * 0.5, y + size * 0.14),
            (x - size * 0.46, y + size * 0.14),
        )
        for part, tone, fade in (
            (sail, palette.second, 0.22),
            (jib, palette.accent, 0.22),
            (hull, palette.main, 0.3),
        ):
            mirrored = (part - (0, y + size * 0.14)) * (1, -0.8) + (0, y + size * 0.14)
            canvas.fill(mirrored, tone, opacity=fade, blur=0.008)
        canvas.fill(sail, Gradient((lighter(palette.second, 0.4), palette.second)), shade=0.2)
        canvas.fill(jib, palette.accent, shade=0.2)
        canvas.fill(hull, Gradient((palette.main, darker(palette.main, 0.4))))
    reeds = [
        points((x, 1.2), (x + 0.018, 1.2), (x + lean, 1.2 - tall))
        for x, lean, tall in zip(
            rng.uniform(-1.7, -0.9, 40),
            rng.uniform(-0.1, 0.14, 40),
            rng.uniform(0.3, 0.75, 40),
            strict=True,
        )
    ]
    canvas.fill(reeds, darker(mix(base, (60, 110, 70), 0.6), 0.45), depth=1.1)


def beach(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    sun(canvas, rng.uniform(-0.7, 0.7), low=-0.1)
    clouds(canvas, rng, count=4, low=-0.4)
    sea(canvas, rng, -0.12, tint=mix((30, 140, 160), palette.main, 0.15))
    for x, size in ((rng.uniform(-1.1, -0.3), 0.09), (rng.uniform(0.3, 1.1), 0.13)):
        canvas.fill(
            points((x, -0.1 - size * 1.6), (x + size * 0.7, -0.09), (x, -0.09)),
            (255, 255, 255),
            depth=0.5,
        )
        canvas.fill(
            points(
                (x - size * 0.5, -0.085),
                (x + size * 0.8, -0.085),
                (x + size * 0.5, -0.05),
                (x - size * 0.3, -0.05),
            ),
            palette.main,
            depth=0.5,
        )
    sand = mix(color("efd6a4"), palette.floor, 0.2)
    slope, phase = rng.uniform(-0.18, 0.18), rng.uniform(0, 6)
    for k, (level, opacity) in enumerate(((0.2, 0.35), (0.27, 0.6), (0.33, 0.9))):
        shore = wave_line(level, 0.035, 1.6, phase + k) + np.stack(
            [np.zeros(60), np.linspace(-slope, slope, 60)], axis=1
        )
        canvas.fill(land(shore - (0, 0.022)), (255, 255, 255), depth=0.8, opacity=opacity)
        wet = (
            mix(sand, color("6fb8bd"), 0.75 - 0.35 * k)
            if k < 2
            else Gradient((darker(sand, 0.14), sand, lighter(sand, 0.2)))
        )
        canvas.fill(land(shore), wet, depth=0.8)
    grains = [
        ellipse(x, y, 0.006)[::16]
        for x, y in zip(rng.uniform(-1.7, 1.7, 160), rng.uniform(0.45, 1.1, 160), strict=True)
    ]
    canvas.fill(grains, darker(sand, 0.3), opacity=0.4)
    places = [(rng.uniform(-0.9, -0.4), 0.68, 1.0), (rng.uniform(0.35, 0.95), 0.52, 0.72)]
    for (x, y, size), tone in zip(
        places, (palette.main, mix(palette.accent, color("e76f51"), 0.4)), strict=True
    ):
        parasol(canvas, x, y, size, (tone, palette.second))
    ball = ellipse(0.1, 0.86, 0.075)
    canvas.fill(ellipse(0.1, 0.94, 0.09, 0.02), canvas.light.shadow, opacity=0.35, blur=0.01)
    canvas.fill(ball, palette.accent, shade=0.5, rim=0.3)
    canvas.fill(box(0.07, 0.7, 0.11, 1), palette.second, within=ball)


def parasol(
    canvas: Canvas,
    x: float,
    y: float,
    size: float,
    tones: tuple[tuple[int, int, int], tuple[int, int, int]],
) -> None:
    """Draw an umbrella and its towel on the sand."""
    away = -canvas.light.towards[0]
    canvas.fill(
        ellipse(x + away * 0.2 * size, y + 0.02, 0.42 * size, 0.085 * size),
        canvas.light.shadow,
        opacity=0.35,
        blur=0.02,
    )
    towel = points(
        (x + 0.05, y - 0.02),
        (x + 0.34 * size, y - 0.02),
        (x + 0.46 * size, y + 0.16 * size),
        (x + 0.13, y + 0.16 * size),
    )
    canvas.fill(towel, Gradient((lighter(tones[0], 0.5), tones[0])), shadow=0.2)
    canvas.stroke(
        points((x, y), (x - 0.03 * size, y - 0.62 * size)), 0.022, (250, 246, 236), shade=0.3
    )
    tip_x, tip_y, reach = x - 0.03 * size, y - 0.72 * size, 0.42 * size
    arc = np.linspace(math.pi, 2 * math.pi, 25)
    rim = np.stack(
        [tip_x + reach * np.cos(arc), tip_y + 0.26 * size + 0.26 * size * np.sin(arc)], axis=1
    )
    canopy = np.concatenate(
        [
            rim,
            smooth(
                points(
                    (tip_x + reach, tip_y + 0.26 * size),
                    (tip_x, tip_y + 0.2 * size),
                    (tip_x - reach, tip_y + 0.26 * size),
                ),
                closed=False,
            ),
        ]
    )
    canvas.fill(canopy, tones[0], shadow=0.2)
    for k in (-1, 1):
        gore = smooth(
            points(
                (tip_x, tip_y - 0.02),
                (tip_x + k * reach * 0.5, tip_y + 0.08 * size),
                (tip_x + k * reach * 0.66, tip_y + 0.3 * size),
                (tip_x + k * reach * 0.28, tip_y + 0.3 * size),
                (tip_x + k * reach * 0.2, tip_y + 0.1 * size),
            )
        )
        canvas.fill(gore, tones[1], within=canopy)
    canvas.fill(canopy, tones[0], opacity=0.0, shade=0.5, rim=0.3)


def reef(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    water = mix(color("1b86a8"), canvas.light.sky[0], 0.45)
    canvas.fill(
        box(-3, -2, 3, 2), Gradient((lighter(water, 0.55), water, darker(water, 0.6))), depth=0.0
    )
    for k in range(7):
        x = -1.7 + 0.55 * k + rng.uniform(-0.1, 0.1)
        canvas.fill(
            points((x, -1.5), (x + 0.16, -1.5), (x - 0.3, 1.2), (x - 0.8, 1.2)),
            canvas.light.sun,
            depth=0.2,
            opacity=0.13,
            blur=0.05,
        )
    for k in range(3):
        depth = 0.4 + 0.3 * k
        tone = mix(darker(mix(color("b9a07a"), water, 0.35), 0.1), water, 0.6 - 0.3 * k)
        line = wave_line(0.45 + 0.22 * k, 0.08, 1.0 + 0.3 * k, rng.uniform(0, 6))
        canvas.fill(land(line), Gradient((lighter(tone, 0.2), darker(tone, 0.4))), depth=depth)
        for _ in range(7):
            x = rng.uniform(-1.8, 1.8)
            y = float(np.interp(x, line[:, 0], line[:, 1])) + 0.04
            hue = mix(
                (palette.main, palette.accent, color("f27d72"), color("f4b860"))[
                    int(rng.integers(4))
                ],
                water,
                0.45 - 0.2 * k,
            )
            size = rng.uniform(0.1, 0.2) * (0.8 + 0.4 * k)
            if rng.random() < 0.5:
                fan = [
                    smooth(
                        points(
                            (x, y),
                            (x + size * 0.5 * s, y - size * 0.7),
                            (x + size * 1.1 * s, y - size * 1.6 + abs(s) * size * 0.5),
                        ),
                        closed=False,
                    )
                    for s in (-1, -0.5, 0, 0.5, 1)
                ]
                canvas.stroke(
                    fan, size * 0.22, Gradient((lighter(hue, 0.3), hue)), depth=depth, shade=0.4
                )
            else:
                canvas.fill(
                    [
                        ellipse(x + dx * size, y - dy * size, size * 0.5)
                        for dx, dy in ((-0.5, 0.1), (0, 0.35), (0.5, 0.1))
                    ],
                    Gradient((lighter(hue, 0.3), darker(hue, 0.2))),
                    depth=depth,
                    shade=0.5,
                    rim=0.3,
                )
        for _ in range(5):
            x, y, size = rng.uniform(-1.3, 1.3), rng.uniform(-0.7, 0.35), 0.05 + 0.03 * k
            face = 1 if rng.random() < 0.6 else -1
            hue = mix(
                (palette.accent, color("ffb347"), palette.second)[int(rng.integers(3))],
                water,
                0.4 - 0.18 * k,
            )
            tail = points(
                (x - face * size * 0.8, y),
                (x - face * size * 1.7, y - size * 0.6),
                (x - face * size * 1.7, y + size * 0.6),
            )
            canvas.fill([tail], darker(hue, 0.15), depth=depth)
            canvas.fill(
                ellipse(x, y, size, size * 0.55),
                Gradient((lighter(hue, 0.3), hue)),
                depth=depth,
                shade=0.4,
            )
            canvas.fill(
                ellipse(x + face * size * 0.55, y - size * 0.1, size * 0.1),
                (20, 24, 44),
                depth=depth,
            )
    bubbles = [
        ellipse(x, y, r)
        for x, y, r in zip(
            rng.uniform(-1.4, 1.4, 22),
            rng.uniform(-0.9, 0.9, 22),
            rng.uniform(0.01, 0.035, 22),
            strict=True,
        )
    ]
    canvas.stroke(bubbles, 0.007, (255, 255, 255), depth=0.8, opacity=0.5)
