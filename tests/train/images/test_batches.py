"""Promises of the loader: workers and cache change no byte."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from featkit import resources
from featkit_train.images import batches as batches_module
from featkit_train.images.batches import workers_within_memory
from featkit_train.images.crops import Crops
from tests.images import draw_folder
from tests.train.images.datasets import (
    batches,
    make_dataset,
    tensors_of,
)


def assert_same(left: list[Crops], right: list[Crops]) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        for a, b in zip(tensors_of(one), tensors_of(other), strict=True):
            assert torch.equal(a, b)


@pytest.mark.usefixtures("all_cores")
def test_batches_do_not_depend_on_the_number_of_workers(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 9)
    expected = batches(make_dataset(folder))
    assert_same(batches(make_dataset(folder), workers=1), expected)
    assert_same(batches(make_dataset(folder), workers=2), expected)


def test_batches_of_a_resumed_run_equal_the_unbroken_ones(tmp_path: Path) -> None:
    dataset = make_dataset(draw_folder(tmp_path / "p", 9))
    assert_same(batches(dataset, first_step=3), batches(dataset)[3:])


def test_batches_do_not_depend_on_the_cache(tmp_path: Path) -> None:
    folder = draw_folder(tmp_path / "p", 9)
    assert_same(batches(make_dataset(folder, cache_bytes=0)), batches(make_dataset(folder)))


@pytest.mark.parametrize(
    ("spare", "processes", "expected"),
    [(64 << 30, 1, 8), (4 << 30, 1, 4), (4 << 30, 2, 2), (0, 1, 1)],
)
def test_workers_are_as_many_as_fit_in_memory(
    monkeypatch: pytest.MonkeyPatch, spare: int, processes: int, expected: int
) -> None:
    monkeypatch.setattr(resources, "spare_memory", lambda: spare)
    monkeypatch.setattr(batches_module, "spare_memory", lambda: spare)
    assert workers_within_memory(8, processes=processes) == expected
    assert workers_within_memory(0, processes=processes) == 0


def test_cache_is_a_share_of_memory_and_changes_no_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = draw_folder(tmp_path / "images", 12)
    roomy = make_dataset(folder, cache_bytes=1 << 20)
    expected = batches(roomy)
    assert roomy.cache_bytes == 1 << 20
    monkeypatch.setattr(batches_module, "spare_memory", lambda: 40_000)
    tight = make_dataset(folder, cache_bytes=1 << 30)
    assert_same(batches(tight), expected)
    assert tight.cache_bytes == 10_000
