"""A small drawn gallery, its index, and the page served on a real port."""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.index import Index
from featkit.pipeline import embed_source
from featkit.sources import open_source
from featkit_demo.gallery import draw_gallery
from tests.model_files import make_model_file
from tests.serving import serving

KINDS = ("fish", "lake", "mug", "tiles")
HOSTILE = "<img src=x onerror=alert(1)>.jpg"


@dataclass(frozen=True)
class Gallery:
    """The paths of the images, the model and the index."""

    images: Path
    model: Path
    index: Path


@pytest.fixture(scope="session")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """Draw and index twelve images, and one more whose name is HTML markup."""
    root = tmp_path_factory.mktemp("gallery")
    files = draw_gallery(root / "images", kinds=KINDS, num_instances=1)
    odd = root / "images" / "odd"
    odd.mkdir()
    shutil.copyfile(files[0], odd / HOSTILE)
    model = make_model_file(root / "m.onnx", width=64, size=64)
    embed_source(open_source(root / "images"), Embedder(model, threads=1), root / "emb")
    with Index.create(root / "photos.index", model=model) as index:
        index.add_embeddings(Embeddings.open(root / "emb"))
    return Gallery(root / "images", model, root / "photos.index")


@pytest.fixture(scope="package")
def page_address(gallery: Gallery) -> Iterator[str]:
    """Serve the page and yield its address."""
    with Index.open(gallery.index) as index, serving(_make_app(index)) as address:
        yield address


def _make_app(index: Index) -> FastAPI:
    """Make the app without the warnings of Gradio 6.31, which leaves event loops unclosed.

    See safe_get_lock in gradio/utils.py.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        from featkit_demo.app import make_demo_app

        app = make_demo_app(index)
        gc.collect()
    return app
