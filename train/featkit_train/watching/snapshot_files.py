"""The images of a run as files: `snapshots/photographs/` once, and `snapshots/step-00000200/` for
each step kept.

    photographs/names.json, 00.jpg ...      what is looked at
    step-00000200/00-pca.png                (h, w) RGB: the patch tokens' first three components
    step-00000200/00-attention.png          (h, w): what the class token looks at, mean over heads
    step-00000200/00-heads.png              (heads * h, w): the same for each head, one below the other

One pixel is one patch. A folder is there whole or not at all, and the same numbers give the same
bytes. Letters: P images, (h, w) patches, (H, W) pixels.
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
# percentile of an image's attention that is shown as bright as can be; single patches would darken
# the rest
BRIGHTEST = 99.0
# Dark to bright by even steps of lightness, as matplotlib's magma; value, red, green, blue.
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
    """What is drawn of one image: pca (h, w, 3) uint8; attention (heads, h, w), or None of a
    network without it."""

    pca: np.ndarray
    attention: np.ndarray | None


@dataclass(frozen=True)
class Snapshot:
    """One step's folder."""

    step: int
    folder: Path

    def file(self, number: int, kind: str) -> Path | None:
        """Image `number`'s file of a kind (pca, attention, heads); None where there is none."""
        path = self.folder / f"{number:02d}-{kind}.png"
        return path if path.is_file() else None


def list_snapshots(folder: Path) -> list[Snapshot]:
    """The snapshots below `folder` by their steps; none where it does not exist."""
    found = [
        (STEP_FOLDER.fullmatch(path.name), path) for path in folder.glob("step-*") if path.is_dir()
    ]
    return sorted(
        (Snapshot(int(match[1]), path) for match, path in found if match),
        key=lambda snapshot: snapshot.step,
    )


def write_snapshot(folder: Path, step: int, tiles: Sequence[Tiles]) -> Snapshot:
    """Write the folder of a step below `folder`, in place of an earlier one of that step."""
    snapshot = Snapshot(step, folder / f"step-{step:08d}")
    shutil.rmtree(snapshot.folder, ignore_errors=True)
    with replace_folder(snapshot.folder) as temporary:
        for number, tile in enumerate(tiles):
            (temporary / f"{number:02d}-pca.png").write_bytes(_png(Image.fromarray(tile.pca)))
            if tile.attention is not None:
                mean, heads = (
                    glow(tile.attention.mean(axis=0)),
                    [glow(head) for head in tile.attention],
                )
                (temporary / f"{number:02d}-attention.png").write_bytes(_png(glowing(mean)))
                (temporary / f"{number:02d}-heads.png").write_bytes(
                    _png(glowing(np.concatenate(heads)))
                )
    return snapshot


def read_pca(snapshot: Snapshot, count: int) -> list[np.ndarray] | None:
    """The (h, w, 3) colors of `count` images; None where one of them is missing or torn."""
    colors = []
    for number in range(count):
        path = snapshot.file(number, "pca")
        if path is None:
            return None
        try:
            with Image.open(path) as image:
                colors.append(np.asarray(image.convert("RGB")))
        except (OSError, SyntaxError, ValueError):  # Pillow's words for a torn PNG
            return None
    return colors


def read_heads(snapshot: Snapshot, number: int) -> list[bytes]:
    """PNG bytes of each head's attention of image `number`; none where there are none."""
    strip, mean = snapshot.file(number, "heads"), snapshot.file(number, "attention")
    if strip is None or mean is None:
        return []
    try:
        with Image.open(strip) as heads, Image.open(mean) as one:
            width, height = one.size
            boxes = [(0, top, width, top + height) for top in range(0, heads.height, height)]
            return [_png(heads.crop(box)) for box in boxes]
    except (OSError, SyntaxError, ValueError):
        return []


def write_photographs(folder: Path, images: Sequence[np.ndarray], names: Sequence[str]) -> None:
    """Write the images (H, W, 3) uint8 and their names below `folder`, unless these very ones are
    there."""
    place = folder / PHOTOGRAPHS
    jpegs = [thumbnail_jpeg(image) for image in images]
    record = json.dumps(
        {"format": FORMAT, "names": [printable(name) for name in names]}, ensure_ascii=False
    )
    wanted = {
        NAMES_FILE: record.encode(),
        **{f"{number:02d}.jpg": jpeg for number, jpeg in enumerate(jpegs)},
    }
    if place.is_dir() and wanted == {path.name: path.read_bytes() for path in place.iterdir()}:
        return
    shutil.rmtree(place, ignore_errors=True)
    with replace_folder(place) as temporary:
        for name, content in wanted.items():
            (temporary / name).write_bytes(content)


def read_photographs(folder: Path) -> list[tuple[str, bytes]]:
    """Name and JPEG bytes of each image below `folder`; none where there are none that this
    release can read."""
    place = folder / PHOTOGRAPHS
    try:
        record = json.loads((place / NAMES_FILE).read_text(encoding="utf-8"))
        names = record["names"] if record["format"] == FORMAT else []
        return [
            (str(name), (place / f"{number:02d}.jpg").read_bytes())
            for number, name in enumerate(names)
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def glow(attention: np.ndarray) -> np.ndarray:
    """(h, w) shares to (h, w) uint8: 0 is none, 255 is percentile BRIGHTEST of this image's and
    above."""
    finite = np.nan_to_num(attention.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    brightest = float(np.percentile(finite, BRIGHTEST))
    return (
        np.round(np.clip(finite / brightest, 0, 1) * 255).astype(np.uint8)
        if brightest > 0
        else np.zeros(finite.shape, np.uint8)
    )


def glowing(shades: np.ndarray) -> Image.Image:
    """(h, w) uint8 as an image from dark to bright."""
    image = Image.fromarray(shades).convert("P")  # a gray image's palette is the grays in order
    image.putpalette(glow_palette())
    return image


def glow_palette() -> bytes:
    """256 colors of GLOW, as Pillow takes them."""
    anchors = np.array(GLOW, dtype=np.float64)
    columns = [
        np.interp(np.arange(256), anchors[:, 0], anchors[:, channel]) for channel in (1, 2, 3)
    ]
    return np.round(np.stack(columns, axis=1)).astype(np.uint8).tobytes()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
