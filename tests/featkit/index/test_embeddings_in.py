"""Adding an embeddings folder to an index."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.errors import InputError, Interrupted
from featkit.images import load
from featkit.index import AddReport, Index
from featkit.modelfile import Manifest, read_manifest
from featkit.pipeline import EmbedOptions, embed_source
from featkit.sources import open_source
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file

COUNT = 10


@pytest.fixture
def embed(tmp_path: Path, model: Path) -> Callable[..., Embeddings]:
    """A function that embeds the folder `images`, with COUNT images and a file that is not one."""
    drawn = draw_folder(tmp_path / "images", COUNT)
    (drawn / "005-broken.jpg").write_text("no image")

    def run(name: str = "emb", *, by: Path = model) -> Embeddings:
        embed_source(
            open_source(drawn), Embedder(by, threads=1), tmp_path / name, EmbedOptions(shard_size=4)
        )
        return Embeddings.open(tmp_path / name)

    return run


def test_indexed_embeddings_find_their_images(
    tmp_path: Path, embed: Callable[..., Embeddings], model: Path
) -> None:
    folder = embed()
    progress: list[tuple[int, int]] = []
    with Index.create(tmp_path / "i", model=folder.model_path) as index:
        report = index.add_embeddings(
            folder, on_progress=lambda done, failed: progress.append((done, failed))
        )
        assert report == AddReport(num_added=COUNT, num_without_embedding=1)
        assert progress == [(4, 0), (8, 1), (11, 1)]
        assert index.model_path.read_bytes() == model.read_bytes()
        for number in range(COUNT):
            path = tmp_path / "images" / f"{number:03d}.jpg"
            (hit,) = index.search(path, k=1)
            assert (hit.key, hit.width, hit.height) == (path.name, 80, 60)
            assert hit.score > 0.9999
            thumbnail = index.thumbnail(hit.id)
            assert thumbnail is not None
            assert load(thumbnail).pixels.shape == (60, 80, 3)
        assert "005-broken.jpg" not in [item.key for item in index.items()]


def test_adding_the_same_folder_again_changes_nothing(
    tmp_path: Path, embed: Callable[..., Embeddings]
) -> None:
    folder = embed()
    with Index.create(tmp_path / "i", model=folder.model_path) as index:
        index.add_embeddings(folder)
        before = index.items()
        assert index.add_embeddings(folder) == AddReport(
            num_unchanged=COUNT, num_without_embedding=1
        )
        assert index.items() == before


def test_only_images_that_changed_are_replaced(
    tmp_path: Path, embed: Callable[..., Embeddings]
) -> None:
    folder = embed()
    with Index.create(tmp_path / "i", model=folder.model_path) as index:
        index.add_embeddings(folder)
        ids = {item.key: item.id for item in index.items()}
        draw_image(99).save(tmp_path / "images" / "003.jpg", quality=92)
        assert index.add_embeddings(embed("emb2")) == AddReport(
            num_added=1, num_replaced=1, num_unchanged=COUNT - 1, num_without_embedding=1
        )
        assert {item.key: item.id for item in index.items()} == ids | {"003.jpg": COUNT}
        assert index.search(draw_image(99), k=1)[0].key == "003.jpg"


def test_an_image_that_became_unreadable_is_kept(
    tmp_path: Path, embed: Callable[..., Embeddings]
) -> None:
    with Index.create(tmp_path / "i", model=embed().model_path) as index:
        index.add_embeddings(embed())
        before = index.items()
        (tmp_path / "images" / "003.jpg").write_text("no image any more")
        expected = AddReport(num_unchanged=COUNT - 1, num_without_embedding=2, num_kept=1)
        assert index.add_embeddings(embed("emb2")) == expected
        assert index.items() == before


def test_ctrl_c_keeps_added_shards_and_a_rerun_resumes(
    tmp_path: Path, embed: Callable[..., Embeddings]
) -> None:
    folder = embed()

    def stop(done: int, _failed: int) -> None:
        if done == 8:
            raise KeyboardInterrupt

    with Index.create(tmp_path / "i", model=folder.model_path) as index:
        with pytest.raises(
            Interrupted, match=r"stopped with 7 images added to .*; run the same command again"
        ):
            index.add_embeddings(folder, on_progress=stop)
        assert len(index) == 7
        assert index.add_embeddings(folder) == AddReport(
            num_added=3, num_unchanged=7, num_without_embedding=1
        )
        np.testing.assert_array_equal(
            np.stack([index.vector(number) for number in range(COUNT)]), folder.read()[1]
        )


def test_vectors_of_another_model_are_refused(
    tmp_path: Path, embed: Callable[..., Embeddings]
) -> None:
    other = make_model_file(tmp_path / "other.onnx", seed=1)
    folder = embed()
    with Index.create(tmp_path / "i", model=other) as index:
        with pytest.raises(InputError) as caught:
            index.add_embeddings(folder)
        for model in (other, folder.model_path):
            manifest = read_manifest(model)
            assert f"{manifest.name} ({manifest.fingerprint[:12]})" in str(caught.value)
        assert len(index) == 0


def test_vectors_of_a_proven_equal_model_are_accepted(
    tmp_path: Path, embed: Callable[..., Embeddings], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_model_file(tmp_path / "other.onnx", seed=1)
    ours = read_manifest(model).fingerprint

    def manifest_of(path: Path) -> Manifest:
        manifest = read_manifest(path)
        return (
            manifest
            if manifest.fingerprint == ours
            else dataclasses.replace(manifest, proven_equal_to=(ours,))
        )

    folder = embed()
    monkeypatch.setattr("featkit.index.compatibility.read_manifest", manifest_of)
    with Index.create(tmp_path / "i", model=other) as index:
        assert index.add_embeddings(folder).num_added == COUNT
