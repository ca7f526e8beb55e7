"""Queries of one committed state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit.errors import InputError
from featkit.index import FilterError, Index
from featkit.index.state import spread
from tests.featkit.index.conftest import unit_vectors


def test_a_sample_is_reproducible_and_of_live_items(photos: Path) -> None:
    with Index.open(photos, writable=True) as index:
        index.remove(f"{number}.jpg" for number in range(100) if number % 5)
        first, same, other = (index.sample(10, seed=seed) for seed in (1, 1, 2))
        assert first == same != other
        assert len({item.id for item in first}) == 10
        for limit in (20, 21):
            assert sorted(item.id for item in index.sample(limit, seed=3)) == list(range(0, 100, 5))
        index.remove(f"{number}.jpg" for number in range(100))
        assert index.sample(10) == []


def test_every_live_item_may_be_in_a_sample(photos: Path) -> None:
    with Index.open(photos) as index:
        assert {item.id for seed in range(200) for item in index.sample(10, seed=seed)} == set(
            range(100)
        )


def test_all_answers_of_a_read_are_of_one_state(photos: Path) -> None:
    with Index.open(photos, writable=True) as index, Index.open(photos) as reader:

        def removed_meanwhile(state: object) -> tuple[int, int, bool, bool]:
            before = len(reader)
            index.remove(["0.jpg"])
            return before, len(reader), "0.jpg" in reader, state is not None

        assert reader.read(removed_meanwhile) == (100, 100, True, True)
        assert (len(reader), "0.jpg" in reader) == (99, False)


def test_a_state_searches_by_item_and_by_vectors(photos: Path) -> None:
    with Index.open(photos) as index:
        by_item, by_vectors = index.read(
            lambda state: (
                state.search(item=3, k=4),
                state.search(vectors=unit_vectors(100)[3:5], k=4),
            )
        )
    assert by_item == by_vectors[0]
    assert [hits[0].id for hits in by_vectors] == [3, 4]


def test_searches_items_and_counts_take_a_filter(photos: Path) -> None:
    with Index.open(photos) as index:
        query = unit_vectors(1, seed=9)
        everything = index.search(vectors=query, k=100)[0]
        ends = [hit for hit in everything if hit.key.endswith("3.jpg")]
        assert index.search(vectors=query, k=100, where="key like '%3.jpg'")[0] == ends
        assert index.search(vectors=query, k=4, where="key like '%3.jpg'")[0] == ends[:4]
        assert index.search(item=13, k=1, where="key = '77.jpg'")[0].key == "77.jpg"
        keys = [item.key for item in index.items(2, 3, where="key like '%3.jpg'")]
        assert keys == ["23.jpg", "33.jpg", "43.jpg"]
        assert (index.count(), index.count("key like '%3.jpg'"), index.count("width > 0")) == (
            100,
            10,
            0,
        )
        assert index.search(vectors=query, where="width > 0") == [[]]


def test_a_filter_sees_what_was_committed_since(photos: Path) -> None:
    with Index.open(photos) as reader, Index.open(photos, writable=True) as writer:
        assert reader.count("key like 'new%'") == 0
        writer.add(["new.jpg"], unit_vectors(1, seed=5), metadata=[{"label": "cat"}])
        assert reader.count("key like 'new%'") == reader.count("label = 'cat'") == 1
        writer.remove(["new.jpg"])
        assert reader.count("key like 'new%'") == 0


def test_items_that_match_a_filter_are_removed(photos: Path) -> None:
    with Index.open(photos, writable=True) as index:
        assert index.remove(["0.jpg"], where="key like '%9.jpg'") == 11
        assert index.count() == 89
        with pytest.raises(FilterError, match="column 1"):
            index.remove(["1.jpg"], where="kye = '2.jpg'")
        assert index.count() == 89


@pytest.mark.parametrize("where", [5, b"key", ["key"]])
def test_a_filter_is_text(photos: Path, where: Any) -> None:
    with Index.open(photos) as index, pytest.raises(InputError, match="a filter is text"):
        index.count(where)


def test_a_wrong_filter_is_refused_before_an_image_is_embedded(photos: Path) -> None:
    with Index.open(photos) as index, pytest.raises(FilterError, match="no column 'labl'"):
        index.search("does-not-exist.jpg", where="labl = 'cat'")


@pytest.mark.parametrize("num_rows", [1, 2, 31, 32, 33, 100_000])
def test_spread_has_the_first_and_last_row(num_rows: int) -> None:
    ids = spread(num_rows, 32)
    assert (ids[0], ids[-1], len(ids)) == (0, num_rows - 1, min(32, num_rows))
    assert (np.diff(ids) > 0).all()


def test_spread_of_no_rows_is_empty() -> None:
    assert len(spread(0, 32)) == 0
