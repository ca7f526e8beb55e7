"""Measure what a color profile costs when a photo is decoded: the same pixels with and without it.

Run: python tests/benchmarks/bench_color.py
"""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from PIL import Image, ImageCms

from featkit.embedder import Embedder
from tests.benchmarks.record import alternate, is_quick, median_ratio, write_result
from tests.data import shared_data
from tests.profiles import ADOBE, P3, PROPHOTO, rgb_profile

IMAGES, ROUNDS = (4, 1) if is_quick() else (120, 9)


def with_profile(data: bytes, profile: bytes | None) -> bytes:
    """The JPEG again, its pixels unchanged, with this profile or none."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(data)).convert("RGB").save(
        buffer, "JPEG", quality=90, icc_profile=profile
    )
    return buffer.getvalue()


def milliseconds(embedder: Embedder, images: Sequence[bytes]) -> float:
    """The mean time to decode one of them and to bring it to the model's size."""
    started = time.perf_counter()
    for data in images:
        embedder.prepare(data)
    return 1000 * (time.perf_counter() - started) / len(images)


def main() -> None:
    """Measure and record."""
    data = shared_data()
    if data is None:
        raise SystemExit("The data for this benchmark is not here; see tests/data.py.")
    embedder = Embedder(threads=1, backend="onnxruntime")
    photos = [path.read_bytes() for path in sorted((data / "photos").iterdir())[:IMAGES]]
    plain = [with_profile(photo, None) for photo in photos]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    figures: dict[str, object] = {"images": IMAGES, "rounds": ROUNDS}
    profiles = {
        "sRGB": srgb,
        "Display P3": rgb_profile(P3),
        "Adobe RGB": rgb_profile(ADOBE),
        "ProPhoto": rgb_profile(PROPHOTO, gamma=1.8),
    }
    for name, profile in profiles.items():
        tagged = [with_profile(photo, profile) for photo in photos]
        milliseconds(embedder, tagged)
        with_it, without = alternate(
            lambda tagged=tagged: milliseconds(embedder, tagged),  # type: ignore[misc]
            lambda: milliseconds(embedder, plain),
            rounds=ROUNDS,
        )
        figures |= {
            f"{name}: ms per image": [round(value, 3) for value in with_it],
            f"{name}: ms per image, no profile": [round(value, 3) for value in without],
            f"{name}: median of the pairs' ratios": round(median_ratio(with_it, without), 3),
        }
    write_result("color", figures)


if __name__ == "__main__":
    main()
