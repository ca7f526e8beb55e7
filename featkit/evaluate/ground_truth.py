"""Read the published ground truth of ROxford and RParis: gnd_roxford5k.pkl, gnd_rparis6k.pkl, JSON.

A pickle can run arbitrary code when it is loaded. This reader uses none of the classes that it
names: it accepts containers, text, numbers and arrays of numbers. Arrays are built here from their
bytes, never by numpy as directed by the pickle. Anything else is refused.

The format: `imlist` has the names of the database and `qimlist` those of the queries, without
suffix. `gnd` has, for each query, `easy`, `hard` and `junk`, which are positions in imlist, and
`bbx`, the region to search for: left, top, right, bottom.
"""

from __future__ import annotations

import io
import json
import math
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featkit.errors import InputError
from featkit.wording import one_line

MAX_BYTES = 256 * 2**20
MAX_SHOWN = 80
TYPES = frozenset("b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8".split())


@dataclass(frozen=True, kw_only=True)
class Query:
    """A query and its positions (n,) int64 in the database: easy and hard matches, ignored junk."""

    name: str
    easy: np.ndarray
    hard: np.ndarray
    junk: np.ndarray
    box: tuple[float, float, float, float]


@dataclass(frozen=True)
class GroundTruth:
    """Names of the database, and the matches of each query."""

    names: list[str]
    queries: list[Query]


def read_ground_truth(path: Path) -> GroundTruth:
    """Read a ground truth.

    Raises InputError for a file that cannot be read, contains anything but plain values, or is
    inconsistent.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(
                f"{path} has {path.stat().st_size:,} bytes, more than the limit of {MAX_BYTES:,}; a"
                " ground truth is smaller, so check the path."
            )
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    try:
        value = (
            json.loads(data)
            if path.suffix == ".json"
            else _Plain(io.BytesIO(data), encoding="latin1").load()
        )
    except InputError as error:
        raise InputError(f"{path} {error}") from error
    # the unpickler raises various exceptions for bytes that are not a pickle
    except Exception as error:
        reason = one_line(error, most=MAX_SHOWN)
        raise InputError(
            f"{path} is not a readable ground truth ({reason}); use a file such as"
            " gnd_roxford5k.pkl."
        ) from error
    try:
        return _ground_truth(value)
    except _UnfitError as error:
        raise InputError(
            f"{path} is not a ground truth in the format of ROxford and RParis: {error}."
        ) from error


class _UnfitError(Exception):
    """A value does not have the expected form."""


def _ground_truth(value: object) -> GroundTruth:
    found = _mapping(value, "it")
    names, query_names = (_names(found, key) for key in ("imlist", "qimlist"))
    truths = _list(found, "gnd", "it")
    if len(truths) != len(query_names) or not truths:
        raise _UnfitError(f"qimlist has {len(query_names)} queries and gnd {len(truths)}")
    return GroundTruth(
        names,
        [_query(name, truth, len(names)) for name, truth in zip(query_names, truths, strict=True)],
    )


def _query(name: str, value: object, num_names: int) -> Query:
    where = f"gnd of {name[:MAX_SHOWN]!r}"
    truth = _mapping(value, where)
    places = {}
    for kind in ("easy", "hard", "junk"):
        numbers = _list(truth, kind, where)
        if not all(type(number) is int and 0 <= number < num_names for number in numbers):
            raise _UnfitError(f"{where} has {kind} outside the {num_names:,} names of imlist")
        places[kind] = np.array(numbers, np.int64)
    named = np.concatenate(list(places.values()))
    if len(np.unique(named)) < len(named):
        raise _UnfitError(f"{where} lists a position twice")
    box = _list(truth, "bbx", where)
    plain = all(type(side) in (int, float) and math.isfinite(side) for side in box)
    if len(box) != 4 or not plain or box[0] >= box[2] or box[1] >= box[3]:
        raise _UnfitError(f"{where} has a bbx that is not left, top, right, bottom")
    left, top, right, bottom = (float(side) for side in box)
    return Query(name=name, **places, box=(left, top, right, bottom))


def _names(found: Mapping[Any, Any], key: str) -> list[str]:
    names = _list(found, key, "it")
    if not all(isinstance(name, str) for name in names):
        raise _UnfitError(f"{key} is not a list of names")
    if len(set(names)) < len(names):
        raise _UnfitError(f"{key} has a name twice")
    return names


def _mapping(value: object, where: str) -> Mapping[Any, Any]:
    if not isinstance(value, dict):
        raise _UnfitError(f"{where} is a {type(value).__name__}, not a dict")
    return value


def _list(found: Mapping[Any, Any], key: str, where: str) -> list[Any]:
    """Return a list, or a one-dimensional array as a list of numbers."""
    value = found.get(key)
    if isinstance(value, _Array):
        value = (
            value.values.tolist() if value.values is not None and value.values.ndim == 1 else None
        )
    if not isinstance(value, list | tuple):
        raise _UnfitError(f"{where} has no list {key}")
    return [number.value if isinstance(number, _Number) else number for number in value]


class _Plain(pickle.Unpickler):
    """Unpickle plain values and arrays of numbers, with the classes below in place of numpy's."""

    def find_class(self, module: str, name: str, /) -> Any:
        if (module, name) in STAND_INS:
            stand_in = STAND_INS[module, name]
            # a new lambda each time, so attributes that the pickle sets on it are discarded
            return lambda *arguments: stand_in(*arguments)
        raise InputError(
            f"names {f'{module}.{name}'[:MAX_SHOWN]!r}, which a ground truth does not need and"
            " which could run code; convert the file to JSON if you trust it."
        )


class _Type:
    """A numpy dtype: one of TYPES, with a byte order."""

    def __init__(self, code: object, _align: object = False, _copy: object = False) -> None:
        if code not in TYPES:
            raise InputError(f"has an array of {str(code)[:MAX_SHOWN]}, not of plain numbers.")
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def read(self, data: object, shape: object, *, order: object) -> np.ndarray:
        """Build an array from bytes. Raises ValueError or TypeError if they do not fit."""
        # Python 2 wrote bytes as text
        raw = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(raw, bytes | bytearray | memoryview) or not isinstance(shape, tuple):
            raise InputError("has an array without bytes.")
        found = np.frombuffer(bytes(raw), np.dtype(self.order + self.code)).reshape(
            shape, order="F" if order else "C"
        )
        return found.astype(found.dtype.newbyteorder("="))


class _Array:
    """A numpy array; it is created empty, and its state sets the bytes."""

    values: np.ndarray | None = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, fortran, data = state
        if not isinstance(kind, _Type):
            raise InputError("has an array without a type.")
        self.values = kind.read(data, shape, order=fortran)


class _Number:
    """A numpy scalar."""

    def __init__(self, kind: object, data: object) -> None:
        if not isinstance(kind, _Type):
            raise InputError("has a number without a type.")
        self.value = kind.read(data, (1,), order=False).tolist()[0]


def _empty_array(*_arguments: object) -> _Array:
    """Replace numpy's _reconstruct, which creates an array whose bytes come with its state."""
    return _Array()


def _array_of(data: object, kind: object, shape: object, order: object) -> _Array:
    """Replace numpy's _frombuffer, which pickles of protocol 5 call."""
    found = _Array()
    found.__setstate__((1, shape, kind, order == "F", data))
    return found


def _bytes_of(text: object, encoding: object = None) -> bytes:
    """Replace codecs.encode, which pickles up to protocol 2 use to store bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise InputError("has bytes in an encoding other than latin1.")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Replace bytes, which such pickles call for an empty value."""
    return b""


STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _bytes_of,
    ("__builtin__", "bytes"): _no_bytes,
    ("builtins", "bytes"): _no_bytes,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty_array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _Number for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _array_of for core in ("core", "_core")},
}
