"""Write the script that runs a model file without featkit, on onnxruntime, numpy and Pillow."""

from __future__ import annotations

from pathlib import Path

from featkit.geometry import Geometry
from featkit.images import THUMBNAIL_SIDE
from featkit.modelfile import EMBEDDING, INPUT, Manifest
from featkit.wording import counted


def calling_example(path: Path, manifest: Manifest) -> str:
    """Return a script that prints the vector of photo.jpg, the same as featkit's.

    The two differ only on unusual input: featkit composites transparency over white and keeps the
    high byte of 16-bit channels.
    """
    geometry = manifest.geometry
    # Like Embedder.decode: a JPEG is decoded at 1/2, 1/4 or 1/8 of its size if that is still large
    # enough.
    side = max(geometry.shorter_side, THUMBNAIL_SIDE)
    weights_note = f"  # needs {manifest.external.file!r} next to it" if manifest.external else ""
    batch_note = (
        f"(N, {geometry.height}, {geometry.width}, 3): N photos in one call give N vectors"
        if manifest.batch_invariant
        else "one photo per call, because this file's vectors depend on their batch"
    )
    return "\n".join(
        [
            "import numpy as np",
            "import onnxruntime",
            "from PIL import Image, ImageOps",
            "",
            'image = Image.open("photo.jpg")  # opaque, 8 bits per channel',
            (
                f'image.draft("RGB", ({side}, {side}))  # decode a large JPEG at a smaller size;'
                " no effect on other formats"
            ),
            'image = ImageOps.exif_transpose(image).convert("RGB")',
            *_resize(geometry),
            f"images = np.asarray(image)[None]  # uint8, {batch_note}",
            (
                f"session = onnxruntime.InferenceSession({str(path)!r},"
                f' providers=["CPUExecutionProvider"]){weights_note}'
            ),
            f'(vector,) = session.run(["{EMBEDDING}"], {{"{INPUT}": images}})[0]',
            f"print(*vector)  # {counted(manifest.width, 'dimension')}, unit length",
        ]
    )


def _resize(geometry: Geometry) -> list[str]:
    """Return lines that bring `image` to the model's size, like Geometry.apply in plain Pillow.

    Pillow's sizes have the width first.
    """
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
            f"min(image.height / {geometry.height}, image.width / {geometry.width})  # to just"
            " cover the model's size"
        )
    else:
        scale = (
            f"min(image.size) / {geometry.resize_to}  # the shorter side becomes"
            f" {geometry.resize_to} pixels"
        )
    return [
        f"scale = {scale}; the center is cropped",
        (
            f"width, height = min({geometry.width} * scale, image.width), min({geometry.height} *"
            " scale, image.height)"
        ),
        "left, top = (image.width - width) / 2, (image.height - height) / 2",
        "box = (left, top, min(left + width, image.width), min(top + height, image.height))",
        f"image = image.resize({size}, {resampling}, box=box, reducing_gap=2.0)",
    ]


def _two_steps(geometry: Geometry, size: str, resampling: str) -> list[str]:
    """Return the same lines for a geometry that resizes to whole pixels, or to a larger rectangle,
    before it crops."""
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
