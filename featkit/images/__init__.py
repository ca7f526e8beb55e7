"""Decode images into upright sRGB pixels, within limits; load files; make thumbnails."""

from featkit.images.decoding import (
    EXIF_ORIENTATION,
    SIDEWAYS,
    THUMBNAIL_SIDE,
    Decoded,
    decode,
    thumbnail_jpeg,
)
from featkit.images.limits import (
    DEFAULT_LIMITS,
    ImageLimits,
    check_num_bytes,
    printable,
    without_options,
)
from featkit.images.loading import ImageLike, is_single, load, name_of, read_encoded, read_file

__all__ = [
    "DEFAULT_LIMITS",
    "EXIF_ORIENTATION",
    "SIDEWAYS",
    "THUMBNAIL_SIDE",
    "Decoded",
    "ImageLike",
    "ImageLimits",
    "check_num_bytes",
    "decode",
    "is_single",
    "load",
    "name_of",
    "printable",
    "read_encoded",
    "read_file",
    "thumbnail_jpeg",
    "without_options",
]
