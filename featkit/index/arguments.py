"""Checks of what programs pass to an index.

A value is stored as it is or refused with the name of its item, never changed. NumPy's scalars
become the equal Python value; a date, bytes or a list has no equal and is refused.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from featkit.errors import InputError
from featkit.index.records import NewItem, Value
from featkit.wording import counted, first_line

Result = TypeVar("Result")
MAX_SIDE = 2**31  # pixels
UNIT_TOLERANCE = 1e-3  # tolerance of a vector's length; half-precision vectors stay within it


def one_query(**queries: object) -> None:
    """Raise InputError unless exactly one of the arguments is not None."""
    given = [name for name, value in queries.items() if value is not None]
    if len(given) != 1:
        names = f"{', '.join([*queries][:-1])} or {[*queries][-1]}"
        count = " and ".join(given) + " were given" if given else "none was given"
        raise InputError(f"search takes exactly one of {names}; {count}.")


def text_keys(keys: Iterable[str], *, call: str) -> list[str]:
    """Return keys as a list. InputError for a single text, and for a key that is not text.

    call: the start of a call with a list, for the message: "remove(" of `remove(['cat.jpg'])`.
    """
    if isinstance(keys, str | bytes | bytearray):
        raise InputError(
            f"keys is {_shown(keys)}, not a list of keys; write {call}[{_shown(keys)}]) for one"
            " key."
        )
    if isinstance(keys, set | frozenset) and call.startswith("add"):
        raise InputError(
            "keys is a set, whose order is undefined, so keys and vectors cannot be paired; give a"
            " list."
        )
    texts: list[str] = []
    for position, key in enumerate(_listed(keys, "keys")):
        if not isinstance(key, str):
            raise InputError(
                f"keys[{position}] is {_shown(key)}, of type {_type(key)}; a key is text, so give"
                " str(key)."
            )
        texts.append(str(key))  # NumPy's str_ is a subclass of str that SQLite does not take
    return texts


def text_filter(where: object) -> str:
    """Return a filter as it is. InputError unless it is text."""
    if not isinstance(where, str):
        raise InputError(
            f"where is {_shown(where)}, of type {_type(where)}; a filter is text, such as"
            " \"label = 'cat'\"."
        )
    return str(where)


def new_items(
    keys: Sequence[str],
    *,
    source: str,
    widths: Iterable[int | None] | None,
    heights: Iterable[int | None] | None,
    thumbnails: Iterable[bytes | None] | None,
    metadata: Iterable[Mapping[str, Value | None] | None] | None,
) -> list[NewItem]:
    """Return one item per key. InputError, naming argument and key, for what cannot be stored."""
    if not isinstance(source, str):
        raise InputError(f"source is {_shown(source)}, of type {_type(source)}; it is text.")
    if isinstance(metadata, Mapping):
        raise InputError(
            "metadata is one mapping; give a list with one mapping for each key, such as [{'label':"
            " 'cat'}]."
        )
    if isinstance(thumbnails, bytes | bytearray | memoryview):
        raise InputError(
            "thumbnails is the bytes of one image; give a list with one thumbnail for each key."
        )
    columns = zip(
        keys,
        _column("widths", widths, keys, _side),
        _column("heights", heights, keys, _side),
        _column("thumbnails", thumbnails, keys, _bytes),
        _column("metadata", metadata, keys, _mapping),
        strict=True,
    )
    return [
        NewItem(
            key=key,
            source=source,
            width=width,
            height=height,
            thumbnail=thumbnail,
            metadata=values or {},
        )
        for key, width, height, thumbnail, values in columns
    ]


def unit_vectors(
    vectors: Any, *, width: int, keys: Sequence[str] | None, index: object
) -> np.ndarray:
    """Return vectors as (n, D) float32, C-contiguous.

    InputError, naming the first bad vector, unless all are finite and of unit length.
    """
    try:
        array = np.asarray(vectors)
    # ValueError: nested lists of different lengths. The others come from objects, such as torch's
    # tensors, that cannot be converted.
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(
            f"The vectors are not an array ({first_line(error)}); {index} takes (n, {width})"
            " float32."
        ) from error
    if array.dtype.kind not in "fiu" and array.size:
        raise InputError(
            f"The vectors are of type {array.dtype}; {index} takes (n, {width}) float32."
        )
    if array.ndim != 2 or array.shape[1] != width:
        single = "; for one vector give vector[None]" if array.shape == (width,) else ""
        raise InputError(
            f"The vectors have the shape {array.shape}; {index} takes (n, {width}){single}."
        )
    if keys is not None and len(array) != len(keys):
        raise InputError(
            f"{counted(len(keys), 'key')} and {counted(len(array), 'vector')} do not match; give"
            " one vector for each key."
        )
    with np.errstate(over="ignore"):  # overflow gives infinity, which is refused below
        array = np.ascontiguousarray(array, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        lengths = np.sqrt(np.einsum("nd,nd->n", array, array, dtype=np.float64))
    # written as `~(... <= ...)` so that NaN counts as bad
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_TOLERANCE))
    if len(bad):
        name = keys[bad[0]] if keys is not None else f"index {bad[0]}"
        raise InputError(
            f"The vector of {name} has length {lengths[bad[0]]:.6g}; the vectors of an index have"
            " length 1."
        )
    return array


def whole_number(value: Any, name: str, *, least: int | None = None) -> int:
    """Return a Python or NumPy integer as an int. InputError for other types and below `least`."""
    if isinstance(value, bool | np.bool_):
        raise InputError(f"{name} is {value}; it must be a whole number.")
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(
            f"{name} is {_shown(value)}, of type {_type(value)}; it must be a whole number."
        ) from None
    if least is not None and number < least:
        raise InputError(f"{name} is {number}; it must be at least {least}.")
    return number


def _column(
    name: str,
    values: Iterable[Any] | None,
    keys: Sequence[str],
    convert: Callable[[Any, str], Result],
) -> list[Result | None]:
    if values is None:
        return [None] * len(keys)
    listed = _listed(values, name)
    if len(listed) != len(keys):
        raise InputError(
            f"{counted(len(keys), 'key')} and {len(listed):,} {name} do not match; give one for"
            f" each key, or leave out {name}."
        )
    return [
        None if value is None else convert(value, f"{key}: {name}[{position}]")
        for position, (key, value) in enumerate(zip(keys, listed, strict=True))
    ]


def _side(value: Any, name: str) -> int:
    side = whole_number(value, name, least=0)
    if side >= MAX_SIDE:
        raise InputError(f"{name} is {side}; it must be a number of pixels below {MAX_SIDE:,}.")
    return side


def _bytes(value: Any, name: str) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise InputError(f"{name} is of type {_type(value)}; a thumbnail is the bytes of a JPEG.")
    return bytes(value)


def _mapping(value: Any, name: str) -> dict[str, Value | None]:
    if not isinstance(value, Mapping):
        raise InputError(
            f"{name} is {_shown(value)}, of type {_type(value)}; give a mapping such as {{'label':"
            " 'cat'}."
        )
    return {key: _scalar(item) for key, item in value.items()}


def _scalar(value: Any) -> Any:
    """Return the Python value that equals a NumPy scalar.

    Any other value is returned as it is; the catalogue checks it.
    """
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    if isinstance(value, np.floating):
        number = float(value)
        # A longdouble may not fit into a float; NaN equals nothing.
        return number if number == value or number != number else value
    return str(value) if isinstance(value, np.str_) else value


def _listed(values: Any, name: str) -> list[Any]:
    try:
        return list(values)
    except TypeError:
        raise InputError(
            f"{name} is {_shown(values)}, of type {_type(values)}; give a list."
        ) from None


def _type(value: object) -> str:
    return type(value).__name__


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
