"""A folder of images: its files, their order, and their keys."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from featkit.errors import InputError
from featkit.images import ImageLimits
from featkit.sources import IMAGE_SUFFIXES, open_source, subset
from tests.featkit.sources.files import contents, keys, write_files
from tests.processes import run_python
from tests.sentences import refused


def test_keys_are_paths_below_the_root_sorted_by_bytes(tmp_path: Path) -> None:
    names = [
        "b/2.jpg",
        "a.jpg",
        "b/10.jpg",
        "B.jpg",
        "a/deep/er/1.png",
        "b.jpg",
        "é.jpg",
        "a-b.jpg",
        "日本/猫.webp",
    ]
    source = open_source(write_files(tmp_path / "root", *names))
    assert keys(source) == sorted(names, key=str.encode)
    assert contents(source) == sorted(name.encode() for name in names)
    assert source.name == str(tmp_path / "root")


def test_metadata_is_the_folder_below_the_root(tmp_path: Path) -> None:
    source = open_source(write_files(tmp_path, "a/deep/1.jpg", "b/2.jpg", "3.jpg"))
    assert [source.metadata(number) for number in range(3)] == [
        {},
        {"folder": "a/deep"},
        {"folder": "b"},
    ]
    assert keys(source) == ["3.jpg", "a/deep/1.jpg", "b/2.jpg"]


def test_only_visible_files_with_known_suffixes_count(tmp_path: Path) -> None:
    drawn = [f"of-{suffix[1:]}/x{suffix}" for suffix in IMAGE_SUFFIXES]
    drawn += [
        "Y.JPG",
        "two.dots.jpeg",
        "space .png",
        "trailing.jpg ",
        "dot.jpg.",
        "download.jpg?size=2",
    ]
    others = [
        "notes.txt",
        "jpg",
        "x.jpg.bak",
        ".hidden.jpg",
        "._x.jpg",
        ".git/x.jpg",
        "a/.thumbs/x.jpg",
        "movie.mp4",
        "x.",
    ]
    source = open_source(write_files(tmp_path, *drawn, *others))
    assert sorted(keys(source)) == sorted(drawn)
    assert source.skipped == {
        ".txt": 1,
        ".mp4": 1,
        ".bak": 1,
        "file without a suffix": 2,
        "hidden file": 2,
        "hidden folder": 1,
        "system folder (.thumbs)": 1,
    }


def test_links_to_files_are_images_links_to_folders_are_not(tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", "a/1.jpg")
    write_files(tmp_path, "elsewhere/2.jpg")
    (root / "link.jpg").symlink_to(tmp_path / "elsewhere" / "2.jpg")
    (root / "a" / "loop").symlink_to(root)
    (root / "self").symlink_to("self")
    (root / "other").symlink_to(tmp_path / "elsewhere")
    source = open_source(root)
    assert keys(source) == ["a/1.jpg", "link.jpg"]
    assert contents(source) == [b"a/1.jpg", b"elsewhere/2.jpg"]


def test_unreadable_file_is_an_item_with_an_error(tmp_path: Path) -> None:
    write_files(tmp_path, "good.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe.jpg")
    source = open_source(tmp_path)
    assert keys(source) == ["broken.jpg", "good.jpg", "pipe.jpg"]
    with refused(tmp_path / "broken.jpg", "does not exist"):
        source.read(0)
    with refused(tmp_path / "pipe.jpg", "is a folder or a device"):
        source.read(2)


def test_name_that_is_not_utf8_has_a_key_that_is(tmp_path: Path) -> None:
    write_files(tmp_path, os.fsdecode(b"caf\xe9/1.jpg"))
    source = open_source(tmp_path)
    assert keys(source) == ["caf\\xe9/1.jpg"]
    assert source.metadata(0) == {"folder": "caf\\xe9"}
    assert contents(source) == [b"caf\xe9/1.jpg"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "holds no images: it is empty."),
        (("notes.txt", "a/b.doc", "a/c.doc"), "holds no images. Skipped: 2 .doc, 1 .txt."),
        (
            (".x.jpg", "@eaDir/x.jpg"),
            "holds no images. Skipped: 1 hidden file, 1 system folder (@eaDir).",
        ),
    ],
)
def test_folder_without_images_lists_what_was_passed_over(
    tmp_path: Path, names: tuple[str, ...], words: str
) -> None:
    write_files(tmp_path, *names)
    with refused(f"{tmp_path} {words}"):
        open_source(tmp_path)


def test_file_over_the_byte_limit_is_refused(tmp_path: Path) -> None:
    write_files(tmp_path, "1.jpg", "four.jpg")
    source = open_source(tmp_path, limits=ImageLimits(max_bytes=5))
    assert source.read(0) == b"1.jpg"
    with refused("four.jpg has 8 bytes, more than the limit of 5"):
        source.read(1)


def test_folder_can_be_pickled(tmp_path: Path) -> None:
    source = open_source(write_files(tmp_path, "1.jpg", "a/2.jpg"))
    copy = pickle.loads(pickle.dumps(source))
    assert (keys(copy), contents(copy)) == (keys(source), contents(source))


PROGRAM = """
from featkit.errors import InputError
from featkit.sources import open_source
source = open_source({root!r})
print(source.skipped)
for index in range(len(source)):
    try:
        print(source.key(index), source.metadata(index), len(source.read(index)))
    except InputError as error:
        print(source.key(index), error)
"""


def test_unreadable_folder_is_an_item_unless_it_is_a_system_one(tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", "a/1.jpg", "b/closed/2.jpg", "lost+found/3.jpg", "c.jpg")
    closed = (root / "b/closed", root / "lost+found")
    try:
        for folder in closed:
            folder.chmod(0o000)
        status, out, _ = run_python(PROGRAM.format(root=str(root)), ordinary_user=True)
    finally:
        for folder in closed:
            folder.chmod(0o755)
    assert (status, out.splitlines()) == (
        0,
        [
            "{'system folder (lost+found)': 1, 'unreadable folder (b/closed)': 1}",
            "a/1.jpg {'folder': 'a'} 7",
            (
                f"b/closed/ {root}/b/closed cannot be opened: Permission denied. Make it readable,"
                " or leave it out with --exclude."
            ),
            "c.jpg {} 5",
        ],
    )


def test_unreadable_root_is_refused(tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", "1.jpg")
    try:
        root.chmod(0o000)
        status, _, error = run_python(PROGRAM.format(root=str(root)), ordinary_user=True)
    finally:
        root.chmod(0o755)
    assert status != 0
    assert f"InputError: {root} cannot be opened: Permission denied. Make it readable" in error


def test_too_long_path_is_an_item_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, "1.jpg")
    monkeypatch.chdir(tmp_path)
    for _ in range(
        30
    ):  # 6,000 characters; made step by step, since the system refuses the whole path
        Path("d" * 200).mkdir()
        os.chdir("d" * 200)
    os.chdir(tmp_path)
    source = open_source(tmp_path)
    assert len(source) == 2
    assert contents(subset(source, [0])) == [b"1.jpg"]
    assert source.key(1).startswith("ddd")
    assert source.key(1).endswith("d/")
    with pytest.raises(InputError, match=r"longer than the system allows\. Shorten the names"):
        source.read(1)


def test_folder_that_disappears_during_listing_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_files(tmp_path, "a.jpg", "gone/b.jpg")
    scan = os.scandir

    def scan_after_removal(path: Path) -> object:
        if path == tmp_path / "gone":
            (path / "b.jpg").unlink()
            path.rmdir()
        return scan(path)

    monkeypatch.setattr(os, "scandir", scan_after_removal)
    source = open_source(tmp_path)
    assert keys(source) == ["a.jpg"]
    assert source.skipped == {"folder that disappeared": 1}


def test_file_that_disappears_after_listing_raises_on_read(tmp_path: Path) -> None:
    source = open_source(write_files(tmp_path, "a.jpg", "b.jpg"))
    (tmp_path / "a.jpg").unlink()
    with refused(tmp_path / "a.jpg", "does not exist"):
        source.read(0)
    assert source.read(1) == b"b.jpg"
