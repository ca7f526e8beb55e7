"""The batch job: one row per item, the same bytes with any workers and after any stop, and bounded
memory."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.errors import Interrupted
from featkit.pipeline import EmbedOptions, embed_source
from featkit.sources import open_source
from featkit.sources.base import NOTHING_SKIPPED, Metadata
from featkit.workers import ROWS_AHEAD
from tests.commands import digests
from tests.featkit.backends.engines import needs_bf16
from tests.featkit.embeddings.runs import BROKEN, COUNT, draw_source, embed
from tests.images import draw_image
from tests.model_files import make_model_file


class MadeUp:
    """A source that repeats one image, and calls a function before each read."""

    name = "made up"
    skipped: Mapping[str, int] = NOTHING_SKIPPED

    def __init__(self, count: int, read: Callable[[int], None] = lambda _number: None) -> None:
        self._count, self._on_read = count, read
        buffer = io.BytesIO()
        draw_image(0, height=16, width=16).save(buffer, "PNG")
        self._image = buffer.getvalue()
        self.values: list[Metadata] = [{}] * count

    def __len__(self) -> int:
        return self._count

    def key(self, number: int) -> str:
        return f"{number:04d}"

    def read(self, number: int) -> bytes:
        self._on_read(number)
        return self._image

    def metadata(self, number: int) -> Metadata:
        return self.values[number]

    def file(self, number: int, /) -> Path:
        return Path(self.key(number))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file."""
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    """An embedder of that model; its batches hold 32 images."""
    return Embedder(model, threads=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `draw_source`. Tests must not change it."""
    return draw_source(tmp_path_factory.mktemp("source") / "images")


def test_every_item_has_a_row_in_source_order(
    images: Path, embedder: Embedder, tmp_path: Path
) -> None:
    report = embed(images, embedder, tmp_path / "emb")
    assert (report.num_items, report.num_done, report.num_embedded_now, report.num_failed) == (
        COUNT,
        COUNT,
        COUNT,
        2,
    )
    assert [key for key, _ in report.failures] == list(BROKEN)
    rows = [
        row for table in Embeddings.open(tmp_path / "emb").tables() for row in table.to_pylist()
    ]
    files = sorted(str(path.relative_to(images)) for path in images.rglob("*.jpg"))
    assert [row["key"] for row in rows] == files
    for row in rows:
        assert row["folder"] == ("cats" if row["key"].startswith("cats/") else None)
        if row["key"] in BROKEN:
            assert row["error"] == f"{row['key']} is not an image in a format that can be read."
            assert row["embedding"] is row["thumbnail"] is row["width"] is row["height"] is None
        else:
            assert (row["width"], row["height"], row["error"]) == (400, 300, None)
            with (
                Image.open(io.BytesIO(row["thumbnail"])) as thumbnail,
                Image.open(images / row["key"]) as original,
            ):
                assert (thumbnail.format, thumbnail.size) == ("JPEG", (256, 192))
                small = np.asarray(original.resize(thumbnail.size), np.float64)
                assert np.abs(np.asarray(thumbnail, np.float64) - small).mean() < 6


def test_vectors_are_those_of_the_embedder(
    images: Path, model: Path, embedder: Embedder, tmp_path: Path
) -> None:
    embed(images, embedder, tmp_path / "emb")
    keys, vectors = Embeddings.open(tmp_path / "emb").read()
    assert len(keys) == COUNT - len(BROKEN)
    np.testing.assert_array_equal(
        vectors, Embedder(model, threads=2).embed([images / key for key in keys])
    )
    assert np.unique(vectors.round(4), axis=0).shape == vectors.shape


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_number_of_workers_changes_no_byte(
    images: Path, embedder: Embedder, tmp_path: Path, workers: int
) -> None:
    embed(images, embedder, tmp_path / "one", workers=1)
    embed(images, embedder, tmp_path / "many", workers=workers)
    assert digests(tmp_path / "many") == digests(tmp_path / "one")
    assert len(digests(tmp_path / "one")) == 2 * 5 + 2


def test_batch_dependent_model_gives_the_same_bytes(images: Path, tmp_path: Path) -> None:
    alone = Embedder(make_model_file(tmp_path / "m.onnx", batch_invariant=False), threads=1)
    assert alone.batch_size == 1
    embed(images, alone, tmp_path / "one", workers=1)
    embed(images, alone, tmp_path / "three", workers=3)
    assert digests(tmp_path / "three") == digests(tmp_path / "one")


@pytest.mark.parametrize("lost", [(0,), (4,), (1, 3), (0, 1, 2, 3, 4)])
def test_restart_embeds_what_is_missing_with_the_same_bytes(
    images: Path, embedder: Embedder, tmp_path: Path, lost: tuple[int, ...]
) -> None:
    out = tmp_path / "emb"
    embed(images, embedder, out)
    expected = digests(out)
    folder = Embeddings.open(out)
    for shard in lost:
        folder.shard_path(shard).unlink()
    missing = sum(len(folder.shard_range(shard)) for shard in lost)
    report = embed(images, embedder, out, workers=3)
    assert (report.num_embedded_now, report.num_done, report.num_failed) == (missing, COUNT, 2)
    assert sorted(key for key, _ in report.failures) == list(BROKEN)
    assert digests(out) == expected


def test_partial_files_of_a_killed_process_are_removed(
    images: Path, embedder: Embedder, tmp_path: Path
) -> None:
    out = tmp_path / "emb"
    embed(images, embedder, out)
    expected = digests(out)
    for name in (
        "plan.json.partial-00ff",
        "model.onnx.partial-00ff",
        "shards/00003.parquet.partial-00ff",
    ):
        (out / name).write_bytes(b"half")
    (out / "model.onnx").unlink()
    assert embed(images, embedder, out).num_embedded_now == 0
    assert digests(out) == expected


def test_progress_counts_items_and_failures(
    images: Path, embedder: Embedder, tmp_path: Path
) -> None:
    calls: list[tuple[int, ...]] = []
    for _ in range(2):
        source = open_source(images)
        embed_source(
            source,
            embedder,
            tmp_path,
            EmbedOptions(shard_size=10),
            on_progress=lambda *counts: calls.append(counts),
        )
    # Of 23 items in order, the two broken ones are the 8th and the 16th.
    assert calls == [(0, 0), (10, 1), (20, 2), (23, 2), (23, 2)]


def test_ctrl_c_keeps_whole_shards_and_reports_them(
    images: Path, embedder: Embedder, tmp_path: Path
) -> None:
    def stop(done: int, _failed: int) -> None:
        if done >= 15:
            raise KeyboardInterrupt

    out = tmp_path / "emb"
    with pytest.raises(
        Interrupted,
        match=rf"Stopped by Ctrl-C with 10 of {COUNT} items in .*emb; the same command continues",
    ):
        embed_source(
            open_source(images), embedder, out, EmbedOptions(shard_size=5), on_progress=stop
        )
    assert sorted(path.name for path in (out / "shards").iterdir()) == [
        "00000.parquet",
        "00001.parquet",
    ]
    embed(images, embedder, out)
    embed(images, embedder, tmp_path / "unbroken")
    assert digests(out) == digests(tmp_path / "unbroken")


def test_ctrl_c_does_not_wait_for_an_endless_image(embedder: Embedder, tmp_path: Path) -> None:
    reading, release = threading.Event(), threading.Event()

    def stuck(number: int) -> None:
        if number >= 32:
            reading.set()
            release.wait()

    def stop(done: int, _failed: int) -> None:
        if done:
            assert reading.wait(60)
            raise KeyboardInterrupt

    try:
        with pytest.raises(Interrupted):
            embed_source(
                MadeUp(100, stuck),
                embedder,
                tmp_path,
                EmbedOptions(shard_size=32, workers=1),
                on_progress=stop,
            )
        assert not release.is_set()
    finally:
        release.set()


def test_other_error_ends_the_job_with_whole_shards(embedder: Embedder, tmp_path: Path) -> None:
    def fail(number: int) -> None:
        if number == 70:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        embed(MadeUp(100, fail), embedder, tmp_path, shard_size=32)
    folder = Embeddings.open(tmp_path)
    assert folder.missing_shards() == [2, 3]
    assert folder.failures() == (0, [])
    assert embed(MadeUp(100), embedder, tmp_path, shard_size=32).num_embedded_now == 36


def test_rows_ahead_of_a_slow_writer_are_bounded(embedder: Embedder, tmp_path: Path) -> None:
    started: list[int] = []
    ahead: list[int] = []

    def measure(done: int, _failed: int) -> None:
        if done in (32, 320):  # wait until the workers can get no further ahead
            before = -1
            while before != len(started):
                before = len(started)
                time.sleep(0.1)
        ahead.append(len(started) - done)

    embed_source(
        MadeUp(700, started.append),
        embedder,
        tmp_path,
        EmbedOptions(shard_size=64, workers=2),
        on_progress=measure,
    )
    assert len(started) == 700
    assert max(ahead) <= ROWS_AHEAD


def test_columns_hold_the_metadata_of_all_items(embedder: Embedder, tmp_path: Path) -> None:
    source = MadeUp(4)
    source.values = [
        {"class": 1, "width": 9},
        {"score": 0.5, "tag": "x"},
        {"class": 2, "score": 3, "tag": 7},
        {},
    ]
    embed(source, embedder, tmp_path, shard_size=1)
    table = pq.read_table(tmp_path / "shards")
    assert table.select(["class", "score", "tag", "width_"]).to_pydict() == {
        "class": [1, None, 2, None],
        "score": [None, 0.5, 3.0, None],
        "tag": [None, "x", "7", None],
        "width_": [9, None, None, None],
    }
    kinds = [table.schema.field(name).type for name in ("class", "score", "tag", "width", "width_")]
    assert kinds == [pa.int64(), pa.float64(), pa.string(), pa.int32(), pa.int64()]
    assert table["width"].to_pylist() == [16] * 4


def test_damaged_shard_is_written_again(images: Path, embedder: Embedder, tmp_path: Path) -> None:
    embed(images, embedder, tmp_path)
    expected = digests(tmp_path)
    shard = tmp_path / "shards" / "00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert embed(images, embedder, tmp_path).num_embedded_now == 5
    assert digests(tmp_path) == expected


@needs_bf16
def test_several_workers_give_the_same_bf16_vectors_as_one(
    images: Path, model: Path, tmp_path: Path
) -> None:
    source, embedder = open_source(images), Embedder(model, precision="bf16", threads=1)
    for workers in (1, 3):
        embed_source(source, embedder, tmp_path / str(workers), EmbedOptions(workers=workers))
    assert digests(tmp_path / "1") == digests(tmp_path / "3")
