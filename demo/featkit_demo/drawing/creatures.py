"""Things in the open: fish, butterfly, balloon, boat, house and tree.

The functions have the signature of those in objects.py.
"""

from __future__ import annotations

import math

import numpy as np

from featkit_demo.drawing.canvas import (
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
    smooth,
)
from featkit_demo.drawing.scenery import clouds, pine, sea, sky, sun
from featkit_demo.drawing.stage import Lathe, Palette, grounded, profile, round_paint


def fish(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    deep = mix(color("1d6f8f"), palette.main, 0.25)
    canvas.fill(
        box(-3, -2, 3, 2), Gradient((lighter(deep, 0.55), deep, darker(deep, 0.45))), depth=0.2
    )
    for k in range(5):
        x = -1.2 + k * 0.55 + rng.uniform(-0.1, 0.1)
        canvas.fill(
            points((x, -1.6), (x + 0.2, -1.6), (x - 0.25, 1.4), (x - 0.75, 1.4)),
            (255, 255, 240),
            depth=0.3,
            opacity=0.1,
            blur=0.05,
        )
    for _ in range(14):
        x, y, r = rng.uniform(-1.5, 1.5), rng.uniform(-1, 1), rng.uniform(0.012, 0.045)
        canvas.stroke(ellipse(x, y, r), 0.008, (255, 255, 255), depth=0.8, opacity=0.55)
    for side in (-1, 1):
        for k in range(4):
            x = side * (1.05 + 0.13 * k) + rng.uniform(-0.05, 0.05)
            weed = smooth(
                points((x, 1.3), (x + 0.08, 0.9), (x - 0.07, 0.6), (x + 0.05, 0.25 + 0.1 * k)),
                closed=False,
            )
            canvas.stroke(
                weed,
                0.07,
                Gradient((mix(color("6fbf8b"), palette.accent, 0.2), darker(deep, 0.3))),
                depth=0.9,
                shade=0.3,
            )
    long, tall = math.cos(canvas.camera.yaw) * rng.uniform(0.68, 0.78), rng.uniform(0.34, 0.46)
    body = smooth(
        points(
            (-1, 0.02),
            (-0.6, -0.7),
            (0.05, -1),
            (0.65, -0.62),
            (1, -0.1),
            (0.65, 0.6),
            (0.05, 0.95),
            (-0.6, 0.68),
        )
    ) * (long, tall)
    tail = smooth(
        points((0.85, 0), (1.2, -0.75), (1.5, -0.95), (1.36, 0), (1.5, 0.95), (1.2, 0.75))
    ) * (long, tall)
    fin = smooth(points((-0.3, -0.85), (0.0, -1.45), (0.55, -1.3), (0.6, -0.62))) * (long, tall)
    belly_fin = smooth(points((-0.1, 0.85), (0.2, 1.35), (0.5, 1.2), (0.45, 0.7))) * (long, tall)
    coat = (color("f2852f"), color("f2b93b"), color("ef6a5b"), color("e8739c"))[
        int(rng.integers(4))
    ]
    for part in (tail, fin, belly_fin):
        canvas.fill(part, Gradient((lighter(coat, 0.3), darker(coat, 0.2)), 0), shade=0.3)
    canvas.fill(
        body,
        Gradient((lighter(coat, 0.25), coat, darker(coat, 0.2))),
        shade=0.5,
        rim=0.3,
        shadow=0.25,
    )
    if rng.random() < 0.5:
        for x in (-0.42, 0.12, 0.6):
            stripe = smooth(
                points(
                    (x - 0.1, -1.2),
                    (x + 0.1, -1.2),
                    (x + 0.16, 0),
                    (x + 0.1, 1.2),
                    (x - 0.1, 1.2),
                    (x - 0.02, 0),
                )
            ) * (long, tall)
            canvas.fill(stripe, palette.second, within=body, opacity=0.95)
    else:
        scales = [
            ellipse(x * long, y * tall, 0.085)
            for i, x in enumerate(np.arange(-0.4, 0.95, 0.17))
            for y in np.arange(-0.8 + 0.14 * (i % 2), 0.9, 0.28)
        ]
        canvas.stroke(scales, 0.012, palette.second, within=body, opacity=0.5)
    canvas.fill(
        ellipse(0.1 * long, 0.2 * tall, 0.14, 0.07, turn_deg=25),
        lighter(coat, 0.35),
        shade=0.4,
        shadow=0.2,
    )
    canvas.fill(ellipse(-0.7 * long, -0.2 * tall, 0.075), (255, 255, 255), shade=0.2)
    canvas.fill(ellipse(-0.72 * long, -0.2 * tall, 0.04), (24, 24, 40))
    canvas.fill(ellipse(-0.73 * long, -0.26 * tall, 0.014), (255, 255, 255))


def butterfly(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    canvas.fill(
        box(-3, -2, 3, 2),
        Gradient((lighter(palette.wall, 0.4), palette.wall, palette.floor), 70),
        depth=0.2,
    )
    for _ in range(30):
        spot = ellipse(rng.uniform(-1.6, 1.6), rng.uniform(-1.2, 1.2), rng.uniform(0.05, 0.26))
        canvas.fill(
            spot,
            mix(palette.accent, (255, 255, 255), rng.uniform(0.2, 0.9)),
            depth=0.5,
            opacity=0.35,
            blur=0.045,
        )
    wing, edge = palette.main, darker(palette.main, 0.6)
    droop = rng.uniform(-0.1, 0.12)
    upper = smooth(
        points(
            (0.04, -0.1), (0.3, -0.62), (0.78, -0.82), (1.02, -0.62), (0.86, -0.12), (0.42, 0.08)
        )
    )
    lower = smooth(
        points(
            (0.04, 0.0),
            (0.45, 0.06),
            (0.78, 0.2),
            (0.72, 0.56 + droop),
            (0.42, 0.78 + droop),
            (0.18, 0.42),
        )
    )
    for side in (-1, 1):
        fold = side * (math.cos(canvas.camera.yaw) + 0.22 * side * math.sin(canvas.camera.yaw))
        for outline, tone in ((lower, mix(wing, palette.accent, 0.55)), (upper, wing)):
            placed = outline * (fold, 1)
            center = placed.mean(axis=0)
            canvas.fill(placed, edge, shadow=0.4)
            inner = (placed - center) * 0.86 + center
            canvas.fill(
                inner,
                Gradient((lighter(tone, 0.42), tone, darker(tone, 0.1)), 90 if side > 0 else 110),
                shade=0.25,
            )
            veins = [
                np.array(
                    [
                        [0.05 * fold, -0.02],
                        center + (np.array([math.cos(a), math.sin(a)]) * (0.46 * fold, 0.46)),
                    ]
                )
                for a in np.arange(-1.4, 1.6, 0.5)
            ]
            canvas.stroke(veins, 0.014, edge, opacity=0.55, within=placed)
            eye = center + np.array([0.13 * fold, -0.05])
            canvas.fill(ellipse(eye[0], eye[1], 0.1 * abs(fold), 0.1), palette.second)
            canvas.fill(ellipse(eye[0], eye[1], 0.055 * abs(fold), 0.055), edge)
    dots = [
        ellipse(s * math.cos(canvas.camera.yaw) * x, y, 0.022)
        for s in (-1, 1)
        for x, y in ((0.95, -0.62), (0.96, -0.45), (0.9, -0.28), (0.7, 0.5), (0.6, 0.62))
    ]
    canvas.fill(dots, palette.second)
    canvas.fill(
        ellipse(0, 0.08, 0.06, 0.42),
        Gradient((color("6b4b3a"), color("2c1f24"))),
        shade=0.5,
        shadow=0.3,
    )
    canvas.fill(ellipse(0, -0.38, 0.065), color("3b2a2c"), shade=0.4, rim=0.3)
    for side in (-1, 1):
        feeler = smooth(
            points((0.02 * side, -0.42), (0.1 * side, -0.66), (0.26 * side, -0.82)), closed=False
        )
        canvas.stroke(feeler, 0.016, color("2c1f24"))
        canvas.fill(ellipse(0.26 * side, -0.82, 0.026), color("2c1f24"))


def balloon(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    sun(canvas, rng.uniform(0.6, 1.0))
    clouds(canvas, rng, count=5, low=0.1)
    for depth, tone, level in ((0.3, 0.55, 0.72), (0.45, 0.3, 0.86)):
        hill = smooth(
            points(
                (-2.5, level), (-1.2, level - 0.16), (0, level), (1.1, level - 0.12), (2.5, level)
            ),
            closed=False,
        )
        paint = mix(mix(color("4f8a5b"), palette.floor, 0.3), canvas.light.sky[1], tone)
        canvas.fill(
            np.concatenate([hill, points((2.5, 2.5), (-2.5, 2.5))]),
            Gradient((lighter(paint, 0.2), darker(paint, 0.2))),
            depth=depth,
        )
    for x, y, scale, tones in (
        (0.95, -0.15, 0.24, (palette.accent, palette.main)),
        (-0.05, -0.22, 1.0, (palette.main, palette.second)),
    ):
        envelope(
            canvas,
            x,
            y,
            scale,
            tones,
            panels=8 + 4 * int(rng.integers(2)),
            banded=bool(rng.random() < 0.5),
        )


def envelope(
    canvas: Canvas,
    x: float,
    y: float,
    scale: float,
    tones: tuple[Color, Color],
    *,
    panels: int,
    banded: bool,
) -> None:
    """Draw one hot-air balloon, about 1.3 × scale high."""
    shape = profile(
        (-0.62, 0.06),
        (-0.56, 0.26),
        (-0.3, 0.5),
        (0.0, 0.52),
        (0.25, 0.36),
        (0.42, 0.16),
        (0.46, 0.12),
    ) * scale + (y, 0)
    body = Lathe(shape, 0.12, canvas.camera.yaw, x)
    outline = body.silhouette()
    canvas.fill(outline, tones[0], shadow=0.12)
    heights = np.linspace(shape[0, 0], shape[-1, 0], 26)
    for k in range(0, panels, 2):
        edges = [k * 2 * math.pi / panels, (k + 1) * 2 * math.pi / panels]
        sides: list[Points] = []
        for angle in edges:
            seen = (angle + canvas.camera.yaw + math.pi) % (2 * math.pi) - math.pi
            seen = max(-math.pi / 2, min(math.pi / 2, seen))
            sides.append(np.array([body.at(seen - canvas.camera.yaw, h) for h in heights]))
        canvas.fill(np.concatenate([sides[0], sides[1][::-1]]), tones[1], within=outline)
    if banded:
        canvas.fill(body.band(y - 0.1 * scale, y + 0.06 * scale), darker(tones[0], 0.25))
        canvas.fill(body.band(y - 0.06 * scale, y + 0.02 * scale), lighter(tones[0], 0.35))
    canvas.fill(
        outline,
        round_paint(canvas, mix(tones[0], (128, 128, 128), 0.3)),
        opacity=0.22,
        shade=0.6,
        rim=0.25,
    )
    basket = box(x - 0.075 * scale, y + 0.62 * scale, x + 0.075 * scale, y + 0.74 * scale)
    ropes = [
        points((x + s * 0.1 * scale, y + 0.46 * scale), (x + s * 0.07 * scale, y + 0.63 * scale))
        for s in (-1, -0.3, 0.3, 1)
    ]
    canvas.stroke(ropes, 0.009 * scale + 0.003, color("5a4636"))
    canvas.fill(basket, Gradient((color("b98a55"), color("7a5232"))), shade=0.4)


def boat(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    sun(canvas, rng.uniform(-0.9, -0.5))
    clouds(canvas, rng, count=4, low=-0.2)
    sea(canvas, rng, 0.18)
    lean = math.cos(canvas.camera.yaw)
    reflection = points((-0.55 * lean, 0.48), (0.5 * lean, 0.48), (0.2, 1.0), (-0.25, 1.0))
    canvas.fill(reflection, mix(palette.main, palette.second, 0.5), opacity=0.35, blur=0.035)
    heights = rng.uniform(0.9, 1.1)
    mainsail = smooth(
        points((0.06, -0.86 * heights), (0.5, -0.2), (0.66, 0.2), (0.06, 0.22)), steps=2
    ) * (lean, 1)
    mainsail = np.concatenate(
        [
            smooth(points((0.05, -0.86 * heights), (0.42, -0.28), (0.64, 0.2)), closed=False),
            points((0.05, 0.22)),
        ]
    ) * (lean, 1)
    jib = np.concatenate(
        [
            smooth(points((-0.03, -0.7 * heights), (-0.3, -0.22), (-0.58, 0.2)), closed=False),
            points((-0.05, 0.2)),
        ]
    ) * (lean, 1)
    canvas.stroke(points((0, -0.92 * heights), (0, 0.34)), 0.028, color("6b4a32"), shade=0.3)
    canvas.fill(
        mainsail,
        Gradient((lighter(palette.second, 0.4), darker(palette.second, 0.08)), 0),
        shade=0.3,
    )
    if rng.random() < 0.6:
        for k in range(3):
            canvas.fill(
                box(-1, -0.5 + 0.22 * k, 1, -0.4 + 0.22 * k),
                palette.main,
                within=mainsail,
                opacity=0.9,
            )
    canvas.fill(jib, Gradient((lighter(palette.accent, 0.3), palette.accent)), shade=0.3)
    hull = smooth(
        points(
            (-0.78, 0.26),
            (-0.3, 0.3),
            (0.3, 0.3),
            (0.74, 0.25),
            (0.52, 0.5),
            (0.1, 0.56),
            (-0.42, 0.52),
        )
    ) * (
        lean,
        1,
    )
    canvas.fill(
        hull, Gradient((palette.main, darker(palette.main, 0.35))), shade=0.3, rim=0.2, shadow=0.2
    )
    canvas.fill(box(-1, 0.33, 1, 0.365), palette.second, within=hull)
    foam = [
        ellipse(x, 0.545 + 0.015 * math.sin(x * 9), 0.09, 0.016)
        for x in np.linspace(-0.6, 0.6, 9) * lean
    ]
    canvas.fill(foam, (255, 255, 255), opacity=0.65, blur=0.008)
    canvas.fill(
        points((0, -0.93 * heights), (0.2 * lean, -0.88 * heights), (0, -0.82 * heights)),
        palette.main,
    )


def house(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    clouds(canvas, rng, count=4, low=-0.3)
    hill = smooth(
        points((-2.5, 0.32), (-1.2, 0.2), (0, 0.3), (1.2, 0.18), (2.5, 0.34)), closed=False
    )
    canvas.fill(
        np.concatenate([hill, points((2.5, 2.5), (-2.5, 2.5))]),
        Gradient((color("93b86f"), color("3d6b4c"))),
        depth=0.7,
    )
    for x in (-1.35, -1.08, 1.12, 1.4):
        pine(canvas, x, 0.36, rng.uniform(0.5, 0.85), depth=0.8)
    canvas.fill(box(-3, 0.52, 3, 2.5), Gradient((color("a3c37a"), color("4b7d55"))))
    front, turn = 0.46 * math.cos(canvas.camera.yaw * 0.9), math.sin(canvas.camera.yaw * 0.9 + 0.55)
    depth_x = 0.62 * turn  # visible part of the long side
    left, corner, right = (
        -0.5 * (front * 2 + depth_x),
        -0.5 * (front * 2 + depth_x) + front * 2,
        0.5 * (front * 2 + depth_x),
    )
    base, eaves, ridge = 0.56, -0.02, -0.46 - rng.uniform(0, 0.14)
    grounded(canvas, 0, base, 0.62, flatness=0.14)
    middle = (left + corner) / 2
    wall = lighter(palette.second, 0.1)
    canvas.fill(
        points((corner, eaves), (right, eaves), (right, base - 0.02), (corner, base)),
        Gradient((darker(wall, 0.22), darker(wall, 0.36))),
    )
    canvas.fill(
        points((left, eaves), (middle, ridge), (corner, eaves), (corner, base), (left, base)),
        Gradient((lighter(wall, 0.3), wall)),
    )
    chimney = box(middle + depth_x * 0.6, ridge - 0.14, middle + depth_x * 0.6 + 0.1, ridge + 0.2)
    canvas.fill(chimney, Gradient((color("b5654a"), color("7d3f32"))), shade=0.3)
    roof = points(
        (middle, ridge - 0.02),
        (middle + depth_x, ridge - 0.02),
        (right + 0.06, eaves + 0.05),
        (corner + 0.05, eaves + 0.05),
    )
    canvas.fill(
        roof, Gradient((lighter(palette.main, 0.12), darker(palette.main, 0.22))), shadow=0.25
    )
    rows = [
        points(
            (middle + (corner + 0.05 - middle) * s, ridge + (eaves + 0.05 - ridge) * s),
            (
                middle + depth_x + (right + 0.06 - middle - depth_x) * s,
                ridge + (eaves + 0.05 - ridge) * s,
            ),
        )
        for s in np.linspace(0.12, 0.94, 6)
    ]
    canvas.stroke(rows, 0.01, darker(palette.main, 0.5), opacity=0.5)
    gable = points(
        (left - 0.06, eaves + 0.06), (middle, ridge - 0.02), (corner + 0.05, eaves + 0.05)
    )
    canvas.stroke(gable, 0.05, darker(palette.main, 0.15), shade=0.2)
    glass = (
        Gradient((color("ffe9a8"), color("ffc861")))
        if canvas.light.windows_lit > 0.3
        else Gradient((color("cfe6f2"), color("6f9dbb")))
    )
    door = box(middle - 0.085, 0.22, middle + 0.085, base)
    canvas.fill(
        door, Gradient((lighter(palette.accent, 0.1), darker(palette.accent, 0.25))), shade=0.2
    )
    canvas.fill(ellipse(middle + 0.05, 0.41, 0.013), color("fff0c0"))
    panes = [box(middle + s - 0.075, 0.12, middle + s + 0.075, 0.3) for s in (-0.26, 0.26)] + [
        ellipse(middle, -0.14, 0.07)
    ]
    panes += [
        points((x0, 0.12), (x0 + 0.16 * turn, 0.12), (x0 + 0.16 * turn, 0.3), (x0, 0.3))
        for x0 in np.linspace(corner + 0.12 * turn, right - 0.28 * turn, 2)
    ]
    for pane in panes:
        canvas.fill((pane - pane.mean(0)) * 1.2 + pane.mean(0), (255, 253, 246))
        canvas.fill(pane, glass)
        center = pane.mean(0)
        canvas.stroke(
            [
                points((center[0], pane[:, 1].min()), (center[0], pane[:, 1].max())),
                points((pane[:, 0].min(), center[1]), (pane[:, 0].max(), center[1])),
            ],
            0.014,
            (255, 253, 246),
        )
    path = points(
        (middle - 0.08, base), (middle + 0.08, base), (middle + 0.42, 1.4), (middle - 0.34, 1.4)
    )
    canvas.fill(path, Gradient((color("e6d5b0"), color("bfa478"))), opacity=0.9)
    for k in range(12):
        x = rng.uniform(-1.4, 1.4)
        if abs(x - middle) > 0.25:
            canvas.fill(
                ellipse(x, 0.66 + rng.uniform(0, 0.26), 0.035 + 0.02 * (k % 2)),
                mix(palette.accent, palette.main, rng.random()),
                shade=0.4,
                shadow=0.3,
            )


def tree(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    sky(canvas)
    sun(canvas, rng.uniform(-1.0, -0.6))
    clouds(canvas, rng, count=3, low=-0.3)
    for depth, level, share in ((0.4, 0.42, 0.5), (0.7, 0.56, 0.15)):
        hill = smooth(
            points(
                (-2.5, level),
                (-1.2, level - 0.12),
                (0, level - 0.02),
                (1.2, level - 0.14),
                (2.5, level),
            ),
            closed=False,
        )
        paint = mix(color("7aa65c"), canvas.light.sky[1], share)
        canvas.fill(
            np.concatenate([hill, points((2.5, 2.5), (-2.5, 2.5))]),
            Gradient((lighter(paint, 0.25), darker(paint, 0.35))),
            depth=depth,
        )
    grounded(canvas, 0, 0.68, 0.6, flatness=0.12)
    bark = Gradient((color("7a5238"), color("4a3226")))
    trunk = smooth(
        points(
            (-0.14, 0.7),
            (-0.07, 0.3),
            (-0.06, -0.1),
            (0.06, -0.1),
            (0.07, 0.3),
            (0.15, 0.7),
            (0.0, 0.68),
        )
    )
    canvas.fill(trunk, bark, shade=0.5)
    yaw = canvas.camera.yaw
    for side in (-1, 1):
        branch = smooth(
            points((0, 0.1), (side * 0.16, -0.06), (side * 0.34 * math.cos(yaw), -0.24)),
            closed=False,
        )
        canvas.stroke(branch, 0.05, bark, shade=0.4)
    leaf = (
        color("58a64c"),
        color("e58a2e"),
        color("ef9fb6"),
        color("d9483f"),
        color("2f9277"),
    )[int(rng.integers(5))]
    tufts = []
    for k in range(64):
        height = 1 - 2 * (k + 0.5) / 64
        angle = k * 2.39996 + rng.uniform(-0.3, 0.3)
        around = math.sqrt(max(0.0, 1 - height**2)) * rng.uniform(0.75, 1.05)
        tufts.append(
            (
                math.cos(angle + yaw) * around,
                math.sin(angle + yaw) * around,
                height,
                rng.uniform(0.11, 0.19),
            )
        )
    canvas.fill(ellipse(0, -0.3, 0.5, 0.42), darker(leaf, 0.4), shade=0.3)
    for aside, front, up, size in sorted(tufts, key=lambda tuft: tuft[1]):
        x, y = aside * 0.54, -0.34 - up * 0.44
        lit = 0.5 + 0.5 * (aside * canvas.light.towards[0] + up * 0.8)
        tone = mix(
            darker(leaf, 0.42),
            lighter(leaf, 0.32),
            min(1.0, max(0.0, 0.12 + 0.16 * front + lit * 0.7)),
        )
        canvas.fill(
            ellipse(x, y, size, size * 0.86),
            Gradient((lighter(tone, 0.16), tone, darker(tone, 0.12))),
            rim=0.12,
        )
        dabs = [
            ellipse(x + size * dx, y + size * dy, 0.03, 0.018, turn_deg=30)[::6]
            for dx, dy in ((-0.4, -0.3), (0.2, -0.45), (0.45, 0.1), (-0.1, 0.2))
        ]
        canvas.fill(dabs, lighter(tone, 0.3), opacity=0.55)
    fallen = [
        ellipse(x, y, 0.02, 0.012)
        for x, y in zip(rng.uniform(-0.9, 0.9, 24), rng.uniform(0.66, 0.9, 24), strict=True)
    ]
    canvas.fill(fallen, leaf, opacity=0.85)
    kite_x = 0.98
    canvas.fill(
        points((kite_x, -0.6), (kite_x + 0.1, -0.46), (kite_x, -0.24), (kite_x - 0.1, -0.46)),
        Gradient((lighter(palette.main, 0.3), palette.main)),
        shade=0.2,
    )
    canvas.stroke(
        smooth(
            points(
                (kite_x, -0.24), (kite_x + 0.05, -0.1), (kite_x - 0.03, 0.04), (kite_x + 0.06, 0.2)
            ),
            closed=False,
        ),
        0.009,
        palette.second,
    )
