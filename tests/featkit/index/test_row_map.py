"""The map from ids to rows of a compacted vectors file."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest

from featkit.index.row_map import NoSuchRow, RowMap, VectorsRecord, pack_ids, unpack_ids


@pytest.mark.parametrize("until", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_map_is_the_rank_among_kept_ids(until: int, share: float) -> None:
    rng = np.random.default_rng(until)
    kept = np.flatnonzero(rng.random(until) < share)
    row_map = RowMap(VectorsRecord(name="x", num_kept=len(kept), until=until), kept)
    num_ids = until + 5
    stored = [*kept.tolist(), *range(until, num_ids)]
    assert row_map.record.num_stored(num_ids) == len(stored)
    ids = row_map.ids(num_ids)
    assert (list(range(num_ids)) if ids is None else ids.tolist()) == stored
    assert np.flatnonzero(row_map.have_rows(num_ids)).tolist() == stored
    order = rng.permutation(len(stored))
    rows = row_map.rows_of(np.array(stored, np.int64)[order])
    assert rows.tolist() == order.tolist()
    for gone in sorted({*range(until)} - {*stored})[:3]:
        with pytest.raises(NoSuchRow) as caught:
            row_map.rows_of(np.array([num_ids - 1, gone]))
        assert caught.value.item_id == gone


@pytest.mark.parametrize("until", [0, 1, 8, 13])
def test_packed_ids_come_back(until: int) -> None:
    ids = np.arange(until)[::3]
    np.testing.assert_array_equal(unpack_ids(pack_ids(ids, until), until), ids)


def test_bits_of_other_ids_are_refused() -> None:
    with pytest.raises(ValueError, match="another number"):
        unpack_ids(pack_ids(np.arange(3), 20), 200)
    with pytest.raises(ValueError, match="incorrect header"):
        unpack_ids(b"not compressed", 3)


def test_bits_are_not_unpacked_beyond_the_ids() -> None:
    bomb = zlib.compress(bytes(10**8))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="another number"):
            unpack_ids(bomb, 1000)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_a_record_comes_back() -> None:
    record = VectorsRecord(name="0123456789abcdef", num_kept=3, until=7)
    assert VectorsRecord.of({"vectors": record.to_json()}) == record
    assert VectorsRecord.of({}) == VectorsRecord()


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        "7",
        '{"name": "0123456789abcdef", "other": 1}',
        '{"name": "../../secrets"}',
        '{"name": 7}',
        '{"name": "0123456789abcdef", "num_kept": 8, "until": 7}',
        '{"name": "0123456789abcdef", "num_kept": -8, "until": 7}',
        '{"name": "0123456789abcdef", "num_kept": 1.5, "until": 7}',
        '{"name": "0123456789abcdef", "num_kept": 1, "until": 1e300}',
        '{"name": "0123456789abcdef", "num_kept": 1, "until": 99999999999999999999}',
    ],
)
def test_a_record_that_is_never_stored_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - its words come from several places
        VectorsRecord.of({"vectors": text})
