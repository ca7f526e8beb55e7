"""Every pair of a group is a duplicate, and the best image is proposed to be kept."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.duplicates.grouping import group_pairs
from featkit.duplicates.judging import Level, Pair
from featkit.index import Item


def item(number: int, key: str | None = None, **values: Any) -> Item:
    metadata = values.pop("metadata", {})
    return Item(
        id=number,
        key=key or f"{number}.jpg",
        source="",
        width=values.pop("width", 100),
        height=values.pop("height", 100),
        metadata=metadata,
        added=values.pop("added", "2024-01-01T00:00:00Z"),
    )


def near(first: int, second: int, score: float = 0.9) -> Pair:
    return Pair(first, second, Level.NEAR, score)


EDGES = st.sets(
    st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda edge: edge[0] < edge[1])
)


@given(EDGES)
def test_every_pair_of_a_group_is_a_duplicate(edges: set[tuple[int, int]]) -> None:
    groups = group_pairs([near(*edge) for edge in edges], {i: item(i) for i in range(10)})
    members = [sorted(each.id for each in group.items) for group in groups]
    for group in members:
        assert len(group) >= 2
        assert all(pair in edges for pair in combinations(group, 2))
    flat = [each for group in members for each in group]
    assert len(flat) == len(set(flat))
    # what is left has no duplicate that is left as well
    left = set(range(10)) - set(flat)
    assert not any(first in left and second in left for first, second in edges)


def test_a_chain_is_not_one_group() -> None:
    frames = {i: item(i) for i in range(200)}
    groups = group_pairs([near(i, i + 1) for i in range(199)], frames)
    assert {len(group.items) for group in groups} == {2}
    assert len(groups) == 100


def test_all_copies_of_one_image_are_one_group() -> None:
    items = {i: item(i) for i in range(6)}
    pairs = [near(i, j) for i, j in combinations(range(6), 2)]
    (group,) = group_pairs(pairs, items)
    assert len(group.items) == 6


def test_the_level_of_a_group_is_that_of_its_least_alike_pair() -> None:
    pairs = [Pair(0, 1, Level.SAME, 1.0), near(0, 2, 0.8), near(1, 2, 0.7)]
    (group,) = group_pairs(pairs, {i: item(i) for i in range(3)})
    assert (group.level, group.score) == (Level.NEAR, 0.7)


@pytest.mark.parametrize(
    ("items", "kept", "reason"),
    [
        ((item(0), item(1, width=200)), 1, "largest, 200×100"),
        (
            (item(0, added="2024-02-01"), item(1, added="2024-01-15T10:00:00Z")),
            1,
            "oldest, 2024-01-15",
        ),
        (
            (item(0, metadata={"taken": "2020-05-01T00:00:00"}), item(1)),
            0,
            "oldest, 2020-05-01",
        ),
        ((item(0, "photo (copy).jpg"), item(1, "photo.jpg")), 1, "shortest name"),
        ((item(0, width=900), item(1, "album/x.jpg")), 1, "in a protected folder"),
    ],
)
def test_the_best_image_is_kept_with_its_reason(
    items: tuple[Item, Item], kept: int, reason: str
) -> None:
    (group,) = group_pairs([near(0, 1)], dict(enumerate(items)), protected=["album"])
    assert (group.items[0].id, group.reason) == (kept, reason)


def test_images_said_to_be_distinct_are_not_grouped() -> None:
    distinct = frozenset({frozenset({"0.jpg", "1.jpg"})})
    items = {i: item(i) for i in range(3)}
    pairs = [near(0, 1), near(0, 2), near(1, 2)]
    (group,) = group_pairs(pairs, items, distinct=distinct)
    assert len(group.items) == 2


def test_items_that_are_gone_are_left_out() -> None:
    assert group_pairs([near(0, 1)], {0: item(0)}) == []


def same(first: int, second: int) -> Pair:
    return Pair(first, second, Level.SAME, 1.0)


def test_one_of_the_same_bytes_stands_for_all() -> None:
    items = {i: item(i) for i in range(6)}
    pairs = [same(0, 2), same(0, 3), near(0, 1, 0.8), same(4, 5)]
    groups = group_pairs(pairs, items)
    assert [({*(each.id for each in group.items)}, group.level) for group in groups] == [
        ({4, 5}, Level.SAME),
        ({0, 1, 2, 3}, Level.NEAR),
    ]
    assert [group.score for group in groups] == [1.0, 0.8]


def test_distinct_images_stay_apart_with_the_same_bytes() -> None:
    items = {i: item(i) for i in range(4)}
    pairs = [same(0, 1), same(0, 2), near(0, 3)]
    apart = frozenset({frozenset({"1.jpg", "3.jpg"})})
    (group,) = group_pairs(pairs, items, distinct=apart)
    assert {each.id for each in group.items} == {0, 1, 2}
    twins = frozenset({frozenset({"0.jpg", "1.jpg"})})
    (group,) = group_pairs(pairs, items, distinct=twins)
    assert {each.id for each in group.items} == {0, 2, 3}


@given(EDGES, EDGES)
def test_same_bytes_are_grouped_however_they_are_paired(
    edges: set[tuple[int, int]], twins: set[tuple[int, int]]
) -> None:
    pairs = [near(*edge) for edge in edges] + [same(*edge) for edge in twins]
    groups = group_pairs(pairs, {i: item(i) for i in range(10)})
    place = {each.id: number for number, group in enumerate(groups) for each in group.items}
    assert sum(len(group.items) for group in groups) == len(place)
    assert all(place[first] == place[second] for first, second in twins)


def test_the_sharpest_of_equally_large_ones_is_kept() -> None:
    items = {0: item(0, added="2020"), 1: item(1), 2: item(2, width=90)}
    pairs = [near(0, 1), near(0, 2), near(1, 2)]
    values = {0: 0.5, 1: 1.0, 2: 9.0}
    (group,) = group_pairs(pairs, items, sharpness=lambda each: values[each.id])
    assert ([each.id for each in group.items], group.reason) == ([1, 0, 2], "sharpest")
    values[0] = 0.9  # not clearly less
    (group,) = group_pairs(pairs, items, sharpness=lambda each: values[each.id])
    assert (group.items[0].id, group.reason) == (0, "oldest, 2020")
    (group,) = group_pairs([same(0, 1)], items, sharpness=lambda _each: 1 / 0)
    assert group.items[0].id == 0  # the same bytes are equally sharp
