"""A canvas in Pillow and numpy: outlines filled with gradients, under one light and one camera.

The world is 2 units high and 8/3 wide. Its origin is the middle of the image, and y points down.
An outline is (n, 2) float (x, y). It becomes an antialiased mask, drawn at four times the size, and
each effect is one paste through a mask: the paint, the shaded side (the mask minus itself shifted
towards the light), the lit rim, and the shadow on the background.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

HEIGHT, WIDTH = 360, 480
SUPERSAMPLE = 4  # per direction, masks only: 16 levels of coverage at an edge

Color = tuple[int, int, int]
Points = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Light:
    """The direction of the light and its effect on colors.

    towards: the direction to the light in the image, y pointing down.
    """

    name: str
    towards: tuple[float, float]
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)
    shadow: Color = (38, 36, 70)
    sky: tuple[Color, Color] = ((96, 164, 220), (226, 240, 246))  # zenith, horizon
    sun: Color = (255, 250, 230)
    sun_height: float = 0.7  # 0 at the horizon, 1 at the top
    contrast: float = 1.0
    saturation: float = 1.0
    windows_lit: float = 0.0  # share of windows with a lamp on


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A viewpoint. Things at depth 1 move with it fully, things at depth 0 not at all."""

    zoom: float = 1.0
    pan: tuple[float, float] = (0.0, 0.0)
    roll_deg: float = 0.0
    yaw: float = 0.0  # radians around an upright object
    tilt: float = 0.28  # sine of the elevation angle, for round objects

    def project(self, points: Points, depth: float) -> Points:
        """Map world coordinates (n, 2) to pixels (n, 2), both (x, y)."""
        angle = math.radians(self.roll_deg)
        rotation = np.array(
            [[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]]
        )
        scale = (1 + (self.zoom - 1) * depth) * HEIGHT / 2
        moved: Points = (points - np.array(self.pan) * depth) @ rotation * scale + np.array(
            [WIDTH / 2, HEIGHT / 2]
        )
        return moved


@dataclass(frozen=True)
class Gradient:
    """Evenly spaced colors across the extent of an outline.

    The angle is in degrees: 0 points right, 90 points down.
    """

    colors: tuple[Color, ...]
    angle_deg: float = 90.0


Paint = Color | Gradient


def generator(*words: object) -> np.random.Generator:
    """Return a random generator seeded by the words alone."""
    digest = hashlib.sha256("/".join(map(str, words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def color(code: str) -> Color:
    """Parse a color of six hexadecimal digits."""
    return int(code[0:2], 16), int(code[2:4], 16), int(code[4:6], 16)


def mix(first: Color, second: Color, share: float) -> Color:
    """Mix two colors; `share` is the weight of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def lighter(base: Color, share: float) -> Color:
    """Mix a color with warm white."""
    return mix(base, (255, 252, 244), share)


def darker(base: Color, share: float) -> Color:
    """Mix a color with deep blue, which looks livelier than black."""
    return mix(base, (22, 20, 48), share)


def points(*pairs: tuple[float, float]) -> Points:
    """Return the outline through (x, y) pairs."""
    return np.array(pairs, dtype=np.float64)


def ellipse(
    x: float, y: float, radius_x: float, radius_y: float | None = None, *, turn_deg: float = 0.0
) -> Points:
    """Return an ellipse rotated about its center; a circle without `radius_y`."""
    angles = np.linspace(0, 2 * math.pi, 64, endpoint=False)
    flat = np.stack(
        [np.cos(angles) * radius_x, np.sin(angles) * (radius_x if radius_y is None else radius_y)],
        axis=1,
    )
    return turned(flat, turn_deg) + points((x, y))


def box(left: float, top: float, right: float, bottom: float) -> Points:
    """Return an axis-aligned rectangle."""
    return points((left, top), (right, top), (right, bottom), (left, bottom))


def turned(outline: Points, degrees: float) -> Points:
    """Rotate an outline about the origin, clockwise on screen."""
    angle = math.radians(degrees)
    matrix = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    result: Points = outline @ matrix
    return result


def smooth(outline: Points, *, closed: bool = True, steps: int = 10) -> Points:
    """Return a Catmull-Rom curve through the points."""
    if closed:
        before, after, after_next = (np.roll(outline, shift, axis=0) for shift in (1, -1, -2))
        start = outline
    else:
        padded = np.concatenate([outline[:1], outline, outline[-1:]])
        before, start, after, after_next = padded[:-3], padded[1:-2], padded[2:-1], padded[3:]
    t = np.linspace(0, 1, steps, endpoint=False)[None, :, None]
    a, b, c, d = (part[:, None, :] for part in (before, start, after, after_next))
    curve: Points = 0.5 * (
        2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    )
    curve = curve.reshape(-1, 2)
    return curve if closed else np.concatenate([curve, outline[-1:]])


class Canvas:
    """An image of 480 × 360 pixels in progress, with its light and camera."""

    def __init__(self, light: Light, camera: Camera, base: Paint = (240, 240, 240)) -> None:
        self.light, self.camera = light, camera
        self.image = Image.new("RGB", (WIDTH, HEIGHT))
        whole = np.array([[0.0, 0.0], [WIDTH, HEIGHT]])
        self.image.paste(_painted(base, (0, 0), (WIDTH, HEIGHT), whole))

    def fill(
        self,
        outline: Points | Sequence[Points],
        paint: Paint,
        *,
        depth: float = 1.0,
        opacity: float = 1.0,
        blur: float = 0.0,
        shade: float = 0.0,
        rim: float = 0.0,
        shadow: float = 0.0,
        within: Points | None = None,
    ) -> None:
        """Paint one outline, or several in one paste.

        blur: softness of the edge in world units.
        shade, rim: 0..1, darkening away from the light and brightening towards it.
        shadow: 0..1, cast on the background.
        within: an outline that clips the paint.
        """
        outlines = [outline] if isinstance(outline, np.ndarray) else list(outline)
        projected = [self.camera.project(one, depth) for one in outlines]
        if not projected:
            return

        def draw(pen: ImageDraw.ImageDraw, place: Callable[[Points], list[float]]) -> None:
            for one in projected:
                pen.polygon(place(one), fill=255)

        self._paint(
            np.concatenate(projected), draw, paint, depth, opacity, blur, shade, rim, shadow, within
        )

    def stroke(
        self,
        line: Points | Sequence[Points],
        width: float,
        paint: Paint,
        *,
        depth: float = 1.0,
        opacity: float = 1.0,
        blur: float = 0.0,
        shade: float = 0.0,
        rim: float = 0.0,
        shadow: float = 0.0,
        within: Points | None = None,
    ) -> None:
        """Paint one line or several, with round ends; `width` is in world units.

        All other parameters are those of `fill`.
        """
        lines = [line] if isinstance(line, np.ndarray) else list(line)
        projected = [self.camera.project(one, depth) for one in lines]
        if not projected:
            return
        thickness = max(
            1.0, width * (1 + (self.camera.zoom - 1) * depth) * HEIGHT / 2 * SUPERSAMPLE
        )

        def draw(pen: ImageDraw.ImageDraw, place: Callable[[Points], list[float]]) -> None:
            for one in projected:
                flat = place(one)
                pen.line(flat, fill=255, width=round(thickness), joint="curve")
                for x, y in (flat[:2], flat[-2:]):
                    r = thickness / 2
                    pen.ellipse((x - r, y - r, x + r, y + r), fill=255)

        grown = np.concatenate(projected)
        reach = thickness / SUPERSAMPLE / 2
        grown = np.concatenate([grown - reach, grown + reach])
        self._paint(grown, draw, paint, depth, opacity, blur, shade, rim, shadow, within)

    def glow(
        self,
        x: float,
        y: float,
        radius: float,
        paint: Color,
        *,
        opacity: float = 1.0,
        depth: float = 1.0,
    ) -> None:
        """Add light that falls off from a point."""
        (center,) = self.camera.project(points((x, y)), depth)
        reach = radius * HEIGHT / 2
        down = (
            np.arange(0, HEIGHT, 4, dtype=np.float32)[:, None] + 1.5 - np.float32(center[1])
        ) / np.float32(reach)
        across = (
            np.arange(0, WIDTH, 4, dtype=np.float32)[None, :] + 1.5 - np.float32(center[0])
        ) / np.float32(reach)
        strength = np.clip(1 - np.hypot(across, down), 0, 1) ** 2 * np.float32(255 * opacity)
        small = (strength[..., None] * (np.array(paint, dtype=np.float32) / 255)).astype(np.uint8)
        added = Image.fromarray(small).resize(self.image.size, Image.Resampling.BICUBIC)
        self.image = ImageChops.screen(self.image, added)

    def finish(self, grain: np.random.Generator) -> Image.Image:
        """Return the image with bloom, color grading, a vignette and some grain."""
        return graded(self.image, self.light, grain)

    def _paint(
        self,
        extent: Points,
        draw: Callable[[ImageDraw.ImageDraw, Callable[[Points], list[float]]], None],
        paint: Paint,
        depth: float,
        opacity: float,
        blur: float,
        shade: float,
        rim: float,
        shadow: float,
        within: Points | None,
    ) -> None:
        low, high = extent.min(axis=0), extent.max(axis=0)
        size = float(min(high - low))
        blur_px = blur * self.camera.zoom * HEIGHT / 2
        reach = max(2.0, size * 0.12) if shadow else 0.0
        margin = 2 + 3 * max(blur_px, reach)
        left, top = (math.floor(max(0.0, value - margin)) for value in low)
        right = math.ceil(min(WIDTH, high[0] + margin))
        bottom = math.ceil(min(HEIGHT, high[1] + margin))
        if right <= left or bottom <= top:
            return
        corner, area = (left, top), (right - left, bottom - top)

        def mask_of(
            artist: Callable[[ImageDraw.ImageDraw, Callable[[Points], list[float]]], None],
        ) -> Image.Image:
            large = Image.new("L", (area[0] * SUPERSAMPLE, area[1] * SUPERSAMPLE))
            artist(
                ImageDraw.Draw(large), lambda part: ((part - corner) * SUPERSAMPLE).ravel().tolist()
            )
            return large.reduce(SUPERSAMPLE)

        mask = mask_of(draw)
        if within is not None:
            clip = self.camera.project(within, depth)
            mask = ImageChops.multiply(
                mask, mask_of(lambda pen, place: pen.polygon(place(clip), fill=255))
            )
        if blur_px:
            mask = _blurred(mask, blur_px)
        x, y = self.light.towards
        if shadow:
            fallen = _moved(
                _blurred(mask, reach * 0.7), -x * reach, -y * reach * 0.6 + reach * 0.25
            )
            self._through(fallen, corner, self.light.shadow, shadow)
        self._through(mask, corner, _painted(paint, corner, area, np.stack([low, high])), opacity)
        if shade or rim:
            soft = max(1.0, size * 0.16)
            blurred = _blurred(mask, soft)
            for strength, side, tone in ((shade, 1, self.light.shadow), (rim, -1, self.light.sun)):
                if strength:
                    beyond = ImageChops.invert(_moved(blurred, side * x * soft, side * y * soft))
                    self._through(ImageChops.multiply(mask, beyond), corner, tone, strength)

    def _through(
        self,
        mask: Image.Image,
        corner: tuple[int, int],
        paint: Image.Image | Color,
        opacity: float,
    ) -> None:
        if opacity < 1:
            mask = mask.point(_levels(opacity))
        if isinstance(paint, tuple):
            self.image.paste(
                paint, (*corner, corner[0] + mask.width, corner[1] + mask.height), mask
            )
        else:
            self.image.paste(paint, corner, mask)


@lru_cache(maxsize=256)
def _levels(opacity: float) -> list[int]:
    """Return a table that scales the 256 levels of a mask by the opacity."""
    return [round(level * opacity) for level in range(256)]


@lru_cache(maxsize=512)
def _table(colors: tuple[Color, ...]) -> NDArray[np.uint8]:
    """Interpolate 512 colors (512, 3) between evenly spaced stops."""
    stops, along = np.linspace(0, 1, len(colors)), np.linspace(0, 1, 512)
    return (
        np.stack([np.interp(along, stops, channel) for channel in zip(*colors, strict=True)], 1)
        .round()
        .astype(np.uint8)
    )


def _blurred(mask: Image.Image, radius: float) -> Image.Image:
    """Blur a mask with a Gaussian of `radius` pixels.

    Wide blurs are computed at a quarter of the size, which is six times as fast.
    """
    if radius < 7 or min(mask.size) < 32:
        return mask.filter(ImageFilter.GaussianBlur(radius))
    small = mask.reduce(4).filter(ImageFilter.GaussianBlur(radius / 4))
    return small.resize(mask.size, Image.Resampling.BICUBIC)


def _moved(mask: Image.Image, x: float, y: float) -> Image.Image:
    """Shift a mask by whole pixels, without wrapping around."""
    shift = (1, 0, -round(x), 0, 1, -round(y))
    return mask.transform(mask.size, Image.Transform.AFFINE, shift)


def _painted(
    paint: Paint, corner: tuple[int, int], area: tuple[int, int], extent: Points
) -> Image.Image:
    """Render the paint of a rectangle of pixels; its gradient spans `extent` (2, 2)."""
    if not isinstance(paint, Gradient):
        return Image.new("RGB", area, paint)
    angle = math.radians(paint.angle_deg)
    direction = np.array([math.cos(angle), math.sin(angle)])
    corners = np.array([[x, y] for x in extent[:, 0] for y in extent[:, 1]]) @ direction
    scale = 511 / max(1e-9, corners.max() - corners.min())
    upright, level = abs(direction[0]) < 1e-6, abs(direction[1]) < 1e-6
    x = (np.arange(1 if upright else area[0], dtype=np.float32) + corner[0] + 0.5)[
        None, :
    ] * direction[0]
    y = (np.arange(1 if level else area[1], dtype=np.float32) + corner[1] + 0.5)[
        :, None
    ] * direction[1]
    along = ((x + y - corners.min()) * scale).clip(0, 511).astype(np.int32)
    image = Image.fromarray(_table(paint.colors)[along])
    return image if image.size == area else image.resize(area, Image.Resampling.NEAREST)


@lru_cache(maxsize=4)
def _vignette(height: int, width: int) -> NDArray[np.floating[Any]]:
    """Return a brightness (height, width, 1) that falls off towards the corners."""
    y, x = (
        np.linspace(-1, 1, height, dtype=np.float32)[:, None],
        np.linspace(-1, 1, width, dtype=np.float32)[None, :],
    )
    falling: NDArray[np.floating[Any]] = (1 - 0.14 * np.clip(x * x + y * y - 0.35, 0, None) ** 1.2)[
        ..., None
    ]
    return falling


def graded(image: Image.Image, light: Light, grain: np.random.Generator) -> Image.Image:
    """Apply bloom, gain, contrast, saturation, a vignette and grain; the size stays the same."""
    pixels = np.asarray(image, dtype=np.float32) / 255
    small = (
        image.reduce(4)
        .filter(ImageFilter.GaussianBlur(3.5))
        .point([max(0, level - 158) * 0.35 for level in range(256)] * 3)
    )
    bloom = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC), dtype=np.float32) / 255
    pixels = 1 - (1 - pixels) * (1 - bloom)
    # gain, saturation and contrast combine to one affine map of colors
    weights = np.array([0.3, 0.6, 0.1], dtype=np.float32)
    saturate = (
        np.eye(3, dtype=np.float32) * light.saturation + (1 - light.saturation) * weights[:, None]
    )
    matrix = (np.diag(light.gain) @ saturate * light.contrast).astype(np.float32)
    pixels = (pixels @ matrix + np.float32(0.5 - 0.5 * light.contrast)) * _vignette(
        *pixels.shape[:2]
    )
    pixels += grain.standard_normal((*pixels.shape[:2], 1), dtype=np.float32) * np.float32(0.008)
    return Image.fromarray((np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8))
