"""Convert colors to sRGB by an image's ICC profile or its format's own color metadata.

Profiles are untrusted. A profile that is damaged, too large, of the wrong class or for other
channels is ignored, as browsers do, and the image is still read. A profile that changes nothing
costs one digest.
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4 * 2**20  # profiles of printing presses reach 3 MB
CACHED_TRANSFORMS = 64
SAME_WITHIN = 2  # levels of 255; profiles called sRGB differ from each other by one

# Color spaces accepted for each mode. A gray image may still carry the RGB profile of the image it
# was made from.
_SPACES = {"RGB": ("RGB",), "L": ("GRAY", "RGB"), "CMYK": ("CMYK",), "LAB": ("Lab",)}
_CLASSES = ("mntr", "scnr", "prtr", "spac")  # no device links, abstract profiles or named colors

# The least recently used entry goes once there are more than CACHED_TRANSFORMS.
_transforms: OrderedDict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = OrderedDict()
_lock = threading.Lock()


class Primaries(NamedTuple):
    """Chromaticities (x, y) of red, green, blue and white."""

    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]
    white: tuple[float, float]


_D65 = (0.3127, 0.3290)
BT709 = Primaries((0.640, 0.330), (0.300, 0.600), (0.150, 0.060), _D65)
DISPLAY_P3 = Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), _D65)
ADOBE_RGB = Primaries((0.640, 0.330), (0.210, 0.710), (0.150, 0.060), _D65)
# ITU-T H.273, table 2; any other code is treated as BT.709
CICP_PRIMARIES = {
    5: Primaries((0.640, 0.330), (0.290, 0.600), (0.150, 0.060), _D65),
    6: Primaries((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    7: Primaries((0.630, 0.340), (0.310, 0.595), (0.155, 0.070), _D65),
    9: Primaries((0.708, 0.292), (0.170, 0.797), (0.131, 0.046), _D65),
    11: Primaries((0.680, 0.320), (0.265, 0.690), (0.150, 0.060), (0.314, 0.351)),
    12: DISPLAY_P3,
}


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert an image of mode L, RGB, CMYK or LAB to RGB in sRGB.

    profile: an ICC profile, or None for sRGB and gray. CMYK without a profile is converted by
    Pillow's simple formula.
    """
    transform = transform_of(profile, image.mode)
    if transform is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    return transform.apply(
        image if image.mode == transform.input_mode else image.convert(transform.input_mode)
    )


def transform_of(profile: bytes | None, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform from a profile to sRGB, or None if there is nothing to convert.

    One transform serves all threads: lcms2 only reads it, and Pillow releases the GIL meanwhile.
    """
    if profile is None and mode != "LAB":
        return None
    profile = profile or b""  # LAB needs no profile: it is plain CIE L*a*b*
    if len(profile) > MAX_PROFILE_BYTES:
        return None
    key = (hashlib.sha256(profile).digest(), mode)
    with _lock:
        if key in _transforms:
            _transforms.move_to_end(key)
            return _transforms[key]
    # outside the lock, since a large profile takes 50 ms; making one twice does no harm
    made = _make_transform(profile, mode)
    with _lock:
        _transforms[key] = made
        while len(_transforms) > CACHED_TRANSFORMS:
            _transforms.popitem(last=False)
    return made


def _make_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        if mode == "LAB":
            source = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        else:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            space = source.profile.xcolor_space.strip()
            if source.profile.device_class.strip() not in _CLASSES or space not in _SPACES[mode]:
                return None
            mode = "RGB" if space == "RGB" else mode
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        transform = ImageCms.ImageCmsTransform(
            source, srgb, mode, "RGB", ImageCms.Intent.PERCEPTUAL
        )
        return None if mode in ("L", "RGB") and _changes_nothing(transform) else transform
    except Exception:  # lcms2 and Pillow raise various exceptions for a damaged profile
        return None


def _changes_nothing(transform: ImageCms.ImageCmsTransform) -> bool:
    """Return whether a transform changes no color of a sample by more than SAME_WITHIN levels."""
    ramp = np.arange(256, dtype=np.uint8)
    if transform.input_mode == "L":
        sample = ramp[None]
        plain = np.repeat(sample[..., None], 3, axis=2)
    else:
        steps = ramp[::15]  # 18 levels, including 0 and 255
        grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
        sample = plain = np.concatenate([grid, np.repeat(ramp[:, None], 3, axis=1)])[None]
    found = np.asarray(transform.apply(Image.fromarray(sample)))
    return int(np.abs(found.astype(np.int16) - plain).max()) <= SAME_WITHIN


# --- profiles built from color metadata


def profile_of_gamma(gamma: float, primaries: Primaries = BT709) -> bytes | None:
    """Return an ICC profile for levels of light ** (1 / gamma), or None if gamma is implausible."""
    if not 0.1 <= gamma <= 10 or not _are_usable(primaries):
        return None
    return _matrix_profile(primaries, np.linspace(0, 1, 1024) ** gamma)


def profile_of_cicp(primaries: int, transfer: int) -> bytes | None:
    """Return an ICC profile for coding-independent code points (ITU-T H.273), or None for sRGB.

    HDR (PQ, HLG) is clipped at its diffuse white, 203 nits (ITU-R BT.2408).
    """
    chosen, curve = CICP_PRIMARIES.get(primaries, BT709), _cicp_curve(transfer)
    if curve is None and chosen == BT709:
        return None
    return _matrix_profile(chosen, _srgb_curve() if curve is None else curve)


def _srgb_curve() -> np.ndarray:
    levels = np.linspace(0, 1, 1024)
    return np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)


def _cicp_curve(transfer: int) -> np.ndarray | None:
    """Return light for 4,096 levels from 0 to 1; None for sRGB and, as in browsers, for video."""
    levels = np.linspace(0, 1, 4096)
    if transfer in (4, 5):
        return np.power(levels, 2.2 if transfer == 4 else 2.8)
    if transfer == 8:
        return levels
    if transfer == 16:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        power = levels ** (1 / m2)
        light = (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)
        return np.minimum(light * 10_000 / 203, 1)
    if transfer == 18:  # ARIB STD-B67
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(levels <= 0.5, levels**2 / 3, (np.exp((levels - c) / a) + b) / 12)
        bounded: np.ndarray = np.minimum(light / ((np.exp((0.75 - c) / a) + b) / 12), 1)
        return bounded
    return None


def _are_usable(primaries: Primaries) -> bool:
    """Return whether the primaries span a triangle and have a defined brightness."""
    red, green, blue, white = primaries
    area = (green[0] - red[0]) * (blue[1] - red[1]) - (blue[0] - red[0]) * (green[1] - red[1])
    return (
        abs(area) > 1e-3 and min(y for _, y in (green, white)) > 0.01 and min(red[1], blue[1]) > 0
    )


def _matrix_profile(primaries: Primaries, curve: np.ndarray) -> bytes:
    """Return an ICC 2.4 profile of three primaries that share one curve from levels to light."""

    def xyz(x: float, y: float) -> np.ndarray:
        return np.array([x / y, 1, (1 - x - y) / y])

    white, d50 = xyz(*primaries.white), np.array([0.9642, 1, 0.8249])
    colors = np.stack([xyz(*primary) for primary in primaries[:3]], axis=1)
    colors = colors * np.linalg.solve(colors, white)
    bradford = np.array(
        [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
    )
    adapt = np.linalg.inv(bradford) @ np.diag((bradford @ d50) / (bradford @ white)) @ bradford
    red, green, blue = (adapt @ colors).T

    def numbers(values: np.ndarray) -> bytes:
        return b"XYZ \0\0\0\0" + b"".join(
            struct.pack(">i", round(float(v) * 65536)) for v in values
        )

    levels = np.round(np.clip(curve, 0, 1) * 65535).astype(">u2")
    table = b"curv\0\0\0\0" + struct.pack(">I", len(levels)) + levels.tobytes()
    description = b"desc\0\0\0\0" + struct.pack(">I", 8) + b"featkit\0" + bytes(78) + bytes(2)
    tags = [(b"desc", description), (b"cprt", b"text\0\0\0\0none\0\0\0\0"), (b"wtpt", numbers(d50))]
    tags += [(b"rXYZ", numbers(red)), (b"gXYZ", numbers(green)), (b"bXYZ", numbers(blue))]
    tags += [(b"rTRC", table), (b"gTRC", table), (b"bTRC", table)]
    entries, body, start = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for tag, value in tags:
        value += bytes(-len(value) % 4)
        entries += tag + struct.pack(">II", start + len(body), len(value))
        body += value
    head = struct.pack(">I", 128 + len(entries) + len(body)) + b"\0\0\0\0\x02\x40\0\0mntrRGB XYZ "
    head += (
        b"\x07\xe0\0\1\0\1\0\0\0\0\0\0acsp"
        + bytes(28)
        + struct.pack(">iii", 63190, 65536, 54061)
        + bytes(48)
    )
    return head + entries + body
