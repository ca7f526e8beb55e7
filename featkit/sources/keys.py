"""Keys of files: valid UTF-8 and different for different names. Also finds other spellings of a
name."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np

from featkit.images import printable

MAX_SPELLINGS = 64
# Text that looks like an escaped byte or surrogate, as `printable` writes them.
_LIKE_AN_ESCAPE = re.compile(r"\\+(?=x[89a-f][0-9a-f]|ud[89a-f][0-9a-f]{2})")


def key_of(path: str) -> str:
    """Return the key of a file's path: with `/` between folders, valid UTF-8, and different for
    different names.

    Bytes that are not UTF-8 are escaped, as in `caf\\xe9.jpg`. A name with exactly this text gets a
    second backslash, so that the two differ.
    """
    if os.sep != "/":
        path = path.replace(os.sep, "/")
    if "\\" in path:
        path = _LIKE_AN_ESCAPE.sub(lambda backslashes: backslashes[0] * 2, path)
    return path if path.isascii() else printable(path)


def other_spellings(key: str) -> list[str]:
    """Return the keys that spell the same name differently: with or without `./`, and in the
    Unicode forms NFC and NFD.

    In a copy from a Mac, `é` may be `e` and a combining accent. Each folder in a path may have its
    own form.
    """
    bare = key.removeprefix("./")
    forms = [_forms(part) for part in bare.split("/")]
    paths = [
        "/".join(parts) for parts in itertools.islice(itertools.product(*forms), MAX_SPELLINGS)
    ]
    absolute = bare.startswith("/")
    return [
        spelling
        for path in paths
        for spelling in ((path,) if absolute else (path, f"./{path}"))
        if spelling != key
    ]


def twins(read: Callable[[], Iterable[str]]) -> set[str]:
    """Return the keys that differ only in how they spell a name.

    read: returns all keys; called a second time if there may be such keys. Memory is 8 bytes per
    key.
    """
    hashes = np.fromiter((hash(_plain(key)) for key in read()), np.int64)
    values, counts = np.unique(hashes, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    if not repeated:
        return set()
    candidates = {key for key in read() if hash(_plain(key)) in repeated}
    return {key for key in candidates if not candidates.isdisjoint(other_spellings(key))}


def _plain(key: str) -> str:
    key = key.removeprefix("./")
    return key if key.isascii() else unicodedata.normalize("NFC", key)


def _forms(part: str) -> list[str]:
    if part.isascii():
        return [part]
    return list(
        dict.fromkeys(
            [part, unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part)]
        )
    )
