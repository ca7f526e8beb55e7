"""The sample gallery: images drawn by code, labeled by folder, with several views of each thing.

    objects/mug/mug-1-front.jpg         14 kinds of things, indoors or in the open
    textures/marble/marble-2-close.jpg  9 kinds of surfaces
    scenes/city/city-1-dusk.jpg         9 kinds of landscapes

Each kind has a few instances with their own shapes, colors and patterns. Each instance has three
views that differ in viewpoint, light and colors. The same seed and the same versions of numpy and
Pillow give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from featkit.atomic import replace_file
from featkit_demo.drawing import creatures, objects, scenes, textures, waters
from featkit_demo.drawing.canvas import Camera, Canvas, Color, Light, generator, graded
from featkit_demo.drawing.stage import PALETTES, Palette

Drawing = Callable[[Canvas, np.random.Generator, Palette], None]
Surface = Callable[[np.random.Generator, Palette], textures.Swatch]

OBJECTS: dict[str, Drawing] = {
    "apple": objects.apple,
    "balloon": creatures.balloon,
    "boat": creatures.boat,
    "butterfly": creatures.butterfly,
    "cactus": objects.cactus,
    "citrus": objects.citrus,
    "fish": creatures.fish,
    "flower": objects.flower,
    "house": creatures.house,
    "lamp": objects.lamp,
    "mug": objects.mug,
    "mushroom": objects.mushroom,
    "tree": creatures.tree,
    "vase": objects.vase,
}
TEXTURES: dict[str, Surface] = {
    "bricks": textures.bricks,
    "cells": textures.cells,
    "knit": textures.knit,
    "marble": textures.marble,
    "terrazzo": textures.terrazzo,
    "tiles": textures.tiles,
    "waves": textures.waves,
    "wood": textures.wood,
    "woven": textures.woven,
}
SCENES: dict[str, Drawing] = {
    "beach": waters.beach,
    "city": scenes.city,
    "desert": scenes.desert,
    "fields": scenes.fields,
    "forest": scenes.forest,
    "lake": waters.lake,
    "mountains": scenes.mountains,
    "reef": waters.reef,
    "village": scenes.village,
}
NUM_VIEWS = 3


def _rgb(code: int) -> Color:
    return code >> 16, code >> 8 & 255, code & 255


NOON = Light(
    name="noon", towards=(-0.6, -0.8), sky=(_rgb(0x5AA5DD), _rgb(0xE3F1F6)), saturation=1.04
)
DAWN = Light(
    name="dawn",
    towards=(0.85, -0.5),
    gain=(1.04, 0.98, 0.97),
    shadow=_rgb(0x3A3468),
    sky=(_rgb(0x8FA8DC), _rgb(0xFFD9C2)),
    sun=_rgb(0xFFE3B8),
    sun_height=0.28,
    contrast=0.96,
)
DUSK = Light(
    name="dusk",
    towards=(-0.9, -0.35),
    gain=(1.05, 0.93, 0.9),
    shadow=_rgb(0x2B1F55),
    sky=(_rgb(0x584A94), _rgb(0xFFA873)),
    sun=_rgb(0xFFC07A),
    sun_height=0.14,
    contrast=1.05,
    saturation=1.08,
    windows_lit=0.5,
)
NIGHT = Light(
    name="night",
    towards=(0.6, -0.8),
    gain=(0.74, 0.82, 1.0),
    shadow=_rgb(0x0B1030),
    sky=(_rgb(0x141C46), _rgb(0x54659C)),
    sun=_rgb(0xE9EEFF),
    sun_height=0.8,
    contrast=1.02,
    saturation=0.95,
    windows_lit=0.85,
)
SOFT = Light(
    name="soft",
    towards=(0.55, -0.85),
    gain=(0.97, 1.0, 1.03),
    saturation=0.96,
    shadow=_rgb(0x33406A),
)
LAMPLIT = Light(
    name="lamplit",
    towards=(0.9, -0.4),
    gain=(1.06, 0.96, 0.86),
    shadow=_rgb(0x3D2450),
    saturation=1.05,
    contrast=1.04,
)


def draw_gallery(
    out: Path,
    *,
    seed: int = 0,
    num_instances: int = 2,
    kinds: Sequence[str] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Path]:
    """Draw the gallery into the folder `out` and return its files, sorted.

    Each of the 32 kinds, or of `kinds`, gets `num_instances` instances with three views each.
    `on_progress(done, total)` is called after each image. EnvironmentProblem if `out` cannot be
    written; ValueError for an unknown kind.
    """
    jobs = [
        (group, kind, instance)
        for group, table in (("objects", OBJECTS), ("scenes", SCENES), ("textures", TEXTURES))
        for kind in table
        if kinds is None or kind in kinds
        for instance in range(num_instances)
    ]
    unknown = set(kinds or ()) - {*OBJECTS, *TEXTURES, *SCENES}
    if unknown:
        raise ValueError(f"no such kinds: {', '.join(sorted(unknown))}")
    files: list[Path] = []
    for group, kind, instance in jobs:
        for view, image in draw_views(group, kind, instance, seed=seed):
            file = out / group / kind / f"{kind}-{instance + 1}-{view}.jpg"
            with replace_file(file) as temporary:
                temporary.write_bytes(encode(image))
            files.append(file)
            if on_progress is not None:
                on_progress(len(files), len(jobs) * NUM_VIEWS)
    return sorted(files)


def draw_views(
    group: str, kind: str, instance: int, *, seed: int = 0
) -> list[tuple[str, Image.Image]]:
    """Return the three views of one instance, each a name and an image of 480 × 360 pixels."""
    names = {"objects": [*OBJECTS], "textures": [*TEXTURES], "scenes": [*SCENES]}[group]
    palette = PALETTES[(names.index(kind) * 3 + instance * 5 + seed) % len(PALETTES)]
    swatch = (
        TEXTURES[kind](generator(seed, kind, instance), palette) if group == "textures" else None
    )
    images = []
    for view, light, camera in viewpoints(group, generator(seed, kind, instance, "views")):
        grain = generator(seed, kind, instance, view, "grain")
        if swatch is not None:
            image = graded(textures.photograph(swatch, light, camera), light, grain)
        else:
            canvas = Canvas(light, camera)
            (OBJECTS | SCENES)[kind](canvas, generator(seed, kind, instance), palette)
            image = canvas.finish(grain)
        images.append((view, image))
    return images


def viewpoints(group: str, rng: np.random.Generator) -> list[tuple[str, Light, Camera]]:
    """Return the name, light and camera of three views, slightly varied from call to call."""

    def near(middle: float, spread: float) -> float:
        return float(middle + rng.uniform(-spread, spread))

    side = 1.0 if rng.random() < 0.5 else -1.0
    if group == "objects":
        return [
            (
                "front",
                NOON,
                Camera(zoom=near(1.02, 0.05), pan=(near(0, 0.06), near(0, 0.03)), yaw=near(0, 0.1)),
            ),
            (
                "side",
                DAWN,
                Camera(
                    zoom=near(0.88, 0.05),
                    pan=(side * near(0.25, 0.08), near(-0.06, 0.04)),
                    yaw=side * near(0.62, 0.1),
                    tilt=0.2,
                ),
            ),
            (
                "close",
                DUSK,
                Camera(
                    zoom=near(1.3, 0.08),
                    pan=(-side * near(0.1, 0.06), near(-0.08, 0.06)),
                    roll_deg=side * near(5, 2),
                    yaw=-side * near(0.35, 0.1),
                    tilt=0.36,
                ),
            ),
        ]
    if group == "scenes":
        last = NIGHT if rng.random() < 0.6 else DUSK
        return [
            ("day", NOON, Camera(zoom=near(1.04, 0.04), pan=(near(0, 0.05), 0.0))),
            (
                "dawn",
                DAWN,
                Camera(
                    zoom=near(1.12, 0.06), pan=(side * near(0.26, 0.06), near(0.02, 0.03)), yaw=0.4
                ),
            ),
            (
                last.name,
                last,
                Camera(
                    zoom=near(1.3, 0.08), pan=(-side * near(0.24, 0.06), near(0.05, 0.04)), yaw=0.9
                ),
            ),
        ]
    return [
        ("flat", NOON, Camera(zoom=near(1.0, 0.05), tilt=0.28)),
        (
            "oblique",
            SOFT,
            Camera(
                zoom=near(1.34, 0.06),
                yaw=side * near(0.42, 0.1),
                tilt=near(0.62, 0.06),
                roll_deg=side * near(10, 4),
            ),
        ),
        (
            "close",
            LAMPLIT,
            Camera(
                zoom=near(1.65, 0.12),
                roll_deg=-side * near(7, 4),
                pan=(near(0, 0.25), near(0, 0.2)),
            ),
        ),
    ]


def encode(image: Image.Image) -> bytes:
    """Encode an image as JPEG of quality 88."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=88, optimize=True)
    return buffer.getvalue()
