"""Single things on a stage.

Each function takes a canvas with light and camera, the instance's random numbers, and a palette.
"""

from __future__ import annotations

import math

import numpy as np

from featkit_demo.drawing.canvas import (
    Canvas,
    Color,
    Gradient,
    box,
    color,
    darker,
    ellipse,
    lighter,
    mix,
    points,
    smooth,
    turned,
)
from featkit_demo.drawing.stage import FLOOR, Lathe, Palette, grounded, profile, round_paint, stage


def mug(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    stage(canvas, palette)
    waist, height = rng.uniform(0.9, 1.08), rng.uniform(0.72, 0.9)
    top = FLOOR - height
    shape = profile(
        (top, 0.42), (top + height * 0.5, 0.42 * waist), (FLOOR - 0.08, 0.4), (FLOOR, 0.34)
    )
    body = Lathe(shape, canvas.camera.tilt, canvas.camera.yaw)
    grounded(canvas, 0, FLOOR + 0.06, 0.44)
    across = math.sin(1.1 + canvas.camera.yaw)
    handle_x, middle = 0.41 * across, top + height * 0.48
    handle = ellipse(handle_x + 0.13 * across, middle, 0.2 * max(0.35, abs(across)), 0.24)
    canvas.stroke(
        np.concatenate([handle, handle[:2]]), 0.085, palette.main, shade=0.5, rim=0.4, shadow=0.2
    )
    canvas.fill(body.silhouette(), round_paint(canvas, palette.main), shade=0.25)
    pattern = rng.integers(3)
    if pattern == 0:
        for share in (0.3, 0.5, 0.7):
            canvas.fill(
                body.band(top + height * share, top + height * (share + 0.09)),
                palette.second,
                opacity=0.92,
            )
    elif pattern == 1:
        spots = [
            body.patch(
                k * 0.62 + (row % 2) * 0.31, top + 0.2 + row * 0.17, ellipse(0, 0, 0.052)[::4]
            )
            for k in range(10)
            for row in range(4)
        ]
        canvas.fill([spot for spot in spots if spot is not None], palette.second, opacity=0.95)
    else:
        canvas.fill(body.band(top + height * 0.5, FLOOR), round_paint(canvas, palette.second))
    canvas.fill(
        body.band(top + 0.03, FLOOR - 0.03), round_paint(canvas, palette.main), opacity=0.22
    )
    canvas.fill(body.ring(top), lighter(palette.main, 0.5))
    canvas.fill(body.ring(top, inside=0.035), darker(palette.main, 0.35))
    canvas.fill(
        ellipse(0, top + 0.035, 0.345, 0.345 * canvas.camera.tilt),
        Gradient((color("5b3420"), color("9a6238"))),
    )
    for k in (-0.09, 0.07):
        steam = smooth(
            points(
                (k, top - 0.1),
                (k + 0.05, top - 0.22),
                (k - 0.04, top - 0.34),
                (k + 0.03, top - 0.48),
            ),
            closed=False,
        )
        canvas.stroke(steam, 0.035, (255, 255, 255), opacity=0.4, blur=0.02)


def vase(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    stage(canvas, palette)
    belly, neck = rng.uniform(0.3, 0.42), rng.uniform(0.09, 0.15)
    shape = profile(
        (-0.28, neck + 0.05), (-0.2, neck), (0.08, belly), (0.34, belly * 0.82), (FLOOR, 0.18)
    )
    body = Lathe(shape, canvas.camera.tilt * 0.8, canvas.camera.yaw)
    grounded(canvas, 0, FLOOR + 0.03, 0.3)
    petals = 6 + int(rng.integers(5))
    for k in range(5):
        lean = (k - 2) * 0.24 + rng.uniform(-0.05, 0.05) + 0.12 * math.sin(canvas.camera.yaw + k)
        tip_x, tip_y = lean * 1.25, -0.72 - rng.uniform(0, 0.17) + abs(lean) * 0.35
        stem = smooth(
            points((0.02 * k - 0.04, -0.24), (lean * 0.4, -0.42), (tip_x, tip_y)), closed=False
        )
        canvas.stroke(stem, 0.022, color("4c7a4b"), shade=0.3)
        leaf = ellipse(lean * 0.62, -0.47, 0.11, 0.035, turn_deg=-60 if lean > 0 else 60)
        canvas.fill(leaf, Gradient((color("7fae6a"), color("3f7048"))), shade=0.3, shadow=0.15)
        blossom(
            canvas,
            tip_x,
            tip_y,
            0.16,
            petals,
            palette.main if k % 2 else lighter(palette.accent, 0.1),
        )
    canvas.fill(body.silhouette(), round_paint(canvas, palette.second), shade=0.4, shadow=0.12)
    for k in range(4):
        y = 0.02 + k * 0.105
        canvas.fill(body.band(y, y + 0.02 + 0.016 * (k % 2)), palette.main, opacity=0.85)
    canvas.fill(body.ring(-0.28), lighter(palette.second, 0.5))
    canvas.fill(body.ring(-0.28, inside=0.025), darker(palette.second, 0.5))


def blossom(canvas: Canvas, x: float, y: float, radius: float, petals: int, paint: Color) -> None:
    """Draw a flower head from the front."""
    for layer, size in ((0, 1.0), (1, 0.66)):
        for k in range(petals):
            angle = 360 / petals * (k + layer / 2)
            petal = turned(
                smooth(
                    points(
                        (0, 0),
                        (radius * 0.3, -radius * 0.55),
                        (0, -radius),
                        (-radius * 0.3, -radius * 0.55),
                    )
                )
                * size,
                angle,
            )
            shades = Gradient((lighter(paint, 0.3 + 0.15 * layer), paint, darker(paint, 0.12)), 90)
            canvas.fill(petal + points((x, y)), shades, shade=0.28, shadow=0.12)
    canvas.fill(
        ellipse(x, y, radius * 0.24),
        Gradient((color("f9d769"), color("c98a2b"))),
        shade=0.5,
        rim=0.4,
    )


def flower(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    canvas.fill(
        box(-3, -2, 3, 2),
        Gradient((lighter(palette.wall, 0.3), palette.wall, darker(palette.floor, 0.2))),
        depth=0.3,
    )
    for _ in range(26):
        spot = ellipse(rng.uniform(-1.6, 1.6), rng.uniform(-1.1, 1.1), rng.uniform(0.08, 0.3))
        canvas.fill(
            spot,
            mix(palette.floor, color("8fbf7a"), rng.uniform(0, 1)),
            depth=0.5,
            opacity=0.3,
            blur=0.05,
        )
    stem = smooth(points((0.12, 1.4), (0.1, 0.7), (0.0, 0.0)), closed=False)
    canvas.stroke(stem, 0.055, Gradient((color("6d9d55"), color("2f5d3d"))), shade=0.4, shadow=0.2)
    for side, y in ((-1, 0.72), (1, 0.9)):
        leaf = smooth(
            points(
                (0.1, y),
                (0.1 + side * 0.28, y - 0.24),
                (0.1 + side * 0.62, y - 0.2),
                (0.1 + side * 0.34, y + 0.02),
            )
        )
        canvas.fill(leaf, Gradient((color("93c47d"), color("34683f"))), shade=0.4, shadow=0.25)
    petals, radius = 7 + int(rng.integers(8)), rng.uniform(0.56, 0.68)
    narrow = math.cos(canvas.camera.yaw * 0.7)
    for layer, size in ((0, 1.0), (1, 0.74), (2, 0.48)):
        for k in range(petals):
            angle = 360 / petals * (k + layer / 2) + 7
            half = radius * 1.9 / petals + 0.06
            petal = smooth(
                points(
                    (0, 0),
                    (half, -radius * 0.5),
                    (half * 0.5, -radius * 0.95),
                    (-half * 0.5, -radius * 0.95),
                    (-half, -radius * 0.5),
                )
            )
            outline = turned(petal * size, angle) * (narrow, 0.94) + points((0, -0.12))
            tone = mix(palette.main, lighter(palette.accent, 0.3), layer * 0.4)
            canvas.fill(
                outline,
                Gradient(
                    (lighter(tone, 0.42), tone, darker(tone, 0.16)), angle - 90 if layer else 90
                ),
                shade=0.32,
                shadow=0.22,
            )
    canvas.fill(
        ellipse(0, -0.12, 0.15 * narrow, 0.14),
        Gradient((color("ffe08a"), color("b9701f"))),
        shade=0.5,
        shadow=0.25,
    )
    golden = np.arange(70) * 2.39996
    dots = [
        ellipse(
            0.016 * math.sqrt(k) * math.cos(a) * narrow,
            -0.12 + 0.015 * math.sqrt(k) * math.sin(a),
            0.008,
        )[::8]
        for k, a in enumerate(golden)
    ]
    canvas.fill(dots, color("7a4517"), opacity=0.7)


def cactus(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    stage(canvas, palette)
    grounded(canvas, 0, FLOOR + 0.05, 0.34)
    green = mix(color("5f9e6e"), color("2f7f7a"), rng.uniform(0, 1))
    arms = (
        [(-0.34, -0.12, 0.3), (0.32, -0.3, 0.34)] if rng.random() < 0.5 else [(0.33, -0.05, 0.28)]
    )
    turn = math.cos(canvas.camera.yaw)
    for x, y, length in arms:
        arm = smooth(
            points((0, y + 0.2), (x * 0.8 * turn, y + 0.18), (x * turn, y), (x * turn, y - length)),
            closed=False,
        )
        canvas.stroke(
            arm, 0.17, Gradient((lighter(green, 0.2), green)), shade=0.55, rim=0.25, shadow=0.15
        )
    tall = rng.uniform(0.72, 0.86)
    body = Lathe(
        profile((-tall, 0.03), (-tall + 0.07, 0.15), (-0.2, 0.23), (0.22, 0.21)),
        0.1,
        canvas.camera.yaw,
    )
    canvas.fill(body.silhouette(), round_paint(canvas, green), shade=0.35)
    ribs, spines = [], []
    for k in range(14):
        angle = k * 2 * math.pi / 14
        if math.cos(angle + canvas.camera.yaw) < 0.15:
            continue
        ribs.append(np.array([body.at(angle, y) for y in np.linspace(-tall + 0.05, 0.2, 14)]))
        for y in np.linspace(-tall + 0.12, 0.16, 7):
            spines.append(
                np.array(
                    [
                        body.at(angle + 0.2, y),
                        (body.at(angle + 0.24, y)[0], body.at(angle, y)[1] - 0.035),
                    ]
                )
            )
    canvas.stroke(ribs, 0.014, darker(green, 0.45), opacity=0.6)
    canvas.stroke(spines, 0.008, lighter(palette.second, 0.6), opacity=0.9)
    blossom(canvas, 0.02, -tall - 0.02, 0.12, 7, palette.main)
    pot = Lathe(
        profile((0.16, 0.33), (0.24, 0.31), (FLOOR, 0.23)), canvas.camera.tilt, canvas.camera.yaw
    )
    canvas.fill(pot.ring(0.16), darker(color("5a3a28"), 0.2), opacity=0.0)
    canvas.fill(
        pot.silhouette(),
        round_paint(canvas, color("c9704d") if rng.random() < 0.5 else palette.second),
        shade=0.35,
    )
    for y in (0.27, 0.38):
        canvas.fill(pot.band(y, y + 0.025), palette.main, opacity=0.75)
    canvas.fill(body.band(0.06, 0.2), round_paint(canvas, green), opacity=0.0)


def mushroom(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    canvas.fill(
        box(-3, -2, 3, 2),
        Gradient((lighter(palette.wall, 0.2), mix(palette.wall, color("6f9b7a"), 0.5))),
        depth=0.3,
    )
    for k in range(9):
        x = -1.5 + k * 0.38 + rng.uniform(-0.1, 0.1)
        canvas.fill(
            box(x, -2, x + rng.uniform(0.05, 0.14), 0.6),
            mix(palette.wall, color("4a6b5d"), 0.55),
            depth=0.45,
            opacity=0.4,
            blur=0.02,
        )
    ground = smooth(points((-2.4, 0.5), (-1, 0.4), (0, 0.47), (1, 0.38), (2.4, 0.5)), closed=False)
    canvas.fill(
        np.concatenate([ground, points((2.4, 2.5), (-2.4, 2.5))]),
        Gradient((color("86ad6a"), color("2c5540"))),
        shade=0.2,
    )
    crowd = [(0.0, 1.0), (0.62, 0.55), (-0.66, 0.42)][: 2 + int(rng.integers(2))]
    for x, size in reversed(crowd):
        toadstool(canvas, rng, palette, x, size)
    blades = [
        points((x, 0.85), (x + 0.03, 0.85), (x + lean, 0.85 - tall))
        for x, lean, tall in zip(
            rng.uniform(-1.6, 1.6, 90),
            rng.uniform(-0.1, 0.1, 90),
            rng.uniform(0.1, 0.3, 90),
            strict=True,
        )
    ]
    canvas.fill(blades, Gradient((color("a9cf7c"), color("3a6b48"))), depth=1.1)


def toadstool(
    canvas: Canvas, rng: np.random.Generator, palette: Palette, x: float, size: float
) -> None:
    """Draw one mushroom; the tall one in the middle has `size` 1."""
    base = 0.62
    top = base - 1.18 * size
    grounded(canvas, x, base, 0.2 * size)
    stem = smooth(points((-0.13, 0), (-0.09, -0.6), (0.09, -0.6), (0.13, 0))) * size + (x, base)
    canvas.fill(stem, round_paint(canvas, color("f2e6cf")), shade=0.4, shadow=0.15)
    cap = Lathe(
        profile(
            (top, 0.02 * size),
            (top + 0.1 * size, 0.3 * size),
            (top + 0.36 * size, 0.5 * size),
            (top + 0.52 * size, 0.54 * size),
        ),
        0.22,
        canvas.camera.yaw,
        x,
    )
    canvas.fill(
        ellipse(x, top + 0.55 * size, 0.5 * size, 0.14 * size),
        Gradient((color("b99b78"), color("efdcc0"))),
    )
    canvas.fill(cap.silhouette(), round_paint(canvas, palette.main), shade=0.4, rim=0.3, shadow=0.2)
    spots = [
        cap.patch(
            k * 0.9 + row * 0.4,
            top + (0.16 + row * 0.14) * size,
            ellipse(0, 0, rng.uniform(0.035, 0.07) * size)[::4],
        )
        for k in range(7)
        for row in range(3)
    ]
    canvas.fill(
        [spot for spot in spots if spot is not None], palette.second, opacity=0.95, shade=0.2
    )


def lamp(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    stage(canvas, palette)
    grounded(canvas, 0, FLOOR + 0.03, 0.3)
    k = rng.uniform(0.75, 1.15)
    foot = Lathe(
        profile((0.0, 0.03), (0.12, 0.05), (0.22 * k, 0.17), (0.4, 0.21), (FLOOR, 0.12)),
        canvas.camera.tilt,
        canvas.camera.yaw,
    )
    canvas.stroke(
        points((0, -0.3), (0, 0.1)), 0.035, Gradient((color("e8cf8e"), color("8a6a2d")), 0)
    )
    canvas.fill(foot.silhouette(), round_paint(canvas, palette.main), shade=0.3, rim=0.2)
    shade_top, flare = -0.82, rng.uniform(0.4, 0.54)
    cover = Lathe(
        profile((shade_top, rng.uniform(0.2, 0.36)), (-0.5, 0.5 * (flare + 0.28)), (-0.24, flare)),
        canvas.camera.tilt * 0.7,
        canvas.camera.yaw,
    )
    canvas.fill(cover.ring(-0.24), color("fff3c9"))
    warm = mix(palette.second, color("ffdf9a"), 0.55)
    canvas.fill(
        cover.silhouette(),
        Gradient((darker(warm, 0.1), lighter(warm, 0.5), color("fff0b8"))),
        shade=0.18,
    )
    pleats = [
        np.array([cover.at(a, y) for y in (shade_top, -0.5, -0.24)])
        for a in np.arange(0, 6.28, 0.26)
        if math.cos(a + canvas.camera.yaw) > 0.05
    ]
    canvas.stroke(pleats, 0.009, palette.main, opacity=0.35)
    canvas.fill(cover.band(-0.29, -0.24), palette.main)
    canvas.fill(cover.band(shade_top, shade_top + 0.035), palette.main)
    canvas.glow(0, -0.5, 1.1, (255, 214, 130), opacity=0.5)
    canvas.glow(0, 0.5, 0.7, (255, 214, 130), opacity=0.25)


def apple(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    stage(canvas, palette)
    skin = (color("c8362f"), color("7fa83c"), color("e0a52e"))[int(rng.integers(3))]
    placed = [(-0.42, 0.3, 0.36), (0.4, 0.28, 0.38), (0.0, 0.36, 0.44)][int(rng.integers(2)) :]
    for number, (x, y, r) in enumerate(placed):
        swing = x * math.cos(canvas.camera.yaw * 1.3) + 0.1 * math.sin(canvas.camera.yaw)
        grounded(canvas, swing, y + r * 0.82, r * 0.75)
        outline = smooth(
            points(
                (0, -0.78),
                (0.45, -0.95),
                (0.95, -0.55),
                (0.98, 0.1),
                (0.6, 0.78),
                (0.18, 0.92),
                (0, 0.86),
                (-0.18, 0.92),
                (-0.6, 0.78),
                (-0.98, 0.1),
                (-0.95, -0.55),
                (-0.45, -0.95),
            )
        )
        tone = mix(skin, palette.main, 0.25 * (number == 0))
        canvas.fill(
            outline * r + points((swing, y)),
            Gradient((lighter(tone, 0.28), tone, darker(tone, 0.25)), 65),
            shade=0.55,
            rim=0.35,
            shadow=0.15,
        )
        lit = np.sign(canvas.light.towards[0]) * 0.42 * r
        canvas.fill(
            ellipse(swing + lit, y - 0.38 * r, 0.2 * r, 0.13 * r, turn_deg=-30),
            (255, 255, 255),
            opacity=0.6,
            blur=0.03,
        )
        canvas.fill(
            ellipse(swing, y - 0.76 * r, 0.3 * r, 0.1 * r),
            darker(tone, 0.5),
            opacity=0.7,
            blur=0.02,
        )
        stem = smooth(
            points(
                (swing, y - 0.72 * r), (swing + 0.02, y - 1.0 * r), (swing + 0.09 * r, y - 1.25 * r)
            ),
            closed=False,
        )
        canvas.stroke(stem, 0.05 * r + 0.01, color("5b3a21"), shade=0.4)
        leaf = smooth(
            points((0, 0), (0.3, -0.24), (0.72, -0.2), (0.4, 0.02))
            * (math.cos(canvas.camera.yaw), 1)
        )
        canvas.fill(
            leaf * r + (swing + 0.04 * r, y - 1.02 * r),
            Gradient((color("a6cf75"), color("4a8a4a")), 0),
            shade=0.35,
            shadow=0.15,
        )


def citrus(canvas: Canvas, rng: np.random.Generator, palette: Palette) -> None:
    canvas.fill(
        box(-3, -2, 3, 2), Gradient((lighter(palette.wall, 0.35), palette.wall, palette.floor), 45)
    )
    peel = (color("f29a2e"), color("f5c731"), color("9cbf3b"), color("e8645a"))[
        int(rng.integers(4))
    ]
    squeeze = 1 - 0.3 * abs(math.sin(canvas.camera.yaw))
    spots = [(-0.36, -0.12, 0.52), (0.62, 0.42, 0.4), (0.68, -0.52, 0.3), (-0.72, 0.72, 0.27)][
        : 2 + int(rng.integers(3))
    ]
    for x, y, r in spots:
        spin = rng.uniform(0, 60) + math.degrees(canvas.camera.yaw)
        canvas.fill(
            ellipse(x, y, r, r * squeeze),
            Gradient((lighter(peel, 0.15), darker(peel, 0.12))),
            shade=0.2,
            shadow=0.45,
        )
        canvas.fill(ellipse(x, y, r * 0.91, r * 0.91 * squeeze), mix(peel, (255, 250, 232), 0.82))
        for k in range(9):
            wedge = smooth(
                points(
                    (0.012, -0.1),
                    (0.24, -0.66),
                    (0.18, -0.8),
                    (0, -0.83),
                    (-0.18, -0.8),
                    (-0.24, -0.66),
                    (-0.012, -0.1),
                )
            )
            outline = turned(wedge, k * 40 + spin) * (r, r * squeeze) + points((x, y))
            canvas.fill(outline, Gradient((lighter(peel, 0.28), peel), k * 40 + spin), rim=0.35)
            fibers = [
                turned(points((dx, -0.3), (dx * 2.2, -0.66)), k * 40 + spin) * (r, r * squeeze)
                + points((x, y))
                for dx in (-0.05, 0, 0.05)
            ]
            canvas.stroke(fibers, 0.008, lighter(peel, 0.6), opacity=0.5)
    for x, y, turn in ((0.25, 0.75, 20), (-1.02, -0.5, -50)):
        leaf = turned(smooth(points((-0.3, 0), (0, -0.13), (0.32, 0), (0, 0.13))), turn) + points(
            (x, y)
        )
        canvas.fill(leaf, Gradient((color("8fc06a"), color("356f45"))), shade=0.3, shadow=0.35)
        canvas.stroke(
            turned(points((-0.28, 0), (0.28, 0)), turn) + points((x, y)),
            0.012,
            color("cfe6a8"),
            opacity=0.7,
        )
