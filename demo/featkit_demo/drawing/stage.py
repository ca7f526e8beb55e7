"""The stage of single things: a palette, a wall, a floor, and round bodies turned on a lathe."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    points,
    smooth,
)

FLOOR = 0.52  # y of the feet of things


@dataclass(frozen=True)
class Palette:
    """The colors of one instance: wall and floor, a quiet accent, and two colors of the thing."""

    wall: Color
    floor: Color
    accent: Color
    main: Color
    second: Color


PALETTES = tuple(
    Palette(*(color(code) for code in row.split()))
    for row in (
        "f3d9c4 e3b394 e8936f 2f6f73 f4efe6",
        "cfe3df a3c8c0 f2b56b d1495b fdf3e1",
        "dcd6ee b3a7da f6c85f 5b4b9a fff6ea",
        "fbe7b2 efc66f e8926f 3d5a80 fdf6ec",
        "d7e6f2 a2c1dc f5a3a0 25476a fbf7ef",
        "f7d6d9 e6a5af 8cc0b0 a23b52 fff4ee",
        "dfe8cf b5cb92 edb85c 3f6b4a fdf8ea",
        "e8e0d5 cab89f 86b3b2 c8553d faf5ec",
    )
)


def stage(canvas: Canvas, palette: Palette, *, horizon: float = 0.34) -> None:
    """Paint a wall with a pool of light and a disc, and the floor on which things stand."""
    x, y = canvas.light.towards
    wall = Gradient(
        (lighter(palette.wall, 0.45), palette.wall, darker(palette.wall, 0.12)), 0 if x < 0 else 180
    )
    canvas.fill(box(-3, -2, 3, horizon + 0.01), wall, depth=0.5)
    canvas.fill(
        ellipse(0.0, -0.12, 0.78),
        Gradient((lighter(palette.accent, 0.25), palette.accent)),
        depth=0.6,
    )
    canvas.fill(ellipse(x * 1.1, y * 0.9, 0.9), (255, 250, 235), depth=0.4, opacity=0.35, blur=0.25)
    floor = Gradient((lighter(palette.floor, 0.12), palette.floor, darker(palette.floor, 0.18)))
    canvas.fill(box(-3, horizon, 3, 2.5), floor, depth=0.75)
    canvas.fill(
        box(-3, horizon, 3, horizon + 0.012), lighter(palette.floor, 0.5), depth=0.75, opacity=0.6
    )


def grounded(canvas: Canvas, x: float, y: float, radius: float, *, flatness: float = 0.3) -> None:
    """Paint the shadow of a thing on the floor: dark below it, long and soft behind it."""
    away = -canvas.light.towards[0]
    length = ellipse(x + away * radius * 0.9, y + radius * 0.05, radius * 1.7, radius * flatness)
    canvas.fill(length, canvas.light.shadow, opacity=0.26, blur=0.05)
    canvas.fill(
        ellipse(x, y, radius * 1.08, radius * flatness),
        canvas.light.shadow,
        opacity=0.42,
        blur=0.02,
    )


@dataclass(frozen=True)
class Lathe:
    """A round upright thing, seen at a tilt and a yaw.

    profile: (n, 2), pairs of (y, radius) from top to bottom.
    """

    profile: Points
    tilt: float
    yaw: float
    x: float = 0.0

    def radius(self, y: float) -> float:
        return float(np.interp(y, self.profile[:, 0], self.profile[:, 1]))

    def at(self, angle: float, y: float) -> tuple[float, float]:
        """Return the image position of the surface at an angle and a height y.

        Angle 0 faces the viewer before the yaw.
        """
        r = self.radius(y)
        return self.x + r * math.sin(angle + self.yaw), y + r * self.tilt * math.cos(
            angle + self.yaw
        )

    def silhouette(self) -> Points:
        (top, top_radius), (bottom, bottom_radius) = self.profile[0], self.profile[-1]
        arc = np.linspace(0, math.pi, 24)
        lower = np.stack(
            [np.cos(arc) * bottom_radius, bottom + np.sin(arc) * bottom_radius * self.tilt], axis=1
        )
        upper = np.stack(
            [-np.cos(arc) * top_radius, top - np.sin(arc) * top_radius * self.tilt], axis=1
        )
        right = self.profile[:, ::-1]
        left = right[::-1] * (-1, 1)
        return np.concatenate([right, lower, left, upper]) + points((self.x, 0))

    def ring(self, y: float, *, inside: float = 0.0) -> Points:
        """Return the circle at height y, its radius reduced by `inside`."""
        r = self.radius(y) - inside
        return ellipse(self.x, y, r, r * self.tilt)

    def band(self, top: float, bottom: float) -> Points:
        """Return the visible part of the surface between two heights."""
        across = np.linspace(-math.pi / 2, math.pi / 2, 24)
        lines = []
        for y in (top, bottom):
            r = self.radius(y)
            lines.append(
                np.stack([self.x + r * np.sin(across), y + r * self.tilt * np.cos(across)], axis=1)
            )
        return np.concatenate([lines[0], lines[1][::-1]])

    def patch(self, angle: float, y: float, outline: Points) -> Points | None:
        """Lay an outline, in world units, on the surface at (angle, y); None if it faces away."""
        if math.cos(angle + self.yaw) < 0.12:
            return None
        laid = [self.at(angle + dx / max(0.05, self.radius(y + dy)), y + dy) for dx, dy in outline]
        return np.array(laid)


def round_paint(canvas: Canvas, base: Color) -> Gradient:
    """Return a gradient across a round body: bright towards the light, dark at both sides."""
    stops = (
        darker(base, 0.22),
        base,
        lighter(base, 0.34),
        base,
        darker(base, 0.28),
        darker(base, 0.45),
    )
    return Gradient(stops if canvas.light.towards[0] < 0 else stops[::-1], 0)


def profile(*pairs: tuple[float, float]) -> Points:
    """Return a smooth profile through (y, radius) pairs."""
    return smooth(points(*pairs), closed=False)
