"""The records of an index."""

from __future__ import annotations

import math

import pytest

from featkit.index.records import AddReport, Hit, Item, NewItem, Value, in_json, same_item

ITEM = Item(id=3, key="a", source="s", width=4, height=5, metadata={"label": "cat", "x": math.nan})


def test_a_hit_has_the_fields_of_its_item() -> None:
    hit = Hit.of(ITEM, 0.5)
    assert (hit.id, hit.key, hit.score, hit.width, hit.height) == (3, "a", 0.5, 4, 5)
    assert repr(hit.metadata) == repr(ITEM.metadata)


def test_reports_add_up_by_field() -> None:
    total = AddReport(num_added=1, num_kept=2) + AddReport(num_added=3, num_replaced=4)
    assert total == AddReport(num_added=4, num_replaced=4, num_kept=2)


@pytest.mark.parametrize(
    ("changes", "is_same"),
    [
        ({}, True),
        ({"metadata": {"x": math.nan, "label": "cat", "y": None}}, True),
        ({"metadata": {"label": "cat"}}, False),
        ({"width": 5}, False),
        ({"source": "t"}, False),
    ],
)
def test_items_are_the_same_up_to_values_of_none(changes: dict[str, object], is_same: bool) -> None:
    fields = {"source": "s", "width": 4, "height": 5, "metadata": ITEM.metadata} | changes
    assert same_item(ITEM, NewItem(key="a", **fields)) is is_same  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"), (2.5, 2.5), (True, True)],
)
def test_json_gets_text_for_numbers_that_it_lacks(value: Value, expected: Value) -> None:
    assert in_json(value) == expected
