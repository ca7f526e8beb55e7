"""A searcher is chosen by the index's settings, and a new one needs no change elsewhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.index import Index, index_types
from featkit.index.exact import ExactSearcher
from featkit.index.index_types import searcher_for
from featkit.index.searcher import Neighbors, Rows
from tests.featkit.index.conftest import unit_vectors
from tests.sentences import refused


class FirstRows:
    """A searcher that returns the first k allowed rows, whatever the query."""

    def search(
        self, queries: np.ndarray, rows: Rows, *, k: int, allowed: np.ndarray
    ) -> list[Neighbors]:
        ids = np.flatnonzero(allowed)[:k]
        return [Neighbors(ids, rows.take(ids) @ query) for query in queries]


def test_an_index_without_the_setting_is_exact() -> None:
    assert isinstance(searcher_for(Path("i"), {}), ExactSearcher)


def test_an_unknown_type_is_refused_by_name() -> None:
    with refused("photos.index is of the unknown type 'tree'; update featkit"):
        searcher_for(Path("photos.index"), {"index_type": "tree"})


def test_a_searcher_in_the_table_answers_searches(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        index_types.SEARCHERS, index_types.EXACT, lambda _index, _settings: FirstRows()
    )
    with Index.open(photos, writable=True) as index:
        index.remove(["0.jpg"])
        (hits,) = index.search(vectors=unit_vectors(1), k=3)
        assert [hit.key for hit in hits] == ["1.jpg", "2.jpg", "3.jpg"]
