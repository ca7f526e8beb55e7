"""A small real index and the service over it."""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from featkit.embedder import Embedder
from featkit.images import ImageLimits, thumbnail_jpeg
from featkit.index import Index
from featkit.serve.app import make_app
from featkit.serve.service import ServiceLimits
from tests.model_files import make_model_file
from tests.serving import serving

LIMITS = ServiceLimits(
    images=ImageLimits(max_bytes=60_000, max_pixels=40_000),
    max_images=4,
    max_request_bytes=150_000,
    max_k=50,
)
NUM_IMAGES = 12


def image(seed: int) -> np.ndarray:
    """Return colored blocks, (48, 64, 3) uint8, different for each seed."""
    blocks = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.ascontiguousarray(blocks.repeat(8, axis=0).repeat(8, axis=1))


def png(seed: int) -> bytes:
    """Return the image of a seed as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(image(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def files(*seeds: int) -> list[tuple[str, tuple[str, bytes]]]:
    """Return the parts of a form with the images of these seeds."""
    return [("files", (f"{seed}.png", png(seed))) for seed in seeds]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx", width=32)


@pytest.fixture(scope="session")
def embedder(model: Path) -> Embedder:
    return Embedder(model, limits=LIMITS.images)


@pytest.fixture(scope="session")
def index(
    model: Path, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Index]:
    """An index of images 0 to 11 with keys blocks/0.png, …; the last has no thumbnail."""
    path = tmp_path_factory.mktemp("index") / "photos.index"
    drawn = [image(seed) for seed in range(NUM_IMAGES)]
    with Index.create(path, model=model) as created:
        created.add(
            [f"blocks/{seed}.png" for seed in range(NUM_IMAGES)],
            embedder.embed(drawn),
            widths=[64] * NUM_IMAGES,
            heights=[48] * NUM_IMAGES,
            thumbnails=[*(thumbnail_jpeg(one) for one in drawn[:-1]), None],
            metadata=[{"label": "blocks"}] * NUM_IMAGES,
        )
    with Index.open(path) as opened:
        yield opened


@pytest.fixture
def copy(index: Index, tmp_path: Path) -> Path:
    """A copy of the index, to be damaged."""
    path = tmp_path / "photos.index"
    shutil.copytree(index.path, path)
    return path


@pytest.fixture
def client(index: Index, embedder: Embedder) -> Iterator[TestClient]:
    with TestClient(make_app(index, embedder, limits=LIMITS)) as started:
        yield started


@pytest.fixture
def live_address(index: Index, embedder: Embedder) -> Iterator[str]:
    """The service on a real port."""
    with serving(make_app(index, embedder, limits=LIMITS)) as address:
        yield address
