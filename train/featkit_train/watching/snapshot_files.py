"""The snapshots of a run as files: `snapshots/photographs/` once, and `snapshots/step-00000200/`
for each step kept.

    photographs/names.json, 00.jpg ...   the images
    step-00000200/00-pca.png             (h, w) RGB: the patch tokens' first three components
    step-00000200/00-attention.png       (h, w): the class token's attention, mean over heads
    step-00000200/00-heads.png           (heads * h, w): the same for each head, stacked

One pixel is one patch. A folder exists completely or not at all, and the same values give the same
bytes. Letters: (h, w) patches, (H, W) pixels.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from featkit.atomic import replace_folder
from featkit.images import printable, thumbnail_jpeg

SNAPSHOTS, PHOTOGRAPHS, NAMES_FILE, FORMAT = "snapshots", "photographs", "names.json", 1
STEP_FOLDER = re.compile(r"step-(\d{8,})")
# The percentile of an image's attention that is shown brightest; with the maximum, single patches
# would darken all others.
BRIGHTEST = 99.0
# Value, red, green, blue, from dark to bright in even steps of lightness, like matplotlib's magma.
GLOW = (
    (0, 4, 3, 18),
    (40, 38, 16, 78),
    (90, 110, 29, 130),
    (140, 183, 55, 121),
    (190, 240, 96, 93),
    (230, 254, 180, 123),
    (255, 252, 244, 200),
)


@dataclass(frozen=True)
class Tiles:
    """The drawings of one image: pca (h, w, 3) uint8; attention (heads, h, w), or None for a
    network without a class token."""

    pca: np.ndarray
    attention: np.ndarray | None


@dataclass(frozen=True)
class Snapshot:
    """The snapshot of one step."""

    step: int
    folder: Path

    def file(self, index: int, kind: str) -> Path | None:
        """Return an image's file of a kind (pca, attention, heads), None if it does not exist."""
        path = self.folder / f"{index:02d}-{kind}.png"
        return path if path.is_file() else None


def list_snapshots(folder: Path) -> list[Snapshot]:
    """Return the snapshots below `folder` by step; [] if it does not exist."""
    folders = [
        (STEP_FOLDER.fullmatch(path.name), path) for path in folder.glob("step-*") if path.is_dir()
    ]
    return sorted(
        (Snapshot(int(match[1]), path) for match, path in folders if match),
        key=lambda snapshot: snapshot.step,
    )


def write_snapshot(folder: Path, step: int, tiles: Sequence[Tiles]) -> Snapshot:
    """Write the folder of a step below `folder`; replace an earlier one of that step."""
    snapshot = Snapshot(step, folder / f"step-{step:08d}")
    shutil.rmtree(snapshot.folder, ignore_errors=True)
    with replace_folder(snapshot.folder) as temporary:
        for index, tile in enumerate(tiles):
            (temporary / f"{index:02d}-pca.png").write_bytes(_png(Image.fromarray(tile.pca)))
            if tile.attention is not None:
                mean, heads = (
                    glow(tile.attention.mean(axis=0)),
                    [glow(head) for head in tile.attention],
                )
                (temporary / f"{index:02d}-attention.png").write_bytes(_png(glowing(mean)))
                (temporary / f"{index:02d}-heads.png").write_bytes(
                    _png(glowing(np.concatenate(heads)))
                )
    return snapshot


def read_pca(snapshot: Snapshot, count: int) -> list[np.ndarray] | None:
    """Read the colors (h, w, 3) of `count` images; None if one of them is missing or torn."""
    colors = []
    for index in range(count):
        path = snapshot.file(index, "pca")
        if path is None:
            return None
        try:
            with Image.open(path) as image:
                colors.append(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError, ValueError):  # Pillow's errors for a torn PNG
            return None
    return colors


def read_heads(snapshot: Snapshot, index: int) -> list[bytes]:
    """Return each head's attention to an image as PNG bytes; [] without attention."""
    strip, mean = snapshot.file(index, "heads"), snapshot.file(index, "attention")
    if strip is None or mean is None:
        return []
    try:
        with Image.open(strip) as heads, Image.open(mean) as single:
            width, height = single.size
            boxes = [(0, top, width, top + height) for top in range(0, heads.height, height)]
            return [_png(heads.crop(box)) for box in boxes]
    except (OSError, SyntaxError, ValueError):
        return []


def write_photographs(folder: Path, images: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Write images (H, W, 3) uint8 and their names below `folder`, unless they are already
    there."""
    subfolder = folder / PHOTOGRAPHS
    jpegs = [thumbnail_jpeg(image) for image in images]
    record = json.dumps(
        {"format": FORMAT, "names": [printable(name) for name in names]}, ensure_ascii=False
    )
    wanted = {
        NAMES_FILE: record.encode(),
        **{f"{index:02d}.jpg": jpeg for index, jpeg in enumerate(jpegs)},
    }
    existing = {path.name: path.read_bytes() for path in subfolder.glob("*")}
    if existing == wanted:
        return
    shutil.rmtree(subfolder, ignore_errors=True)
    with replace_folder(subfolder) as temporary:
        for name, content in wanted.items():
            (temporary / name).write_bytes(content)


def read_photographs(folder: Path) -> list[tuple[str, bytes]]:
    """Return name and JPEG bytes of each image below `folder`; [] if this version cannot read
    them."""
    subfolder = folder / PHOTOGRAPHS
    try:
        record = json.loads((subfolder / NAMES_FILE).read_text(encoding="utf-8"))
        names = record["names"] if record["format"] == FORMAT else []
        return [
            (str(name), (subfolder / f"{index:02d}.jpg").read_bytes())
            for index, name in enumerate(names)
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def glow(attention: np.ndarray) -> np.ndarray:
    """Scale attention (h, w) to uint8: 0 stays 0, and percentile BRIGHTEST of the image becomes
    255."""
    finite = np.nan_to_num(attention.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    brightest = float(np.percentile(finite, BRIGHTEST))
    return (
        np.round(np.clip(finite / brightest, 0, 1) * 255).astype(np.uint8)
        if brightest > 0
        else np.zeros(finite.shape, np.uint8)
    )


def glowing(shades: np.ndarray) -> Image.Image:
    """Color shades (h, w) uint8 from dark to bright."""
    image = Image.fromarray(shades).convert("P")  # keeps the values as indices into the palette
    image.putpalette(glow_palette())
    return image


def glow_palette() -> bytes:
    """Return GLOW as Pillow's palette of 256 colors."""
    anchors = np.array(GLOW, dtype=np.float64)
    columns = [
        np.interp(np.arange(256), anchors[:, 0], anchors[:, channel]) for channel in (1, 2, 3)
    ]
    return np.round(np.stack(columns, axis=1)).astype(np.uint8).tobytes()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
