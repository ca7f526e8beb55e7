"""Several sources as one, and some items of a source."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featkit.sources import concatenate, evenly, open_source, select, subset, thinned
from featkit.sources.selection import Selection
from featkit.sources.tar import TarSource
from tests.featkit.sources.files import contents, keys, write_files, write_tar
from tests.sentences import refused


def test_concatenation_has_the_items_of_each_source_in_order(tmp_path: Path) -> None:
    write_files(tmp_path / "p", "a/1.jpg", "2.jpg")
    tar = open_source(write_tar(tmp_path / "t.tar", [("a/1.jpg", b"tar"), ("a/1.cls", b"5")]))
    folder = open_source(tmp_path / "p")
    both = concatenate([tar, folder])
    assert keys(both) == ["t.tar/a/1.jpg", "2.jpg", "a/1.jpg"]
    assert contents(both) == [b"tar", b"2.jpg", b"a/1.jpg"]
    assert [both.metadata(item) for item in range(3)] == [
        {"folder": "a", "class": 5},
        {},
        {"folder": "a"},
    ]
    assert both.name == f"{tmp_path}/t.tar, {tmp_path}/p"
    assert concatenate([tar]) is tar
    assert isinstance(tar, TarSource)


@pytest.mark.parametrize("item", [-1, 2])
def test_concatenation_refuses_an_index_out_of_range(tmp_path: Path, item: int) -> None:
    sources = [open_source(write_files(tmp_path / name, "1.jpg")) for name in "ab"]
    with pytest.raises(IndexError):
        concatenate(sources).key(item)


def test_subset_keeps_keys_and_takes_the_order_given(tmp_path: Path) -> None:
    source = open_source(write_files(tmp_path, *(f"d/{i}.jpg" for i in range(5))))
    some = subset(source, [4, 0, 2])
    assert keys(some) == ["d/4.jpg", "d/0.jpg", "d/2.jpg"]
    assert contents(some) == [b"d/4.jpg", b"d/0.jpg", b"d/2.jpg"]
    assert (some.name, some.metadata(0)) == (source.name, {"folder": "d"})
    assert len(subset(source, [])) == 0


def test_thinned_source_is_spread_evenly(tmp_path: Path) -> None:
    source = open_source(write_files(tmp_path, *(f"{i}.jpg" for i in range(10))))
    assert keys(thinned(source, 4)) == ["0.jpg", "2.jpg", "5.jpg", "7.jpg"]
    assert thinned(source, 10) is source
    assert thinned(source, 99) is source


@given(st.integers(0, 2000), st.integers(1, 300))
def test_evenly_leaves_gaps_of_nearly_equal_length(count: int, most: int) -> None:
    items = evenly(count, most=most)
    assert len(items) == min(count, most)
    assert items == sorted(set(items))
    gaps = np.diff([*items, count]) if items else np.array([])
    assert all(gap in (count // len(items), -(-count // len(items))) for gap in gaps)
    assert items[:1] in ([], [0])


def test_select_takes_what_patterns_leave_and_counts_the_rest(tmp_path: Path) -> None:
    source = open_source(write_files(tmp_path, "a/1.jpg", "a/2.jpg", "b/1.jpg"))
    selected = select(source, Selection(include=["a"], exclude=["2.jpg"]))
    assert keys(selected) == ["a/1.jpg"]
    assert selected.skipped == {"excluded file": 1, "file that is not included": 1}
    with refused(f"{tmp_path} has 3 images, but --include and --exclude leave none of them."):
        select(source, Selection(include=["c"]))
