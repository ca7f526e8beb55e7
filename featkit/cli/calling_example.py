"""How to call one model file without featkit: a few lines of Python for onnxruntime, numpy and
Pillow."""

from __future__ import annotations

from pathlib import Path

from featkit.geometry import Geometry
from featkit.images import THUMBNAIL_SIDE
from featkit.modelfile import EMBEDDING, INPUT, Manifest
from featkit.wording import counted


def calling_example(path: Path, manifest: Manifest) -> str:
    """A script that prints the vector of photo.jpg, the same as featkit's: it decodes, turns,
    resizes and crops alike.

    Other only for what a photo hardly is: featkit lays transparent images over white and keeps
    the high byte of 16 bits.
    """
    geometry = manifest.geometry
    # As Embedder.decode has it: a JPEG is decoded at a half, a quarter or an eighth where that
    # leaves enough.
    side = max(geometry.shorter_side, THUMBNAIL_SIDE)
    beside = f"  # needs {manifest.external.file!r} beside it" if manifest.external else ""
    together = (
        f"(N, {geometry.height}, {geometry.width}, 3): N photos in one call give N vectors"
        if manifest.batch_invariant
        else "one photo a call, since a vector of this file depends on what shares its call"
    )
    return "\n".join(
        [
            "import numpy as np",
            "import onnxruntime",
            "from PIL import Image, ImageOps",
            "",
            'image = Image.open("photo.jpg")  # opaque, 8 bits a channel',
            (
                f'image.draft("RGB", ({side}, {side}))  # a large JPEG is decoded smaller; nothing'
                " else is changed"
            ),
            'image = ImageOps.exif_transpose(image).convert("RGB")',
            *_resize(geometry),
            f"images = np.asarray(image)[None]  # uint8, {together}",
            (
                f"session = onnxruntime.InferenceSession({str(path)!r},"
                f' providers=["CPUExecutionProvider"]){beside}'
            ),
            f'(vector,) = session.run(["{EMBEDDING}"], {{"{INPUT}": images}})[0]',
            f"print(*vector)  # {counted(manifest.width, 'number')}, of unit length",
        ]
    )


def _resize(geometry: Geometry) -> list[str]:
    """Geometry.apply in plain Pillow, as lines that take `image` and leave it at the model's size
    (width before height)."""
    size, resampling = (
        f"({geometry.width}, {geometry.height})",
        f"Image.Resampling.{geometry.interpolation.upper()}",
    )
    if geometry.resize == "stretch":
        return [f"image = image.resize({size}, {resampling}, reducing_gap=2.0)"]
    if geometry.rounding != "none" or geometry.resize.endswith("_then_crop"):
        return _two_steps(geometry, size, resampling)
    if geometry.resize == "cover":
        scale = (
            f"min(image.height / {geometry.height}, image.width / {geometry.width})  # until it"
            " just covers the model's size"
        )
    else:
        scale = (
            f"min(image.size) / {geometry.resize_to}  # the shorter side becomes"
            f" {geometry.resize_to} pixels"
        )
    return [
        f"scale = {scale}, of which the middle is cut out",
        (
            f"width, height = min({geometry.width} * scale, image.width), min({geometry.height} *"
            " scale, image.height)"
        ),
        "left, top = (image.width - width) / 2, (image.height - height) / 2",
        "box = (left, top, min(left + width, image.width), min(top + height, image.height))",
        f"image = image.resize({size}, {resampling}, box=box, reducing_gap=2.0)",
    ]


def _two_steps(geometry: Geometry, size: str, resampling: str) -> list[str]:
    """The same where the image is resized to whole pixels, or to a larger rectangle, before the
    crop."""
    kept = (
        max(geometry.height, geometry.width) / geometry.resize_to
        if geometry.resize.endswith("_then_crop")
        else 1
    )
    whole = {"none": "", "down": "int", "even": "round"}[geometry.rounding]
    sides = geometry.width / kept, geometry.height / kept
    rectangle = (
        f"({round(sides[0])}, {round(sides[1])})" if whole else f"({sides[0]!r}, {sides[1]!r})"
    )
    if geometry.resize == "shorter_side":
        resized = f"[int({geometry.resize_to} * side / min(image.size)) for side in image.size]"
    elif geometry.resize == "stretch_then_crop":
        resized = rectangle
    else:
        scale = f"min(side / wanted for side, wanted in zip(image.size, {rectangle}))"
        rounded = f"max(round(side / {scale}), least)" if whole else f"max(side / {scale}, least)"
        resized = f"[{rounded} for side, least in zip(image.size, {size})]"
    return [
        f"resized = {resized}  # width and height before the crop",
        f"left, top = ({whole}((side - crop) / 2) for side, crop in zip(resized, {size}))",
        "x, y = image.width / resized[0], image.height / resized[1]",
        (
            f"right, bottom = min((left + {geometry.width}) * x, image.width), min((top +"
            f" {geometry.height}) * y, image.height)"
        ),
        (
            f"image = image.resize({size}, {resampling}, box=(left * x, top * y, right, bottom),"
            " reducing_gap=2.0)"
        ),
    ]
