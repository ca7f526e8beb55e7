"""Damaged vectors are restored from an embeddings folder or from images, and never by others."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.errors import InputError, Interrupted
from featkit.index import Index
from featkit.index.approximate.building import compact
from featkit.index.approximate.generation import FOLDER
from featkit.index.checking import CODES, VECTORS, check
from featkit.index.reclaiming import reclaim
from featkit.index.repairing import Origin, RepairReport, fill_truncated, repair
from featkit.index.vectors import VectorWriter
from featkit.pipeline import EmbedOptions, embed_source
from featkit.sources import open_source
from featkit.syncing import sync
from tests.featkit.syncing.conftest import draw
from tests.model_files import make_model_file

COUNT, WIDTH = 40, 16
DAMAGED = [3, 4, 17, 39]
KEYS = [f"{number:02}.png" for number in DAMAGED]


def embed(images: Path, model: Path, out: Path) -> Embeddings:
    embed_source(open_source(images), Embedder(model, threads=1), out, EmbedOptions(shard_size=8))
    return Embeddings.open(out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images`, their embeddings `emb`, and the index `i` of these with a graph."""
    room = tmp_path_factory.mktemp("made")
    for number in range(COUNT):
        draw(room / "images" / f"{number:02}.png", number)
    model = make_model_file(room / "m.onnx", width=WIDTH)
    folder = embed(room / "images", model, room / "emb")
    with Index.create(room / "i", model=model, run=Embedder(model, threads=1).run) as index:
        index.add_embeddings(folder)
        compact(index, allow_low_recall=True)
    return room


@pytest.fixture
def room(made: Path, tmp_path: Path) -> Path:
    """A copy of what was made."""
    return Path(shutil.copytree(made, tmp_path / "room"))


@pytest.fixture
def emb(room: Path) -> Embeddings:
    return Embeddings.open(room / "emb")


def damage(index: Path, rows: list[int] = DAMAGED) -> bytes:
    """Overwrite rows of the vectors file, and return its bytes from before."""
    (file,) = index.glob("vectors*.f32")
    before = file.read_bytes()
    vectors = np.frombuffer(before, "<f4").reshape(-1, WIDTH).copy()
    vectors[rows] = [np.zeros(WIDTH), np.full(WIDTH, np.nan), *np.eye(WIDTH)][: len(rows)]
    with file.open("r+b") as opened:
        opened.write(vectors.tobytes())
    return before


def repaired(index: Path, origin: Origin | None) -> RepairReport:
    with Index.open(index, writable=True, check_sample=False) as opened:
        return repair(opened, check(opened), origin=origin)


def problems(index: Path) -> list[str]:
    with Index.open(index, check_sample=False) as opened:
        return [problem.part for problem in check(opened).problems]


def test_vectors_come_back_from_the_folder_to_the_bit(room: Path, emb: Embeddings) -> None:
    index = room / "i"
    with Index.open(index) as reader:
        query = reader.vector(0)[None]
        hits = reader.search(vectors=query, k=COUNT)
        before = damage(index)
        with pytest.raises(InputError, match="featkit repair"):
            reader.search(vectors=query, k=COUNT)
        report = repaired(index, emb)
        assert report == RepairReport(done=[f"restored 4 vectors exactly, from {emb.path}"])
        assert (index / "vectors.f32").read_bytes() == before
        # an index that was open all the time, with the same ids and codes
        assert reader.search(vectors=query, k=COUNT) == hits
    assert problems(index) == []
    assert repaired(index, emb) == RepairReport()


def test_readers_drop_damaged_rows_that_they_keep(room: Path, emb: Embeddings) -> None:
    sound = Index.open(shutil.copytree(room / "i", room / "sound"))
    damage(room / "i")
    with sound, Index.open(room / "i", check_sample=False) as reader:
        query = sound.vector(0)[None]
        for _ in range(3):  # from the second scan on, rows are kept in memory
            assert reader.search(vectors=query, k=1)[0][0].key == "00.png"
        repaired(room / "i", emb)
        for number in DAMAGED:
            np.testing.assert_array_equal(reader.vector(number), sound.vector(number))
        assert reader.search(vectors=query, k=COUNT) == sound.search(vectors=query, k=COUNT)


def test_rows_that_a_compaction_moved_come_back(room: Path, emb: Embeddings) -> None:
    index = room / "i"
    with Index.open(index, writable=True) as opened:
        opened.remove(["00.png", "16.png"])
        reclaim(opened)
    before = damage(index, [2, 37])
    assert repaired(index, emb).left == {}
    (file,) = index.glob("vectors-*.f32")
    assert file.read_bytes() == before
    assert problems(index) == []


@pytest.mark.parametrize("num_bytes", [0, 5 * WIDTH * 4 + 3, None])
def test_a_lost_file_comes_back(room: Path, emb: Embeddings, num_bytes: int | None) -> None:
    file = room / "i" / "vectors.f32"
    before = file.read_bytes()
    file.unlink()
    if num_bytes is not None:
        file.write_bytes(before[:num_bytes])
    with pytest.raises(InputError, match="featkit repair"):
        Index.open(room / "i")
    done = fill_truncated(room / "i", may_be_missing=True)
    num_lost = COUNT - (num_bytes or 0) // (WIDTH * 4)
    assert done == [f"filled vectors.f32, which had lost {num_lost} vectors at its end"]
    assert repaired(room / "i", emb).left == {}
    assert file.read_bytes() == before


def test_a_missing_file_is_made_only_if_asked_for(room: Path) -> None:
    (room / "i" / "vectors.f32").unlink()
    assert fill_truncated(room / "i") == []
    assert not (room / "i" / "vectors.f32").exists()


def test_a_folder_of_another_model_is_refused(room: Path) -> None:
    other = make_model_file(room / "other.onnx", width=WIDTH, seed=1)
    folder = embed(room / "images", other, room / "other")
    damage(room / "i")
    damaged = (room / "i" / "vectors.f32").read_bytes()
    with pytest.raises(InputError, match="embed the images with the index's model"):
        repaired(room / "i", folder)
    assert (room / "i" / "vectors.f32").read_bytes() == damaged


def test_what_the_folder_lacks_is_listed_and_stays(room: Path) -> None:
    (room / "images" / "17.png").unlink()
    (room / "images" / "39.png").write_bytes(b"no image")
    folder = embed(room / "images", room / "m.onnx", room / "fewer")
    before = damage(room / "i")
    report = repaired(room / "i", folder)
    assert report.done == [f"restored 2 vectors exactly, from {folder.path}"]
    assert report.left["17.png"] == f"{folder.path} does not have it"
    assert "39.png" in report.left["39.png"]
    assert [*report.left] == ["39.png", "17.png"]
    with Index.open(room / "i", check_sample=False) as index:
        assert check(index).damaged == ["17.png", "39.png"]
        assert len(index) == COUNT
    # another origin has the rest
    assert repaired(room / "i", Embeddings.open(room / "emb")).left == {}
    assert (room / "i" / "vectors.f32").read_bytes() == before


def test_vectors_of_changed_images_are_listed(room: Path) -> None:
    draw(room / "images" / "03.png", 1003)
    folder = embed(room / "images", room / "m.onnx", room / "changed")
    damage(room / "i")
    reason = "its image is another one, or has changed"
    assert repaired(room / "i", folder).left == {"03.png": reason}


def test_a_damaged_vector_of_the_folder_is_listed(room: Path, emb: Embeddings) -> None:
    rows = emb.read_rows(0)
    for number, vector in ((3, np.eye(WIDTH)[0]), (4, np.full(WIDTH, 0.5))):
        embedding = vector.astype(np.float32)
        rows[number] = type(rows[number])(**{**vars(rows[number]), "embedding": embedding})
    emb.write_shard(0, rows)
    damage(room / "i")
    left = repaired(room / "i", emb).left
    assert left["03.png"] == "its vector is another one"
    assert "04.png has length 2" in left["04.png"]
    assert [*left] == ["03.png", "04.png"]


def test_without_checksums_equal_thumbnails_are_enough(room: Path, emb: Embeddings) -> None:
    connection = sqlite3.connect(room / "i" / "catalogue.sqlite")
    connection.execute("UPDATE items SET vector_crc32 = NULL")
    connection.execute("UPDATE thumbnails SET jpeg = x'00' WHERE id = 4")
    connection.commit()
    connection.close()
    before = np.frombuffer(damage(room / "i", [3, 4]), "<f4").reshape(-1, WIDTH)
    report = repaired(room / "i", emb)
    assert report.done == [f"took the vectors of 1 image with equal thumbnails from {emb.path}"]
    assert [*report.left] == ["04.png"]
    with Index.open(room / "i", check_sample=False) as index:
        np.testing.assert_array_equal(index.vector(3), before[3])


def test_images_are_embedded_again(room: Path) -> None:
    before = np.frombuffer(damage(room / "i"), "<f4").reshape(-1, WIDTH)
    report = repaired(room / "i", open_source(room / "images"))
    assert (report.left, len(report.done) in (1, 2)) == ({}, True)
    after = np.fromfile(room / "i" / "vectors.f32", "<f4").reshape(-1, WIDTH)
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert problems(room / "i") == []


def test_an_image_of_another_digest_is_listed(room: Path) -> None:
    model = room / "m.onnx"
    sync(room / "images", room / "synced", model=model)
    draw(room / "images" / "03.png", 1003)
    (room / "images" / "17.png").unlink()
    damage(room / "synced")
    report = repaired(room / "synced", open_source(room / "images"))
    assert report.left == {
        "03.png": "its image is another one, or has changed",
        "17.png": f"{room / 'images'} does not have it",
    }
    assert "removed 2 images" in repaired(room / "synced", None).done[0]
    assert sync(room / "images", room / "synced").num_new == 1
    assert problems(room / "synced") == []


def test_a_graph_is_built_again_once_all_is_sound(room: Path, emb: Embeddings) -> None:
    (graph,) = (room / "i" / FOLDER).glob("*.faiss")
    damage(room / "i")
    graph.write_bytes(graph.read_bytes()[:-1])
    shutil.copytree(room / "images", room / "few", ignore=shutil.ignore_patterns("1*"))
    assert [*repaired(room / "i", open_source(room / "few")).left] == ["17.png"]
    assert problems(room / "i") == [VECTORS, CODES]
    assert "again" in repaired(room / "i", emb).done[-1]
    assert problems(room / "i") == []


def test_a_stopped_repair_continues(
    room: Path, emb: Embeddings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = damage(room / "i")
    flush = VectorWriter._flush
    num_flushes = 0

    def stop(writer: VectorWriter) -> None:
        nonlocal num_flushes
        num_flushes += 1
        if num_flushes == 2:  # rows are written, and not committed
            raise KeyboardInterrupt
        flush(writer)

    monkeypatch.setattr(VectorWriter, "_flush", stop)
    with pytest.raises(Interrupted):
        repaired(room / "i", emb)
    monkeypatch.undo()
    assert repaired(room / "i", emb).left == {}
    assert (room / "i" / "vectors.f32").read_bytes() == before
    assert problems(room / "i") == []


def test_a_reader_with_damaged_vectors_in_memory_sees_the_repair(
    room: Path, emb: Embeddings
) -> None:
    with Index.open(room / "i") as opened:
        right = opened.vector(4)
    damage(room / "i", [4])
    with Index.open(room / "i", check_sample=False) as reader:
        for _ in range(2):
            reader.read(lambda state: [block.sum() for _, block in state.vectors.rows.blocks(1)])
        with pytest.raises(InputError, match="vector 4 differs"):
            reader.vector(4)
        repaired(room / "i", emb)
        np.testing.assert_array_equal(reader.vector(4), right)
