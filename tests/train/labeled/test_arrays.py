"""Promises of the arrays that a course keeps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit_train.labeled.arrays import read_array
from tests.sentences import refused

ARRAY = np.arange(6, dtype=np.float32).reshape(3, 2)


@pytest.mark.parametrize("mapped", [False, True])
def test_an_array_is_read_back(mapped: bool, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAY)
    np.testing.assert_array_equal(read_array(tmp_path / "a.npy", rows=3, mapped=mapped), ARRAY)


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_a_damaged_array_is_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with refused(tmp_path / "a.npy", "is damaged", "--resume"):
        read_array(tmp_path / "a.npy")


def test_an_array_of_another_run_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ARRAY)
    with refused("belongs to another run"):
        read_array(tmp_path / "a.npy", rows=4)
    np.save(tmp_path / "a.npy", ARRAY.astype(np.float64))
    with refused("belongs to another run"):
        read_array(tmp_path / "a.npy")
