"""Rows as a table."""

from __future__ import annotations

import pyarrow as pa
import pytest

from featkit.embeddings import ShardRow
from featkit.embeddings.shards import to_table
from featkit.errors import InputError
from tests.featkit.embeddings.plans import PLAN, WIDTH


def table_of(metadata: dict[str, str | int | float]) -> pa.Table:
    """Return the table of one failed item with this metadata."""
    row = ShardRow(key="a.jpg", error="x", metadata=metadata)
    return to_table([row], width=WIDTH, columns=PLAN.columns)


def test_metadata_without_a_column_is_refused() -> None:
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
