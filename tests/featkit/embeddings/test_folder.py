"""The embeddings folder as a file format: what is written is what is read, by featkit and by any
reader of Parquet."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.embeddings import Embeddings, FolderPlan, ShardRow
from featkit.embeddings.columns import column_name, common_kind
from featkit.embeddings.shards import to_table
from featkit.errors import InputError
from featkit.geometry import Geometry

WIDTH = 5
GEOMETRY = Geometry(
    height=32,
    width=48,
    resize="shorter_side",
    resize_to=48,
    interpolation="bicubic",
    patch=8,
    mean=(0.5, 0.25, 0.125),
    std=(0.5, 0.5, 0.5),
)
PLAN = FolderPlan(
    source="photos – été",
    num_items=7,
    keys_sha256="0" * 64,
    model_name="test",
    fingerprint="f" * 64,
    geometry=GEOMETRY,
    width=WIDTH,
    shard_size=3,
    max_bytes=10,
    max_pixels=20,
    columns={"class": "int64", "score": "double", "text": "string"},
)


def rows_of(numbers: range, *, failed: tuple[int, ...] = (4,)) -> list[ShardRow]:
    """Made-up rows, each different; those of `failed` without an embedding."""
    rows: list[ShardRow] = []
    for number in numbers:
        key = f"é/{number}.jpg"
        metadata: dict[str, str | int | float] = {
            "class": number,
            "score": number / 4,
            "text": f"t{number}",
        }
        if number in failed:
            rows.append(ShardRow(key=key, error=f"{key} is damaged.", metadata={"class": number}))
            continue
        vector = np.random.default_rng(number).standard_normal(WIDTH).astype(np.float32)
        thumbnail = b"\xff\xd8" + bytes([number])
        rows.append(
            ShardRow(
                key=key,
                width=80,
                height=60,
                thumbnail=thumbnail,
                embedding=vector,
                metadata=metadata,
            )
        )
    return rows


def table_of(metadata: dict[str, str | int | float]) -> pa.Table:
    """A table of one failed item with this metadata."""
    row = ShardRow(key="a.jpg", error="x", metadata=metadata)
    return to_table([row], width=WIDTH, columns=PLAN.columns)


@pytest.fixture
def folder(tmp_path: Path) -> Embeddings:
    """A finished folder of PLAN."""
    made = Embeddings.create(tmp_path / "emb", PLAN)
    for shard in range(PLAN.num_shards):
        made.write_shard(shard, rows_of(made.shard_range(shard)))
    return Embeddings.open(tmp_path / "emb")


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    Embeddings.create(tmp_path, PLAN)
    assert Embeddings.open(tmp_path).plan == PLAN
    assert (
        json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["source"] == "photos – été"
    )


def test_a_plan_of_the_first_format_was_run_by_onnxruntime_in_fp32(tmp_path: Path) -> None:
    values = json.loads(PLAN.to_json())
    del values["run"]
    (tmp_path / "plan.json").write_text(json.dumps({**values, "format": 1}))
    plan = Embeddings.open(tmp_path).plan
    assert (plan.run, plan.format) == ("onnxruntime fp32", 1)


def test_a_plan_keeps_what_ran(tmp_path: Path) -> None:
    Embeddings.create(tmp_path, dataclasses.replace(PLAN, run="openvino bf16"))
    assert Embeddings.open(tmp_path).plan.run == "openvino bf16"
    text = (tmp_path / "plan.json").read_text()
    (tmp_path / "plan.json").write_text(text.replace("openvino bf16", "abacus"))
    with pytest.raises(InputError, match="'abacus' is not an engine and a precision"):
        Embeddings.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it is damaged or not featkit's"),
        ("[]", "it is damaged or not featkit's"),
        ('{"format": 1}', "it is damaged or not featkit's"),
        (PLAN.to_json()[:-20], "it is damaged or not featkit's"),
        (PLAN.to_json().replace('"source"', '"sauce"'), "it is damaged or not featkit's"),
        (
            json.dumps({"format": 4, "anything": "else"}),
            "it has format 4, newer than the 3 read here; update featkit",
        ),
    ],
)
def test_a_plan_that_cannot_be_used_is_refused_by_its_name(
    tmp_path: Path, text: str, words: str
) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(InputError) as caught:
        Embeddings.open(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/plan.json cannot be used: ")
    assert words in str(caught.value)


def test_what_is_no_embeddings_folder_is_refused_with_the_command_that_makes_one(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(
            InputError, match=r"is not an embeddings folder .*; make one with `featkit embed`\."
        ):
            Embeddings.open(path)


def test_shards_divide_the_items_without_a_gap(folder: Embeddings) -> None:
    assert [list(folder.shard_range(shard)) for shard in range(PLAN.num_shards)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
    ]
    for items, shards in ((6, 2), (1, 1), (0, 0)):
        assert dataclasses.replace(PLAN, num_items=items).num_shards == shards


def test_rows_are_read_back_as_they_were_written(folder: Embeddings) -> None:
    found = [row for table in folder.tables() for row in table.to_pylist()]
    expected = rows_of(range(7))
    assert len(found) == len(expected)
    for row, wanted in zip(found, expected, strict=True):
        vector = None if wanted.embedding is None else wanted.embedding.tolist()
        assert row == {
            "key": wanted.key,
            "width": wanted.width,
            "height": wanted.height,
            "thumbnail": wanted.thumbnail,
            "embedding": vector,
            "error": wanted.error,
            **{name: wanted.metadata.get(name) for name in PLAN.columns},
        }


def test_keys_and_vectors_leave_out_the_failures(folder: Embeddings) -> None:
    keys, vectors = folder.read()
    wanted = [row for row in rows_of(range(7)) if row.embedding is not None]
    assert keys == [row.key for row in wanted]
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(
        vectors, np.stack([row.embedding for row in wanted if row.embedding is not None])
    )


def test_failures_are_counted_over_all_shards_and_the_first_twenty_named(
    folder: Embeddings, tmp_path: Path
) -> None:
    assert folder.failures() == (1, [("é/4.jpg", "é/4.jpg is damaged.")])
    many = Embeddings.create(
        tmp_path / "many", dataclasses.replace(PLAN, num_items=30, shard_size=8)
    )
    for shard in range(4):
        many.write_shard(shard, rows_of(many.shard_range(shard), failed=tuple(range(2, 30))))
    count, shown = many.failures()
    assert count == 28
    assert [key for key, _ in shown] == [f"é/{number}.jpg" for number in range(2, 22)]
    assert many.read()[1].shape == (2, WIDTH)


def test_a_folder_without_a_vector_has_none(tmp_path: Path) -> None:
    empty = Embeddings.create(tmp_path, PLAN)
    keys, vectors = empty.read()
    assert (keys, vectors.shape, vectors.dtype.name) == ([], (0, WIDTH), "float32")
    assert empty.failures() == (0, [])
    empty.write_shard(0, rows_of(range(3), failed=(0, 1, 2)))
    assert empty.read()[1].shape == (0, WIDTH)


def test_missing_shards_are_told_and_passed_over(folder: Embeddings) -> None:
    assert (folder.missing_shards(), folder.num_rows, len(folder)) == ([], 7, 7)
    folder.shard_path(1).unlink()
    assert (folder.missing_shards(), folder.num_rows, len(folder)) == ([1], 4, 7)
    assert [table.num_rows for table in folder.tables(["key"])] == [3, 1]


def test_any_parquet_reader_sees_one_table_with_plain_types(folder: Embeddings) -> None:
    table = pq.read_table(folder.path / "shards")
    kinds = {field.name: str(field.type) for field in table.schema}
    vector = f"fixed_size_list<element: float>[{WIDTH}]"
    fixed = {
        "key": "string",
        "width": "int32",
        "height": "int32",
        "thumbnail": "binary",
        "embedding": vector,
        "error": "string",
    }
    assert kinds == fixed | PLAN.columns
    assert table.column_names == [*fixed, *PLAN.columns]
    frame = pytest.importorskip("pandas").read_parquet(folder.path / "shards")
    assert frame["key"].tolist() == [f"é/{number}.jpg" for number in range(7)]
    np.testing.assert_array_equal(np.stack(frame["embedding"].dropna().tolist()), folder.read()[1])
    assert frame["error"].notna().tolist() == [number == 4 for number in range(7)]


def test_equal_rows_give_equal_bytes_and_nothing_is_left_beside_them(folder: Embeddings) -> None:
    before = folder.shard_path(1).read_bytes()
    folder.write_shard(1, rows_of(range(3, 6)))
    assert folder.shard_path(1).read_bytes() == before
    assert sorted(path.name for path in (folder.path / "shards").iterdir()) == [
        f"0000{n}.parquet" for n in range(3)
    ]


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_shard_is_named_with_the_way_out(folder: Embeddings, keep: int) -> None:
    path = folder.shard_path(1)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        folder.read()
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert str(caught.value).endswith("; remove it and run `featkit embed` again.")


def test_a_shard_with_too_few_rows_is_refused(folder: Embeddings) -> None:
    folder.write_shard(1, rows_of(range(3, 5)))
    with pytest.raises(
        InputError,
        match=r"00001\.parquet has 2 rows, not 3; remove it and run `featkit embed` again\.",
    ):
        list(folder.tables())


def test_metadata_that_the_plan_does_not_know_is_refused_naming_it() -> None:
    with pytest.raises(
        InputError,
        match=r"a\.jpg has metadata that its source did not have when this folder was begun: new;",
    ):
        table_of({"new": 1})
    with pytest.raises(
        InputError,
        match=r"The metadata class was int64 when this folder was begun and is 'cat' now",
    ):
        table_of({"class": "cat"})


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("label", "label"),
        ("width", "width_"),
        ("width_", "width__"),
        ("error", "error_"),
        ("widths", "widths"),
        ("_", "_"),
    ],
)
def test_metadata_never_takes_the_name_of_a_column(name: str, column: str) -> None:
    assert column_name(name) == column


@given(
    st.lists(
        st.one_of(st.integers(-(2**70), 2**70), st.floats(-1e6, 1e6), st.text("ab1", max_size=3)),
        min_size=1,
    )
)
def test_a_column_holds_every_value_its_kind_was_made_for(values: list[str | int | float]) -> None:
    kind: str | None = None
    for value in values:
        kind = common_kind(kind, value)
    assert kind is not None
    rows = [ShardRow(key="k", error="x", metadata={"m": value}) for value in values]
    column = to_table(rows, width=WIDTH, columns={"m": kind})["m"]
    assert column.type == {"int64": pa.int64(), "double": pa.float64(), "string": pa.string()}[kind]
    convert = {"int64": int, "double": float, "string": str}[kind]
    assert column.to_pylist() == [convert(value) for value in values]
    as_text = any(
        isinstance(value, str) or (isinstance(value, int) and not -(2**63) <= value < 2**63)
        for value in values
    )
    whole = all(isinstance(value, int) for value in values)
    assert kind == ("string" if as_text else "int64" if whole else "double")
