"""Images in Parquet files: the Hugging Face layout and plain binary columns, with the other
columns as metadata."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.errors import InputError
from featkit.images import ImageLimits
from featkit.sources import Source, open_source, row_groups
from featkit.sources.parquet import ParquetSource
from featkit.sources.row_groups import ParquetShard
from featkit.sources.rows import columns_of, image_column
from featkit.sources.selection import Selection
from tests.featkit.sources.files import contents, image_bytes, keys
from tests.fuzzing import CASES, fuzz
from tests.sentences import refused

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def open_table(
    path: Path, columns: dict[str, Any], *, rows_a_group: int = 2, max_bytes: int = 1000
) -> Source:
    """Write a file of these columns, and open it."""
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group)
    return open_source(path, limits=ImageLimits(max_bytes=max_bytes))


def hugging_face(*rows: tuple[bytes | None, str | None] | None) -> pa.Array:
    """Return a column as the datasets library writes it."""
    return pa.array(
        [None if row is None else {"bytes": row[0], "path": row[1]} for row in rows], IMAGE
    )


def test_rows_of_the_hugging_face_layout_are_items(tmp_path: Path) -> None:
    drawn = [image_bytes(seed) for seed in range(5)]
    images = hugging_face(*((data, f"{number}.png") for number, data in enumerate(drawn)))
    source = open_table(tmp_path / "t-0.parquet", {"label": [3, 1, 4, 1, 5], "image": images})
    assert keys(source) == [f"t-0.parquet/{number}" for number in range(5)]
    assert contents(source) == drawn
    assert [source.read(number) for number in (4, 0, 3)] == [drawn[4], drawn[0], drawn[3]]
    assert [source.metadata(number) for number in range(2)] == [
        {"label": 3, "path": "0.png"},
        {"label": 1, "path": "1.png"},
    ]


KINDS = [
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.binary(100),
    pa.dictionary(pa.int8(), pa.binary()),
]


@pytest.mark.parametrize("in_struct", [False, True])
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_of_every_binary_type_are_items(
    tmp_path: Path, kind: pa.DataType, in_struct: bool
) -> None:
    drawn = [b"1" * 100, b"2" * 100, b"1" * 100, None]
    values = pa.array(drawn, pa.binary())
    values = (
        values.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else values.cast(kind)
    )
    if in_struct:
        values = pa.StructArray.from_arrays(
            [values, pa.array(["a", "b", "c", "d"])], ["bytes", "path"]
        )
    source = open_table(
        tmp_path / "t.parquet", {"data": values, "name": ["a", "b", "c", "d"]}, rows_a_group=4
    )
    assert [source.read(number) for number in (2, 0, 1)] == [b"1" * 100, b"1" * 100, b"2" * 100]
    assert source.metadata(1) == {"name": "b"} | ({"path": "b"} if in_struct else {})
    with refused("t.parquet/3 has no image in its column data."):
        source.read(3)


def test_structs_come_first_and_then_names_like_image(tmp_path: Path) -> None:
    struct = hugging_face((b"struct", "x.png"))
    columns = {
        "sha256": pa.array([b"h" * 32], pa.binary(32)),
        "image": pa.array([b"image"]),
        "a": struct,
        "mask": pa.array([b"m"]),
    }
    path = tmp_path / "t.parquet"
    assert contents(open_table(path, columns)) == [b"struct"]
    assert (
        columns_of(open_source(path))[0].note
        == "Images are read from the column a; --column can choose image or mask instead."
    )
    columns.pop("a")
    assert contents(open_table(path, {"mask": struct, "image": struct, "depth": struct})) == [
        b"struct"
    ]
    assert image_column(open_source(path)) == "image"
    assert contents(open_table(path, columns)) == [b"image"]
    columns.pop("image")
    source = open_table(path, columns)
    assert (contents(source), columns_of(source)[0].note) == ([b"m"], None)


def test_column_can_be_chosen_by_name(tmp_path: Path) -> None:
    columns = {
        "image": hugging_face((b"image", "x.png")),
        "mask": pa.array([b"mask"]),
        "id": pa.array([b"i" * 16], pa.binary(16)),
        "label": [3],
    }
    path = tmp_path / "t.parquet"
    open_table(path, columns)
    chosen = {
        name: open_source(path, selection=Selection(column=name))
        for name in ("image", "mask", "id")
    }
    assert {name: contents(source) for name, source in chosen.items()} == {
        "image": [b"image"],
        "mask": [b"mask"],
        "id": [b"i" * 16],
    }
    assert chosen["image"].metadata(0) == {"label": 3, "path": "x.png"}
    assert chosen["mask"].metadata(0) == {"label": 3}
    assert open_source(path, column="mask").read(0) == b"mask"
    for name, words in (
        ("label", "has values of type int64 in its column label"),
        ("gone", "has no column gone"),
    ):
        with refused(path, words, "choose image or mask"):
            open_source(path, selection=Selection(column=name))
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "x.jpg").write_bytes(b"x")
    with refused("--column mask", tmp_path / "p", "has none"):
        open_source(tmp_path / "p", selection=Selection(column="mask"))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (pa.array([[b"x"]]), "lists of images"),
        (pa.array([[{"bytes": b"x", "path": None}]], pa.list_(IMAGE)), "lists of images"),
        (pa.array([[[[1, 2, 3]]]], pa.list_(pa.list_(pa.list_(pa.uint8())))), "lists of numbers"),
        (pa.array([[1, 2, 3]], pa.list_(pa.uint8())), "lists of numbers"),
    ],
)
def test_lists_of_images_or_pixels_are_refused(
    tmp_path: Path, values: pa.Array, words: str
) -> None:
    with refused(
        tmp_path / "t.parquet", words, "in its column images", "one encoded image per row"
    ):
        open_table(tmp_path / "t.parquet", {"label": [1], "images": values})


def test_shard_of_an_embeddings_folder_is_refused(tmp_path: Path) -> None:
    columns = {
        "key": ["a"],
        "thumbnail": [b"x"],
        "embedding": [[1.0]],
        "error": pa.array([None], pa.string()),
    }
    with refused("is a shard of an embeddings folder", "--column thumbnail"):
        open_table(tmp_path / "t.parquet", columns)
    assert contents(open_source(tmp_path / "t.parquet", column="thumbnail")) == [b"x"]


def test_metadata_is_text_and_numbers_without_nulls(tmp_path: Path) -> None:
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
    assert [type(first[name]) for name in ("count", "score", "sharp", "words")] == [
        int,
        float,
        int,
        str,
    ]


def test_class_labels_come_with_their_names(tmp_path: Path) -> None:
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
        *(
            (damaged, {})
            for damaged in (
                "{",
                "[]",
                '{"info": {"features": {"label": 3}}}',
                '{"info": {"features": []}}',
            )
        ),
        (
            json.dumps({"info": {"features": {"label": {"names": "cat", "_type": "ClassLabel"}}}}),
            {},
        ),
    ):
        table = pa.table(columns).replace_schema_metadata({"huggingface": note})
        pq.write_table(table, tmp_path / "t.parquet")
        source = open_source(tmp_path / "t.parquet")
        assert (
            source.metadata(0)
            == {
                "label": 1,
                "breed": -1,
                "breed_name": "mine",
                "count": 0,
            }
            | expected
        )
        assert source.metadata(1) == {"breed": 7, "count": 1}


def test_repeated_column_is_passed_over(tmp_path: Path) -> None:
    table = pa.table(
        [pa.array([b"x"]), pa.array([b"y"]), pa.array([1]), pa.array([2])],
        ["image", "jpg", "n", "n"],
    )
    pq.write_table(table, tmp_path / "t.parquet")
    assert (
        contents(open_source(tmp_path / "t.parquet")),
        open_source(tmp_path / "t.parquet").metadata(0),
    ) == ([b"x"], {})


def test_row_without_an_image_is_an_item_with_an_error(tmp_path: Path) -> None:
    source = open_table(
        tmp_path / "t.parquet",
        {"image": hugging_face((b"x", "x.png"), (None, "only/a/path.png"), None)},
    )
    assert (len(source), source.read(0)) == (3, b"x")
    for number in (1, 2):
        with refused(f"t.parquet/{number} has no image in its column image."):
            source.read(number)
    assert [source.metadata(number) for number in (1, 2)] == [{"path": "only/a/path.png"}, {}]


def test_image_over_the_byte_limit_is_refused(tmp_path: Path) -> None:
    source = open_table(
        tmp_path / "t.parquet", {"image": pa.array([b"12345", b"123456"])}, max_bytes=5
    )
    assert source.read(0) == b"12345"
    with refused("t.parquet/1 has 6 bytes, more than the limit of 5."):
        source.read(1)


def test_file_without_images_or_rows_is_refused(tmp_path: Path) -> None:
    with refused(
        tmp_path / "t.parquet",
        "has no column of images ({bytes, path} or binary) among: label, url.",
    ):
        open_table(tmp_path / "t.parquet", {"label": [1], "url": ["x"]})
    with refused(f"{tmp_path}/u.parquet has no rows."):
        open_table(tmp_path / "u.parquet", {"image": pa.array([], IMAGE)})


def test_incomplete_or_other_file_is_refused(tmp_path: Path) -> None:
    open_table(tmp_path / "t.parquet", {"image": hugging_face((image_bytes(), None))})
    whole = (tmp_path / "t.parquet").read_bytes()
    for content in (
        b"PAR1",
        random.Random(0).randbytes(999),
        whole[: len(whole) // 2],
        whole[:-1],
        whole[:4] + bytes(len(whole) - 8) + b"PAR1",
    ):
        (tmp_path / "x.parquet").write_bytes(content)
        with refused(f"{tmp_path}/x.parquet is not a Parquet file that can be read: "):
            open_source(tmp_path / "x.parquet")


def test_damaged_text_is_an_item_with_an_error(tmp_path: Path) -> None:
    damaged = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    image = pa.StructArray.from_arrays([pa.array([b"x"]), damaged], ["bytes", "path"])
    source = open_table(tmp_path / "t.parquet", {"image": image})
    with refused("t.parquet/0 has metadata that is not valid text: "):
        source.metadata(0)
    assert source.read(0) == b"x"


@pytest.mark.parametrize(
    "value", [0x80, *(pytest.param(value, marks=pytest.mark.slow) for value in (0, 1, 0x7F, 0xFF))]
)
def test_damaged_footer_never_aborts_the_process(tmp_path: Path, value: int) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"image": hugging_face((b"x", "x"), (None, None)), "label": ["a", "b"]}), path
    )
    whole = path.read_bytes()
    for place in range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole)):
        path.write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
        with suppress(InputError):
            source = ParquetSource(path, limits=ImageLimits(max_bytes=2**20))
            for number in range(min(len(source), 3)):
                with suppress(InputError):
                    source.metadata(number)
                    source.read(number)


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_items_or_are_refused(cases: int, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        source = ParquetSource(path, limits=ImageLimits(max_bytes=2**20))
        for number in range(min(len(source), 5)):
            source.key(number)
            with suppress(InputError):
                source.metadata(number)
                assert len(source.read(number)) <= 2**20

    columns = {
        "image": hugging_face((b"x" * 50, "x"), (None, "y"), (b"z", None)),
        "label": ["a", "b", "c"],
    }
    seeds = []
    for options in (
        {},
        {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"},
        {"compression": "zstd"},
    ):
        pq.write_table(pa.table(columns), path, row_group_size=2, **options)
        seeds.append(path.read_bytes())
    fuzz(parse, seeds, cases=cases)


def test_file_is_read_from_threads_and_after_pickling(tmp_path: Path) -> None:
    rows = [bytes([number]) * number for number in range(60)]
    source = open_table(
        tmp_path / "t.parquet", {"image": pa.array(rows), "number": list(range(60))}, rows_a_group=7
    )
    source.read(30)
    copy = pickle.loads(pickle.dumps(source))
    order = [number * 37 % 60 for number in range(60)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(copy.read, order)) == [rows[number] for number in order]
        assert list(threads.map(copy.metadata, order)) == [{"number": number} for number in order]


class Decoded:
    """Counts how often the columns of a row group were decoded, and their batches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.starts: list[tuple[int, tuple[str, ...]]] = []
        original = ParquetShard.batches

        def batches(
            shard: ParquetShard, group: int, columns: tuple[str, ...], num_bytes: int
        ) -> Any:
            for i, batch in enumerate(original(shard, group, columns, num_bytes)):
                if i == 0:
                    self.starts.append((group, columns))
                yield batch

        monkeypatch.setattr(ParquetShard, "batches", batches)


def test_metadata_is_read_without_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_table(
        tmp_path / "t.parquet",
        {"image": hugging_face(*[(b"x", "x.png")] * 6), "label": list(range(6))},
    )
    decoded = Decoded(monkeypatch)
    assert [source.metadata(number)["label"] for number in range(6)] == list(range(6))
    assert decoded.starts == [(group, ("label", "image.path")) for group in range(3)]


@pytest.mark.parametrize("whole", [True, False])
def test_group_is_decoded_once_in_order_and_shuffled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(row_groups, "KEPT_WHOLE", 2**20 if whole else 0)
    monkeypatch.setattr(row_groups, "MAX_BATCH", 3)
    rows = [bytes([number]) * 100 for number in range(40)]
    source = open_table(tmp_path / "t.parquet", {"image": pa.array(rows)}, rows_a_group=20)
    decoded = Decoded(monkeypatch)
    assert contents(source) == rows
    order = [*random.Random(0).sample(range(20), 20), *random.Random(1).sample(range(20, 40), 20)]
    row_groups.image_groups.forget()
    assert [source.read(number) for number in order] == [rows[number] for number in order]
    assert [group for group, _ in decoded.starts] == [0, 1, 0, 1]
    # groups that were dropped are decoded a second time
    assert [source.read(5) for _ in range(9)] == [rows[5]] * 9
    assert len(decoded.starts) == (4 if whole else 5)


def test_reading_many_groups_in_turn_decodes_each_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_groups.image_groups, "kept_bytes", 300_000)
    row_groups.image_groups.forget()
    rows = [random.Random(number).randbytes(10_000) for number in range(200)]
    source = open_table(
        tmp_path / "t.parquet", {"image": pa.array(rows)}, rows_a_group=20, max_bytes=10_000
    )
    decoded = Decoded(monkeypatch)
    order = [
        group * 20 + row
        for first in (0, 5)
        for row in range(20)
        for group in range(first, first + 5)
    ]
    assert [source.read(number) for number in order] == [rows[number] for number in order]
    assert len(decoded.starts) < 30  # of 200 reads; the minimum would be ten


def test_damaged_page_costs_only_later_rows_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [random.Random(number).randbytes(1000) for number in range(60)]
    path = tmp_path / "t.parquet"
    options = {
        "row_group_size": 20,
        "data_page_size": 1000,
        "write_batch_size": 1,
        "use_dictionary": False,
    }
    pq.write_table(
        pa.table({"image": pa.array(rows)}),
        path,
        compression="none",
        write_page_checksum=True,
        **options,
    )
    data = path.read_bytes()
    path.write_bytes(data.replace(rows[30], rows[31]))  # one flipped bit, not a broken header
    monkeypatch.setattr(row_groups, "MAX_BATCH", 5)
    source = open_source(path)
    for number, row in enumerate(rows):
        if 30 <= number < 40:
            with refused(f"{path} is damaged in row group 1: ", "checksum"):
                source.read(number)
        else:
            assert source.read(number) == row
    assert source.metadata(30) == {}


def test_damaged_group_is_read_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_table(
        tmp_path / "t.parquet", {"image": pa.array([b"x" * 99] * 20)}, rows_a_group=10
    )
    damaged = bytearray((tmp_path / "t.parquet").read_bytes())
    damaged[4:40] = b"\xff" * 36
    (tmp_path / "t.parquet").write_bytes(damaged)
    reads: list[int] = []
    original = ParquetShard.batches

    def batches(shard: ParquetShard, group: int, columns: tuple[str, ...], num_bytes: int) -> Any:
        reads.append(group)
        return original(shard, group, columns, num_bytes)

    monkeypatch.setattr(ParquetShard, "batches", batches)
    for number in range(10):
        with refused(tmp_path / "t.parquet"):
            source.read(number)
    assert reads == [0]
    assert source.read(10) == b"x" * 99


def test_changed_file_is_not_read_with_its_old_footer(tmp_path: Path) -> None:
    source = open_table(tmp_path / "t.parquet", {"image": pa.array([b"a", b"b"])})
    os.utime(tmp_path / "t.parquet", ns=(1, 1))
    assert source.read(0) == b"a"
    row_groups.image_groups.forget()
    open_table(tmp_path / "t.parquet", {"image": pa.array([b"other", b"b"])})
    with refused(tmp_path / "t.parquet", "has changed since it was opened; open it again."):
        source.read(0)


MEASURE = """
import sys
from featkit.sources import open_source

def peak():
    lines = open("/proc/self/status")
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

small, large, order = open_source(sys.argv[1]), open_source(sys.argv[2]), sys.argv[3]
small.metadata(0), small.read(0)
before = peak()
for number in range(len(large)):
    large.metadata(number)
metadata = peak()
for number in range(len(large)):
    large.read(number if order == "ordered" else number * 37 % len(large))
print(metadata - before, peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(
    ("order", "times"), [("ordered", 2), pytest.param("shuffled", 4, marks=pytest.mark.slow)]
)
def test_memory_in_order_is_at_most_two_row_groups(tmp_path: Path, order: str, times: int) -> None:
    rows = [{"bytes": os.urandom(2**20), "path": "x"} for _ in range(64)]
    for name, count in (("small", 1), ("large", 64)):
        table = pa.table({"image": pa.array(rows[:count], IMAGE)})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=count)
    command = [
        sys.executable,
        "-c",
        MEASURE,
        str(tmp_path / "small.parquet"),
        str(tmp_path / "large.parquet"),
        order,
    ]
    metadata, whole = map(
        int, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    )
    assert metadata < 10 * 2**20
    assert whole < times * 64 * 2**20 + 24 * 2**20


def test_column_can_be_named_in_another_unicode_form(tmp_path: Path) -> None:
    columns = {"foto_café": pa.array([b"one"]), "image": pa.array([b"two"])}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet", column="foto_cafe\u0301")
    assert (contents(source), image_column(source)) == ([b"one"], "foto_café")


def test_repeated_column_of_images_is_refused(tmp_path: Path) -> None:
    drawn = pa.array([b"x"])
    pq.write_table(
        pa.Table.from_arrays([drawn, drawn], names=["image", "image"]), tmp_path / "t.parquet"
    )
    with refused(
        tmp_path / "t.parquet",
        "has the column image more than once; write it again with other names.",
    ):
        open_source(tmp_path / "t.parquet")


@pytest.mark.parametrize("in_struct", [False, True])
def test_dictionary_of_images_is_kept_once(tmp_path: Path, in_struct: bool) -> None:
    # in pairs that share a value
    drawn = [bytes([row // 2]) * 2**20 if row != 5 else None for row in range(40)]
    values = pa.array(drawn, pa.binary()).dictionary_encode()
    if in_struct:
        values = pa.StructArray.from_arrays([values, pa.array(["x"] * 40)], ["bytes", "path"])
    pq.write_table(pa.table({"image": values}), tmp_path / "t.parquet", row_group_size=40)
    shard, _ = ParquetShard.open(tmp_path / "t.parquet")
    group = row_groups.RowGroup(shard, 0, ("image.bytes" if in_struct else "image",), 40 * 2**20)
    found = [batch["image"][place] for batch, place in map(group.row, reversed(range(40)))]
    assert [value.as_py()["bytes"] if in_struct else value.as_py() for value in found] == drawn[
        ::-1
    ]
    group.row(0)
    group.row(39)  # decodes all again
    assert group.num_bytes < 50 * 2**20
