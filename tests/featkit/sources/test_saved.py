"""Data sets by save_to_disk, read without the library: whole, split, ordered or damaged."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.errors import InputError
from featkit.images import DEFAULT_LIMITS, ImageLimits
from featkit.sources import Source, open_source
from featkit.sources.rows import image_column
from featkit.sources.saved import SavedDataset
from tests.featkit.sources.files import contents, keys
from tests.featkit.sources.hugging_face import draw_images, expected_metadata, library, make_dataset
from tests.processes import run_python
from tests.sentences import refused


def save(folder: Path, count: int = 5, *, num_shards: int = 1) -> list[bytes]:
    """Save a data set with the library; return the images in it."""
    images = draw_images(count)
    make_dataset(images).save_to_disk(folder, num_shards=num_shards)
    return images


def save_splits(folder: Path) -> None:
    """Save two splits, of one and two rows."""
    images = draw_images(3)
    library().DatasetDict(
        {"train": make_dataset(images[:2]), "test": make_dataset(images[2:])}
    ).save_to_disk(folder)


def write_stream(path: Path, columns: dict[str, pa.Array], *, rows_a_batch: int = 2) -> None:
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=rows_a_batch)


def write_by_hand(folder: Path, columns: dict[str, pa.Array]) -> Path:
    """Write a folder in the documented layout, without the library."""
    folder.mkdir()
    write_stream(folder / "data-00000-of-00001.arrow", columns)
    (folder / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
    )
    return folder


def contents_in_another_process(source: Source) -> list[bytes]:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(contents, (source,))


@pytest.mark.parametrize("num_shards", [1, 3])
def test_rows_are_items_with_label_names(tmp_path: Path, num_shards: int) -> None:
    images = save(tmp_path / "pets", num_shards=num_shards)
    source = open_source(tmp_path / "pets")
    assert keys(source) == [f"pets/{number}" for number in range(5)]
    assert contents(source) == images
    assert [source.metadata(number) for number in range(5)] == [
        expected_metadata(number) for number in range(5)
    ]
    assert source.name == str(tmp_path / "pets")
    assert [source.file(number).name for number in (0, 4)] == [
        f"data-00000-of-0000{num_shards}.arrow",
        f"data-0000{num_shards - 1}-of-0000{num_shards}.arrow",
    ]
    for number in (-1, 5):
        with pytest.raises(IndexError):
            source.read(number)


def test_saved_data_set_is_read_without_the_library(tmp_path: Path) -> None:
    save(tmp_path / "pets")
    program = (
        "import sys; sys.modules['datasets'] = None\nfrom featkit.sources import open_source;"
        f" print(open_source({str(tmp_path / 'pets')!r}).metadata(1)['label_name'])"
    )
    assert run_python(program) == (0, "dog\n", "")


def test_keys_of_a_split_begin_with_both_folders(tmp_path: Path) -> None:
    save_splits(tmp_path / "pets")
    assert keys(open_source(tmp_path / "pets" / "train")) == ["pets/train/0", "pets/train/1"]
    assert keys(open_source(f"hf:{tmp_path}/pets:test")) == ["pets/test/0"]
    assert open_source(f"hf:{tmp_path}/pets:test").name == f"hf:{tmp_path}/pets:test"


def test_unnamed_or_missing_split_is_refused_with_a_list(
    tmp_path: Path,
) -> None:
    save_splits(tmp_path / "pets")
    with refused(
        tmp_path / "pets",
        "has several splits; name one of train, test: ",
        f"{tmp_path}/pets/train.",
    ):
        open_source(tmp_path / "pets")
    with refused(tmp_path / "pets", "has no split 'valid'; name one of train, test: "):
        open_source(f"hf:{tmp_path}/pets:valid")
    save(tmp_path / "one")
    with refused(tmp_path / "one", "is one data set without splits; leave out :train."):
        open_source(f"hf:{tmp_path}/one:train")


def test_only_split_needs_no_name(tmp_path: Path) -> None:
    library().DatasetDict({"train": make_dataset(draw_images(2))}).save_to_disk(tmp_path / "pets")
    assert keys(open_source(tmp_path / "pets")) == ["pets/train/0", "pets/train/1"]


def test_saved_selection_or_shuffle_is_the_order_of_items(tmp_path: Path) -> None:
    shuffled = make_dataset(draw_images(6)).select([4, 0, 3])
    shuffled.save_to_disk(tmp_path / "new")
    assert contents(open_source(tmp_path / "new")) == [draw_images(6)[row] for row in (4, 0, 3)]
    folder = write_by_hand(tmp_path / "old", {"image": pa.array([b"0", b"1", b"2", b"3", b"4"])})
    write_stream(folder / "indices.arrow", {"indices": pa.array([4, 0, 4], pa.uint64())})
    for key in ("_indices_data_files", "_indices_files"):
        state = json.loads((folder / "state.json").read_text())
        (folder / "state.json").write_text(
            json.dumps({"_data_files": state["_data_files"], key: [{"filename": "indices.arrow"}]})
        )
        source = open_source(folder)
        assert (keys(source), contents(source)) == (["old/0", "old/1", "old/2"], [b"4", b"0", b"4"])
    write_stream(folder / "indices.arrow", {"indices": pa.array([4, 5], pa.uint64())})
    with refused(folder, "refers to row 5, but has only 5"):
        open_source(folder)
    write_stream(folder / "indices.arrow", {"indices": pa.array(["a"])})
    with refused(folder / "indices.arrow", "does not hold row indices"):
        open_source(folder)


def test_row_without_an_image_is_an_item_with_an_error(tmp_path: Path) -> None:
    make_dataset([draw_images(1)[0], None]).save_to_disk(tmp_path / "pets")
    source = open_source(tmp_path / "pets")
    assert source.read(0) == draw_images(1)[0]
    with refused("pets/1 has no image in its column image."):
        source.read(1)


def test_image_over_the_byte_limit_is_refused(tmp_path: Path) -> None:
    source = open_source(
        write_by_hand(tmp_path / "p", {"image": pa.array([b"12", b"123"])}),
        limits=ImageLimits(max_bytes=2),
    )
    assert source.read(0) == b"12"
    with refused("p/1 has 3 bytes, more than the limit of 2."):
        source.read(1)


def test_data_set_without_images_or_rows_is_refused(tmp_path: Path) -> None:
    with refused(
        "data-00000-of-00001.arrow has no column of images ({bytes, path} or binary) among: label."
    ):
        open_source(write_by_hand(tmp_path / "a", {"label": pa.array([1])}))
    with refused(f"{tmp_path}/b has no rows."):
        open_source(write_by_hand(tmp_path / "b", {"image": pa.array([], pa.binary())}))


def test_incomplete_file_is_an_item_or_refused_if_alone(tmp_path: Path) -> None:
    images = save(tmp_path / "pets", 6, num_shards=3)
    file = tmp_path / "pets" / "data-00001-of-00003.arrow"
    whole = file.read_bytes()
    cut = "ends before its end mark; it is truncated, or not an Arrow stream."
    damages: list[tuple[bytes | None, str]] = [
        (content, cut) for content in (whole[: len(whole) // 2], whole[:-1])
    ]
    damages += [
        (
            whole[:4] + bytes(len(whole) - 12) + whole[-8:],
            "is not an Arrow stream that can be read: ",
        )
    ]
    damages += [
        (None, "does not exist; copy the whole data set, or write it again."),
        (b"", "is empty (0 bytes); copy or download it again."),
        (bytes(99), "is filled with zero bytes; copy or download it again."),
        (b"a note\n" * 99, "is plain text; write the data set again."),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a Git LFS pointer; run `git lfs pull`",
        ),
    ]
    for content, words in damages:
        file.unlink() if content is None else file.write_bytes(content)
        source = pickle.loads(pickle.dumps(open_source(tmp_path / "pets")))
        later = [f"pets/data-00002-of-00003.arrow/{row}" for row in range(2)]
        readable = [
            number for number in range(len(source)) if source.key(number) != f"pets/{file.name}"
        ]
        assert len(source) - len(readable) == 1
        found = {source.key(number): source.read(number) for number in readable}
        expected = dict(zip(["pets/0", "pets/1", "pets/2", "pets/3"], images[:4], strict=True))
        assert found == {key: expected[key] for key in found if key in expected} | dict(
            zip(later, images[4:], strict=True)
        )
        failed = keys(source).index(f"pets/{file.name}")
        with refused(file, words):
            source.read(failed)
        assert (source.metadata(failed), source.file(failed)) == ({}, file)
    write_stream(file, {"image": pa.array([b"x"])})
    with refused(file, "has different columns than "):
        open_source(tmp_path / "pets").read(2)
    alone = write_by_hand(tmp_path / "alone", {"image": pa.array([b"x"])})
    (alone / "data-00000-of-00001.arrow").write_bytes(b"")
    with refused(alone, "is empty (0 bytes)"):
        open_source(alone)


def test_batches_before_a_cut_are_read(tmp_path: Path) -> None:
    folder = write_by_hand(
        tmp_path / "p", {"image": pa.array([bytes([n]) * 999 for n in range(6)])}
    )
    file = folder / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes()[:-1500])
    source = open_source(folder)
    assert keys(source) == ["p/0", "p/1", "p/2", "p/3", "p/data-00000-of-00001.arrow"]
    assert [source.read(number) for number in range(4)] == [bytes([n]) * 999 for n in range(4)]


@pytest.mark.parametrize("damage", ["cut", "empty", "missing"])
def test_rows_before_damage_are_read_in_a_saved_order(tmp_path: Path, damage: str) -> None:
    images = save(tmp_path / "pets", 6, num_shards=3)
    note = tmp_path / "pets" / "state.json"
    write_stream(
        tmp_path / "pets" / "order.arrow", {"indices": pa.array([4, 0, 3, 1, 5, 2], pa.uint64())}
    )
    note.write_text(
        json.dumps(
            json.loads(note.read_text()) | {"_indices_data_files": [{"filename": "order.arrow"}]}
        )
    )
    file = tmp_path / "pets" / "data-00001-of-00003.arrow"
    (
        file.unlink()
        if damage == "missing"
        else file.write_bytes(file.read_bytes()[:-999] if damage == "cut" else b"")
    )
    source = pickle.loads(pickle.dumps(open_source(tmp_path / "pets")))
    assert keys(source) == [f"pets/{number}" for number in range(6)]
    assert [source.read(number) for number in (1, 3)] == [images[0], images[1]]
    for number in (0, 2, 4, 5):  # in the third file, too: its first row is unknown
        with refused(file):
            source.read(number)
        assert (source.metadata(number), source.file(number)) == ({}, file)


def test_damaged_order_of_rows_is_refused(tmp_path: Path) -> None:
    folder = write_by_hand(tmp_path / "old", {"image": pa.array([b"0", b"1"])})
    write_stream(folder / "order.arrow", {"indices": pa.array([1, 0], pa.uint64())})
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(
        json.dumps(state | {"_indices_data_files": [{"filename": "order.arrow"}]})
    )
    whole = (folder / "order.arrow").read_bytes()
    for content, words in ((whole[:-1], "ends before its end mark"), (b"", "is empty (0 bytes)")):
        (folder / "order.arrow").write_bytes(content)
        with refused(folder / "order.arrow", words):
            open_source(folder)


@pytest.mark.parametrize(
    "note",
    ["", "[]", '{"_data_files": [{"filename": "../other.arrow"}]}', '{"_data_files": ["a.arrow"]}'],
)
def test_files_outside_the_folder_are_refused(tmp_path: Path, note: str) -> None:
    folder = write_by_hand(tmp_path / "p", {"image": pa.array([b"x"])})
    (folder / "state.json").write_text(note)
    with refused(folder / "state.json", "write the data set again."):
        open_source(folder)


def test_column_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    folder = write_by_hand(tmp_path / "p", {"image": pa.array([b"x"]), "label": pa.array([1])})
    file = folder / "data-00000-of-00001.arrow"
    file.write_bytes(file.read_bytes().replace(b"label", b"la\xffel"))
    with refused(file, "has columns whose names are not valid text: "):
        open_source(folder)


def test_folder_with_only_a_state_file_is_a_folder_of_images(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "x.jpg").write_bytes(b"x")
    assert keys(open_source(tmp_path)) == ["x.jpg"]


def test_offsets_out_of_the_file_are_an_item_with_an_error(tmp_path: Path) -> None:
    rows = pa.array([b"one", b"two", b"three"])
    folder = write_by_hand(tmp_path / "p", {"image": rows, "label": pa.array([1, 2, 3])})
    file = folder / "data-00000-of-00001.arrow"
    data = file.read_bytes()
    offsets = np.array([0, 3, 6], np.int32).tobytes()
    assert data.count(offsets) == 1
    file.write_bytes(data.replace(offsets, np.array([0, 2**30, 6], np.int32).tobytes()))
    source = open_source(folder)
    for number in (0, 1):
        with refused(f"p/{number} is damaged: "):
            source.read(number)
    assert source.read(2) == b"three"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    changes=st.lists(
        st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6
    )
)
def test_damaged_file_is_items_or_one_input_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    image = pa.array([{"bytes": b"x", "path": "x"}, {"bytes": b"y", "path": "y"}])
    folder = write_by_hand(
        tmp_path_factory.mktemp("saved") / "p", {"image": image, "label": pa.array(["a", "b"])}
    )
    file = folder / "data-00000-of-00001.arrow"
    data = bytearray(file.read_bytes())
    for position, value in changes:
        data[int(position * len(data))] = value
    file.write_bytes(data)
    try:
        source = SavedDataset(folder, name="p", limits=DEFAULT_LIMITS)
        for number in range(min(len(source), 3)):
            source.metadata(number)
            source.read(number)
    except InputError as error:
        with refused("p", error=type(error)):  # damage may leave no column of images (NoImages)
            raise error


def test_saved_data_set_is_read_from_threads_pickles_and_forks(tmp_path: Path) -> None:
    images = save(tmp_path / "pets", 60, num_shards=3)
    source = open_source(tmp_path / "pets")
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 5000
    order = [number * 37 % 60 for number in range(60)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(copy.read, order)) == [images[number] for number in order]
    if sys.platform == "linux":
        assert contents_in_another_process(source) == images


def test_column_can_be_chosen_with_and_without_the_library(tmp_path: Path) -> None:
    struct = pa.array(
        [{"bytes": b"struct", "path": None}],
        pa.struct([("bytes", pa.binary()), ("path", pa.string())]),
    )
    folder = write_by_hand(tmp_path / "p", {"image": pa.array([b"binary"]), "photo": struct})
    (tmp_path / "tables").mkdir()
    pq.write_table(
        pa.table({"image": pa.array([b"binary"]), "photo": struct}),
        tmp_path / "tables" / "train.parquet",
    )
    for spec in (str(folder), f"hf:{tmp_path / 'tables'}"):
        assert contents(open_source(spec)) == [b"struct"]
        assert contents(open_source(spec, column="image")) == [b"binary"]
        assert image_column(open_source(spec, column="image")) == "image"
        with refused("has no column mask; choose photo or image."):
            open_source(spec, column="mask")
