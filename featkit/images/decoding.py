"""Bytes to upright sRGB pixels: limits before decoding, every mode Pillow opens, scaled decoding
for JPEG.

What comes in is not trusted. Bytes are counted before they are parsed and pixels before they are
decoded; whatever goes wrong in between is one InputError that names the image. All of it may run
in several threads at once: warning filters, which belong to the whole process, are therefore left
alone; the command line, whose process is its own, sets them.
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
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations whose stored width is the upright height

# Formats that Pillow only names, or hands to another program: EPS goes to Ghostscript, which runs
# what the file says.
REFUSED_FORMATS = frozenset({"EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"})
SCALED_FORMATS = ("JPEG", "MPO")  # MPO is the JPEG of cameras that store a preview beside it
FULL_SCALE_FORMATS = ("JPEG2000", "PPM")  # Pillow brings their levels to 16 bits
TIFF_MARKS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
ADOBE_RGB_MARK = b"R03\0"  # of EXIF's interoperability: what cameras write instead of a profile

_pillow_limit_lock = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """Upright sRGB pixels (H, W, 3) uint8, C-contiguous, perhaps scaled down while decoding; the
    original's size."""

    pixels: np.ndarray
    height: int
    width: int


class _Opened(NamedTuple):
    """An image of eight bits or of a mode that `_to_rgb` knows, its size as stored, and what its
    file says of it."""

    image: Image.Image
    height: int
    width: int
    orientation: int
    profile: bytes | None
    levels: np.ndarray | None = None  # (H, W, 1 to 4) uint16, where eight bits would not do
    white: float | None = None  # of these levels, where the file tells
    see_through: tuple[int, ...] | None = None  # the levels that are transparent


def decode(
    data: bytes,
    *,
    name: str = "image",
    limits: ImageLimits = DEFAULT_LIMITS,
    shorter_side: int | None = None,
) -> Decoded:
    """Decode an image of any format and mode that Pillow or a plug-in opens, in sRGB, over white
    where transparent.

    Of several images in a file it is the one that a viewer shows first. shorter_side, in pixels:
    what the caller will resize to. A JPEG may then be decoded at a half, a quarter or an eighth,
    never to less than that; an image whose colors are converted may be reduced to no less than
    twice that. Damage to anything but pixels is passed over. InputError, naming `name`, for bytes
    that are no image, are damaged, or exceed `limits`.
    """
    name = printable(name)
    check_num_bytes(len(data), name=name, limits=limits)
    if not data:
        raise InputError(f"{name} is empty (0 bytes).")
    try:
        return _decode(data, name=name, limits=limits, shorter_side=shorter_side)
    except InputError:
        raise
    # the latter where warnings are errors
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{name} has {_pixels_in(error)}{over_limit(limits)}") from error
    except MemoryError as error:
        raise InputError(
            f"{name} needs more memory than there is; lower --max-pixels, or give it more."
        ) from error
    # decoders of untrusted bytes raise whatever they like: struct.error, SyntaxError, KeyError ...
    except Exception as error:
        again = _decode_mended(data, name=name, limits=limits, shorter_side=shorter_side)
        if again is not None:
            return again
        raise _refusal(data, name, error) from error


def decode_image(image: Image.Image, *, name: str, limits: ImageLimits) -> Decoded:
    """Decode a Pillow image of a program's, at its current frame. InputError, naming it, as for
    `decode`."""
    name = printable(name)
    try:
        check_num_pixels(image.height, image.width, name=name, limits=limits)
        opened_size = image.size
        image.load()
        if image.size != opened_size:
            check_num_pixels(image.height, image.width, name=name, limits=limits)
        # Only an image as a file holds it is turned. What was made of one keeps a copy of its EXIF,
        # whatever was done to it.
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
    """JPEG bytes of (H, W, 3) uint8 pixels, scaled down so that the longer side is at most `side`.
    Same pixels, same bytes."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


# --- from a file's bytes


def _decode(
    data: bytes,
    *,
    name: str,
    limits: ImageLimits,
    shorter_side: int | None,
    profile: bytes | None = None,
) -> Decoded:
    """Decode once. profile: in place of the image's own. Raises whatever decoders raise."""
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
    """Decode without what is damaged beside the pixels; None where that does not help either."""
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
    """What is wrong with bytes that could not be decoded: another kind of file, one of no known
    kind, or damage."""
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
    """Whether the first bytes could be of a format that plug-ins read, told at no cost for the
    usual ones."""
    start = data[:4]
    return (
        start[:2] != b"\xff\xd8"
        and start not in (b"\x89PNG", b"RIFF", b"GIF8")
        and start[:2] != b"BM"
    )


def _open(data: bytes, *, limits: ImageLimits) -> Image.Image:
    """Read the header, as any format but REFUSED_FORMATS."""
    Image.init()
    with _pillow_limit_lock:
        # Pillow's own limit guards images inside images (icons). It is one number for the whole
        # process, so it is raised to what was asked for here and never lowered or switched off.
        if Image.MAX_IMAGE_PIXELS is not None and limits.max_pixels > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = limits.max_pixels
    return Image.open(
        io.BytesIO(data), formats=[format for format in Image.ID if format not in REFUSED_FORMATS]
    )


def _loaded(
    image: Image.Image, data: bytes, *, name: str, limits: ImageLimits, shorter_side: int | None
) -> _Opened:
    """Decode an image that is open, with all that its file says of its colors."""
    width, height = image.size
    check_num_pixels(height, width, name=name, limits=limits)
    if shorter_side is not None and image.format in SCALED_FORMATS:
        # draft() keeps both sides at least as long as asked, so asking for a square keeps the
        # shorter one.
        image.draft("RGB", (shorter_side, shorter_side))
    is_deep = png.is_deep(image)
    _go_to_shown_frame(image)
    opened_size = image.size
    wait_for_room_of(image, full_size=(width, height), is_deep=is_deep)
    image.load()
    if image.size != opened_size:  # an icon whose header says less than the image in it has
        width, height = image.size
        check_num_pixels(height, width, name=name, limits=limits)
    # The orientation after load(): a TIFF is turned by Pillow then, and forgets its tag.
    opened = _Opened(image, height, width, _orientation(image), _profile_of(data, image))
    if is_deep and not getattr(image, "is_animated", False):
        return _with_all_bits(opened, data)
    if (
        image.format == "PNG"
        and image.mode == "L"
        and data[24] < 8
        and isinstance(image.info.get("transparency"), int)
    ):
        # Pillow scales the levels, not the one that is transparent
        image.info["transparency"] *= 255 // (2 ** data[24] - 1)
    return opened


def _go_to_shown_frame(image: Image.Image) -> None:
    """Move on to the first frame of an animated PNG whose still image is none of them: that is
    for programs without them."""
    if (
        image.format == "PNG"
        and getattr(image, "default_image", False)
        and getattr(image, "n_frames", 1) > 1
    ):
        image.seek(1)


def _with_all_bits(opened: _Opened, data: bytes) -> _Opened:
    """A PNG of 16 bits with the low bytes that Pillow drops, where they count: if it is dark, or
    has a transparent level."""
    image, see_through = opened.image, png.transparency_16(data)
    if image.mode not in ("I;16", "I;16B", "I"):
        # more than 14 bits: the high bytes are the image
        is_bright = int(np.asarray(image.convert("RGB")).max()) >= 64
        if see_through is None and is_bright:
            return opened
    found = png.levels_16(data, image)
    num_colors = 3 if found.shape[2] >= 3 else 1
    white = png.declared_white(data, found[..., :num_colors])
    return opened._replace(levels=found, white=white, see_through=see_through)


def _profile_of(data: bytes, image: Image.Image) -> bytes | None:
    """The ICC profile of an image, or one that stands for what its file says of colors in another
    way; None for sRGB."""
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
    """Whether EXIF says so: the optional color space of DCF, "R03", and not sRGB."""
    try:
        exif = image.getexif().get_ifd(0x8769)
        return exif.get(0xA001) != 1 and image.getexif().get_ifd(0xA005).get(1) == "R03"
    except Exception:  # damaged metadata says nothing
        return False


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1 to 8; 1 (upright) where none is told."""
    try:
        orientation = image.getexif().get(EXIF_ORIENTATION, 1)
    # damaged metadata of an image that decodes says nothing, and is no reason to refuse it
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
    """View of (H, W, 3) as stored to (H, W, 3) or (W, H, 3) as meant (EXIF 2.32, tag 0x0112)."""
    if orientation in SIDEWAYS:
        # 5 is this mirror alone; the others follow it by one of the flips below
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _to_rgb(opened: _Opened, *, name: str, shorter_side: int | None) -> np.ndarray:
    """(H, W, 3) uint8 sRGB of any mode; transparency is laid over white."""
    image = _eight_bits(opened, name=name)
    has_alpha = image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info
    if has_alpha:
        if image.mode == "La":  # premultiplied gray has one way out
            image = image.convert("LA")
        is_gray = image.mode in ("LA", "L", "1")
        image = image.convert("RGBA")
        colors = image.convert("RGB")
    else:
        is_gray = False
        colors = image if image.mode in ("L", "RGB", "CMYK", "LAB") else image.convert("RGB")
    transform = color.transform_of(opened.profile, colors.mode)
    if transform is None and is_gray and opened.profile is not None:
        colors = colors.convert("L")  # a profile for gray
        transform = color.transform_of(opened.profile, "L")
    if transform is not None:
        factor = min(colors.size) // (2 * shorter_side) if shorter_side else 1
        # as every resize to come would reduce it first, but before its colors cost anything
        if factor > 1:
            colors, image = colors.reduce(factor), image.reduce(factor) if has_alpha else image
    rgb = color.to_srgb(colors, opened.profile)
    if has_alpha:  # then `rgb` is an image of ours
        rgb.putalpha(image.getchannel("A"))
        white = Image.new("RGBA", rgb.size, (255, 255, 255, 255))
        rgb = Image.alpha_composite(white, rgb).convert("RGB")
    return np.asarray(rgb)


def _eight_bits(opened: _Opened, *, name: str) -> Image.Image:
    """The image with eight bits a channel: 16 bits keep the high byte where their white is 65,535."""
    image, found = opened.image, opened.levels
    if found is None and (image.mode.startswith("I;16") or image.mode in ("I", "F")):
        found = np.asarray(image)[..., None]
        if image.mode.startswith("I;16"):
            found = found.astype(np.uint16, copy=False)  # of either byte order
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


# --- words


def _pixels_in(error: Exception) -> str:
    """The count that Pillow gives, which refuses such an image before its sides are known here."""
    count = re.search(r"\d+", str(error))
    return f"{int(count[0]):,} pixels" if count else "too many pixels"


def reason_of(error: Exception) -> str:
    """What an exception has to say, on one line and without a full stop of its own."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    if error.args and isinstance(error.args[0], bytes):  # as LibRaw says it
        said = error.args[0].decode("utf-8", "replace")
    if isinstance(error, UnidentifiedImageError):  # which names an object in memory
        said = "its header makes no sense"
    return " ".join(said.split()).rstrip(".") or type(error).__name__
