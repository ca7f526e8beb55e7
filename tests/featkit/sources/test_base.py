"""Paths that all sources skip by name."""

from __future__ import annotations

import pytest

from featkit.sources.base import merge_skipped, skip_by_name


@pytest.mark.parametrize(
    ("path", "reason", "part"),
    [
        ("@eaDir/p.jpg/SYNOPHOTO_THUMB_XL.jpg", "system folder (@eaDir)", "@eaDir"),
        ("2023/@EADIR/x.jpg", "system folder (@eaDir)", "2023/@EADIR"),
        ("$RECYCLE.BIN/S-1-5/old.jpg", "system folder ($RECYCLE.BIN)", "$RECYCLE.BIN"),
        ("a/.Trash-1000/files/old.jpg", "system folder (.Trash*)", "a/.Trash-1000"),
        (
            "Photos Library.photoslibrary/resources/x.jpg",
            "system folder (*.photoslibrary)",
            "Photos Library.photoslibrary",
        ),
        ("__MACOSX/a/._x.jpg", "system folder (__MACOSX)", "__MACOSX"),
        (".git/x.jpg", "hidden folder", ".git"),
        ("a/.x.jpg", "hidden file", "a/.x.jpg"),
        ("a/Thumbs.db", "system file", "a/Thumbs.db"),
    ],
)
def test_path_is_passed_over_for_its_first_bad_part(path: str, reason: str, part: str) -> None:
    assert skip_by_name(path) == (reason, part)


@pytest.mark.parametrize(
    "path",
    [
        "x.jpg",
        "a/b.c/x.jpg",
        "./a/x.jpg",
        "../x.jpg",
        "recycle/x.jpg",
        "@home/x.jpg",
        "a/lost found/x.jpg",
    ],
)
def test_ordinary_paths_are_not_passed_over(path: str) -> None:
    assert skip_by_name(path) is None


def test_counts_of_several_sources_are_added() -> None:
    assert merge_skipped([{".cr2": 2}, {}, {".cr2": 1, "hidden file": 1}]) == {
        ".cr2": 3,
        "hidden file": 1,
    }
