"""Arguments of an index are stored as they are or refused by name, never changed."""

from __future__ import annotations

import datetime
import decimal
import enum
import io
import math
import sqlite3
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.index import Index, NoSuchItem
from featkit.pipeline import embed_source
from featkit.sources import open_source
from tests.featkit.index.conftest import WIDTH, unit_vectors
from tests.featkit.index.test_reading import forget_ids
from tests.images import draw_image
from tests.sentences import refused

V = unit_vectors(3)
Call = Callable[[Index], object]


class WithGradient:
    """An object that NumPy cannot convert, such as a tensor that requires gradients."""

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise RuntimeError("call detach() first")


@pytest.fixture
def index(tmp_path: Path, model: Path) -> Index:
    created = Index.create(tmp_path / "i", model=model)
    created.add(["kept"], unit_vectors(1, seed=8))
    return created


# Keys ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda i: i.add("abc", V), ["keys is 'abc', not a list of keys; write add(['abc'])"]),
        (lambda i: i.add(b"abc", V), ["keys is b'abc', not a list of keys"]),
        (lambda i: i.add(None, V), ["keys is None, of type NoneType; give a list"]),
        (lambda i: i.add(3, V), ["keys is 3, of type int"]),
        (lambda i: i.add({"a", "b", "c"}, V), ["keys is a set, whose order is undefined"]),
        (
            lambda i: i.add(["a", Path("b"), "c"], V),
            ["keys[1] is PosixPath('b'), of type PosixPath", "str(key)"],
        ),
        (lambda i: i.add(["a", None, "c"], V), ["keys[1] is None"]),
        (lambda i: i.add(["a", b"b", "c"], V), ["keys[1] is b'b', of type bytes"]),
        (lambda i: i.add([1, 2, 3], V), ["keys[0] is 1, of type int"]),
        (lambda i: i.add(["a", "", "c"], V), ["'' of '' cannot be a key"]),
        (lambda i: i.add(["a", "b\0", "c"], V), ["cannot be a key"]),
        (lambda i: i.add(["a"], V[:1], source=None), ["source is None"]),
        (lambda i: i.add(["a"], V[:1], source=Path("x")), ["source is PosixPath('x')"]),
        (
            lambda i: i.remove("kept"),
            ["keys is 'kept', not a list of keys; write remove(['kept'])"],
        ),
        (lambda i: i.remove(b"kept"), ["keys is b'kept'"]),
        (lambda i: i.remove(None), ["keys is None"]),
        (lambda i: i.remove(["kept", 3]), ["keys[1] is 3"]),
        (lambda i: i.remove([0]), ["keys[0] is 0, of type int"]),
        (lambda i: i.item_by_key(7), ["is 7, of type int"]),
        (lambda i: i.item_by_key(None), ["is None"]),
    ],
)
def test_invalid_keys_are_refused_by_name(index: Index, call: Call, words: list[str]) -> None:
    with refused(*words):
        call(index)
    assert [item.key for item in index.items()] == ["kept"]


def test_keys_may_be_any_iterable_of_text(index: Index) -> None:
    more: list[Any] = [
        ("a", "b", "c"),
        iter("def"),
        (key for key in "ghi"),
        np.array(["j", "k", "l"]),
        {"m": 1, "n": 2, "o": 3},
    ]
    for keys in more:
        index.add(keys, V)
    assert [item.key for item in index.items()] == ["kept", *"abcdefghijklmno"]
    assert index.remove(key for key in "abc") == 3
    assert index.remove({"d", "e"}) == 2
    assert index.remove(np.array(["f"])) == 1
    assert index.remove([]) == 0


def test_the_last_of_two_equal_keys_counts(index: Index) -> None:
    assert index.add(["a", "a", "b"], V) == [1, 2, 3]
    assert [item.id for item in index.items()] == [0, 2, 3]
    assert index.remove(["a", "a"]) == 1


# Vectors and their columns -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda i: i.add(["a", "b"], V), ["2 keys and 3 vectors do not match"]),
        (lambda i: i.add([], V), ["0 keys and 3 vectors"]),
        (lambda i: i.add(["a", "b", "c"], V[:2]), ["3 keys and 2 vectors"]),
        (lambda i: i.add(["a"], V[0]), [f"shape ({WIDTH},)", "vector[None]"]),
        (lambda i: i.add(["a"], None), ["of type object"]),
        (lambda i: i.add(["a"], "abc"), ["of type"]),
        (lambda i: i.add(["a"], [["x"] * WIDTH]), ["of type"]),
        (lambda i: i.add(["a", "b"], [[1.0], [1.0, 2.0]]), ["The vectors are not an array"]),
        (
            lambda i: i.add(["a"], WithGradient()),
            ["The vectors are not an array (call detach() first)"],
        ),
        (lambda i: i.add(["a"], V[:1].astype(complex)), ["of type complex128"]),
        (lambda i: i.add(["a"], V[:1] > 0), ["of type bool"]),
        (lambda i: i.add(["a"], V[:1].astype(object)), ["of type object"]),
        (lambda i: i.add(["a"], V[:1, :8]), [f"takes (n, {WIDTH})"]),
        (lambda i: i.add(["a"], V[None, :1]), ["shape (1, 1,"]),
        (lambda i: i.add(["a"], V[:1] * 1e30), ["vector of a has length"]),
        (lambda i: i.add(["a"], V[:1].astype(float) * 1e300), ["vector of a has length inf"]),
        (lambda i: i.add(["a"], V[:1] * 0), ["vector of a has length 0"]),
        (lambda i: i.add(["a"], V[:1], widths=[1, 2]), ["1 key and 2 widths do not match"]),
        (lambda i: i.add(["a"], V[:1], heights=[]), ["1 key and 0 heights"]),
        (lambda i: i.add(["a"], V[:1], widths=3), ["widths is 3, of type int; give a list"]),
        (lambda i: i.add(["a"], V[:1], widths=["3"]), ["a: widths[0] is '3', of type str"]),
        (lambda i: i.add(["a"], V[:1], heights=[2.5]), ["a: heights[0] is 2.5"]),
        (lambda i: i.add(["a"], V[:1], heights=[-1]), ["a: heights[0] is -1"]),
        (lambda i: i.add(["a"], V[:1], heights=[True]), ["a: heights[0] is True"]),
        (lambda i: i.add(["a"], V[:1], heights=[2**40]), ["a: heights[0] is 1099511627776"]),
        (
            lambda i: i.add(["a"], V[:1], thumbnails=b"jpeg"),
            ["thumbnails is the bytes of one image"],
        ),
        (lambda i: i.add(["a"], V[:1], thumbnails=["jpeg"]), ["a: thumbnails[0] is of type str"]),
        (
            lambda i: i.add(["a"], V[:1], metadata={"label": ["x"]}),
            ["metadata is one mapping; give a list"],
        ),
        (lambda i: i.add(["a"], V[:1], metadata=["x"]), ["a: metadata[0] is 'x', of type str"]),
        (
            lambda i: i.add(["a"], V[:1], metadata=[{3: "x"}]),
            ["a: the metadata field 3 is of type int"],
        ),
        (lambda i: i.search(vectors=V, k=0), ["k is 0; it must be at least 1"]),
        (lambda i: i.search(vectors=V, k=2.0), ["k is 2.0, of type float"]),
        (lambda i: i.search(vectors=V, k="2"), ["k is '2', of type str"]),
        (lambda i: i.search(vectors=V, k=True), ["k is True"]),
        (lambda i: i.search(vectors=None), ["none was given"]),
        (lambda i: i.search(vectors=V[0]), ["vector[None]"]),
        (lambda i: i.search(vectors=V * np.nan), ["vector of index 0 has length nan"]),
        (lambda i: i.item("0"), ["is '0', of type str"]),
        (lambda i: i.item(0.0), ["is 0.0, of type float"]),
        (lambda i: i.item(None), ["is None"]),
        (lambda i: i.item(False), ["is False"]),
        (lambda i: i.thumbnail("x"), ["is 'x'"]),
        (lambda i: i.search(item=0, k=None), ["k is None"]),
        (lambda i: i.items(-1), ["offset is -1"]),
        (lambda i: i.items(0, "5"), ["limit is '5'"]),
    ],
)
def test_invalid_arguments_are_refused_by_name(index: Index, call: Call, words: list[str]) -> None:
    with refused(*words):
        call(index)
    assert [item.key for item in index.items()] == ["kept"]


@pytest.mark.parametrize(
    "vectors",
    [
        V.astype(np.float64),
        V.astype(np.float16),
        V.tolist(),
        np.asfortranarray(V),
        V[::-1][::-1],
        V.astype(">f4"),
    ],
)
def test_vectors_may_have_any_real_type(index: Index, vectors: Any) -> None:
    index.add(["a", "b", "c"], vectors)
    np.testing.assert_allclose(index.vector(2), V[1], atol=1e-3)
    assert index.search(vectors=vectors, k=1)[1][0].key == "b"
    assert index.add(["d"], np.eye(1, WIDTH, dtype=np.int64)) == [4]
    assert index.add([], np.zeros((0, WIDTH))) == []


def test_numpy_integers_are_accepted(index: Index) -> None:
    index.add(
        ["a"],
        V[:1],
        widths=np.array([640]),
        heights=[np.int32(480)],  # type: ignore[list-item]
        thumbnails=[bytearray(b"jpeg")],  # type: ignore[list-item]
    )
    item = index.item(np.int64(1))  # type: ignore[arg-type]
    assert (item.width, item.height, type(item.width)) == (640, 480, int)
    assert index.thumbnail(1) == b"jpeg"
    assert len(index.search(vectors=V[:1], k=np.int64(2))[0]) == 2  # type: ignore[call-overload]
    assert index.items(0, 2**80)[1].key == "a"


@pytest.mark.parametrize("number", [-1, 1, 2**40, 2**70, -(2**70)])
def test_a_missing_item_is_named(index: Index, number: int) -> None:
    for call in (index.item, index.vector, index.thumbnail, lambda i: index.search(item=i)):
        with pytest.raises(NoSuchItem, match=f"has no item {number}\\.$") as caught:
            call(number)
        assert (caught.value.index, caught.value.item) == (index.path, number)
    with pytest.raises(NoSuchItem, match="has no item 'x y'\\."):
        index.item_by_key("x y")


def test_a_search_takes_one_image(index: Index) -> None:
    image = draw_image(1)
    assert len(index.search(image)) == 1
    assert len(index.search([image])) == 1
    for images, words in (
        ([image, image], "2 images were given"),
        ([], "0 images were given"),
        (None, "exactly one of image, item or vectors; none was given"),
    ):
        with refused(words):
            index.search(images)  # type: ignore[arg-type]


# Metadata -----------------------------------------------------------------------------------------


class Shade(enum.IntEnum):
    DARK = 3


@pytest.mark.parametrize(
    "value",
    [
        True,
        False,
        0,
        1,
        -(2**63),
        2**63 - 1,
        0.0,
        1.0,
        -0.0,
        5e-324,
        1.7e308,
        math.inf,
        -math.inf,
        math.nan,
        "",
        "True",
        "nan",
        "1",
        "1.0",
        " é 猫\n",
        "x" * 100_000,
    ],
    ids=lambda value: repr(value)[:12],
)
def test_metadata_is_returned_unchanged(index: Index, value: Any) -> None:
    index.add(["a", "b"], V[:2], metadata=[{"x": value}, None])
    index.close()
    with Index.open(index.path) as opened:
        (found,) = opened.item(1).metadata.values()
        assert type(found) is type(value)
        assert repr(found) == repr(value)
        assert opened.item(2).metadata == {}
        assert repr(opened.search(vectors=V[:1], k=1)[0][0].metadata) == repr({"x": value})


@pytest.mark.parametrize(
    ("value", "same"),
    [
        (np.bool_(True), True),
        (np.int8(-3), -3),
        (np.uint64(2**63 - 1), 2**63 - 1),
        (np.float16(0.5), 0.5),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.float64(0.1), 0.1),
        (np.float32("nan"), math.nan),
        (np.longdouble(2.5), 2.5),
        (np.str_("x"), "x"),
        (Shade.DARK, 3),
    ],
)
def test_numpy_scalars_become_equal_python_values(index: Index, value: Any, same: Any) -> None:
    index.add(["a"], V[:1], metadata=[{"x": value}])
    found = index.item(1).metadata["x"]
    assert type(found) is type(same)
    assert repr(found) == repr(same)


@pytest.mark.parametrize(
    "value",
    [
        b"x",
        bytearray(b"x"),
        [1],
        (1,),
        {"a": 1},
        {1},
        datetime.datetime(2024, 1, 2, 3, 4),
        datetime.date(2024, 1, 2),
        np.datetime64("2024-01-02"),
        decimal.Decimal("0.1"),
        uuid.UUID(int=3),
        Path("x"),
        1j,
        np.complex64(1j),
        np.array([1]),
        2**63,
        np.uint64(2**63),
        -(2**63) - 1,
        "a\0b",
        "\udcff",
        object,
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_metadata_that_cannot_be_stored_is_named(index: Index, value: Any) -> None:
    with refused("b: the metadata field 'x' "):
        index.add(["a", "b"], V[:2], metadata=[{"x": 1}, {"y": None, "x": value}])
    assert [item.key for item in index.items()] == ["kept"]


def test_none_means_no_value(index: Index) -> None:
    index.add(["a", "b", "c"], V, metadata=[{"x": None}, {}, {"x": 1, "y": None}])
    assert [item.metadata for item in index.items()] == [{}, {}, {}, {"x": 1}]


@pytest.mark.parametrize(
    ("first", "second"),
    [(True, 1), (1, True), (False, "x"), ("x", False), (0.5, True), (math.nan, True)],
)
def test_booleans_do_not_mix_with_other_values(index: Index, first: Any, second: Any) -> None:
    with refused("b: the metadata field 'x' is ", "use one kind of value per field"):
        index.add(["a", "b"], V[:2], metadata=[{"x": first}, {"x": second}])
    assert len(index) == 1
    index.add(["a"], V[:1], metadata=[{"x": first}])
    with refused("b: the metadata field 'x' is "):
        index.add(["b"], V[:1], metadata=[{"x": second}])
    index.add(["b"], V[:1], metadata=[{"x": first, "y": second}])
    assert repr(index.item_by_key("b").metadata) == repr({"x": first, "y": second})


def test_metadata_may_have_the_names_of_columns(index: Index) -> None:
    names = [
        "id",
        "ID",
        "vector_crc32",
        "Vector_CRC32",
        "rowid",
        "deleted",
        "kind",
        'a "b"; --',
        "é",
        "x" * 300,
    ]
    index.add(["a"], V[:1], metadata=[{name: i for i, name in enumerate(names)}])
    assert index.item(1).metadata == {name: i for i, name in enumerate(names)}


def test_booleans_of_an_old_index_become_booleans_again(index: Index) -> None:
    # as featkit stored booleans before kinds existed
    index.add(
        ["a", "b", "c"], V, metadata=[{"x": 1, "y": 1, "vector_crc32": 7}, {"x": 0, "y": 2}, {}]
    )
    index.close()
    connection = sqlite3.connect(index.path / "catalogue.sqlite")
    (column,) = connection.execute(
        "SELECT column_name FROM metadata_columns WHERE name = 'vector_crc32'"
    ).fetchone()
    connection.close()
    forget_ids(index.path)
    # an earlier featkit had no column of that name
    with sqlite3.connect(index.path / "catalogue.sqlite") as connection:
        connection.execute(f"ALTER TABLE items RENAME COLUMN {column} TO vector_crc32")
        connection.execute(
            "UPDATE metadata_columns SET column_name = name WHERE name = 'vector_crc32'"
        )
    connection.close()
    before = {"x": 1, "y": 1, "vector_crc32": 7}
    with Index.open(index.path) as reader:
        assert reader.item(1).metadata == before
        assert reader.search(vectors=V[:1], k=1)[0][0].metadata == before
        with Index.open(index.path, writable=True) as writer:
            assert writer.item(1).metadata == before
            writer.add(["d"], V[:1], metadata=[{"x": True, "vector_crc32": 8}])
            assert (
                repr([item.metadata.get("x") for item in writer.items()][1:])
                == "[True, False, None, True]"
            )
            with refused(
                "d: the metadata field 'y' is True, but the index has numbers or text in it"
            ):
                writer.add(["d"], V[:1], metadata=[{"y": True}])
        assert reader.item_by_key("d").metadata == {"x": True, "vector_crc32": 8}


def test_nan_of_a_parquet_file_is_kept(tmp_path: Path, model: Path) -> None:
    images = []
    for seed in range(3):
        buffer = io.BytesIO()
        draw_image(seed).save(buffer, "PNG")
        images.append(buffer.getvalue())
    table = pa.table({"image": images, "price": pa.array([math.nan, 2.5, None], from_pandas=False)})
    pq.write_table(table, tmp_path / "a.parquet")
    embed_source(open_source(tmp_path / "a.parquet"), Embedder(model, threads=1), tmp_path / "emb")
    folder = Embeddings.open(tmp_path / "emb")
    with Index.create(tmp_path / "i", model=model) as index:
        assert index.add_embeddings(folder).num_added == 3
        assert (
            repr([item.metadata for item in index.items()])
            == "[{'price': nan}, {'price': 2.5}, {}]"
        )
        assert index.add_embeddings(folder).num_unchanged == 3  # NaN equals itself here
