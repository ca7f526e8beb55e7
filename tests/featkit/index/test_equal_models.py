"""Vectors of a model file that is proven equal to an index's own can be added and searched with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.index import Index
from featkit.modelfile import read_manifest
from featkit.pipeline import embed_source
from featkit.sources import open_source
from featkit_export.precision import lower
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file
from tests.sentences import refused

COUNT = 8


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """The model in fp16, proven equal to the original."""
    path = tmp_path_factory.mktemp("half") / "half.onnx"
    manifest = lower(model, path, precision="fp16")
    assert manifest.proven_equal_to == (read_manifest(model).fingerprint,)
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return make_model_file(tmp_path / "other.onnx", seed=1)


def test_equality_is_accepted_in_both_directions(
    tmp_path: Path, model: Path, half: Path, other: Path
) -> None:
    for name, made_by, accepted in (("i", model, half), ("j", half, model)):
        with Index.create(tmp_path / name, model=made_by) as index:
            assert index.accepts_model(read_manifest(made_by))
            assert index.accepts_model(read_manifest(accepted))
            assert not index.accepts_model(read_manifest(other))


def test_equality_is_not_transitive(tmp_path: Path, half: Path) -> None:
    """Each may be just within the tolerance of the third, in opposite directions."""
    with Index.create(tmp_path / "i", model=half) as index:
        assert not index.accepts_model(
            dataclasses.replace(read_manifest(half), fingerprint="0" * 64)
        )


def test_embeddings_of_an_equal_file_are_found(
    tmp_path: Path, model: Path, half: Path, other: Path
) -> None:
    images = draw_folder(tmp_path / "p", COUNT)
    for name, by in (("half", half), ("other", other)):
        embed_source(open_source(images), Embedder(by, threads=1), tmp_path / name)
    with Index.create(tmp_path / "i", model=model) as index:
        assert index.add_embeddings(Embeddings.open(tmp_path / "half")).num_added == COUNT
        assert index.fingerprint == read_manifest(model).fingerprint
        for number in range(COUNT):
            (hit,) = index.search(draw_image(number), k=1)
            assert hit.key == f"{number:03d}.jpg"
            assert hit.score > 0.999
        with refused("embedded by test-1", "has vectors of test-0"):
            index.add_embeddings(Embeddings.open(tmp_path / "other"))
        assert len(index) == COUNT


def test_an_index_opens_an_equal_file_instead_of_its_own(
    tmp_path: Path, model: Path, half: Path
) -> None:
    with Index.create(tmp_path / "i", model=model) as index:
        theirs, ours = index.open_embedder(half), index.embedder
        assert (theirs.manifest.precision, ours.manifest.precision) == ("fp16", "fp32")
        image = draw_image(3)
        np.testing.assert_allclose(theirs.embed(image), ours.embed(image), atol=5e-3)
