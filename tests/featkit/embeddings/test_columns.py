"""Names and types of metadata columns."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.embeddings import ShardRow
from featkit.embeddings.columns import column_name, common_kind
from featkit.embeddings.shards import to_table
from tests.featkit.embeddings.plans import WIDTH


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
def test_column_holds_every_value_its_type_was_chosen_for(values: list[str | int | float]) -> None:
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
