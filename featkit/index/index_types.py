"""The index types by name. A new type is one file and one line here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from weakref import WeakValueDictionary

from featkit.errors import InputError
from featkit.folders import CATALOGUE_FILE
from featkit.index.approximate.generation import SETTING, Generation, OpenGeneration
from featkit.index.approximate.searching import CodesSearcher
from featkit.index.catalogue import Catalogue
from featkit.index.exact import ExactSearcher
from featkit.index.records import Value
from featkit.index.searcher import Searcher

INDEX_TYPE = "index_type"  # the setting
EXACT, APPROXIMATE = "exact", "approximate"
log = logging.getLogger("featkit.index")
# Each commit makes a new state with a searcher of its own; they share what is open.
_open: WeakValueDictionary[tuple[Path, Generation], OpenGeneration] = WeakValueDictionary()


def _open_generation(index: Path, settings: Mapping[str, Value]) -> Searcher:
    """Open the generation of an index, or search exactly if it cannot be opened.

    A state that is read just when a newer generation replaces its own is searched exactly, too.
    """
    try:
        record = Generation.from_json(str(settings.get(SETTING)))
        key = (index.absolute(), record)
        generation = _open.get(key) or _open.setdefault(key, OpenGeneration(index, record))
    except InputError as error:
        latest = Catalogue(index / CATALOGUE_FILE)
        with closing(latest), latest.reading() as catalogue:
            is_latest = catalogue.settings().get(SETTING) == settings.get(SETTING)
        if is_latest:
            log.warning("%s Until then, %s is searched exactly, which takes longer.", error, index)
        return ExactSearcher()
    return CodesSearcher(generation)


# Each opens the searcher of an index folder; a type may keep its own files there.
SEARCHERS: dict[str, Callable[[Path, Mapping[str, Value]], Searcher]] = {
    EXACT: lambda _index, _settings: ExactSearcher(),
    APPROXIMATE: _open_generation,
}


def searcher_for(index: Path, settings: Mapping[str, Value]) -> Searcher:
    """Return the searcher for an index. Its settings name the type unless it is exact."""
    index_type = str(settings.get(INDEX_TYPE, EXACT))
    if index_type not in SEARCHERS:
        raise InputError(
            f"{index} is of the unknown type {index_type!r}; update featkit to search it."
        )
    return SEARCHERS[index_type](index, settings)
