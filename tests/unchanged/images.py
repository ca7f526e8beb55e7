"""Draw the images that recordings are made of. Equal on every call, and independent of featkit."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

NUM_PHOTOS = 32
MTIME_NS = 1_700_000_000_000_000_000  # embeddings folders keep each file's time of change
EXIF_ORIENTATION = 0x0112


def draw_image(seed: int, *, height: int = 60, width: int = 80) -> Image.Image:
    """Return a plain background with eight random shapes, lightly textured."""
    rng = np.random.default_rng([2024, seed])
    image = Image.new("RGB", (width, height), tuple(int(v) for v in rng.integers(0, 256, 3)))
    pen = ImageDraw.Draw(image)
    for _ in range(8):
        left, top = int(rng.integers(0, width - 8)), int(rng.integers(0, height - 8))
        box = (left, top, left + int(rng.integers(6, 40)), top + int(rng.integers(6, 40)))
        fill = tuple(int(v) for v in rng.integers(0, 256, 3))
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=fill)
    pixels = np.asarray(image, np.int16) + rng.integers(-6, 7, (height, width, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_inputs(folder: Path) -> None:
    """Write every folder of images that a recording uses below `folder`."""
    draw_photos(folder / "photos")
    draw_broken(folder / "broken")
    for name, count, first in (("labeled", 16, 0), ("unlabeled", 12, 100), ("held-out", 8, 200)):
        draw_kinds(folder / name, count, first=first)
    for path in sorted(folder.rglob("*")):
        os.utime(path, ns=(MTIME_NS, MTIME_NS))


def draw_photos(folder: Path) -> None:
    """Write JPEG files of several sizes, and readable files of unusual kinds."""
    folder.mkdir(parents=True)
    for i in range(NUM_PHOTOS):
        image = draw_image(i, height=48 + 7 * (i % 5), width=64 + 11 * (i % 4))
        image.save(folder / f"{i:03d}.jpg", quality=90)
    transparent = draw_image(50).convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(transparent.size))
    transparent.save(folder / "transparent.png")
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    draw_image(51).save(folder / "rotated.jpg", exif=exif)
    draw_image(52).convert("CMYK").save(folder / "cmyk.jpg")
    draw_image(53).convert("P").save(folder / "palette.png")
    draw_image(54).convert("L").save(folder / "gray.png")
    levels = np.linspace(0, 65535, 60 * 80).astype(np.uint16).reshape(60, 80)
    Image.fromarray(levels).save(folder / "sixteen-bit.png")
    frames = [draw_image(seed) for seed in (55, 56)]
    frames[0].save(folder / "animated.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1, 1), (200, 10, 30)).save(folder / "pixel.png")
    draw_image(57, height=12, width=900).save(folder / "wide.png")
    (folder / "sub folder").mkdir()
    draw_image(58).save(folder / "sub folder" / "größe 1.webp", lossless=True)


def draw_broken(folder: Path) -> None:
    """Write files that cannot be read, and one that can."""
    folder.mkdir(parents=True)
    draw_image(60).save(folder / "good.jpg")
    (folder / "empty.jpg").touch()
    (folder / "page.jpg").write_text("<!DOCTYPE html><html>404 Not Found</html>")
    (folder / "noise.png").write_bytes(bytes(range(256)) * 4)
    draw_image(61).save(folder / "cut.jpg", quality=95)
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:700])


def draw_kinds(root: Path, count: int, *, first: int) -> None:
    """Write `count` images of each of two kinds, a folder each, tinted by kind."""
    for kind, tint in zip(("blue", "red"), np.eye(3)[:2, ::-1], strict=True):
        (root / kind).mkdir(parents=True)
        for seed in range(first, first + count):
            pixels = np.asarray(draw_image(seed, height=40, width=40), np.float64)
            mixed = (0.6 * pixels + 0.4 * 255 * tint).astype(np.uint8)
            Image.fromarray(mixed).save(root / kind / f"{seed:03d}.png")
