"""The embeddings folder as a file format, read by featkit and by any reader of Parquet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from featkit.embeddings import Embeddings, ShardRow
from featkit.errors import InputError
from tests.featkit.embeddings.plans import PLAN, WIDTH


def rows_of(numbers: range, *, failed: tuple[int, ...] = (4,)) -> list[ShardRow]:
    """Return different rows; those of `failed` have no embedding."""
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


@pytest.fixture
def folder(tmp_path: Path) -> Embeddings:
    """A finished folder for PLAN."""
    made = Embeddings.create(tmp_path / "emb", PLAN)
    for shard in range(PLAN.num_shards):
        made.write_shard(shard, rows_of(made.shard_range(shard)))
    return Embeddings.open(tmp_path / "emb")


def test_other_folder_is_refused_with_the_command_to_run(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "missing", tmp_path / "file"):
        with pytest.raises(
            InputError, match=r"is not an embeddings folder .*; make one with `featkit embed`\."
        ):
            Embeddings.open(path)


def test_shards_cover_the_items_without_a_gap(folder: Embeddings) -> None:
    assert [list(folder.shard_range(shard)) for shard in range(PLAN.num_shards)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6],
    ]
    for items, shards in ((6, 2), (1, 1), (0, 0)):
        assert dataclasses.replace(PLAN, num_items=items).num_shards == shards


def test_rows_are_read_back_as_written(folder: Embeddings) -> None:
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


def test_failures_are_counted_and_the_first_20_named(folder: Embeddings, tmp_path: Path) -> None:
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


def test_folder_without_a_vector_reads_as_empty(tmp_path: Path) -> None:
    empty = Embeddings.create(tmp_path, PLAN)
    keys, vectors = empty.read()
    assert (keys, vectors.shape, vectors.dtype.name) == ([], (0, WIDTH), "float32")
    assert empty.failures() == (0, [])
    empty.write_shard(0, rows_of(range(3), failed=(0, 1, 2)))
    assert empty.read()[1].shape == (0, WIDTH)


def test_missing_shards_are_listed_and_passed_over(folder: Embeddings) -> None:
    assert (folder.missing_shards(), folder.num_rows, len(folder)) == ([], 7, 7)
    folder.shard_path(1).unlink()
    assert (folder.missing_shards(), folder.num_rows, len(folder)) == ([1], 4, 7)
    assert [table.num_rows for table in folder.tables(["key"])] == [3, 1]


def test_any_parquet_reader_sees_one_table_of_plain_types(folder: Embeddings) -> None:
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


def test_equal_rows_give_equal_bytes(folder: Embeddings) -> None:
    before = folder.shard_path(1).read_bytes()
    folder.write_shard(1, rows_of(range(3, 6)))
    assert folder.shard_path(1).read_bytes() == before
    assert sorted(path.name for path in (folder.path / "shards").iterdir()) == [
        f"0000{n}.parquet" for n in range(3)
    ]


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_damaged_shard_is_named_with_advice(folder: Embeddings, keep: int) -> None:
    path = folder.shard_path(1)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError) as caught:
        folder.read()
    assert str(caught.value).startswith(f"{path} is damaged (")
    assert str(caught.value).endswith("; remove it and run `featkit embed` again.")


def test_shard_with_too_few_rows_is_refused(folder: Embeddings) -> None:
    folder.write_shard(1, rows_of(range(3, 5)))
    with pytest.raises(
        InputError,
        match=r"00001\.parquet has 2 rows, not 3; remove it and run `featkit embed` again\.",
    ):
        list(folder.tables())
