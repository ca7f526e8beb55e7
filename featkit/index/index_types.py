"""The index types by name. A new type is one file and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from featkit.errors import InputError
from featkit.index.exact import ExactSearcher
from featkit.index.records import Value
from featkit.index.searcher import Searcher

EXACT = "exact"
# Each opens the searcher of an index folder; a type may keep its own files there.
SEARCHERS: dict[str, Callable[[Path], Searcher]] = {
    EXACT: lambda _index: ExactSearcher(),
}


def searcher_for(index: Path, settings: Mapping[str, Value]) -> Searcher:
    """Return the searcher for an index. Its settings name the type unless it is exact."""
    index_type = str(settings.get("index_type", EXACT))
    if index_type not in SEARCHERS:
        raise InputError(
            f"{index} is of the unknown type {index_type!r}; update featkit to search it."
        )
    return SEARCHERS[index_type](index)
