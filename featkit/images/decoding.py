"""Decode bytes into upright sRGB pixels, within limits, in every mode that Pillow opens.

Input is untrusted. Bytes are counted before parsing and pixels before decoding, and any failure
becomes one InputError that names the image. Everything here may run in several threads. Warning
filters are therefore left alone, since they belong to the whole process; the command line sets
them.
"""

from __future__ import annotations

import io
import re
import threading
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError, features

from featkit.errors import InputError
from featkit.filetypes import AVIF, HEIC, TEXT, TIFF, what_is
from featkit.images import boxes, color, levels, mending, plugins, png, tiff
from featkit.images.limits import (
    DEFAULT_LIMITS,
    ImageLimits,
    check_num_bytes,
    check_num_pixels,
    over_limit,
    printable,
)
from featkit.images.room import wait_for_room_of

EXIF_ORIENTATION = 0x0112
THUMBNAIL_SIDE = 256  # pixels of the longer side
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap height and width

# Formats that Pillow only identifies or passes to another program. Ghostscript would execute the
# PostScript code in an EPS file.
REFUSED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
SCALED_FORMATS = ("JPEG", "MPO")  # MPO: a camera's JPEG with a preview in the same file
FULL_SCALE_FORMATS = ("JPEG2000", "PPM")  # Pillow scales their levels to 16 bits
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ADOBE_RGB_MARK = b"R03\0"  # EXIF interoperability index, which cameras write instead of a profile

_pillow_limit_lock = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """Upright sRGB pixels (H, W, 3) uint8, C-contiguous, and the original's height and width.

    The pixels may have been scaled down while decoding.
    """

    pixels: np.ndarray
    height: int
    width: int


class _Opened(NamedTuple):
    """A loaded image in a mode that `_to_rgb` handles, its stored size, and its file's metadata."""

    image: Image.Image
    height: int
    width: int
    orientation: int
    profile: bytes | None
    levels: np.ndarray | None = None  # (H, W, 1 to 4) uint16, if eight bits are not enough
    white: float | None = None  # the level of white, if the file declares it
    see_through: tuple[int, ...] | None = None  # the color that is transparent


def decode(
    data: bytes,
    *,
    name: str = "image",
    limits: ImageLimits = DEFAULT_LIMITS,
    shorter_side: int | None = None,
) -> Decoded:
    """Decode an image of any format that Pillow or a plugin opens to sRGB, over white.

    If a file holds several images, the one that a viewer shows first is decoded.

    shorter_side: the shorter side, in pixels, that the caller will resize to. A JPEG may then be
    decoded at a half, a quarter or an eighth of its size, but never smaller than this; an image
    whose colors are converted may be reduced to no less than twice this.

    Damaged metadata is ignored. Raises InputError, with `name`, if the bytes are not an image, the
    pixels are damaged, or `limits` are exceeded.
    """
    name = printable(name)
    check_num_bytes(len(data), name=name, limits=limits)
    if not data:
        raise InputError(f"{name} is empty (0 bytes).")
    try:
        return _decode(data, name=name, limits=limits, shorter_side=shorter_side)
    except InputError:
        raise
    # the warning is raised if the process turns warnings into errors
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} has {_pixels_in(error)}{over_limit(limits)}") from error
    except MemoryError as error:
        raise InputError(
            f"{name} needs more memory than is free; lower --max-pixels, or free some memory."
        ) from error
    # decoders raise all sorts of exceptions on bad bytes: struct.error, SyntaxError, KeyError ...
    except Exception as error:
        again = _decode_mended(data, name=name, limits=limits, shorter_side=shorter_side)
        if again is not None:
            return again
        raise _refusal(data, name, error) from error


def decode_image(image: Image.Image, *, name: str, limits: ImageLimits) -> Decoded:
    """Decode the current frame of a Pillow image. Raises InputError as `decode` does."""
    name = printable(name)
    try:
        check_num_pixels(image.height, image.width, name=name, limits=limits)
        opened_size = image.size
        image.load()
        if image.size != opened_size:
            check_num_pixels(image.height, image.width, name=name, limits=limits)
        # Only an image straight from a file is turned. An image derived from it keeps the EXIF
        # data even if it has been rotated since.
        is_as_stored = isinstance(image, ImageFile.ImageFile) and image.format not in (
            "JXL",
            "HEIF",
        )
        orientation = _orientation(image) if is_as_stored else 1
        opened = _Opened(image, image.height, image.width, orientation, _profile_of(b"", image))
        return _upright(opened, name=name, shorter_side=None)
    except InputError:
        raise
    except Exception as error:  # as in decode
        raise InputError(
            f"{name} is damaged and cannot be decoded ({reason_of(error)})."
        ) from error


def thumbnail_jpeg(pixels: np.ndarray, *, side: int = THUMBNAIL_SIDE, quality: int = 85) -> bytes:
    """Return JPEG bytes of pixels (H, W, 3) uint8, scaled down to a longer side of at most `side`.

    The same pixels always give the same bytes.
    """
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


# --- from bytes to an image


def _decode(
    data: bytes,
    *,
    name: str,
    limits: ImageLimits,
    shorter_side: int | None,
    profile: bytes | None = None,
) -> Decoded:
    """Decode without a second try. profile: replaces the image's own. Raises any exception."""
    kind = None
    if data[:4] in TIFF_MARKS:
        tags = tiff.read_tags(data)
        kind = what_is(data)
        if not plugins.is_plugin_kind(kind):
            tiff.check(tags, name=name)
            if tiff.is_deep(data, tags):
                deep = tiff.read_deep(data, tags, name=name, limits=limits)
                opened = _Opened(
                    deep.image,
                    deep.image.height,
                    deep.image.width,
                    deep.orientation,
                    profile or deep.profile,
                )
                return _upright(opened, name=name, shorter_side=shorter_side)
    elif _may_need_plugin(data):
        kind = what_is(data)
    if kind is not None and plugins.is_plugin_kind(kind):
        made = plugins.open_by_plugin(
            data, kind, name=name, limits=limits, shorter_side=shorter_side
        )
        if isinstance(made, bytes):
            return decode(made, name=name, limits=limits, shorter_side=shorter_side)
        its_own = (
            _profile_of(data, made.image) if kind == HEIC else made.image.info.get("icc_profile")
        )
        return _upright(_Opened(*made, 1, profile or its_own), name=name, shorter_side=shorter_side)
    with _open(data, limits=limits) as image:
        opened = _loaded(image, data, name=name, limits=limits, shorter_side=shorter_side)
        if profile is not None:
            opened = opened._replace(profile=profile)
        return _upright(opened, name=name, shorter_side=shorter_side)


def _decode_mended(
    data: bytes, *, name: str, limits: ImageLimits, shorter_side: int | None
) -> Decoded | None:
    """Decode with damaged metadata removed. Returns None if that does not help either."""
    try:
        attempts = list(mending.all_mended(data))
    except Exception:  # as in decode
        return None
    for mended in attempts:
        try:
            profile = png.large_profile(data) if data.startswith(png.SIGNATURE) else None
            return _decode(
                mended, name=name, limits=limits, shorter_side=shorter_side, profile=profile
            )
        except InputError:
            raise
        except Exception:  # as in decode
            continue
    return None


def _refusal(data: bytes, name: str, error: Exception) -> InputError:
    """Explain why bytes could not be decoded: another kind of file, an unknown kind, or damage."""
    kind = what_is(data)
    if plugins.is_plugin_kind(kind) or (kind == AVIF and features.check("avif")):
        return InputError(
            f"{name} is {kind.name}; it is damaged and cannot be decoded ({reason_of(error)})."
        )
    if (
        kind == TIFF
        and isinstance(error, UnidentifiedImageError)
        and tiff.is_whole(tags := tiff.read_tags(data))
    ):
        return tiff.unread(tags, name)
    is_image = kind is not None and kind.name.endswith((" image", " icon")) and not kind.advice
    if not isinstance(error, UnidentifiedImageError) or is_image:
        return InputError(f"{name} is damaged and cannot be decoded ({reason_of(error)}).")
    if kind is None or kind == TEXT:
        return InputError(f"{name} is not an image in a format that can be read.")
    if kind.advice:
        return InputError(kind.sentence(name, otherwise=""))
    return InputError(f"{name} is not an image in a format that can be read; it is {kind.name}.")


def _may_need_plugin(data: bytes) -> bool:
    """Return whether the first bytes might need a plugin; a cheap test for common formats."""
    start = data[:4]
    return (
        start[:2] != b"\xff\xd8"
        and start not in (b"\x89PNG", b"RIFF", b"GIF8")
        and start[:2] != b"BM"
    )


def _open(data: bytes, *, limits: ImageLimits) -> Image.Image:
    """Open an image of any format except REFUSED_FORMATS, reading its header only."""
    Image.init()
    with _pillow_limit_lock:
        # Pillow's own limit guards images inside images, such as icons. It is global to the
        # process, so it is raised to this limit if needed, but never lowered or switched off.
        if Image.MAX_IMAGE_PIXELS is not None and limits.max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = limits.max_pixels
    return Image.open(
        io.BytesIO(data), formats=[format for format in Image.ID if format not in REFUSED_FORMATS]
    )


def _loaded(
    image: Image.Image, data: bytes, *, name: str, limits: ImageLimits, shorter_side: int | None
) -> _Opened:
    """Load the pixels of an open image, with everything its file declares about its colors."""
    width, height = image.size
    check_num_pixels(height, width, name=name, limits=limits)
    if shorter_side is not None and image.format in SCALED_FORMATS:
        # draft() keeps both sides at least as long as requested, so a square bounds the shorter.
        image.draft("RGB", (shorter_side, shorter_side))
    is_deep = png.is_deep(image)
    _go_to_shown_frame(image)
    opened_size = image.size
    wait_for_room_of(image, full_size=(width, height), is_deep=is_deep)
    image.load()
    if image.size != opened_size:  # an icon's header may declare less than the image inside it
        width, height = image.size
        check_num_pixels(height, width, name=name, limits=limits)
    # Read the orientation after load(), in which Pillow turns a TIFF and drops its tag.
    opened = _Opened(image, height, width, _orientation(image), _profile_of(data, image))
    if is_deep and not getattr(image, "is_animated", False):
        return _with_all_bits(opened, data)
    if (
        image.format == "PNG"
        and image.mode == "L"
        and data[24] < 8
        and isinstance(image.info.get("transparency"), int)
    ):
        # Pillow scales the levels to 8 bits, but not the transparent level
        image.info["transparency"] *= 255 // (2 ** data[24] - 1)
    return opened


def _go_to_shown_frame(image: Image.Image) -> None:
    """Skip the default image of an animated PNG if it is not part of the animation.

    Such an image is a fallback for programs that cannot show animations.
    """
    if (
        image.format == "PNG"
        and getattr(image, "default_image", False)
        and getattr(image, "n_frames", 1) > 1
    ):
        image.seek(1)


def _with_all_bits(opened: _Opened, data: bytes) -> _Opened:
    """Restore the low bytes that Pillow drops from a 16-bit PNG, if they matter.

    They matter if the image is dark or has a transparent color.
    """
    image, see_through = opened.image, png.transparency_16(data)
    if image.mode not in ("I;16", "I;16B", "I"):
        # levels above 14 bits: the high bytes alone show the image
        is_bright = int(np.asarray(image.convert("RGB")).max()) >= 64
        if see_through is None and is_bright:
            return opened
    found = png.levels_16(data, image)
    num_colors = 3 if found.shape[2] >= 3 else 1
    white = png.declared_white(data, found[..., :num_colors])
    return opened._replace(levels=found, white=white, see_through=see_through)


def _profile_of(data: bytes, image: Image.Image) -> bytes | None:
    """Return the image's ICC profile, or one built from its other color metadata; None for sRGB."""
    if image.format == "PNG":
        return png.color_profile(data, image)
    profile = image.info.get("icc_profile")
    if profile:
        return profile if isinstance(profile, bytes) else None
    if image.format == "JPEG2000":
        return boxes.jp2_profile(data)
    if image.format in ("AVIF", "HEIF"):
        points = boxes.nclx_of(data)
        return color.profile_of_cicp(*points) if points is not None else None
    exif = image.info.get("exif", b"")
    if isinstance(exif, bytes) and ADOBE_RGB_MARK in exif and _is_adobe_rgb(image):
        return color.profile_of_gamma(563 / 256, color.ADOBE_RGB)
    return None


def _is_adobe_rgb(image: Image.Image) -> bool:
    """Return whether EXIF declares Adobe RGB: DCF's optional color space "R03", and not sRGB."""
    try:
        exif = image.getexif().get_ifd(0x8769)
        return exif.get(0xA001) != 1 and image.getexif().get_ifd(0xA005).get(1) == "R03"
    except Exception:  # damaged metadata declares nothing
        return False


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) if there is none."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    # damaged metadata is no reason to refuse an image that decodes
    except Exception:
        return 1
    return orientation if isinstance(orientation, int) else 1


# --- to RGB


def _upright(opened: _Opened, *, name: str, shorter_side: int | None) -> Decoded:
    height, width = opened.height, opened.width
    if opened.orientation in SIDEWAYS:
        width, height = height, width
    pixels = _to_rgb(opened, name=name, shorter_side=shorter_side)
    return Decoded(np.ascontiguousarray(_turn_upright(pixels, opened.orientation)), height, width)


def _turn_upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Return a view of stored pixels (H, W, 3) turned upright (EXIF 2.32, tag 0x0112)."""
    if orientation in SIDEWAYS:
        # orientation 5 is this transpose alone; 6, 7 and 8 add one of the flips below
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _to_rgb(opened: _Opened, *, name: str, shorter_side: int | None) -> np.ndarray:
    """Convert an image of any mode to sRGB (H, W, 3) uint8, compositing transparency over white."""
    image = _eight_bits(opened, name=name)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if has_alpha:
        if image.mode == "La":  # premultiplied gray converts to LA only
            image = image.convert("LA")
        is_gray = image.mode in ("LA", "L", "1")
        image = image.convert("RGBA")
        colors = image.convert("RGB")
    else:
        is_gray = False
        colors = image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB")
    transform = color.transform_of(opened.profile, colors.mode)
    if transform is None and is_gray and opened.profile is not None:
        colors = colors.convert("L")  # the profile is for gray
        transform = color.transform_of(opened.profile, "L")
    if transform is not None:
        factor = min(colors.size) // (2 * shorter_side) if shorter_side else 1
        # later resizes would reduce it anyway; doing so first makes the conversion cheaper
        if factor > 1:
            colors, image = colors.reduce(factor), image.reduce(factor) if has_alpha else image
    rgb = color.to_srgb(colors, opened.profile)
    if has_alpha:  # `rgb` is a new image here, which may be changed
        rgb.putalpha(image.getchannel("A"))
        white = Image.new("RGBA", rgb.size, (255, 255, 255, 255))
        rgb = Image.alpha_composite(white, rgb).convert("RGB")
    return np.asarray(rgb)


def _eight_bits(opened: _Opened, *, name: str) -> Image.Image:
    """Reduce an image to 8 bits per channel: the high byte of 16 bits, if white is 65,535."""
    image, found = opened.image, opened.levels
    if found is None and (image.mode.startswith("I;16") or image.mode in ("I", "F")):
        found = np.asarray(image)[..., None]
        if image.mode.startswith("I;16"):
            found = found.astype(np.uint16, copy=False)  # in the machine's byte order
    if found is None:
        return image
    num_colors = 3 if found.shape[2] >= 3 else 1
    colors = found[..., :num_colors]
    white = opened.white
    if white is None:
        declared = 65535.0 if image.format in FULL_SCALE_FORMATS else None
        white = levels.white_of(colors, name=name, declared=declared)
    pixels = levels.to_bytes(colors, white=white)
    if opened.see_through is not None and len(opened.see_through) == num_colors:
        opaque = (colors != np.array(opened.see_through, np.uint16)).any(axis=2, keepdims=True)
        pixels = np.concatenate([pixels, opaque.astype(np.uint8) * np.uint8(255)], axis=2)
    elif found.shape[2] in (2, 4):
        alpha = found[..., num_colors:]
        pixels = np.concatenate(
            [pixels, levels.to_bytes(alpha, white=max(white, levels.white_of(alpha, name=name)))],
            axis=2,
        )
    mode = ("L", "LA", "RGB", "RGBA")[pixels.shape[2] - 1]
    return Image.frombytes(
        mode, (pixels.shape[1], pixels.shape[0]), np.ascontiguousarray(pixels).tobytes()
    )


# --- messages


def _pixels_in(error: Exception) -> str:
    """Return the pixel count from Pillow's error, which comes before the size is known here."""
    count = re.search(r"\d+", str(error))
    return f"{int(count[0]):,} pixels" if count else "too many pixels"


def reason_of(error: Exception) -> str:
    """Return an exception's message on one line, without a final period."""
    message = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if error.args and isinstance(error.args[0], bytes):  # LibRaw's messages are bytes
        message = error.args[0].decode("utf-8", "replace")
    if isinstance(error, UnidentifiedImageError):  # Pillow's message names an object in memory
        message = "its header is invalid"
    return " ".join(message.split()).rstrip(".") or type(error).__name__
