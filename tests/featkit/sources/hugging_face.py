"""Data sets made by the `datasets` library, for tests of what it saves and loads."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import pytest

from tests.featkit.sources.files import image_bytes

NAMES = ["cat", "dog"]


def library() -> Any:
    """Import the `datasets` library, or skip the test."""
    return pytest.importorskip("datasets")


def keep_cache_in(folder: Any, patch: pytest.MonkeyPatch) -> None:
    """Put the library's cache into `folder`; disable the network and progress bars."""
    config = importlib.import_module(f"{library().__name__}.config")
    patch.setattr(config, "HF_DATASETS_CACHE", folder)
    patch.setattr(config, "DOWNLOADED_DATASETS_PATH", folder / "downloads")
    patch.setattr(config, "HF_HUB_OFFLINE", True)


def draw_images(count: int) -> list[bytes]:
    """Return small, different images."""
    return [image_bytes(seed) for seed in range(count)]


def make_dataset(images: Sequence[bytes | None]) -> Any:
    """Return a data set with `image` {bytes, path}, a class `label`, and a `caption`."""
    datasets = library()
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=NAMES),
            "caption": datasets.Value("string"),
        }
    )
    rows = {
        "image": [
            None if data is None else {"bytes": data, "path": f"{number}.png"}
            for number, data in enumerate(images)
        ],
        "label": [number % 2 for number in range(len(images))],
        "caption": [f"image {number}" for number in range(len(images))],
    }
    return datasets.Dataset.from_dict(rows, features=features)


def expected_metadata(number: int) -> dict[str, object]:
    """Return the metadata that `make_dataset` gives row `number`."""
    return {
        "label": number % 2,
        "label_name": NAMES[number % 2],
        "caption": f"image {number}",
        "path": f"{number}.png",
    }
