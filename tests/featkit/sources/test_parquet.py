"""Pictures in Parquet files: the Hugging Face layout and plain binary columns, with the other columns as metadata."""

from __future__ import annotations

import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.errors import InputError
from featkit.images import DEFAULT_LIMITS, ImageLimits
from featkit.sources import Source, open_source
from featkit.sources.parquet import ParquetSource
from tests.featkit.sources.files import contents, keys, picture_bytes
from tests.sentences import refused

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def open_table(path: Path, columns: dict[str, Any], *, rows_a_group: int = 2, max_bytes: int = 1000) -> Source:
    """A file of these columns, opened."""
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group)
    return open_source(path, limits=ImageLimits(max_bytes=max_bytes))


def hugging_face(*rows: tuple[bytes | None, str | None] | None) -> pa.Array:
    """A column as the datasets library writes it."""
    return pa.array([None if row is None else {"bytes": row[0], "path": row[1]} for row in rows], IMAGE)


def test_rows_of_the_hugging_face_layout_are_items(tmp_path: Path) -> None:
    pictures = [picture_bytes(seed) for seed in range(5)]
    images = hugging_face(*((data, f"{number}.png") for number, data in enumerate(pictures)))
    source = open_table(tmp_path / "t-0.parquet", {"label": [3, 1, 4, 1, 5], "image": images})
    assert keys(source) == [f"t-0.parquet/{number}" for number in range(5)]
    assert contents(source) == pictures
    assert [source.read(number) for number in (4, 0, 3)] == [pictures[4], pictures[0], pictures[3]]
    assert [source.metadata(number) for number in range(2)] == [{"label": 3, "path": "0.png"}, {"label": 1, "path": "1.png"}]


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary()])
def test_rows_of_a_binary_column_are_items(tmp_path: Path, kind: pa.DataType) -> None:
    source = open_table(tmp_path / "t.parquet", {"data": pa.array([b"one", b"two"], kind), "name": ["a", "b"]})
    assert contents(source) == [b"one", b"two"]
    assert source.metadata(1) == {"name": "b"}


def test_the_column_called_image_comes_before_other_binary_ones(tmp_path: Path) -> None:
    columns = {"mask": pa.array([b"mask"]), "image": hugging_face((b"image", None)), "depth": pa.array([b"depth"])}
    assert contents(open_table(tmp_path / "t.parquet", columns)) == [b"image"]
    columns.pop("image")
    assert contents(open_table(tmp_path / "u.parquet", columns)) == [b"mask"]


def test_metadata_is_text_and_numbers_and_leaves_out_what_is_null(tmp_path: Path) -> None:
    columns = {
        "image": hugging_face((b"x", "kept/beside.png"), (b"y", None)),
        "count": pa.array([2, None], pa.uint16()),
        "score": pa.array([0.25, 1.5], pa.float32()),
        "sharp": pa.array([True, False]),
        "words": pa.array(["café", None], pa.large_string()),
        "box": pa.array([[1, 2], [3]]),
        "path": ["mine", "mine"],
    }
    source = open_table(tmp_path / "t.parquet", columns)
    first, second = source.metadata(0), source.metadata(1)
    assert first == {"count": 2, "score": 0.25, "sharp": 1, "words": "café", "path": "mine"}
    assert second == {"score": 1.5, "sharp": 0, "path": "mine"}
    assert [type(first[name]) for name in ("count", "score", "sharp", "words")] == [int, float, int, str]


def test_class_labels_have_their_names_beside_them_where_the_file_says_so(tmp_path: Path) -> None:
    features = {
        "label": {"names": ["cat", "dog"], "_type": "ClassLabel"},
        "breed": {"names": ["lab"], "_type": "ClassLabel"},
        "count": {"dtype": "int64", "_type": "Value"},
    }
    columns = {
        "image": hugging_face((b"x", None), (b"y", None)),
        "label": pa.array([1, None]),
        "breed": pa.array([-1, 7]),
        "breed_name": pa.array(["mine", None]),
        "count": pa.array([0, 1]),
    }
    for note, expected in (
        (json.dumps({"info": {"features": features}}), {"label_name": "dog"}),
        *((damaged, {}) for damaged in ("{", "[]", '{"info": {"features": {"label": 3}}}', '{"info": {"features": []}}')),
        (json.dumps({"info": {"features": {"label": {"names": "cat", "_type": "ClassLabel"}}}}), {}),
    ):
        table = pa.table(columns).replace_schema_metadata({"huggingface": note})
        pq.write_table(table, tmp_path / "t.parquet")
        source = open_source(tmp_path / "t.parquet")
        assert source.metadata(0) == {"label": 1, "breed": -1, "breed_name": "mine", "count": 0} | expected
        assert source.metadata(1) == {"breed": 7, "count": 1}


def test_a_column_that_stands_twice_is_passed_over(tmp_path: Path) -> None:
    table = pa.table([pa.array([b"x"]), pa.array([b"y"]), pa.array([1]), pa.array([2])], ["image", "jpg", "n", "n"])
    pq.write_table(table, tmp_path / "t.parquet")
    assert (contents(open_source(tmp_path / "t.parquet")), open_source(tmp_path / "t.parquet").metadata(0)) == ([b"x"], {})


def test_a_row_without_a_picture_is_an_item_that_says_so(tmp_path: Path) -> None:
    source = open_table(tmp_path / "t.parquet", {"image": hugging_face((b"x", "x.png"), (None, "only/a/path.png"), None)})
    assert (len(source), source.read(0)) == (3, b"x")
    for number in (1, 2):
        with refused(f"t.parquet/{number} has no picture in its column image."):
            source.read(number)
    assert [source.metadata(number) for number in (1, 2)] == [{"path": "only/a/path.png"}, {}]


def test_the_limit_of_bytes_holds(tmp_path: Path) -> None:
    source = open_table(tmp_path / "t.parquet", {"image": pa.array([b"12345", b"123456"])}, max_bytes=5)
    assert source.read(0) == b"12345"
    with refused("t.parquet/1 has 6 bytes, more than the limit of 5."):
        source.read(1)


def test_a_file_without_pictures_or_rows_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path / "t.parquet", "has no column of pictures ({bytes, path} or binary) among: label, url."):
        open_table(tmp_path / "t.parquet", {"label": [1], "url": ["x"]})
    with refused(f"{tmp_path}/u.parquet has no rows."):
        open_table(tmp_path / "u.parquet", {"image": pa.array([], IMAGE)})


def test_what_is_no_whole_parquet_file_is_refused(tmp_path: Path) -> None:
    open_table(tmp_path / "t.parquet", {"image": hugging_face((picture_bytes(), None))})
    whole = (tmp_path / "t.parquet").read_bytes()
    for content in (
        b"",
        b"PAR1",
        b"a note\n" * 99,
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:4] + bytes(len(whole) - 8) + b"PAR1",
    ):
        (tmp_path / "x.parquet").write_bytes(content)
        with refused(f"{tmp_path}/x.parquet is not a Parquet file that can be read: "):
            open_source(tmp_path / "x.parquet")


def test_text_that_is_none_is_an_item_that_says_so(tmp_path: Path) -> None:
    damaged = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    image = pa.StructArray.from_arrays([pa.array([b"x"]), damaged], ["bytes", "path"])
    source = open_table(tmp_path / "t.parquet", {"image": image})
    with refused("t.parquet/0 has metadata that is no text: "):
        source.metadata(0)
    assert source.read(0) == b"x"


@settings(max_examples=100, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_file_is_items_or_one_input_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, int]]
) -> None:
    path = tmp_path_factory.mktemp("parquet") / "t.parquet"
    open_table(path, {"image": hugging_face((b"x", "x"), (b"y", "y")), "label": ["a", "b"]})
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[int(place * len(data))] = value
    path.write_bytes(data)
    try:
        source = ParquetSource(path, limits=DEFAULT_LIMITS)
        for number in range(min(len(source), 3)):
            source.metadata(number)
            source.read(number)
    except InputError as error:
        with refused("t.parquet"):
            raise error


def test_a_file_is_read_from_threads_and_after_pickling(tmp_path: Path) -> None:
    rows = [bytes([number]) * number for number in range(60)]
    source = open_table(tmp_path / "t.parquet", {"image": pa.array(rows), "number": list(range(60))}, rows_a_group=7)
    source.read(30)
    copy = pickle.loads(pickle.dumps(source))
    order = [number * 37 % 60 for number in range(60)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(copy.read, order)) == [rows[number] for number in order]
        assert list(threads.map(copy.metadata, order)) == [{"number": number} for number in order]
