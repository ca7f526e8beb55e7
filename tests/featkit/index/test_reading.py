"""An open index whose folder is replaced, moved, restored or truncated.

It follows or refuses in one sentence, and never mixes two indexes."""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from featkit.backends import Run
from featkit.errors import FeatkitError, InputError
from featkit.index import Index
from featkit.index.stored_rows import ChecksummedRows
from featkit.wording import counted
from tests.featkit.index.conftest import WIDTH, unit_vectors
from tests.model_files import make_model_file
from tests.processes import run_python
from tests.sentences import refused

COUNT = 60


def make(
    path: Path, model: Path, name: str, seed: int, *, count: int = COUNT, run: Run | None = None
) -> np.ndarray:
    """Write an index of the keys NAME0, NAME1, … with random vectors, and return the vectors."""
    with Index.create(path, model=model, run=run) as index:
        vectors = unit_vectors(count, seed=seed, width=index.width)
        index.add([f"{name}{i}" for i in range(count)], vectors, metadata=[{"of": name}] * count)
    return vectors


def remove_and_create(old: Path, new: Path) -> None:
    """Replace it as a nightly `rm -r photos.index; featkit index emb --out photos.index` does."""
    shutil.rmtree(old)
    shutil.copytree(new, old)


def move_over(old: Path, new: Path) -> None:
    old.rename(old.with_name("away"))
    new.rename(old)


def copy_over(old: Path, new: Path) -> None:
    """Replace it as `cp new/* old/` does, which keeps the inodes."""
    for file in sorted(new.iterdir()):
        (old / file.name).write_bytes(file.read_bytes())


def copy_over_with_times(old: Path, new: Path) -> None:
    """Replace it as `cp -p` does."""
    for file in sorted(new.iterdir()):
        shutil.copy2(file, old / file.name)


def rename_each_over(old: Path, new: Path) -> None:
    """Replace it as rsync does."""
    for file in sorted(new.iterdir()):
        shutil.copy2(file, old / f".{file.name}.part")
        (old / f".{file.name}.part").rename(old / file.name)


ways = pytest.mark.parametrize(
    "replace", [remove_and_create, move_over, copy_over, copy_over_with_times, rename_each_over]
)


def test_every_index_has_its_own_id(tmp_path: Path, model: Path) -> None:
    ids = set()
    for name in "ab":
        make(tmp_path / name, model, name, 1)
        with (
            Index.open(tmp_path / name) as index,
            Index.open(tmp_path / name, writable=True) as writer,
        ):
            ids.add(index.id)
            assert len(index.id) == 32
            assert writer.id == index.id
            writer.add(["x"], unit_vectors(1))
            assert index.id == writer.id
    assert len(ids) == 2


@ways
@pytest.mark.parametrize("count", [COUNT, 7])
def test_an_open_index_follows_its_replacement(
    tmp_path: Path, model: Path, replace: Callable[[Path, Path], None], count: int
) -> None:
    path = tmp_path / "photos.index"
    old = make(path, model, "old", 1)
    new = make(tmp_path / "new.index", model, "new", 2, count=count)
    with Index.open(path) as index:
        assert [hit.key for hit in index.search(vectors=old[:1], k=1)[0]] == ["old0"]
        before = index.id
        replace(path, tmp_path / "new.index")
        for _ in range(2):
            for i in (0, count - 1):
                (hit,) = index.search(vectors=new[i : i + 1], k=1)[0]
                assert (hit.key, round(hit.score, 5)) == (f"new{i}", 1.0)
            (hit,) = index.search(vectors=old[:1], k=1)[0]
            assert hit.key == f"new{int(np.argmax(new @ old[0]))}"
            np.testing.assert_array_equal(index.vector(3), new[3])
            assert index.search(item=3, k=1)[0].key == "new3"
            assert [item.key for item in index.items(0, 1000)] == [f"new{i}" for i in range(count)]
        assert len(index) == count
        assert index.id != before


@ways
def test_a_replacement_of_another_model_is_refused(
    tmp_path: Path, model: Path, replace: Callable[[Path, Path], None]
) -> None:
    path = tmp_path / "photos.index"
    old = make(path, model, "old", 1)
    other = make_model_file(tmp_path / "other.onnx", width=WIDTH, seed=1)
    make(tmp_path / "new.index", other, "new", 2)
    with Index.open(path) as index:
        index.search(vectors=old[:1])
        replace(path, tmp_path / "new.index")
        calls: list[Callable[[], object]] = [
            lambda: index.search(vectors=old[:1]),
            lambda: index.items(),
            lambda: index.item(0),
            lambda: len(index),
            lambda: index.thumbnail(0),
        ]
        for call in calls * 2:
            with refused(path, "was replaced by an index of", "open it again"):
                call()
    with Index.open(path) as index:
        assert index.items(0, 1)[0].key == "new0"


def test_a_replacement_of_another_width_or_run_is_refused(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "photos.index"
    wide = make_model_file(tmp_path / "wide.onnx", width=2 * WIDTH)
    for i, (other, run) in enumerate(((wide, None), (model, Run("openvino", "bf16")))):
        old = make(path, model, "old", 1)
        make(tmp_path / f"new{i}.index", other, "new", 2, run=run)
        with Index.open(path) as index:
            remove_and_create(path, tmp_path / f"new{i}.index")
            with refused(path, "was replaced by an index of"):
                index.search(vectors=old[:1])
        shutil.rmtree(path)


def test_a_removed_index_is_missing_until_it_is_back(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "photos.index"
    old = make(path, model, "old", 1)
    with Index.open(path) as index:
        path.rename(tmp_path / "away")
        with refused(path, "does not exist"):
            index.search(vectors=old[:1])
        with refused(path, "does not exist"):
            len(index)
        (tmp_path / "away").rename(path)
        assert index.search(vectors=old[:1], k=1)[0][0].key == "old0"


def replace_catalogue(old: Path, new: Path) -> None:
    (new / "catalogue.sqlite").rename(old / "catalogue.sqlite")


def overwrite_catalogue(old: Path, new: Path) -> None:
    (old / "catalogue.sqlite").write_bytes((new / "catalogue.sqlite").read_bytes())


def replace_vectors(old: Path, new: Path) -> None:
    (new / "vectors.f32").rename(old / "vectors.f32")


def overwrite_vectors(old: Path, new: Path) -> None:
    with (old / "vectors.f32").open("r+b") as file:  # opening it does not truncate anything
        file.write((new / "vectors.f32").read_bytes())


def overwrite_the_end_of_the_vectors(old: Path, new: Path) -> None:
    with (old / "vectors.f32").open("r+b") as file:
        file.seek(-4 * WIDTH, os.SEEK_END)
        file.write((new / "vectors.f32").read_bytes()[-4 * WIDTH :])


@pytest.mark.parametrize(
    "replace",
    [
        replace_catalogue,
        overwrite_catalogue,
        replace_vectors,
        overwrite_vectors,
        overwrite_the_end_of_the_vectors,
    ],
)
@pytest.mark.parametrize("writable", [False, True])
def test_one_file_of_another_index_is_refused(
    tmp_path: Path, model: Path, replace: Callable[[Path, Path], None], writable: bool
) -> None:
    path = tmp_path / "photos.index"
    old = make(path, model, "old", 1)
    make(tmp_path / "new.index", model, "new", 2)
    with Index.open(path) as index:
        index.search(vectors=old[:1])
        replace(path, tmp_path / "new.index")
        for _ in range(2):
            with refused(
                path / "vectors.f32",
                "does not belong to catalogue.sqlite or is damaged",
                "restore both",
            ):
                index.search(vectors=old[:1])
        with refused("does not belong"):
            index.vector(COUNT - 1)
    with refused("does not belong"):
        Index.open(path, writable=writable)


def test_a_damaged_vector_is_not_returned(tmp_path: Path, model: Path) -> None:
    """The damage is one bit of a vector outside the sample that is verified at opening."""
    path = tmp_path / "photos.index"
    vectors = make(path, model, "old", 1, count=5000)
    data = bytearray((path / "vectors.f32").read_bytes())
    data[4 * WIDTH * 1234 + 5] ^= 1
    (path / "vectors.f32").write_bytes(data)
    with Index.open(path) as index:
        for _ in range(3):  # also when the vectors are kept in memory
            assert index.search(vectors=vectors[:1], k=1)[0][0].key == "old0"
            for call in (
                lambda: index.search(vectors=vectors[1234:1235]),
                lambda: index.vector(1234),
            ):
                with refused("vector 1234 differs from the committed one"):
                    call()
        assert index.read(lambda state: state.vectors.rows.verified()) is not None


def test_a_vector_in_memory_is_verified_once(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "photos.index"
    vectors = make(path, model, "old", 1, count=200)
    with Index.open(path) as index:
        for _ in range(2):
            index.search(vectors=vectors[:1])
        verified: list[int] = []
        checksums = ChecksummedRows.checksums

        def counted_checksums(rows: ChecksummedRows, ids: np.ndarray) -> dict[int, int]:
            verified.extend(ids.tolist())
            return checksums(rows, ids)

        monkeypatch.setattr(ChecksummedRows, "checksums", counted_checksums)
        hits = {hit.id for _ in range(3) for hit in index.search(vectors=vectors[:1], k=20)[0]}
        assert sorted(verified) == sorted(hits)


def test_vectors_stay_in_memory_while_others_are_added(tmp_path: Path, model: Path) -> None:
    """The room for later vectors is used up more than once."""
    path = tmp_path / "photos.index"
    vectors = make(path, model, "old", 1, count=400)
    more = unit_vectors(300, seed=5)
    with Index.open(path) as index, Index.open(path, writable=True) as writer:
        for _ in range(2):
            index.search(vectors=vectors[:1])
        for number in range(30):
            new = more[10 * number : 10 * number + 10]
            writer.add([f"new{number}-{i}" for i in range(10)], new)
            assert index.read(lambda state: state.vectors.rows.verified()) is not None
            for i in (0, 9):
                assert index.search(vectors=new[i : i + 1], k=1)[0][0].key == f"new{number}-{i}"
            assert index.search(vectors=vectors[7:8], k=1)[0][0].key == "old7"


def test_memory_gives_way_to_a_copy_that_went_on_otherwise(tmp_path: Path, model: Path) -> None:
    """The copy has the same id, replaces the files in place, and equals them in the sample that
    is verified first."""
    path, copy = tmp_path / "photos.index", tmp_path / "copy.index"
    vectors = make(path, model, "old", 1, count=3000)
    shutil.copytree(path, copy)
    mine, theirs = unit_vectors(3, seed=7), unit_vectors(4, seed=8)
    with Index.open(path) as index:
        for _ in range(2):
            index.search(vectors=vectors[:1])
        with Index.open(path, writable=True) as writer:
            writer.add([f"mine{i}" for i in range(3)], mine)
        assert index.search(vectors=mine[:1], k=1)[0][0].key == "mine0"
        with Index.open(copy, writable=True) as writer:
            for i in range(4):
                writer.add([f"theirs{i}"], theirs[i : i + 1])
        copy_over(path, copy)
        for i in range(4):
            (hit,) = index.search(vectors=theirs[i : i + 1], k=1)[0]
            assert (hit.key, round(hit.score, 5)) == (f"theirs{i}", 1.0)


def test_a_writer_never_writes_into_a_replacement(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "photos.index"
    for i, replace in enumerate((remove_and_create, copy_over, rename_each_over)):
        make(path, model, "old", 1)
        make(tmp_path / f"new{i}.index", model, "new", 2)
        with Index.open(path, writable=True) as index:
            index.add(["mine"], unit_vectors(1))
            replace(path, tmp_path / f"new{i}.index")
            before = (path / "vectors.f32").read_bytes()
            with refused(
                path, "was replaced by another index after it was opened for writing; open it again"
            ):
                index.add(["lost"], unit_vectors(1))
            with refused("was replaced by another index"):
                index.remove(["new0"])
        assert (path / "vectors.f32").read_bytes() == before
        for leftover in path.glob("catalogue.sqlite-*"):  # left by `rename_each_over` only
            leftover.unlink()
        with Index.open(path, writable=True) as index:
            assert [item.key for item in index.items(0, 1000)] == [f"new{i}" for i in range(COUNT)]
        shutil.rmtree(path)


def test_a_writer_refuses_a_removed_vectors_file(photos: Path) -> None:
    with Index.open(photos, writable=True) as index:
        data = (photos / "vectors.f32").read_bytes()
        (photos / "copy").write_bytes(data)
        (photos / "copy").rename(photos / "vectors.f32")
        with refused(photos / "vectors.f32", "was replaced after", "open it again"):
            index.add(["lost"], unit_vectors(1))
        assert len(index) == 100
    assert (photos / "vectors.f32").read_bytes() == data


def test_a_catalogue_replaced_without_its_log_is_refused(tmp_path: Path, model: Path) -> None:
    """SQLite would apply the old log to the new catalogue, and write it there on closing."""
    path = tmp_path / "photos.index"
    make(path, model, "old", 1)
    new = make(tmp_path / "new.index", model, "new", 2)
    with Index.open(path) as reader, Index.open(path, writable=True) as writer:
        writer.add(["mine"], unit_vectors(1))
        assert (path / "catalogue.sqlite-wal").stat().st_size > 0
        rename_each_over(path, tmp_path / "new.index")
        for index in (reader, writer):
            with refused(
                path / "catalogue.sqlite",
                "was replaced, but its log catalogue.sqlite-wal was not",
            ):
                index.search(vectors=new[:1])
    (path / "catalogue.sqlite-wal").unlink()
    (path / "catalogue.sqlite-shm").unlink()
    with Index.open(path) as index:
        assert [item.key for item in index.items(0, 1000)] == [f"new{i}" for i in range(COUNT)]
        assert index.search(vectors=new[:1], k=1)[0][0].key == "new0"


def test_an_index_restored_to_an_earlier_state_is_followed(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "photos.index"
    vectors = make(path, model, "old", 1)
    shutil.copytree(path, tmp_path / "backup")
    with Index.open(path) as index:
        for name, seed in (("first", 3), ("second", 4)):
            added = unit_vectors(2, seed=seed)
            with Index.open(path, writable=True) as writer:
                writer.add([name, f"{name}-b"], added)
            (hit,) = index.search(vectors=added[:1], k=1)[0]
            assert (hit.key, hit.id, round(hit.score, 5)) == (name, COUNT, 1.0)
            copy_over(path, tmp_path / "backup")  # the next two get the same ids
            assert len(index) == COUNT
            assert index.search(vectors=vectors[:1], k=1)[0][0].key == "old0"


def forget_ids(path: Path) -> None:
    """Remove the id, checksums and kinds that earlier versions of featkit did not have."""
    with sqlite3.connect(path / "catalogue.sqlite") as connection:
        connection.execute("DELETE FROM settings WHERE name IN ('id', 'commit', 'writer')")
        connection.execute("ALTER TABLE items DROP COLUMN vector_crc32")
        connection.execute("ALTER TABLE metadata_columns DROP COLUMN kind")
    connection.close()


@ways
def test_an_index_without_id_is_followed_by_its_files(
    tmp_path: Path, model: Path, replace: Callable[[Path, Path], None]
) -> None:
    path = tmp_path / "photos.index"
    old, new = make(path, model, "old", 1), make(tmp_path / "new.index", model, "new", 2)
    for each in (path, tmp_path / "new.index"):
        forget_ids(each)
    with Index.open(path) as index:
        assert index.id == ""
        assert index.search(vectors=old[:1], k=1)[0][0].key == "old0"
        replace(path, tmp_path / "new.index")
        (hit,) = index.search(vectors=new[:1], k=1)[0]
        assert (hit.key, round(hit.score, 5)) == ("new0", 1.0)


def test_an_old_index_gets_an_id_when_opened_to_write(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "photos.index"
    vectors = make(path, model, "old", 1)
    forget_ids(path)
    with Index.open(path) as reader, Index.open(path, writable=True) as index:
        assert len(index.id) == 32
        assert reader.id == index.id
        index.add(["more"], unit_vectors(1, seed=9))
        assert reader.search(vectors=vectors[:1], k=1)[0][0].key == "old0"
        assert reader.items(0, 1)[0].metadata == {"of": "old"}
    make(tmp_path / "new.index", model, "new", 2, count=COUNT + 1)
    overwrite_vectors(path, tmp_path / "new.index")
    with refused("does not belong"):
        Index.open(path)


@pytest.mark.parametrize("replace", [remove_and_create, copy_over, rename_each_over])
def test_no_answer_mixes_two_indexes(
    tmp_path: Path, model: Path, replace: Callable[[Path, Path], None]
) -> None:
    """Four threads search while the index at the path alternates between two."""
    path = tmp_path / "photos.index"
    names = ("odd", "even")
    vectors = {
        name: make(tmp_path / name, model, name, seed, count=300) for seed, name in enumerate(names)
    }
    shutil.copytree(tmp_path / "odd", path)
    query = unit_vectors(1, seed=9)
    expected = {name: (vectors[name] @ query[0]).max() for name in names}
    nearest = {name: int((vectors[name] @ query[0]).argmax()) for name in names}
    done = threading.Event()

    sentences: list[str] = []

    def ask(index: Index, thread: int) -> set[str]:
        seen: set[str] = set()
        while not done.is_set():
            try:
                if thread % 2:
                    (hit,) = index.search(vectors=query, k=1)[0]
                    name = str(hit.metadata["of"])
                    assert (hit.key, hit.id) == (f"{name}{nearest[name]}", nearest[name])
                    assert hit.score == pytest.approx(expected[name], abs=1e-6)
                else:
                    item, vector = index.read(lambda state: (state.item(7), state.vector(7)))
                    name = str(item.metadata["of"])
                    assert item.key == f"{name}7"
                    np.testing.assert_array_equal(vector, vectors[name][7])
                    assert {one.metadata["of"] for one in index.items(0, 300)} <= {*names}
                    assert len({one.metadata["of"] for one in index.items(0, 300)}) == 1
            except FeatkitError as error:
                sentences.append(str(error))
            else:
                seen.add(name)
        return seen

    with Index.open(path) as index, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, index, thread) for thread in range(4)]
        try:
            started = time.monotonic()
            turn = 0
            while time.monotonic() - started < 1.5:
                turn += 1
                replace(path, tmp_path / names[turn % 2])
                time.sleep(0.03)
        finally:
            done.set()
        for each in asked:
            assert each.result() == {*names}
        (hit,) = index.search(vectors=query, k=1)[0]  # all settled
        assert hit.metadata["of"] == names[turn % 2]
    assert not any("\n" in sentence for sentence in sentences)


SEARCH_A_FILE_THAT_IS_CUT = """
import os, sys, threading, time
from pathlib import Path
import numpy as np
from featkit.errors import FeatkitError
from featkit.index import Index
from featkit.index.stored_rows import ChecksummedRows
path, vectors = Path(sys.argv[1]), np.load(sys.argv[2])
done, counts = [], {"right": 0, "refused": 0}
def ask(index, thread):
    while not done:
        try:
            (hit,) = index.search(vectors=vectors[thread : thread + 1], k=1)[0]
        except FeatkitError as error:
            assert str(error).endswith(".") and "\\n" not in str(error), error
            counts["refused"] += 1
        except BaseException as error:
            print(repr(error), flush=True)
            os._exit(9)
        else:
            if (hit.key, round(hit.score, 4)) != (f"{thread}.jpg", 1.0):
                print(hit, flush=True)
                os._exit(8)
            counts["right"] += 1
with Index.open(path) as index:
    threads = [threading.Thread(target=ask, args=(index, thread)) for thread in range(4)]
    for thread in threads: thread.start()
    data = (path / "vectors.f32").read_bytes()
    for turn in range(60):
        os.truncate(path / "vectors.f32", [len(data) // 2, 0, len(data) - 1][turn % 3])
        time.sleep(0.005)
        with (path / "vectors.f32").open("r+b") as file:
            file.write(data)
        time.sleep(0.01)
    done.append(1)
    for thread in threads: thread.join()
    (hit,) = index.search(vectors=vectors[:1], k=1)[0]
assert hit.key == "0.jpg" and min(counts.values()) > 0, counts
"""


def test_truncating_the_vectors_file_kills_no_reader(tmp_path: Path, model: Path) -> None:
    path = tmp_path / "photos.index"
    vectors = unit_vectors(20_000)
    with Index.create(path, model=model) as index:
        index.add([f"{i}.jpg" for i in range(len(vectors))], vectors)
    np.save(tmp_path / "vectors.npy", vectors)
    assert run_python(SEARCH_A_FILE_THAT_IS_CUT, path, tmp_path / "vectors.npy") == (0, "", "")


@pytest.mark.parametrize("size", [0, 1, 4 * WIDTH * 50, 4 * WIDTH * 100 - 1])
def test_a_truncated_vectors_file_is_named_until_restored(photos: Path, size: int) -> None:
    data = (photos / "vectors.f32").read_bytes()
    with Index.open(photos) as index:
        index.search(vectors=unit_vectors(1))
        os.truncate(photos / "vectors.f32", size)
        for call in (
            lambda: index.search(vectors=unit_vectors(1)),
            lambda: index.search(item=99),
            lambda: index.vector(99),
        ):
            with refused(
                photos / "vectors.f32",
                f"is truncated: it has {counted(size, 'byte')}, but 100 vectors",
            ):
                call()
        (photos / "vectors.f32").write_bytes(data)
        assert len(index.search(vectors=unit_vectors(1), k=200)[0]) == 100


def test_a_relative_path_keeps_its_meaning(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos.parent)
    with Index.open(photos.name) as index:
        monkeypatch.chdir("/")
        assert len(index.search(vectors=unit_vectors(1), k=200)[0]) == 100
        assert len(index) == 100


def test_a_retargeted_link_is_followed(tmp_path: Path, model: Path) -> None:
    make(tmp_path / "monday", model, "old", 1)
    new = make(tmp_path / "tuesday", model, "new", 2)
    (tmp_path / "current").symlink_to("monday")
    with Index.open(tmp_path / "current") as index:
        assert index.items(0, 1)[0].key == "old0"
        (tmp_path / "next").symlink_to("tuesday")
        (tmp_path / "next").rename(tmp_path / "current")
        assert index.search(vectors=new[5:6], k=1)[0][0].key == "new5"


def test_a_replaced_model_file_is_refused(photos: Path, tmp_path: Path) -> None:
    other = make_model_file(tmp_path / "other.onnx", width=WIDTH, seed=1)
    shutil.copy(other, photos / "model.onnx")
    with Index.open(photos) as index:
        with refused(photos / "model.onnx", "restore the whole index from one copy"):
            index.search(np.zeros((20, 20, 3), np.uint8))
        assert len(index.search(item=3)) == 10  # needs no model


def test_no_descriptor_is_left_open(photos: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("the system does not list a process's descriptors")

    def use() -> None:
        with Index.open(photos, writable=True) as index:
            index.search(vectors=unit_vectors(1))
            index.add(["x"], unit_vectors(1))
            index.search(vectors=unit_vectors(1))
            shutil.copy(photos / "vectors.f32", photos / "copy")
            (photos / "copy").rename(photos / "vectors.f32")
            index.search(vectors=unit_vectors(1))
        with pytest.raises(InputError):
            Index.open(photos / "nothing")

    use()
    before = len([*folder.iterdir()])
    for _ in range(5):
        use()
    assert len([*folder.iterdir()]) == before
