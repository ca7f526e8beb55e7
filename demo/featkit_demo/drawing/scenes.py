"""Landscapes. The functions have the signature of those in objects.py."""

from __future__ import annotations

import math

import numpy as np

from featkit_demo.drawing.canvas import (
    Canvas,
    Gradient,
    Points,
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
    sky,
    sun,
    wave_line,
)
from featkit_demo.drawing.stage import Palette


def mountains(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    sun(canvas, rng.uniform(-0.8, 0.8))
    clouds(canvas, rng, count=4, low=-0.45)
    base = mix(color("4d5f86"), palette.main, 0.35)
    snowy = rng.random() < 0.6
    for k in range(4):
        share = k / 3
        line = ridge(rng, 0.2 + 0.22 * k, 1.0 - 0.24 * k, rough=0.52)
        tone = mix(mix(base, canvas.light.sky[1], 0.62), darker(base, 0.4), share)
        depth = 0.25 + 0.22 * k
        canvas.fill(
            land(line),
            Gradient((lighter(tone, 0.12), tone, mix(tone, canvas.light.sky[1], 0.45))),
            depth=depth,
        )
        if k < 3:
            dark = facets(line, -canvas.light.towards[0], 0.75 - 0.15 * k)
            canvas.fill(
                dark,
                mix(darker(base, 0.4), tone, 0.35),
                depth=depth,
                opacity=0.5,
                within=land(line),
            )
        if snowy and k < 2:
            top = line[:, 1].min()
            across = line[:, 0]
            lower = np.stack(
                [
                    across,
                    np.maximum(
                        line[:, 1],
                        top + 0.26 + 0.05 * np.sin(across * 21) + 0.03 * np.sin(across * 47),
                    ),
                ],
                axis=1,
            )
            canvas.fill(
                np.concatenate([line, lower[::-1]]), (250, 250, 255), depth=depth, opacity=0.85
            )
            canvas.fill(
                dark,
                mix(tone, base, 0.6),
                depth=depth,
                opacity=0.4,
                within=np.concatenate([line, lower[::-1]]),
            )
        haze(canvas, 0.36 + 0.2 * k, 0.12, opacity=0.35, depth=depth)
    for x in np.arange(-1.6, 1.7, 0.13):
        pine(
            canvas,
            x + rng.uniform(-0.04, 0.04),
            1.08 + rng.uniform(-0.05, 0.1),
            rng.uniform(0.25, 0.5),
            tone=darker(mix(base, (40, 90, 70), 0.6), 0.3),
        )


def city(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    sun(canvas, rng.uniform(-0.9, 0.9), low=0.1)
    clouds(canvas, rng, count=3, low=-0.4)
    base = mix(color("49597f"), palette.main, 0.45)
    lit = rng.random((4, 60, 400))
    for k in range(3):
        tone = mix(mix(base, canvas.light.sky[1], 0.6), darker(base, 0.35), k / 2)
        depth, x = 0.4 + 0.3 * k, -2.2
        number = 0
        while x < 2.2:
            wide = rng.uniform(0.16, 0.34) * (0.75 + 0.2 * k)
            tall = rng.uniform(0.35, 1.25) * (1.0 - 0.2 * k) * (1.35 if rng.random() < 0.15 else 1)
            top = 0.62 + 0.13 * k - tall
            number += 1
            tower = box(x, top, x + wide, 2.0)
            own = mix(tone, (palette.accent, palette.wall, palette.main)[number % 3], 0.22)
            canvas.fill(
                tower,
                Gradient((lighter(own, 0.12), own, mix(own, canvas.light.sky[1], 0.25))),
                depth=depth,
            )
            side = x if canvas.light.towards[0] > 0 else x + wide * 0.66
            canvas.fill(
                box(side, top, side + wide * 0.34, 2.0),
                canvas.light.shadow,
                depth=depth,
                opacity=0.25,
            )
            crown = number % 4
            if crown == 1:
                canvas.fill(box(x + wide * 0.2, top - 0.06, x + wide * 0.8, top), own, depth=depth)
            elif crown == 2:
                canvas.fill(
                    points((x, top), (x + wide / 2, top - wide * 0.55), (x + wide, top)),
                    darker(own, 0.1),
                    depth=depth,
                )
            elif crown == 3:
                canvas.fill(box(x + wide * 0.47, top - 0.2, x + wide * 0.53, top), own, depth=depth)
            step = 0.05 + 0.012 * k
            columns = max(1, int((wide - 0.03) / step))
            glass: list[Points] = []
            dark: list[Points] = []
            for i in range(columns):
                for j in range(int((0.95 - top) / (step * 1.25))):
                    wx, wy = x + 0.022 + i * step, top + 0.05 + j * step * 1.25
                    pane = box(wx, wy, wx + step * 0.55, wy + step * 0.7)
                    (
                        glass
                        if lit[k, number % 60, (i * 37 + j) % 400] < canvas.light.windows_lit
                        else dark
                    ).append(pane)
            canvas.fill(dark, darker(own, 0.35), depth=depth, opacity=0.5)
            canvas.fill(glass, color("ffd98a"), depth=depth)
            x += wide + rng.uniform(0.0, 0.05)
        haze(canvas, 0.75 + 0.1 * k, 0.2, opacity=0.3, depth=depth)
    if rng.random() < 0.5:
        canvas.fill(box(-3, 0.78, 3, 0.8), color("ffffff"), opacity=0.4, depth=1)
        reflect(canvas, 0.62, darker(canvas.light.sky[0], 0.3), strength=0.55)
    else:
        for x in np.arange(-1.7, 1.8, 0.15):
            r = rng.uniform(0.09, 0.16)
            tone = mix(color("5b8c62"), base, 0.3)
            canvas.fill(
                ellipse(x, 0.98, r, r * 1.1),
                Gradient((lighter(tone, 0.2), darker(tone, 0.3))),
                shade=0.4,
            )


def forest(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    glow = mix(lighter(canvas.light.sky[1], 0.3), palette.wall, 0.15)
    leaf = (color("5fae4e"), color("d9953a"), color("3f9c84"))[int(rng.integers(3))]
    canvas.fill(
        box(-3, -2, 3, 2),
        Gradient((mix(leaf, glow, 0.25), mix(leaf, glow, 0.75), mix(leaf, glow, 0.35))),
        depth=0.0,
    )
    canvas.glow(rng.uniform(-0.6, 0.6), -0.5, 1.3, canvas.light.sun, opacity=0.6, depth=0.1)
    for k in range(4):
        share = k / 3
        tone = mix(mix(leaf, glow, 0.6), darker(mix(leaf, (70, 52, 44), 0.55), 0.45), share)
        depth = 0.3 + 0.25 * k
        ground = wave_line(0.45 + 0.16 * k, 0.05, 1.1, rng.uniform(0, 6))
        trunks = []
        for x in np.arange(-2.1, 2.2, 0.3 + 0.2 * k):
            x, wide, lean = (
                x + rng.uniform(-0.1, 0.1),
                (0.02 + 0.026 * k) * rng.uniform(0.7, 1.3),
                rng.uniform(-0.05, 0.05),
            )
            trunks.append(
                points(
                    (x - wide * 0.7 + lean, -2),
                    (x + wide * 0.7 + lean, -2),
                    (x + wide, 0.4),
                    (x + wide * 2, 0.62 + 0.16 * k),
                    (x - wide * 2, 0.62 + 0.16 * k),
                    (x - wide, 0.4),
                )
            )
            crown = [
                ellipse(
                    x + lean + rng.uniform(-0.25, 0.25),
                    -0.95 + rng.uniform(-0.25, 0.18),
                    rng.uniform(0.14, 0.3),
                    rng.uniform(0.1, 0.2),
                )
                for _ in range(4)
            ]
            canvas.fill(
                crown,
                Gradient((mix(tone, leaf, 0.75), mix(tone, leaf, 0.45))),
                depth=depth,
                opacity=0.9,
                shade=0.25,
                rim=0.15,
            )
        canvas.fill(trunks, Gradient((darker(tone, 0.1), tone)), depth=depth)
        soil = mix(tone, leaf, 0.5)
        canvas.fill(land(ground), Gradient((lighter(soil, 0.14), darker(soil, 0.35))), depth=depth)
        if k < 3:
            haze(canvas, 0.42 + 0.13 * k, 0.22, opacity=0.42, depth=depth)
    side = canvas.light.towards[0]
    for k in range(4):
        x = -1.0 + 0.6 * k + rng.uniform(-0.1, 0.1)
        canvas.fill(
            points((x, -1.4), (x + 0.16, -1.4), (x + 0.34 - side, 1.2), (x - 0.1 - side, 1.2)),
            canvas.light.sun,
            opacity=0.13,
            blur=0.05,
            depth=0.5,
        )
    ferns = [
        points((x, 1.2), (x + 0.02, 1.2), (x + lean, 1.2 - tall))
        for x, lean, tall in zip(
            rng.uniform(-1.8, 1.8, 110),
            rng.uniform(-0.2, 0.2, 110),
            rng.uniform(0.1, 0.42, 110),
            strict=True,
        )
    ]
    canvas.fill(ferns, Gradient((leaf, darker(leaf, 0.6))), depth=1.15)


def desert(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    sun(canvas, rng.uniform(-0.9, 0.9), low=0.0)
    sand = mix(color("e3a765"), palette.accent, 0.3)
    away = -canvas.light.towards[0]
    for k in range(4):
        depth = 0.3 + 0.23 * k
        tone = mix(mix(sand, canvas.light.sky[1], 0.5 - 0.16 * k), darker(sand, 0.12), k / 5)
        peak = rng.uniform(-1.0, 1.0)
        level, height = 0.24 + 0.24 * k, rng.uniform(0.26, 0.44)
        crest = smooth(
            points(
                (-2.6, level),
                (peak - 1.1, level - height * 0.25),
                (peak - 0.4, level - height * 0.75),
                (peak, level - height),
                (peak + 0.5, level - height * 0.5),
                (peak + 1.2, level - height * 0.18),
                (2.6, level),
            ),
            closed=False,
        )
        body = land(crest)
        canvas.fill(body, Gradient((lighter(tone, 0.3), tone, darker(tone, 0.1))), depth=depth)
        top = int(np.argmin(crest[:, 1]))
        slope = crest[top:] if away > 0 else crest[: top + 1][::-1]
        side = 1 if away > 0 else -1
        spine = smooth(
            points(
                (peak, level - height),
                (peak + side * 0.1, level - height * 0.55),
                (peak - side * 0.12, level - height * 0.1),
                (peak + side * 0.25, level + 0.35),
                (peak + side * 0.2, level + 0.8),
            ),
            closed=False,
        )
        dark = np.concatenate([slope, points((slope[-1, 0], 2.0)), spine[::-1]])
        canvas.fill(
            dark,
            Gradient((canvas.light.shadow, mix(canvas.light.shadow, sand, 0.3))),
            depth=depth,
            opacity=0.46,
            within=body,
        )
        ripples = [
            crest + np.array([0, 0.06 + 0.05 * j + 0.012 * math.sin(j * 3)]) for j in range(1, 7)
        ]
        if k > 1:
            canvas.stroke(
                ripples, 0.008, lighter(sand, 0.4), depth=depth, opacity=0.25, within=body
            )
    for x, y, size in ((rng.uniform(-1.2, -0.7), 0.72, 0.42), (rng.uniform(0.6, 1.2), 0.9, 0.6)):
        green = mix(color("4d7d59"), palette.main, 0.3)
        canvas.fill(
            ellipse(x + away * 0.3 * size, y, 0.4 * size, 0.04),
            canvas.light.shadow,
            opacity=0.4,
            blur=0.02,
        )
        for line, wide in (
            (points((x, y), (x, y - size)), 0.15),
            (
                smooth(
                    points(
                        (x, y - 0.35 * size),
                        (x + 0.26 * size, y - 0.38 * size),
                        (x + 0.28 * size, y - 0.72 * size),
                    ),
                    closed=False,
                ),
                0.1,
            ),
            (
                smooth(
                    points(
                        (x, y - 0.25 * size),
                        (x - 0.24 * size, y - 0.28 * size),
                        (x - 0.26 * size, y - 0.55 * size),
                    ),
                    closed=False,
                ),
                0.1,
            ),
        ):
            canvas.stroke(
                line,
                wide * size,
                Gradient((lighter(green, 0.2), darker(green, 0.15))),
                shade=0.55,
                rim=0.3,
            )


def village(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    sun(canvas, rng.uniform(0.3, 0.9), low=-0.1)
    snow = mix((244, 247, 252), canvas.light.sky[1], 0.2)
    line = ridge(rng, 0.12, 0.7, rough=0.5)
    tone = mix(color("7f92b5"), canvas.light.sky[1], 0.45)
    canvas.fill(land(line), Gradient((snow, tone)), depth=0.3)
    canvas.fill(
        facets(line, -canvas.light.towards[0], 0.4),
        canvas.light.shadow,
        depth=0.3,
        opacity=0.3,
        within=land(line),
    )
    for k in range(3):
        depth = 0.5 + 0.25 * k
        level = 0.22 + 0.27 * k
        hill = wave_line(level, 0.07, 0.9 + 0.2 * k, rng.uniform(0, 6))
        canvas.fill(land(hill), Gradient((lighter(snow, 0.6), mix(snow, tone, 0.35))), depth=depth)
        things = sorted(
            (float(x), bool(rng.random() < 0.45))
            for x in np.arange(-1.9, 2.0, 0.3 + 0.09 * k) + rng.uniform(-0.07, 0.07)
        )
        for x, is_house in things:
            y = float(np.interp(x, hill[:, 0], hill[:, 1])) + 0.03
            size = (0.13 + 0.07 * k) * rng.uniform(0.85, 1.2)
            if is_house:
                cottage(
                    canvas,
                    x,
                    y,
                    size,
                    depth,
                    (palette.main, palette.accent, palette.floor)[int(rng.integers(3))],
                )
            else:
                pine(
                    canvas,
                    x,
                    y,
                    size * 1.9,
                    depth=depth,
                    tone=mix(color("3f6d62"), tone, 0.4 - 0.18 * k),
                    snow=True,
                )
    flakes = [
        ellipse(x, y, r)[::8]
        for x, y, r in zip(
            rng.uniform(-1.5, 1.5, 80),
            rng.uniform(-1, 1, 80),
            rng.uniform(0.004, 0.014, 80),
            strict=True,
        )
    ]
    canvas.fill(flakes, (255, 255, 255), opacity=0.85)


def cottage(
    canvas: Canvas, x: float, y: float, size: float, depth: float, tone: tuple[int, int, int]
) -> None:
    """Draw a small house with a snowy roof at (x, y)."""
    wall = box(x - size * 0.6, y - size * 0.7, x + size * 0.6, y)
    canvas.fill(wall, Gradient((lighter(tone, 0.25), tone)), depth=depth, shade=0.3)
    panes = [
        box(x + s * size - size * 0.12, y - size * 0.5, x + s * size + size * 0.12, y - size * 0.22)
        for s in (-0.3, 0.3)
    ]
    canvas.fill(
        panes, color("ffd376") if canvas.light.windows_lit > 0.2 else color("5f7f9c"), depth=depth
    )
    if canvas.light.windows_lit > 0.2:
        canvas.fill(panes, color("ffca60"), depth=depth, opacity=0.7, blur=0.02)
    roof = points(
        (x - size * 0.78, y - size * 0.62), (x, y - size * 1.3), (x + size * 0.78, y - size * 0.62)
    )
    canvas.fill(roof, (248, 250, 255), depth=depth, shade=0.4, shadow=0.2)


def fields(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    sun(canvas, rng.uniform(-0.9, 0.9), low=0.0)
    clouds(canvas, rng, count=5, low=-0.3)
    crops = [
        mix(c, palette.floor, 0.25)
        for c in (
            color("a7c15e"),
            color("e3bd52"),
            color("6fa05a"),
            color("c98fb8"),
            color("8db36a"),
        )
    ]
    order = rng.permutation(len(crops))
    for k in range(5):
        depth = 0.3 + 0.18 * k
        level = 0.02 + 0.2 * k
        hill = wave_line(level, 0.06 + 0.012 * k, 0.8 + 0.2 * rng.random(), rng.uniform(0, 6))
        tone = mix(crops[order[k]], canvas.light.sky[1], 0.4 - 0.1 * k)
        body = land(hill)
        canvas.fill(body, Gradient((lighter(tone, 0.2), tone, darker(tone, 0.3))), depth=depth)
        vanish = rng.uniform(-1.0, 1.0)
        rows = [
            points((vanish + s * 0.32, level - 0.12), (vanish + s * 1.6, level + 0.7))
            for s in np.linspace(-3.5, 3.5, 34)
        ]
        canvas.stroke(rows, 0.016, darker(tone, 0.3), depth=depth, opacity=0.45, within=body)
        for _ in range(5):
            x = rng.uniform(-1.6, 1.6)
            y, r = (
                float(np.interp(x, hill[:, 0], hill[:, 1])),
                rng.uniform(0.025, 0.05) * (1 + 0.5 * k),
            )
            canvas.fill(
                ellipse(x, y - r * 0.6, r, r * 0.9),
                Gradient((color("7faa62"), color("37633f"))),
                depth=depth,
                shade=0.45,
                shadow=0.25,
            )
    x, y = rng.uniform(-0.7, 0.7), 0.32
    canvas.fill(
        points((x - 0.1, y), (x - 0.06, y - 0.44), (x + 0.06, y - 0.44), (x + 0.1, y)),
        Gradient((lighter(palette.second, 0.4), palette.second)),
        depth=0.6,
        shade=0.5,
    )
    canvas.fill(
        smooth(points((x - 0.075, y - 0.43), (x, y - 0.55), (x + 0.075, y - 0.43))),
        palette.main,
        depth=0.6,
        shade=0.4,
    )
    for k in range(4):
        a = math.pi / 2 * k + 0.5 + canvas.camera.yaw
        tip = (x + 0.34 * math.cos(a), y - 0.46 + 0.34 * math.sin(a))
        canvas.stroke(points((x, y - 0.46), tip), 0.014, color("6a4d38"), depth=0.6)
        across = np.array([-math.sin(a), math.cos(a)]) * 0.07
        start = np.array([x + 0.08 * math.cos(a), y - 0.46 + 0.08 * math.sin(a)])
        canvas.fill(
            np.array([start, np.array(tip), np.array(tip) + across, start + across]),
            (255, 250, 240),
            depth=0.6,
            opacity=0.88,
        )
    blooms = [
        ellipse(px, py, 0.016 + 0.014 * (py - 0.8))[::6]
        for px, py in zip(rng.uniform(-1.6, 1.6, 120), rng.uniform(0.8, 1.1, 120), strict=True)
    ]
    canvas.fill(blooms, palette.main, depth=1.05)
