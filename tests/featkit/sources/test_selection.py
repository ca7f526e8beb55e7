"""`--include` and `--exclude`, and the description of what is skipped."""

from __future__ import annotations

from pathlib import Path

import pytest

from featkit.sources import open_source
from featkit.sources.selection import Selection, skipped_in_words
from tests.featkit.sources.files import keys, write_files, write_tar
from tests.sentences import refused

FILES = [
    "a.jpg",
    "b.png",
    "raw/a.jpg",
    "raw/deep/b.jpg",
    "x/raw/c.jpg",
    "[2024] trip/d.jpg",
    ".private/e.jpg",
    "f.scan",
]


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        (["*.png"], "a.jpg raw/a.jpg raw/deep/b.jpg x/raw/c.jpg [2024] trip/d.jpg"),
        (["raw"], "a.jpg b.png [2024] trip/d.jpg"),
        (["raw/"], "a.jpg b.png [2024] trip/d.jpg"),
        (["/raw"], "a.jpg b.png [2024] trip/d.jpg x/raw/c.jpg"),
        (["raw/*.jpg"], "a.jpg b.png raw/deep/b.jpg x/raw/c.jpg [2024] trip/d.jpg"),
        (["raw/**"], "a.jpg b.png x/raw/c.jpg [2024] trip/d.jpg"),
        (["**/raw/**/b.jpg"], "a.jpg b.png raw/a.jpg x/raw/c.jpg [2024] trip/d.jpg"),
        (["[[]2024] trip", "?.png"], "a.jpg raw/a.jpg raw/deep/b.jpg x/raw/c.jpg"),
        (["./b.png"], "a.jpg raw/a.jpg raw/deep/b.jpg x/raw/c.jpg [2024] trip/d.jpg"),
    ],
)
def test_exclude_leaves_the_rest(tmp_path: Path, exclude: list[str], left: str) -> None:
    source = open_source(write_files(tmp_path, *FILES), selection=Selection(exclude=exclude))
    assert sorted(keys(source)) == sorted(
        left.replace("] trip", "]_trip").replace(" ", "\n").replace("]_", "] ").split("\n")
    )


@pytest.mark.parametrize(
    ("include", "left"),
    [
        (["*.png"], ["b.png"]),
        (["raw/**", "b.png"], ["b.png", "raw/a.jpg", "raw/deep/b.jpg"]),
        (["raw"], ["raw/a.jpg", "raw/deep/b.jpg", "x/raw/c.jpg"]),
        ([".private/**"], [".private/e.jpg"]),
        (["*.scan"], ["f.scan"]),
        (["f.scan", "**/c.*"], ["f.scan", "x/raw/c.jpg"]),
    ],
)
def test_include_narrows_and_adds_what_it_names(
    tmp_path: Path, include: list[str], left: list[str]
) -> None:
    source = open_source(write_files(tmp_path, *FILES), selection=Selection(include=include))
    assert sorted(keys(source)) == left


def test_include_of_everything_adds_nothing_hidden(
    tmp_path: Path,
) -> None:
    write_files(tmp_path, *FILES, "@eaDir/x.jpg", "raw/.x.jpg", "raw/x.xmp")
    for pattern in ("**", "*", "*.jpg", "raw/*"):
        found = keys(open_source(tmp_path, selection=Selection(include=[pattern])))
        assert not {".private/e.jpg", "@eaDir/x.jpg", "raw/.x.jpg", "raw/x.xmp", "f.scan"} & set(
            found
        )
    source = open_source(tmp_path, selection=Selection(include=["**", "@eaDir"]))
    assert "@eaDir/x.jpg" in keys(source)
    assert "a.jpg" in keys(source)


def test_files_not_selected_are_counted(tmp_path: Path) -> None:
    write_files(tmp_path, *FILES)
    source = open_source(
        tmp_path, selection=Selection(include=["*.jpg"], exclude=["deep", "[[]*/*"])
    )
    assert keys(source) == ["a.jpg", "raw/a.jpg", "x/raw/c.jpg"]
    assert source.skipped == {
        "excluded folder": 1,
        "excluded file": 1,
        "file that is not included": 1,
        "hidden folder": 1,
        ".scan": 1,
    }


def test_patterns_apply_to_keys_of_archives_and_lists(tmp_path: Path) -> None:
    write_tar(tmp_path / "t.tar", [("cat/1.jpg", b"1"), ("dog/2.jpg", b"2")])
    assert keys(open_source(tmp_path / "t.tar", selection=Selection(exclude=["dog"]))) == [
        "t.tar/cat/1.jpg"
    ]
    write_files(tmp_path, "cat/1.jpg", "dog/2.jpg")
    (tmp_path / "list.txt").write_text("cat/1.jpg\ndog/2.jpg\n")
    source = open_source(tmp_path / "list.txt", selection=Selection(include=["dog/*"]))
    assert keys(source) == ["dog/2.jpg"]
    assert source.skipped == {"file that is not included": 1}
    with refused("list.txt has 2 images, but --include and --exclude leave none"):
        open_source(tmp_path / "list.txt", selection=Selection(include=["bird"]))


def test_empty_pattern_is_refused() -> None:
    for pattern in ("", "/", "./"):
        with refused("--exclude", "matches nothing"):
            Selection(exclude=[pattern])


def test_members_of_an_archive_follow_the_same_rule() -> None:
    paths = [
        "p.jpg",
        "@eaDir/a.jpg",
        "@eaDir/b.jpg",
        "x/.hidden/c.jpg",
        "q.CR2",
        "q.jpg",
        "n.xmp",
        "no/d.jpg",
    ]
    picked = Selection(exclude=["t.tar/no"]).pick(paths, below="t.tar/")
    assert picked.paths == ["p.jpg", "q.jpg"]
    assert picked.skipped == {
        "system folder (@eaDir)": 1,
        "hidden folder": 1,
        "raw file next to its JPEG": 1,
        ".xmp": 1,
        "excluded folder": 1,
    }


def test_skipped_files_are_described_on_one_line() -> None:
    assert skipped_in_words({}) is None
    counts = {
        ".jxl": 3,
        ".cr2": 1200,
        "link to a folder": 2,
        "system folder (@eaDir)": 1,
        "file without a suffix": 1,
    }
    assert (
        skipped_in_words(counts)
        == "Skipped: 1,200 .cr2, 3 .jxl, 2 links to folders, 1 file without a suffix, 1 system"
        " folder (@eaDir)."
    )
    assert (
        skipped_in_words({"system folder (@eaDir)": 2, "hidden file": 1})
        == "Skipped: 2 system folders (@eaDir), 1 hidden file."
    )
    folders = {f"system folder ({name})": 1 for name in "abcdefg"} | {
        "system folder (x)": 2,
        ".cr2": 1,
    }
    assert skipped_in_words(folders) == "Skipped: 9 system folders (x, a, b, c, d, 3 more), 1 .cr2."
    many = skipped_in_words({f".{letter}": 1 for letter in "abcdefghijklm"})
    assert many is not None
    assert many.endswith(".j, 3 others of 3 more kinds.")


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_negated_pattern_is_refused_with_advice(tmp_path: Path, option: str) -> None:
    write_files(tmp_path, "!a.jpg", "b.jpg")
    other = "exclude" if option == "include" else "include"
    with refused(f"--{option} '!a.jpg' negates a pattern", f"use --{other}, or '?a.jpg'"):
        Selection(
            include=["!a.jpg"] if option == "include" else [],
            exclude=["!a.jpg"] if option == "exclude" else [],
        )
    assert keys(open_source(tmp_path, selection=Selection(include=["?a.jpg"]))) == ["!a.jpg"]
