"""A second run embeds only changed and failed images again, with the bytes of a run from
scratch."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.images import DEFAULT_LIMITS
from featkit.pipeline import EmbedOptions, EmbedReport, embed_source
from featkit.sources import open_source
from featkit.sources.folder import FileSource
from featkit.stamps import NO_STAMP, digest_of, stamp_of
from tests.commands import digests
from tests.featkit.sources.files import write_tar
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file

COUNT, SHARD_SIZE = 23, 10
OLD_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    """A small model with batches of 4 images, so that a shard has several."""
    model = make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")
    opened = Embedder(model, threads=1)
    opened.batch_size = 4
    return opened


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """COUNT old images, one of them broken."""
    root = draw_folder(tmp_path / "images", COUNT)
    (root / "007.jpg").write_bytes(b"broken")
    for file in root.iterdir():
        os.utime(file, ns=(OLD_NS, OLD_NS))
    return root


def embed(
    image_folder: Path, embedder: Embedder, out: Path, *, retry: bool = False, rehash: bool = False
) -> EmbedReport:
    """Run the job."""
    source = open_source(image_folder)
    return embed_source(
        source,
        embedder,
        out,
        EmbedOptions(shard_size=SHARD_SIZE, workers=2, retry=retry, rehash=rehash),
    )


def shards(out: Path) -> dict[str, str]:
    """The digest of each shard."""
    return digests(out / "shards")


def row(out: Path, key: str) -> dict[str, object]:
    """One row of the folder."""
    return next(
        found
        for table in Embeddings.open(out).tables()
        for found in table.to_pylist()
        if found["key"] == key
    )


def test_unchanged_images_are_not_embedded_again(
    image_folder: Path, embedder: Embedder, tmp_path: Path
) -> None:
    embed(image_folder, embedder, tmp_path / "emb")
    before = digests(tmp_path / "emb")
    for rehash in (False, True):
        again = embed(image_folder, embedder, tmp_path / "emb", rehash=rehash)
        assert (again.num_embedded_now, again.num_changed, again.num_retried) == (0, 0, 0)
        assert (again.num_done, again.num_failed, [key for key, _ in again.failures]) == (
            COUNT,
            1,
            ["007.jpg"],
        )
        assert digests(tmp_path / "emb") == before


def test_changed_images_are_embedded_as_from_scratch(
    image_folder: Path, embedder: Embedder, tmp_path: Path
) -> None:
    first = embed(image_folder, embedder, tmp_path / "emb")
    assert first.num_failed == 1
    before = shards(tmp_path / "emb")
    draw_image(90).save(image_folder / "007.jpg")
    draw_image(91).save(image_folder / "003.jpg")
    again = embed(image_folder, embedder, tmp_path / "emb")
    assert (again.num_embedded_now, again.num_changed, again.num_failed, again.failures) == (
        2,
        2,
        0,
        [],
    )
    embed(image_folder, embedder, tmp_path / "scratch")
    assert digests(tmp_path / "emb") == digests(tmp_path / "scratch"), "stamps too"
    after = shards(tmp_path / "emb")
    assert [name for name in before if before[name] != after[name]] == ["00000.parquet"]


def test_image_that_breaks_becomes_a_row_with_an_error(
    image_folder: Path, embedder: Embedder, tmp_path: Path
) -> None:
    embed(image_folder, embedder, tmp_path / "emb")
    (image_folder / "012.jpg").write_bytes(b"no longer")
    again = embed(image_folder, embedder, tmp_path / "emb")
    assert [key for key, _ in again.failures] == ["007.jpg", "012.jpg"]
    assert row(tmp_path / "emb", "012.jpg")["embedding"] is None


def test_touched_file_is_not_embedded_again(
    image_folder: Path, embedder: Embedder, tmp_path: Path
) -> None:
    embed(image_folder, embedder, tmp_path / "emb")
    before = shards(tmp_path / "emb")
    for file in image_folder.iterdir():
        file.touch()
    assert embed(image_folder, embedder, tmp_path / "emb").num_embedded_now == 0
    assert shards(tmp_path / "emb") == before
    assert Embeddings.open(tmp_path / "emb").read_stamps(0)[3] == stamp_of(  # type: ignore[index]
        image_folder / "003.jpg"
    )._replace(digest=digest_of((image_folder / "003.jpg").read_bytes()))


def test_rehash_finds_new_bytes_of_the_same_size_and_time(
    image_folder: Path, embedder: Embedder, tmp_path: Path
) -> None:
    one, two = (image_folder / "001.jpg").read_bytes(), (image_folder / "002.jpg").read_bytes()
    size = max(len(one), len(two))

    def put(data: bytes) -> None:
        (image_folder / "001.jpg").write_bytes(data.ljust(size, b"\0"))
        os.utime(image_folder / "001.jpg", ns=(OLD_NS, OLD_NS))

    put(one)
    embed(image_folder, embedder, tmp_path / "emb")
    put(two)
    assert embed(image_folder, embedder, tmp_path / "emb").num_embedded_now == 0
    again = embed(image_folder, embedder, tmp_path / "emb", rehash=True)
    assert (again.num_embedded_now, again.num_changed) == (1, 1)
    assert (
        row(tmp_path / "emb", "001.jpg")["embedding"]
        == row(tmp_path / "emb", "002.jpg")["embedding"]
    )


def test_retry_embeds_failed_images_of_unchanged_files(
    image_folder: Path, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = embed(image_folder, embedder, tmp_path / "scratch")
    with monkeypatch.context() as patch:  # as if a package were missing for two of the images
        decode = Embedder.decode

        def without_package(self: Embedder, image: object, *, name: str) -> object:
            data = b"" if name in ("004.jpg", "015.jpg") else image
            return decode(self, data, name=name)  # type: ignore[arg-type]

        patch.setattr(Embedder, "decode", without_package)
        assert embed(image_folder, embedder, tmp_path / "emb").num_failed == 3
    assert embed(image_folder, embedder, tmp_path / "emb").num_failed == 3
    again = embed(image_folder, embedder, tmp_path / "emb", retry=True)
    assert (again.num_embedded_now, again.num_retried, again.num_failed) == (3, 3, 1)
    assert again.failures == expected.failures
    assert digests(tmp_path / "emb") == digests(tmp_path / "scratch")


def test_unreadable_file_is_tried_again_by_every_run(
    image_folder: Path, embedder: Embedder, tmp_path: Path
) -> None:
    (image_folder / "005.jpg").rename(tmp_path / "away.jpg")
    (image_folder / "005.jpg").mkdir()
    source = FileSource(
        "p",
        image_folder,
        sorted(file.name for file in image_folder.iterdir()),
        limits=DEFAULT_LIMITS,
    )
    assert (
        embed_source(
            source, embedder, tmp_path / "emb", EmbedOptions(shard_size=SHARD_SIZE)
        ).num_failed
        == 2
    )
    before = digests(tmp_path / "emb")
    again = embed_source(source, embedder, tmp_path / "emb", EmbedOptions(shard_size=SHARD_SIZE))
    assert (again.num_embedded_now, again.num_failed, digests(tmp_path / "emb")) == (0, 2, before)
    (image_folder / "005.jpg").rmdir()
    (tmp_path / "away.jpg").rename(image_folder / "005.jpg")
    again = embed_source(source, embedder, tmp_path / "emb", EmbedOptions(shard_size=SHARD_SIZE))
    assert (again.num_embedded_now, again.num_failed) == (1, 1)


def test_rewritten_archive_is_compared_item_by_item(embedder: Embedder, tmp_path: Path) -> None:
    files = sorted(draw_folder(tmp_path / "images", 6).iterdir())
    members = [(file.name, file.read_bytes()) for file in files] + [("000.txt", b"first")]
    tar = write_tar(tmp_path / "t.tar", members)
    os.utime(tar, ns=(OLD_NS, OLD_NS))
    embed(tar, embedder, tmp_path / "emb")
    members[2] = (files[2].name, files[3].read_bytes())
    members[-1] = ("000.txt", b"other text")
    write_tar(tar, members)
    again = embed(tar, embedder, tmp_path / "emb")
    assert again.num_changed == 2, "one by its bytes, one by its text"
    assert row(tmp_path / "emb", "t.tar/000.jpg")["text"] == "other text"
    embed(tar, embedder, tmp_path / "scratch")
    assert shards(tmp_path / "emb") == shards(tmp_path / "scratch")


def test_folder_without_stamps_embeds_files_newer_than_shards(
    image_folder: Path, embedder: Embedder, tmp_path: Path
) -> None:
    out = tmp_path / "emb"
    embed(image_folder, embedder, out)
    shutil.rmtree(out / "stamps")
    plan = json.loads((out / "plan.json").read_text())
    del plan["skipped"]
    (out / "plan.json").write_text(json.dumps({**plan, "format": 2}))
    assert embed(image_folder, embedder, out).num_embedded_now == 0
    assert Embeddings.open(out).read_stamps(0) is not None, "known from now on"
    shutil.rmtree(out / "stamps")
    draw_image(90).save(image_folder / "007.jpg")
    new = (out / "shards" / "00000.parquet").stat().st_mtime_ns + 1
    os.utime(image_folder / "007.jpg", ns=(new, new))
    again = embed(image_folder, embedder, out)
    assert (again.num_embedded_now, again.num_failed) == (1, 0)


@pytest.mark.parametrize("where", ["shard", "stamps"])
def test_stop_between_shard_and_stamps_loses_no_change(
    image_folder: Path,
    embedder: Embedder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    embed(image_folder, embedder, tmp_path / "emb")
    draw_image(90).save(image_folder / "007.jpg")

    def stop(*_arguments: object) -> None:
        raise RuntimeError

    with monkeypatch.context() as patch:
        patch.setattr(Embeddings, "write_shard" if where == "shard" else "write_stamps", stop)
        with pytest.raises(RuntimeError):
            embed(image_folder, embedder, tmp_path / "emb")
    assert embed(image_folder, embedder, tmp_path / "emb").num_embedded_now == 1
    embed(image_folder, embedder, tmp_path / "scratch")
    assert digests(tmp_path / "emb") == digests(tmp_path / "scratch")


def test_damaged_stamps_are_written_again(
    image_folder: Path, embedder: Embedder, tmp_path: Path
) -> None:
    out = tmp_path / "emb"
    embed(image_folder, embedder, out)
    (out / "stamps" / "00000.parquet").write_bytes(b"damaged")
    (out / "stamps" / "00001.parquet").unlink()
    before = shards(out)
    assert embed(image_folder, embedder, out).num_embedded_now == 0
    assert shards(out) == before
    assert all(Embeddings.open(out).read_stamps(shard) is not None for shard in range(3))


def test_missing_file_has_no_stamp(tmp_path: Path) -> None:
    assert stamp_of(tmp_path / "none") == NO_STAMP
    assert stamp_of(Path("a\0b")) == NO_STAMP
