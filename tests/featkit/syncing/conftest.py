"""A folder of small images, and helpers to compare an index with one made from scratch."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from featkit.embedder import Embedder
from featkit.index import Index
from tests.model_files import make_model_file

OLD_NS = 10**9 * 1_700_000_000


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx", width=16)


def draw(path: Path, seed: int, *, mtime_ns: int | None = OLD_NS, **options: Any) -> Path:
    """Draw blocks of colors, different for each seed, as a file that was modified long ago."""
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1))
    image.save(path, options.pop("kind", "PNG"), **options)
    if mtime_ns is not None:
        os.utime(path, ns=(mtime_ns, mtime_ns + seed))
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of five images, two of them in subfolders."""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "b.png", "sub/c.png", "sub/deep/d.png", "e.png")):
        draw(folder / name, seed)
    return folder


@dataclass(frozen=True)
class Stored:
    """An item as an index has it. Equal vectors differ by rounding, since that depends on the
    other images of a batch.
    """

    size: tuple[int | None, int | None]
    metadata: dict[str, Any]
    thumbnail: bytes | None
    vector: np.ndarray

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Stored)
            and (self.size, self.metadata, self.thumbnail)
            == (other.size, other.metadata, other.thumbnail)
            and bool(np.allclose(self.vector, other.vector, rtol=0, atol=1e-5))
        )


def content(index: Path) -> dict[str, Stored]:
    """Everything that an index says of its items, by key, without ids."""
    with Index.open(index) as opened:
        return {
            item.key: Stored(
                (item.width, item.height),
                item.metadata,
                opened.thumbnail(item.id),
                opened.vector(item.id),
            )
            for item in opened.items(limit=1000)
        }


def ids(index: Path) -> dict[str, int]:
    """The id of each key."""
    with Index.open(index) as opened:
        return {item.key: item.id for item in opened.items(limit=1000)}


class CountingEmbedder:
    """Counts the images that any Embedder infers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        infer = Embedder.infer

        def counted(embedder: Embedder, images: np.ndarray, **options: Any) -> np.ndarray:
            self.count += len(images)
            return infer(embedder, images, **options)

        monkeypatch.setattr(Embedder, "infer", counted)

    def since(self) -> int:
        """Return the count since the last call."""
        count, self.count = self.count, 0
        return count


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> CountingEmbedder:
    return CountingEmbedder(monkeypatch)


def wait_until(condition: Any, *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
