"""The batch job: a row an item, the same bytes whatever the workers and the stops, and never more
in memory than a little."""

from __future__ import annotations

import io
import sys
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
from featkit.errors import EnvironmentProblem, InputError, Interrupted
from featkit.lock import WriterLock
from featkit.pipeline import EmbedOptions, EmbedReport, embed_source
from featkit.sources import Source, open_source
from featkit.sources.base import NOTHING_SKIPPED, Metadata
from featkit.workers import ROWS_AHEAD
from tests.commands import digests
from tests.featkit.backends.engines import needs_bf16, needs_openvino
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file
from tests.sentences import refused

COUNT = 23
BROKEN = ("007.jpg", "015.jpg")


class MadeUp:
    """A source of one image many times, which a test may make as slow or as broken as it likes."""

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
    """That model, ready; its batches hold 32 images."""
    return Embedder(model, threads=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COUNT files in two folders below `images`, the BROKEN ones among them no images; not to
    be changed."""
    root = draw_folder(tmp_path_factory.mktemp("source") / "images", COUNT, height=300, width=400)
    (root / "cats").mkdir()
    for number in range(5):
        (root / f"{number:03d}.jpg").rename(root / "cats" / f"{number:03d}.jpg")
    for name in BROKEN:
        (root / name).write_text("no image")
    return root


def embed(
    images: Path | Source, embedder: Embedder, out: Path, *, workers: int = 2, shard_size: int = 5
) -> EmbedReport:
    """Run the job."""
    source = open_source(images) if isinstance(images, Path) else images
    return embed_source(source, embedder, out, EmbedOptions(shard_size=shard_size, workers=workers))


def test_every_item_has_its_row_in_source_order_and_a_failure_says_why(
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
def test_the_number_of_workers_changes_no_byte(
    images: Path, embedder: Embedder, tmp_path: Path, workers: int
) -> None:
    embed(images, embedder, tmp_path / "one", workers=1)
    embed(images, embedder, tmp_path / "many", workers=workers)
    assert digests(tmp_path / "many") == digests(tmp_path / "one")
    assert len(digests(tmp_path / "one")) == 2 * 5 + 2


def test_a_model_whose_batches_matter_gives_the_same_bytes_too(
    images: Path, tmp_path: Path
) -> None:
    alone = Embedder(make_model_file(tmp_path / "m.onnx", batch_invariant=False), threads=1)
    assert alone.batch_size == 1
    embed(images, alone, tmp_path / "one", workers=1)
    embed(images, alone, tmp_path / "three", workers=3)
    assert digests(tmp_path / "three") == digests(tmp_path / "one")


@pytest.mark.parametrize("lost", [(0,), (4,), (1, 3), (0, 1, 2, 3, 4)])
def test_a_restart_makes_what_is_missing_and_the_same_bytes(
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


def test_what_a_killed_process_left_half_written_is_removed(
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


def test_progress_counts_items_and_failures_and_begins_with_what_is_there(
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


def test_ctrl_c_keeps_whole_shards_and_says_how_many(
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


def test_ctrl_c_does_not_wait_for_a_image_that_never_ends(
    embedder: Embedder, tmp_path: Path
) -> None:
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


def test_an_error_that_is_no_images_fault_ends_the_job_with_whole_shards(
    embedder: Embedder, tmp_path: Path
) -> None:
    def fail(number: int) -> None:
        if number == 70:
            raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        embed(MadeUp(100, fail), embedder, tmp_path, shard_size=32)
    folder = Embeddings.open(tmp_path)
    assert folder.missing_shards() == [2, 3]
    assert folder.failures() == (0, [])
    assert embed(MadeUp(100), embedder, tmp_path, shard_size=32).num_embedded_now == 36


def test_rows_ahead_of_the_writer_are_bounded_however_slow_it_is(
    embedder: Embedder, tmp_path: Path
) -> None:
    started: list[int] = []
    ahead: list[int] = []

    def measure(done: int, _failed: int) -> None:
        if done in (32, 320):  # the workers may go as far as they can
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


def test_columns_hold_what_all_items_know(embedder: Embedder, tmp_path: Path) -> None:
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


def test_the_same_source_may_be_spelled_otherwise(
    images: Path, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(images, embedder, tmp_path)
    monkeypatch.chdir(images.parent)
    for spelling in ("images", "./images/", "images/cats/.."):
        assert embed(Path(spelling), embedder, tmp_path).num_embedded_now == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("copy", "was begun with the source {source}, not {copy}; choose another --out."),
        (
            "added",
            (
                "it had 3 images and has 4, some of them added, removed or renamed. Embed it as"
                " it is now into another"
            ),
        ),
        (
            "renamed",
            (
                "it had 3 images and has 3, some of them added, removed or renamed. Embed it as"
                " it is now into another"
            ),
        ),
    ],
)
def test_another_source_is_refused_with_the_way_out(
    embedder: Embedder, tmp_path: Path, change: str, words: str
) -> None:
    source, copy, out = (
        draw_folder(tmp_path / "a", 3),
        draw_folder(tmp_path / "b", 3),
        tmp_path / "emb",
    )
    embed(source, embedder, out)
    before = digests(out)
    if change == "added":
        draw_image(9).save(source / "new.jpg")
    elif change == "renamed":
        (source / "001.jpg").rename(source / "new.jpg")
    with pytest.raises(InputError) as caught:
        embed(copy if change == "copy" else source, embedder, out)
    assert words.format(source=source, copy=copy) in str(caught.value)
    assert digests(out) == before


def test_a_damaged_shard_is_made_again(images: Path, embedder: Embedder, tmp_path: Path) -> None:
    embed(images, embedder, tmp_path)
    expected = digests(tmp_path)
    shard = tmp_path / "shards" / "00002.parquet"
    shard.write_bytes(shard.read_bytes()[:-9])
    assert embed(images, embedder, tmp_path).num_embedded_now == 5
    assert digests(tmp_path) == expected


def test_the_folder_is_held_while_it_is_written_and_free_afterwards(
    embedder: Embedder, tmp_path: Path
) -> None:
    holder = WriterLock(tmp_path / ".lock")
    with pytest.raises(EnvironmentProblem, match=r"is being written by process \d+ on "):
        embed(MadeUp(1), embedder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    holder.release()
    for _ in range(2):
        embed(MadeUp(1), embedder, tmp_path)


@needs_openvino
def test_a_folder_goes_on_with_what_it_was_begun_with(
    images: Path, model: Path, tmp_path: Path
) -> None:
    source = open_source(images)
    begun = Embedder(model, backend="openvino", precision="fp32", threads=1)
    report = embed_source(source, begun, tmp_path / "whole", EmbedOptions(shard_size=8))
    assert report.backend == "openvino CPU fp32"
    whole = digests(tmp_path / "whole")
    embed_source(source, begun, tmp_path / "emb", EmbedOptions(shard_size=8))
    for shard in ("00001", "00002"):
        (tmp_path / "emb" / "shards" / f"{shard}.parquet").unlink()
    left_open = Embedder(model, threads=1)
    assert left_open.backend_name == "onnxruntime CPU"
    report = embed_source(source, left_open, tmp_path / "emb", EmbedOptions(shard_size=8))
    assert (report.backend, report.num_embedded_now) == ("openvino CPU fp32", COUNT - 8)
    assert Embeddings.open(tmp_path / "emb").plan.run == "openvino fp32"
    changed = {name for name, digest in digests(tmp_path / "emb").items() if digest != whole[name]}
    assert changed == set()


@needs_openvino
@pytest.mark.parametrize(
    "asked", [{"backend": "onnxruntime"}, {"backend": "onnxruntime", "precision": "fp32"}]
)
def test_a_run_asked_for_that_is_not_the_one_begun_with_is_refused(
    images: Path, model: Path, tmp_path: Path, asked: dict[str, str]
) -> None:
    source = open_source(images)
    embed_source(
        source, Embedder(model, backend="openvino", precision="fp32", threads=1), tmp_path / "emb"
    )
    before = digests(tmp_path / "emb")
    other = Embedder(model, threads=1, **asked)  # type: ignore[arg-type]
    with refused(
        tmp_path / "emb",
        "was begun with openvino fp32, not onnxruntime fp32; continue with --backend openvino",
    ):
        embed_source(source, other, tmp_path / "emb")
    assert digests(tmp_path / "emb") == before


def test_a_folder_begun_where_the_engine_was_installed_says_what_to_install(
    images: Path, model: Path, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(images)
    embed_source(source, embedder, tmp_path / "emb")
    plan = tmp_path / "emb" / "plan.json"
    plan.write_text(plan.read_text().replace("onnxruntime fp32", "openvino bf16"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with refused(
        "openvino is not installed; run: pip install 'featkit[openvino]'.", error=EnvironmentProblem
    ):
        embed_source(source, Embedder(model, threads=1), tmp_path / "emb")


@needs_bf16
def test_workers_side_by_side_get_in_bf16_what_one_gets(
    images: Path, model: Path, tmp_path: Path
) -> None:
    source, embedder = open_source(images), Embedder(model, precision="bf16", threads=1)
    for workers in (1, 3):
        embed_source(source, embedder, tmp_path / str(workers), EmbedOptions(workers=workers))
    assert digests(tmp_path / "1") == digests(tmp_path / "3")
