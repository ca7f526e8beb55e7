"""Load images from paths, bytes, open files, Pillow images, arrays and rows of data sets."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image

from featkit.errors import InputError
from featkit.images.decoding import Decoded, decode, decode_image, reason_of
from featkit.images.limits import (
    DEFAULT_LIMITS,
    ImageLimits,
    check_num_bytes,
    check_num_pixels,
    printable,
)

ImageLike: TypeAlias = (
    str
    | os.PathLike[str]
    | bytes
    | bytearray
    | memoryview
    | IO[bytes]
    | Image.Image
    | np.ndarray
    | Mapping[str, Any]
)

WEB_ADDRESS = re.compile(r"(https?|ftp|s3|gs|data|file):", re.IGNORECASE)


def load(
    image: ImageLike,
    *,
    name: str | None = None,
    limits: ImageLimits = DEFAULT_LIMITS,
    shorter_side: int | None = None,
) -> Decoded:
    """Decode a path, bytes, an open binary file, a Pillow image, an array or a row.

    - Pillow image: the current frame. EXIF orientation applies only if it came straight from a
      file; the result of `rotate`, `convert`, `copy` and the like is used as it is.
    - Open file: read from its beginning.
    - Array: (H, W, 3), (H, W) or (H, W, 1) uint8, RGB, upright.
    - Row: a mapping with `bytes` or `path`, as Hugging Face data sets store images.

    Raises InputError as `decode` does, and if the path cannot be read.
    """
    shown = name or name_of(image)
    if isinstance(image, Image.Image):
        return decode_image(image, name=shown or "image", limits=limits)
    if isinstance(image, np.ndarray):
        return _check_array(image, name=shown or "array", limits=limits)
    if isinstance(image, Mapping):
        return load(
            _of_row(image, shown or "image"),
            name=shown,
            limits=limits,
            shorter_side=shorter_side,
        )
    data = read_encoded(image, name=shown, limits=limits)
    return decode(data, name=shown or "image", limits=limits, shorter_side=shorter_side)


def read_encoded(
    image: ImageLike, *, name: str | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> bytes:
    """Return the encoded bytes of an image given as a path, bytes, an open binary file or a row.

    Raises InputError as `load` does.
    """
    shown = name or name_of(image)
    if isinstance(image, str | os.PathLike):
        if isinstance(image, str) and WEB_ADDRESS.match(image):
            raise InputError(
                f"{printable(shown or '')[:200]} is a web address; download the file first."
            )
        path = os.fsdecode(image)
        if not path:
            raise InputError(f"{shown or 'image'} is an empty string; give the path of a file.")
        return read_file(Path(path), name=shown or path, limits=limits)
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, Mapping):
        return read_encoded(_of_row(image, shown or "image"), name=shown, limits=limits)
    if hasattr(image, "read"):
        return _read_open(image, name=shown or "image", limits=limits)
    raise InputError(f"{shown or 'image'} is {_described(image)}.")


def is_single(images: object) -> bool:
    """Return False if a value is several images; True for one image or anything else."""
    if isinstance(images, np.ndarray):
        return images.ndim < 4 and not (images.ndim == 1 and images.dtype.kind in "OUS")
    kinds = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, Mapping)
    return (
        isinstance(images, kinds)
        or hasattr(images, "read")
        or _is_tensor(images)
        or not hasattr(images, "__iter__")
    )


def name_of(image: object) -> str | None:
    """Return the name of the file that an image comes from, or None if it has none."""
    if isinstance(image, Mapping):
        image = image.get("path")
    if isinstance(image, str | os.PathLike):
        return os.fsdecode(image)
    told = (
        getattr(image, "filename", None)
        if isinstance(image, Image.Image)
        else getattr(image, "name", None)
    )
    return os.fsdecode(told) if isinstance(told, str | bytes | os.PathLike) and told else None


def read_file(
    path: Path, *, name: str | None = None, limits: ImageLimits = DEFAULT_LIMITS
) -> bytes:
    """Return all bytes of a regular file.

    Raises InputError, with `name` or the path, if the file is missing, cannot be read or exceeds
    `limits.max_bytes`.
    """
    name = printable(name or str(path))
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise InputError(f"{name} is a folder or a device, not a file.")
        check_num_bytes(status.st_size, name=name, limits=limits)
        return path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{name} does not exist.") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise InputError(f"{name} cannot be read: {reason_of(error)}.") from error


def _check_array(array: np.ndarray, *, name: str, limits: ImageLimits) -> Decoded:
    shape = array.shape
    if array.ndim == 3 and shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
        advice = ""
        if array.ndim == 3 and shape[0] in (1, 3) and array.dtype == np.uint8:
            advice = "; transpose it with array.transpose(1, 2, 0)"
        elif array.dtype.kind == "f":
            advice = "; if its levels are from 0 to 1, use (array * 255).round().astype(np.uint8)"
        raise InputError(
            f"{name} is {array.dtype} of shape {shape}; an array must be uint8 (H, W, 3){advice}."
        )
    height, width = array.shape[:2]
    check_num_pixels(height, width, name=name, limits=limits)
    return Decoded(np.ascontiguousarray(array), height, width)


def _of_row(row: Mapping[str, Any], name: str) -> ImageLike:
    """Return the image in a row {bytes, path}: the bytes if present, else the path."""
    for key in ("bytes", "path"):
        value = row.get(key)
        if value is not None and not isinstance(value, Mapping):
            image: ImageLike = value
            return image
    if any(key in row for key in ("bytes", "path")):
        raise InputError(
            f"{printable(name)} is a row without an image: both `bytes` and `path` are empty."
        )
    keys = ", ".join(str(key) for key in list(row)[:8]) or "no keys"
    raise InputError(
        f"{printable(name)} is a mapping with {printable(keys)} instead of `bytes` or `path`; pass"
        " the image inside it, such as row['image']."
    )


def _read_open(file: Any, *, name: str, limits: ImageLimits) -> bytes:
    """Return all bytes of an open file, from the beginning if the file can seek."""
    name = printable(name)
    try:
        if getattr(file, "seekable", lambda: False)():
            file.seek(0)
        data = file.read(limits.max_bytes + 1)
    except Exception as error:  # the object may be of any class and raise anything
        raise InputError(f"{name} cannot be read: {reason_of(error)}.") from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"{name} is open as text; open it with mode 'rb'.")
    if len(data) > limits.max_bytes:
        raise InputError(
            f"{name} has more than the limit of {limits.max_bytes:,} bytes; raise it with"
            " --max-bytes."
        )
    return bytes(data)


def _is_tensor(value: object) -> bool:
    return type(value).__module__.partition(".")[0] in (
        "torch",
        "jax",
        "jaxlib",
        "tensorflow",
    ) and hasattr(value, "shape")


def _described(value: object) -> str:
    """Describe a value that is not an image, and say what to give instead."""
    if value is None:
        return "None; give a path, bytes, a Pillow image or an array"
    kind = type(value).__name__
    article = "an" if kind[:1].lower() in "aeiou" else "a"
    if _is_tensor(value):
        shape = tuple(getattr(value, "shape", ()))
        return (
            f"{article} {kind} of shape {shape}; give a NumPy array, uint8 (H, W, 3), such as"
            " x.permute(1, 2, 0).numpy()"
        )
    return f"{article} {kind}; give a path, bytes, a Pillow image or an array"
