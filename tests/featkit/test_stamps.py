"""Stamps change with the file, and digests with its bytes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from featkit.stamps import NO_STAMP, Stamp, digest_of, stamp_of


def test_a_stamp_changes_with_size_and_time(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(b"1234")
    os.utime(path, ns=(0, 1_000_000_000))
    first = stamp_of(path)
    assert first == Stamp(4, 1_000_000_000, None)
    os.utime(path, ns=(0, 2_000_000_000))
    assert not first.same_file(stamp_of(path))
    path.write_bytes(b"12345")
    os.utime(path, ns=(0, 1_000_000_000))
    assert not first.same_file(stamp_of(path))


def test_same_file_ignores_the_digest() -> None:
    assert Stamp(4, 5, b"x").same_file(Stamp(4, 5))


@pytest.mark.parametrize("name", ["missing.jpg", "a\0b.jpg"])
def test_a_file_that_cannot_be_examined_has_no_stamp(tmp_path: Path, name: str) -> None:
    assert stamp_of(tmp_path / name) == NO_STAMP


def test_a_digest_has_16_bytes_and_depends_on_the_data() -> None:
    assert len(digest_of(b"")) == 16
    assert digest_of(b"a") == digest_of(b"a") != digest_of(b"b")
