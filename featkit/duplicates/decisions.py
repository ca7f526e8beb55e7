"""Pairs of images that a user said are not duplicates, kept in the index."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import combinations

from featkit.errors import InputError
from featkit.index import Index

SETTING = "distinct_images"


def distinct_pairs(index: Index) -> frozenset[frozenset[str]]:
    """Return the pairs of keys that are not duplicates."""
    text = index.read(lambda state: state.catalogue.settings().get(SETTING))
    return frozenset(frozenset(pair) for pair in json.loads(str(text or "[]")))


def mark_distinct(index: Index, keys: Iterable[str]) -> int:
    """Remember that no two of these images are duplicates; return how many pairs are new.

    The index is open for reading; another process may write it. InputError for fewer than two keys,
    and for one that the index does not have.
    """
    unique = sorted({*keys})
    if len(unique) < 2:
        raise InputError("Name at least two images that are not duplicates of each other.")
    for key in unique:
        index.item_by_key(key)
    old = distinct_pairs(index)
    new = old | {frozenset(pair) for pair in combinations(unique, 2)}
    text = json.dumps(sorted(sorted(pair) for pair in new), ensure_ascii=False)
    index.publish(index.id, {SETTING: text})
    return len(new) - len(old)
