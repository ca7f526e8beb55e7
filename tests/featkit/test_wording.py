"""Counts with their nouns."""

from __future__ import annotations

import pytest

from featkit.wording import counted


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 pictures"), (1, "1 picture"), (2, "2 pictures"), (1234, "1,234 pictures"), (-1, "-1 pictures")]
)
def test_a_noun_follows_its_count(count: int, words: str) -> None:
    assert counted(count, "picture") == words


def test_a_plural_can_be_given() -> None:
    assert (counted(1, "category", "categories"), counted(3, "category", "categories")) == ("1 category", "3 categories")
