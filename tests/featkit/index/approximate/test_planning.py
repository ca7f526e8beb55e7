"""The choice of how to search, as a table, and the promise that an index keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.index import Index
from featkit.index.approximate import planning, upkeep
from featkit.index.approximate.codes import COARSE_GRAPH, FINE_GRAPH, LISTS, Kind
from featkit.index.approximate.planning import EXACT_BELOW, Promise, codes_bytes, plan_search
from featkit.index.approximate.upkeep import give_promise, keep_promise, promise_of
from tests.featkit.index.approximate.conftest import NUM_ITEMS, WIDTH, clumped
from tests.sentences import refused

MB, GB = 10**6, 10**9


@pytest.mark.parametrize(
    ("num_items", "width", "memory", "recall", "change", "kind"),
    [
        (1_000, 384, None, 0.95, 0.0, None),
        (49_999, 384, MB, 0.95, 0.0, None),
        (50_000, 384, None, 0.95, 0.0, FINE_GRAPH),
        (1_000_000, 384, None, 0.99, 0.0, FINE_GRAPH),
        (1_000_000, 384, 384 * MB, 0.95, 0.0, FINE_GRAPH),  # a quarter of the vectors
        (1_000_000, 384, 230 * MB, 0.95, 0.0, COARSE_GRAPH),  # 0.15 of them
        (1_000_000, 384, 123 * MB, 0.95, 0.0, LISTS),  # 0.08 of them
        (10_000_000, 384, 4 * GB, 0.95, 0.0, FINE_GRAPH),
        (10_000_000, 384, 2300 * MB, 0.95, 0.0, COARSE_GRAPH),
        (1_000_000, 1024, 800 * MB, 0.95, 0.01, FINE_GRAPH),
        (1_000_000, 384, None, 1.0, 0.0, None),
        (1_000_000, 384, 2 * GB, 1.0, 0.0, None),
        (1_000_000, 384, 2 * GB, 0.95, 0.6, None),
        (1_000_000, 384, 400 * MB, 0.95, 0.6, FINE_GRAPH),  # a scan does not fit
    ],
)
def test_the_finest_that_fits_is_chosen(
    num_items: int, width: int, memory: int | None, recall: float, change: float, kind: Kind | None
) -> None:
    plan = plan_search(num_items, width, memory=memory, recall=recall, change_a_day=change)
    assert plan.kind is kind
    assert (plan.build_seconds > 0) == (plan.build_bytes > 0) == (kind is not None)
    assert plan.reasons
    if memory is not None and kind is not None:
        assert plan.num_bytes <= memory
        assert plan.search_ms < 20
    assert len(plan.in_words().splitlines()) == 1 + len(plan.reasons)


@given(
    num_items=st.integers(EXACT_BELOW, 10**9),
    width=st.integers(8, 2048),
    memory=st.integers(1, 10**13),
)
def test_a_plan_fits_or_names_what_would(num_items: int, width: int, memory: int) -> None:
    least = min(codes_bytes(kind, num_items, width) for kind in (FINE_GRAPH, COARSE_GRAPH, LISTS))
    if memory < least:
        with refused("need at least"):
            plan_search(num_items, width, memory=memory)
    else:
        assert plan_search(num_items, width, memory=memory).num_bytes <= memory


def test_what_codes_leave_is_for_vectors() -> None:
    assert Promise().spare_bytes(10**6, 384) is None
    assert Promise(memory=MB).spare_bytes(1000, 384) == MB
    assert Promise(memory=GB).spare_bytes(10**6, 384) == GB - codes_bytes(FINE_GRAPH, 10**6, 384)
    assert Promise(memory=MB).spare_bytes(10**6, 384) == MB  # no codes fit any more


def test_what_cannot_be_promised_is_refused() -> None:
    with refused("1,000,000 vectors of width 384 need at least 1", "lists of product codes"):
        plan_search(1_000_000, 384, memory=50 * MB)
    with refused("A recall of 1 needs exact search, whose 1.5 GB", "do not fit in --memory 1.0 GB"):
        plan_search(1_000_000, 384, memory=GB, recall=1.0)
    for recall in (0.0, -1.0, 1.01, float("nan")):
        with refused("it must be above 0 and at most 1"):
            plan_search(100, 384, recall=recall)


def test_words_give_the_costs_and_the_reasons() -> None:
    words = plan_search(1_000_000, 384, memory=230 * MB, change_a_day=0.02).in_words()
    assert words.splitlines() == [
        "1,000,000 images: search by a graph over 1-bit codes, about 0.6 ms a query, 223.6 MB of"
        " memory, 1.8 GB of disk, built in about 6 min within 580.4 MB.",
        "A scan of all vectors would take about 76 ms a query.",
        "The memory of a graph over 1-bit codes is 15% of the vectors' 1.5 GB.",
        "A graph over 4-bit codes would take 359.0 MB, more than --memory allows.",
        "Images that are added later are scanned until codes are built again, which is due about"
        " every 10 days.",
    ]


def test_the_time_of_lists_grows_with_the_square_root() -> None:
    million, billion = (plan_search(count, 384, memory=count * 121) for count in (1_000_000, 10**9))
    assert million.kind is billion.kind is LISTS
    assert billion.search_ms == pytest.approx(million.search_ms * 1000**0.5)
    assert billion.build_seconds == pytest.approx(million.build_seconds * 1000**1.5)


@pytest.fixture
def small(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    """An open index that is large enough for codes."""
    monkeypatch.setattr(planning, "EXACT_BELOW", 1000)
    monkeypatch.setattr(upkeep, "FEW_OUTSIDE", 100)
    made = Index.create(tmp_path / "i", model=model, background=False)
    made.add([f"{i}.jpg" for i in range(NUM_ITEMS)], clumped(NUM_ITEMS))
    return made


def test_a_promise_is_kept_as_an_index_changes(small: Index) -> None:
    with small:
        assert promise_of(small) is None
        assert keep_promise(small) is None
        promise = Promise(memory=MB, recall=0.9)
        give_promise(small, promise)
        assert promise_of(small) == promise
        first = keep_promise(small)
        assert first is not None
        assert (first.kind, first.target) == (FINE_GRAPH, 0.9)
        assert keep_promise(small) is None  # nothing has changed
        small.add([f"new{i}.jpg" for i in range(100)], clumped(100, seed=1))
        assert keep_promise(small) is None  # they are few
        small.add([f"more{i}.jpg" for i in range(600)], clumped(600, seed=2))
        second = keep_promise(small)
        assert second is not None
        assert second.num_items == NUM_ITEMS + 700 - 74
        small.remove([f"{i}.jpg" for i in range(1000)])
        third = keep_promise(small)
        assert third is not None
        assert third.num_items < second.num_items - 900


def test_less_memory_or_more_recall_builds_again(small: Index) -> None:
    with small:
        give_promise(small, Promise(recall=0.9))
        assert keep_promise(small) is not None
        give_promise(small, Promise(recall=0.96))
        again = keep_promise(small)
        assert again is not None
        assert again.target == 0.96
        give_promise(small, Promise(memory=codes_bytes(COARSE_GRAPH, NUM_ITEMS, WIDTH)))
        coarse = keep_promise(small)
        assert coarse is not None
        assert coarse.kind is COARSE_GRAPH


def test_a_promise_of_exact_search_builds_nothing(small: Index) -> None:
    with small:
        give_promise(small, Promise(recall=1.0))
        assert keep_promise(small) is None
