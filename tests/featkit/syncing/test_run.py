"""After a sync, an index equals one that is made from scratch, whatever happened to the folder."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import featkit
from featkit.errors import EnvironmentProblem, InputError
from featkit.index import Index
from featkit.sources import open_source
from featkit.sources.base import Metadata
from featkit.syncing import Changes, SyncOptions, SyncReport, applying, sync
from tests.featkit.images.test_exif import photo, rational
from tests.featkit.syncing.conftest import OLD_NS, CountingEmbedder, content, draw, ids
from tests.model_files import make_model_file

COUNTS = [each.name for each in dataclasses.fields(SyncReport) if each.name.startswith("num_")]


def counts(report: SyncReport) -> dict[str, int]:
    """The counts that are not 0, without the totals."""
    names = [name for name in COUNTS if name not in ("num_items", "num_indexed", "num_embedded")]
    return {name[4:]: value for name in names if (value := getattr(report, name))}


@pytest.fixture
def index(photos: Path, model: Path, tmp_path: Path) -> Path:
    """An index that equals the folder."""
    report = featkit.sync(photos, tmp_path / "photos.index", model=model)
    assert counts(report) == {"new": 5}
    return tmp_path / "photos.index"


def fresh(photos: Path, model: Path, tmp_path: Path) -> dict[str, object]:
    """The content of an index of the folder as it is now, made from scratch."""
    path = tmp_path / "fresh.index"
    shutil.rmtree(path, ignore_errors=True)
    sync(photos, path, model=model)
    return dict(content(path))


def test_a_second_run_changes_and_reads_nothing(
    index: Path, photos: Path, embedded: CountingEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (index / "catalogue.sqlite").read_bytes()
    with Index.open(index) as opened:
        state = opened.read(lambda state: state.vectors.key)

    def refuse(*_: object) -> bytes:
        raise AssertionError("an image was read")

    monkeypatch.setattr("featkit.sources.folder.FileSource.read", refuse)
    report = sync(photos, index)
    assert (counts(report), embedded.since()) == ({}, 0)
    assert (report.num_items, report.num_indexed) == (5, 5)
    with Index.open(index) as opened:
        assert opened.read(lambda state: state.vectors.key) == state
    assert len((index / "catalogue.sqlite").read_bytes()) == len(before)


def change_one(photos: Path) -> None:
    draw(photos / "a.png", 100)


def add_one(photos: Path) -> None:
    draw(photos / "sub/new.png", 100)


def delete_one(photos: Path) -> None:
    (photos / "a.png").unlink()


def rename_one(photos: Path) -> None:
    (photos / "a.png").rename(photos / "sub/z.png")


def rename_folder(photos: Path) -> None:
    (photos / "sub").rename(photos / "other")


def copy_one(photos: Path) -> None:
    shutil.copy2(photos / "a.png", photos / "sub/copy.png")


def swap(photos: Path) -> None:
    (photos / "a.png").rename(photos / "x.png")
    (photos / "b.png").rename(photos / "a.png")
    (photos / "x.png").rename(photos / "b.png")


def move_over(photos: Path) -> None:
    (photos / "a.png").rename(photos / "b.png")


def shift(photos: Path) -> None:
    """Each takes the name of the next one; the last is new."""
    for old, new in (("e.png", "f.png"), ("b.png", "e.png"), ("a.png", "b.png")):
        (photos / old).rename(photos / new)
    draw(photos / "a.png", 100)


def touch(photos: Path) -> None:
    os.utime(photos / "a.png", ns=(OLD_NS, OLD_NS + 10**12))


def break_one(photos: Path) -> None:
    (photos / "a.png").write_bytes(b"no image any more")
    os.utime(photos / "a.png", ns=(OLD_NS, OLD_NS))


def copy_and_change(photos: Path) -> None:
    """The image of one key is now at another, and that key has a new one."""
    shutil.copy2(photos / "a.png", photos / "copy.png")
    draw(photos / "a.png", 100)


def two_new_of_the_same_bytes(photos: Path) -> None:
    draw(photos / "x.png", 100)
    shutil.copy2(photos / "x.png", photos / "y.png")


@pytest.mark.parametrize(
    ("change", "expected", "num_embedded"),
    [
        (change_one, {"changed": 1}, 1),
        (add_one, {"new": 1}, 1),
        (delete_one, {"removed": 1}, 0),
        (rename_one, {"moved": 1}, 0),
        (rename_folder, {"moved": 2}, 0),
        (copy_one, {"copied": 1}, 0),
        (swap, {"copied": 2}, 0),
        (move_over, {"moved": 1}, 0),
        (touch, {}, 0),
        (break_one, {"changed": 1, "failed": 1}, 0),
        (copy_and_change, {"copied": 1, "changed": 1}, 1),
        (two_new_of_the_same_bytes, {"new": 1, "copied": 1}, 1),
    ],
)
def test_only_what_changed_is_embedded(
    index: Path,
    photos: Path,
    model: Path,
    tmp_path: Path,
    embedded: CountingEmbedder,
    change: Callable[[Path], None],
    expected: dict[str, int],
    num_embedded: int,
) -> None:
    change(photos)
    planned = sync(photos, index, options=SyncOptions(dry_run=True))
    assert embedded.since() == 0
    report = sync(photos, index)
    assert counts(report) == expected
    assert counts(planned) == {name: n for name, n in expected.items() if name != "failed"}
    assert embedded.since() == num_embedded
    assert content(index) == fresh(photos, model, tmp_path)
    embedded.since()
    again = sync(photos, index)
    assert counts(again) == ({"failed": 1} if "failed" in expected else {})
    assert embedded.since() == 0


def test_shifted_names_are_followed(index: Path, photos: Path, model: Path, tmp_path: Path) -> None:
    shift(photos)
    report = sync(photos, index)
    assert report.num_changed == 1
    assert content(index) == fresh(photos, model, tmp_path)


def test_a_moved_image_keeps_its_id(index: Path, photos: Path) -> None:
    before = ids(index)
    rename_one(photos)
    sync(photos, index)
    assert ids(index) == {**{k: v for k, v in before.items() if k != "a.png"}, "sub/z.png": 0}
    with Index.open(index) as opened:
        assert opened.item(0).metadata["folder"] == "sub"
        assert opened.count("folder = 'sub'") == 2


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["draw", "move", "copy", "delete", "touch", "break"]),
        st.sampled_from(["a.png", "b.png", "c/a.png", "c/d/x.png", "e.png"]),
        st.sampled_from(["a.png", "b.png", "c/a.png", "c/d/x.png", "z.png"]),
        st.integers(0, 4),
    ),
    max_size=6,
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(OPERATIONS, min_size=2, max_size=3))
def test_any_history_ends_equal_to_a_fresh_index(
    model: Path, tmp_path: Path, histories: list[list[tuple[str, str, str, int]]]
) -> None:
    shutil.rmtree(tmp_path / "photos", ignore_errors=True)
    shutil.rmtree(tmp_path / "photos.index", ignore_errors=True)
    photos, index = tmp_path / "photos", tmp_path / "photos.index"
    draw(photos / "always.png", 99)
    for history in histories:
        for kind, name, other, seed in history:
            path, target = photos / name, photos / other
            if kind == "draw":
                draw(path, seed)
            elif path.is_file() and path != target:
                target.parent.mkdir(parents=True, exist_ok=True)
                if kind == "move":
                    path.rename(target)
                elif kind == "copy":
                    shutil.copy2(path, target)
                elif kind == "delete":
                    path.unlink()
                elif kind == "touch":
                    os.utime(path, ns=(OLD_NS, OLD_NS + 1000 + seed))
                else:
                    path.write_bytes(b"broken" * (seed + 1))
                    os.utime(path, ns=(OLD_NS, OLD_NS + seed))
        sync(photos, index, model=model)
        assert content(index) == fresh(photos, model, tmp_path)


def test_a_file_that_is_still_changing_is_read_again(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    path, index = photos / "a.png", tmp_path / "i"
    draw(path, 7, kind="BMP", mtime_ns=None)
    sync(photos, index, model=model)
    before = path.stat()
    draw(path, 8, kind="BMP")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert counts(sync(photos, index)) == {"changed": 1}


def test_rehash_finds_other_bytes_of_the_same_size_and_time(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    path, index = photos / "a.png", tmp_path / "i"
    for seed in (7, 8):
        draw(path, seed, kind="BMP")
        os.utime(path, ns=(OLD_NS, OLD_NS))
        report = sync(photos, index, model=model)
    assert counts(report) == {}
    assert counts(sync(photos, index, options=SyncOptions(rehash=True))) == {"changed": 1}


def test_failed_images_are_tried_again_when_asked_or_changed(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    index = tmp_path / "i"
    (photos / "bad.png").write_bytes(b"bad")
    os.utime(photos / "bad.png", ns=(OLD_NS, OLD_NS))
    report = sync(photos, index, model=model)
    assert report.failures[0][0] == "bad.png"
    assert "bad.png" in report.failures[0][1]
    assert counts(sync(photos, index)) == {"failed": 1}
    retried = sync(photos, index, options=SyncOptions(retry=True))
    assert counts(retried) == {"changed": 1, "failed": 1}
    draw(photos / "bad.png", 30)
    assert counts(sync(photos, index)) == {"changed": 1}


def test_an_item_removed_by_hand_comes_back(index: Path, photos: Path) -> None:
    with Index.open(index, writable=True) as opened:
        opened.remove(["a.png"])
    assert counts(sync(photos, index)) == {"changed": 1}
    assert "a.png" in ids(index)


def test_items_added_by_other_means_stay(index: Path, photos: Path) -> None:
    with Index.open(index, writable=True) as opened:
        opened.add(["elsewhere.jpg"], opened.vector(0)[None])
    (photos / "a.png").unlink()
    assert counts(sync(photos, index)) == {"removed": 1}
    assert "elsewhere.jpg" in ids(index)


def test_missing_images_can_be_kept(index: Path, photos: Path) -> None:
    (photos / "a.png").unlink()
    assert counts(sync(photos, index, options=SyncOptions(keep_missing=True))) == {"missing": 1}
    assert "a.png" in ids(index)
    assert counts(sync(photos, index)) == {"removed": 1}


def test_most_of_an_index_is_not_removed_without_being_asked(model: Path, tmp_path: Path) -> None:
    photos, index = tmp_path / "many", tmp_path / "i"
    for seed in range(24):
        draw(photos / f"{seed:02}.png", seed)
    sync(photos, index, model=model)
    for seed in range(13):
        (photos / f"{seed:02}.png").unlink()
    with pytest.raises(InputError, match=r"13 of 24 images .* are missing; if a disk"):
        sync(photos, index)
    assert len(ids(index)) == 24
    assert counts(sync(photos, index, options=SyncOptions(remove_many=True))) == {"removed": 13}


def test_another_source_is_refused_unless_it_is_meant(
    index: Path, photos: Path, tmp_path: Path, embedded: CountingEmbedder
) -> None:
    photos.rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"is kept equal to .*/photos, not to .*/elsewhere"):
        sync(tmp_path / "elsewhere", index)
    options = SyncOptions(new_source=True)
    assert counts(sync(tmp_path / "elsewhere", index, options=options)) == {}
    assert counts(sync(tmp_path / "elsewhere", index)) == {}
    assert embedded.since() == 0


def test_another_model_is_refused(index: Path, photos: Path, tmp_path: Path) -> None:
    other = make_model_file(tmp_path / "other.onnx", width=16, seed=5)
    with pytest.raises(InputError, match=r"was made by .*, not by .*other.onnx"):
        sync(photos, index, model=other)


@pytest.mark.skipif(os.geteuid() == 0, reason="this user may read everything")
def test_images_below_a_closed_folder_are_not_gone(index: Path, photos: Path) -> None:
    (photos / "sub").chmod(0)
    try:
        assert counts(sync(photos, index)) == {"missing": 2, "new": 1, "failed": 1}
    finally:
        (photos / "sub").chmod(0o755)
    assert {"sub/c.png", "sub/deep/d.png"} <= ids(index).keys()


def make_tar(path: Path, folder: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.add(file, file.relative_to(folder).as_posix())
    return path


def test_images_in_an_archive_are_followed(
    photos: Path, model: Path, tmp_path: Path, embedded: CountingEmbedder
) -> None:
    archives, index = tmp_path / "archives", tmp_path / "i"
    archives.mkdir()
    make_tar(archives / "x.tar", photos)
    sync(archives, index, model=model)
    assert embedded.since() == 5
    draw(photos / "a.png", 60)
    (photos / "b.png").rename(photos / "moved.png")
    make_tar(archives / "x.tar", photos)
    os.utime(archives / "x.tar", ns=(OLD_NS, OLD_NS))
    assert counts(sync(archives, index)) == {"changed": 1, "moved": 1}
    assert embedded.since() == 1
    assert "x.tar/moved.png" in ids(index)


def test_a_damaged_archive_removes_nothing(photos: Path, model: Path, tmp_path: Path) -> None:
    archives, index = tmp_path / "archives", tmp_path / "i"
    archives.mkdir()
    make_tar(archives / "x.tar", photos)
    draw(archives / "single.png", 70)
    sync(archives, index, model=model)
    (archives / "x.tar").write_bytes(b"\x93damaged" * 400)
    os.utime(archives / "x.tar", ns=(OLD_NS, OLD_NS))
    report = sync(archives, index)
    assert (report.num_missing, report.num_removed, report.num_failed) == (5, 0, 1)
    assert len(ids(index)) == 6


class Labeled:
    """A folder whose images have labels from elsewhere."""

    def __init__(self, folder: Path, labels: dict[str, str]) -> None:
        self._source, self._labels = open_source(folder), labels
        self.name, self.skipped = self._source.name, self._source.skipped
        self.key, self.read, self.file = self._source.key, self._source.read, self._source.file

    def __len__(self) -> int:
        return len(self._source)

    def metadata(self, item: int, /) -> Metadata:
        own = self._source.metadata(item)
        label = self._labels.get(self.key(item))
        return own if label is None else {**own, "label": label}


def test_metadata_of_the_source_is_followed(
    photos: Path, model: Path, tmp_path: Path, embedded: CountingEmbedder
) -> None:
    index = tmp_path / "i"
    sync(Labeled(photos, {"a.png": "cat", "sub/c.png": "dog"}), index, model=model)
    before = ids(index)
    embedded.since()
    report = sync(Labeled(photos, {"a.png": "bird", "sub/c.png": "dog"}), index)
    assert (counts(report), embedded.since(), ids(index)) == ({"described": 1}, 0, before)
    with Index.open(index) as opened:
        assert opened.item_by_key("a.png").metadata == {"label": "bird"}
        assert opened.item_by_key("sub/c.png").metadata == {"folder": "sub", "label": "dog"}
    assert counts(sync(Labeled(photos, {"sub/c.png": "dog"}), index)) == {"described": 1}
    with Index.open(index) as opened:
        assert opened.item_by_key("a.png").metadata == {}


def test_exif_becomes_metadata_and_survives_a_move(model: Path, tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "i"
    photos.mkdir()
    place = {1: "N", 2: (rational(48), rational(30), rational(0))}
    data = photo({0x0110: "Pixel 8", 0x0112: 6}, {0x9003: "2024:05:01 12:30:00"}, place)
    (photos / "x.jpg").write_bytes(data)
    sync(photos, index, model=model, options=SyncOptions(gps=True))
    expected = {
        "taken": "2024-05-01T12:30:00",
        "camera": "Pixel 8",
        "orientation": 6,
        "latitude": 48.5,
    }
    with Index.open(index) as opened:
        assert opened.item(0).metadata == expected
        assert opened.count("taken < '2025' and camera like 'pixel%'") == 1
    (photos / "y").mkdir()
    (photos / "x.jpg").rename(photos / "y/z.jpg")
    sync(photos, index)
    with Index.open(index) as opened:
        assert opened.item(0).metadata == {**expected, "folder": "y"}


def test_a_folder_without_images_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError):
        sync(tmp_path / "photos", tmp_path / "i", model=model)
    (tmp_path / "photos/bad.png").write_bytes(b"bad")
    with pytest.raises(InputError, match=r"No image of .* could be embedded: bad.png"):
        sync(tmp_path / "photos", tmp_path / "i", model=model)


def test_a_dry_run_makes_no_index(photos: Path, model: Path, tmp_path: Path) -> None:
    report = sync(photos, tmp_path / "i", model=model, options=SyncOptions(dry_run=True))
    assert counts(report) == {"new": 5}
    assert not (tmp_path / "i").exists()


def test_two_syncs_at_once_are_refused(index: Path, photos: Path) -> None:
    with (
        Index.open(index, writable=True),
        pytest.raises(EnvironmentProblem, match="is being written by"),
    ):
        sync(photos, index)


def test_the_index_may_be_inside_the_folder(photos: Path, model: Path) -> None:
    index = photos / "photos.index"
    assert sync(photos, index, model=model).num_items == 5
    assert counts(sync(photos, index)) == {}


def test_a_list_whose_disk_is_not_mounted_removes_nothing(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    listing, index = tmp_path / "list.txt", tmp_path / "i"
    listing.write_text("photos/a.png\nphotos/b.png\n")
    sync(listing, index, model=model)
    photos.rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"2 of 2 images .* are missing; if a disk"):
        sync(listing, index)
    assert len(ids(index)) == 2
    (tmp_path / "away").rename(photos)
    (photos / "a.png").unlink()
    assert counts(sync(listing, index)) == {"removed": 1}


def test_an_image_that_changes_meanwhile_is_not_copied(
    photos: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(photos / "x.png", 100)
    shutil.copy2(photos / "x.png", photos / "y.png")
    apply = applying.Applier.apply

    def change_then_apply(applier: applying.Applier, changes: Changes) -> None:
        draw(photos / "x.png", 101)
        apply(applier, changes)

    monkeypatch.setattr(applying.Applier, "apply", change_then_apply)
    sync(photos, tmp_path / "i", model=model)
    monkeypatch.setattr(applying.Applier, "apply", apply)
    assert content(tmp_path / "i")["y.png"] == fresh(photos, model, tmp_path)["y.png"]


def write_rows(path: Path, images: list[bytes], **columns: list[Any]) -> Path:
    table = pa.table({"image": pa.array(images), **columns})
    pq.write_table(table, path)
    os.utime(path, ns=(OLD_NS, OLD_NS + path.stat().st_size))
    return path


def test_metadata_of_rows_is_followed(
    photos: Path, model: Path, tmp_path: Path, embedded: CountingEmbedder
) -> None:
    images = [(photos / name).read_bytes() for name in ("a.png", "b.png")]
    file, index = tmp_path / "t.parquet", tmp_path / "i"
    write_rows(file, images, label=["cat", "dog"], camera=["A", "B"])
    sync(file, index, model=model)
    embedded.since()
    write_rows(file, images, label=["bird", "horse of a longer name"], camera=["A", "B"])
    assert counts(sync(file, index)) == {"described": 2}
    assert (counts(sync(file, index)), embedded.since()) == ({}, 0)
    with Index.open(index) as opened:
        assert [item.metadata["label"] for item in opened.items()] == [
            "bird",
            "horse of a longer name",
        ]


def test_a_row_that_cannot_be_stored_is_a_failure_of_its_own(
    photos: Path, model: Path, tmp_path: Path
) -> None:
    images = [(photos / name).read_bytes() for name in ("a.png", "b.png", "e.png")]
    file = write_rows(tmp_path / "t.parquet", images, label=["cat", "a\0b", "dog"])
    report = sync(file, tmp_path / "i", model=model)
    assert (report.num_indexed, [key for key, _ in report.failures]) == (2, ["t.parquet/1"])
    assert "not valid text" in report.failures[0][1]


def test_exif_of_another_kind_than_the_index_has_is_left_out(model: Path, tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "i"
    draw(photos / "a.png", 1)
    sync(photos, index, model=model)
    with Index.open(index, writable=True) as opened:
        opened.add(["own.jpg"], opened.vector(0)[None], metadata=[{"taken": True}])
    tags = {0x9003: "2024:05:01 12:30:00"}
    (photos / "b.jpg").write_bytes(photo({0x0110: "Pixel 8"}, tags))
    assert sync(photos, index).num_failed == 0
    with Index.open(index) as opened:
        assert opened.item_by_key("b.jpg").metadata == {"camera": "Pixel 8"}


def test_copies_in_a_renamed_folder_all_move(model: Path, tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "i"
    for seed in range(6):
        for number in range(3):
            draw(photos / "old" / f"{seed}-{number}.png", seed)
    sync(photos, index, model=model)
    before = sorted(ids(index).values())
    (photos / "old").rename(photos / "new")
    assert counts(sync(photos, index)) == {"moved": 18}
    assert sorted(ids(index).values()) == before


def test_failed_images_that_are_deleted_are_not_missing_items(model: Path, tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "i"
    draw(photos / "a.png", 1)
    for number in range(12):
        (photos / f"bad{number}.png").write_bytes(b"bad%d" % number)
    sync(photos, index, model=model)
    for number in range(12):
        (photos / f"bad{number}.png").unlink()
    assert counts(sync(photos, index)) == {}


def test_a_move_to_a_name_in_another_unicode_form_is_followed(model: Path, tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", tmp_path / "i"
    draw(photos / "e\u0301.png", 1)
    draw(photos / "x.png", 2)
    sync(photos, index, model=model)
    (photos / "e\u0301.png").rename(photos / "m.png")
    shutil.copy2(photos / "x.png", photos / "\u00e9.png")
    sync(photos, index)
    assert content(index) == fresh(photos, model, tmp_path)


def test_the_number_of_threads_must_be_possible() -> None:
    with pytest.raises(InputError, match="use 1 or more"):
        SyncOptions(workers=-1)
