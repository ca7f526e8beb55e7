"""Keys: valid text, one for each file name, and the other spellings of the same name."""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections.abc import Callable, Iterable

import numpy as np

from featkit.images import printable

MAX_SPELLINGS = 64
# Text that reads like a byte or a half pair that `printable` spells out.
_LIKE_AN_ESCAPE = re.compile(r"\\+(?=x[89a-f][0-9a-f]|ud[89a-f][0-9a-f]{2})")


def key_of(path: str) -> str:
    """Return the key of a file's path: `/` between folders, valid UTF-8, and never the same for two
    different names.

    Bytes that are not UTF-8 are spelled out, as in `caf\\xe9.jpg`. A name that holds this very text
    keeps it with the backslash doubled, so that the two differ.
    """
    if os.sep != "/":
        path = path.replace(os.sep, "/")
    if "\\" in path:
        path = _LIKE_AN_ESCAPE.sub(lambda backslashes: backslashes[0] * 2, path)
    return path if path.isascii() else printable(path)


def other_spellings(key: str) -> list[str]:
    """Return the keys that name the same file in another way: with or without `./`, and in
    Unicode's forms NFC and NFD.

    A copy from a Mac may bring `é` as `e` with an accent after it. Each folder of the path has its
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
    """Return those of the keys that are spellings of the same name: two files whose names differ in
    nothing else.

    read: gives all the keys, and is called a second time where there are any. Keeps 8 bytes a key.
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
