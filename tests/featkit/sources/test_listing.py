"""A text file that lists images: one per line, in order, relative to the list's folder."""

from __future__ import annotations

import os
import pickle
import time
import unicodedata
from contextlib import suppress
from pathlib import Path
from typing import Literal

import pytest

from featkit.errors import InputError
from featkit.sources import open_source
from tests.featkit.sources.files import contents, image_bytes, keys, write_files
from tests.fuzzing import CASES, fuzz
from tests.sentences import refused


def write_list(folder: Path, content: str | bytes, *, name: str = "list.txt") -> Path:
    """Write a list into `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


@pytest.mark.parametrize("name", ["list.txt", "list.lst"])
def test_list_keeps_its_order_without_comments_and_empty_lines(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, "b.jpg", "a/1.jpg", "with space.jpg", "no-suffix")
    source = open_source(
        write_list(
            tmp_path, "# mine\n\nb.jpg\n  a/1.jpg  \n\n#x.jpg\nwith space.jpg\nno-suffix", name=name
        )
    )
    assert keys(source) == ["b.jpg", "a/1.jpg", "with space.jpg", "no-suffix"]
    assert contents(source) == [b"b.jpg", b"a/1.jpg", b"with space.jpg", b"no-suffix"]
    assert [source.metadata(number) for number in range(4)] == [{}, {"folder": "a"}, {}, {}]


def test_paths_are_relative_to_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path, "lists/x.jpg", "images/y.jpg", "x.jpg")
    monkeypatch.chdir(tmp_path)
    source = open_source(write_list(Path("lists"), f"x.jpg\n../images/y.jpg\n{tmp_path}/x.jpg\n"))
    assert contents(source) == [b"lists/x.jpg", b"images/y.jpg", b"x.jpg"]
    assert keys(source) == ["x.jpg", "../images/y.jpg", f"{tmp_path}/x.jpg"]


def test_missing_file_is_an_item_with_an_error(tmp_path: Path) -> None:
    write_files(tmp_path, "here.jpg")
    source = open_source(write_list(tmp_path, "gone.jpg\nhere.jpg\n"))
    assert keys(source) == ["gone.jpg", "here.jpg"]
    with refused(tmp_path / "gone.jpg", "does not exist"):
        source.read(0)
    assert source.read(1) == b"here.jpg"


def test_list_from_windows_is_read(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg", "b.jpg")
    source = open_source(write_list(tmp_path, b"\xef\xbb\xbfa.jpg\r\n# c\r\nb.jpg\r\n"))
    assert contents(source) == [b"a.jpg", b"b.jpg"]


def test_name_with_unusual_characters_is_one_line(tmp_path: Path) -> None:
    names = ["a\x0cb.jpg", "c\u2028d.jpg", "e\x85f.jpg", os.fsdecode(b"caf\xe9.jpg")]
    write_files(tmp_path, *names)
    source = open_source(write_list(tmp_path, "\n".join(names).encode("utf-8", "surrogateescape")))
    assert keys(source) == [*names[:3], "caf\\xe9.jpg"]
    assert contents(source) == [name.encode("utf-8", "surrogateescape") for name in names]


@pytest.mark.parametrize("content", ["", "\n \n", "# only\n# remarks\n"])
def test_empty_list_is_refused(tmp_path: Path, content: str) -> None:
    path = write_list(tmp_path, content)
    with refused(f"{path} lists no images; write one path per line."):
        open_source(path)


def test_repeated_path_is_refused(tmp_path: Path) -> None:
    path = write_list(tmp_path, "a.jpg\nb.jpg\n# a.jpg\nb.jpg\na.jpg\n")
    with refused(f"{path} lists b.jpg twice, in lines 2 and 4; remove one of them."):
        open_source(path)


@pytest.mark.parametrize(
    "second",
    [
        "./a/b.jpg",
        "a//b.jpg",
        "a/./b.jpg",
        "a/c/../b.jpg",
        "{root}/a/b.jpg",
        '"a/b.jpg"',
        "a\\b.jpg",
    ],
)
def test_two_spellings_of_a_path_are_a_repeated_path(tmp_path: Path, second: str) -> None:
    write_files(tmp_path, "a/b.jpg", "a/c/d.jpg")
    with refused("twice, in lines 1 and 2"):
        open_source(write_list(tmp_path, f"a/b.jpg\n{second.format(root=tmp_path)}\n"))


def test_key_is_the_path_without_detours(tmp_path: Path) -> None:
    names = ["a.jpg", "b/c.jpg", "b/d.jpg", "e/f.jpg"]
    write_files(tmp_path, *names)
    source = open_source(write_list(tmp_path, "./a.jpg\nb//c.jpg\ne/../b/./d.jpg\n.//e///f.jpg\n"))
    assert keys(source) == names
    assert contents(source) == [name.encode() for name in names]


def test_key_keeps_dots_after_a_link_to_a_folder(tmp_path: Path) -> None:
    write_files(tmp_path, "far/away/x.jpg", "far/b.jpg", "b.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    source = open_source(write_list(tmp_path, "link/../b.jpg\nb.jpg\n"))
    assert keys(source) == ["link/../b.jpg", "b.jpg"]
    assert contents(source) == [b"far/b.jpg", b"b.jpg"]


ODD_NAMES = [
    " lead.jpg", "trail.jpg ", "#hash.jpg", "cr\r.jpg", "end.jpg\r", '"quoted".jpg', "'q.jpg'",
    "[2024] trip/1.jpg", "*?.jpg", "a,b;c.jpg", "back\\slash.jpg", "~.jpg", "%20.jpg", "-x.jpg",
    "file:x.jpg",
]  # fmt: skip


def test_line_is_taken_literally_if_the_file_exists(tmp_path: Path) -> None:
    write_files(tmp_path, *ODD_NAMES)
    source = open_source(write_list(tmp_path, "\n".join(ODD_NAMES)))
    assert keys(source) == ODD_NAMES
    assert contents(source) == [name.encode() for name in ODD_NAMES]


@pytest.mark.parametrize(
    "line",
    [
        " a b/c.jpg",
        "a b/c.jpg \t",
        '"a b/c.jpg"',
        "'a b/c.jpg'",
        "a b\\c.jpg",
        '  "a b\\c.jpg" ',
        "file:a%20b/c.jpg",
    ],
)
def test_line_without_a_file_is_read_as_it_is_meant(tmp_path: Path, line: str) -> None:
    write_files(tmp_path, "a b/c.jpg", "d.jpg")
    source = open_source(write_list(tmp_path, f"{line}\nd.jpg\n"))
    assert keys(source) == ["a b/c.jpg", "d.jpg"]
    assert contents(source) == [b"a b/c.jpg", b"d.jpg"]


def test_file_address_names_the_file(tmp_path: Path) -> None:
    write_files(tmp_path, "a b.jpg")
    assert contents(open_source(write_list(tmp_path, (tmp_path / "a b.jpg").as_uri()))) == [
        b"a b.jpg"
    ]


@pytest.mark.parametrize(
    "address", ["https://example.org/a//b.jpg", "s3://photos/a.jpg", "data:image/png;base64,AAAA"]
)
def test_web_address_is_an_item_with_an_error(tmp_path: Path, address: str) -> None:
    write_files(tmp_path, "here.jpg")
    source = open_source(write_list(tmp_path, f"{address}\nhere.jpg\n"))
    assert keys(source) == [address, "here.jpg"]
    with refused(f"{address} is an address, not a file; download it"):
        source.read(0)
    assert source.read(1) == b"here.jpg"


@pytest.mark.parametrize(
    "line",
    [
        "nul\0.jpg",
        "nul\0/../a.jpg",
        "a/../nul\0.jpg",
        "x" * 5000,
        "a/" * 3000,
        "gone.jpg",
        "folder",
        ".",
    ],
)
def test_impossible_path_affects_no_other_item(tmp_path: Path, line: str) -> None:
    write_files(tmp_path, "folder/1.jpg", "here.jpg")
    source = open_source(write_list(tmp_path, f"{line}\nhere.jpg\n"))
    assert "\0" not in "".join(keys(source))
    with refused():
        source.read(0)
    assert source.read(1) == b"here.jpg"


def test_image_in_a_comment_is_counted(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg")
    source = open_source(write_list(tmp_path, "# my images\n#gone.jpg\n# b.jpg\na.jpg\n"))
    assert (keys(source), source.skipped) == (["a.jpg"], {"line that begins with #": 2})


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_list_is_read_in_any_encoding_with_any_line_ends(
    tmp_path: Path, encoding: str, end: str
) -> None:
    write_files(tmp_path, "plain name 1.jpg", "plain name 2.jpg", "日本 é.jpg")
    text = end.join(["plain name 1.jpg", "plain name 2.jpg", "日本 é.jpg", ""]).encode(encoding)
    source = open_source(write_list(tmp_path, text))
    assert contents(source) == [b"plain name 1.jpg", b"plain name 2.jpg", "日本 é.jpg".encode()]


def test_list_separated_by_zero_bytes_is_read(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg", "line\nfeed.jpg")
    source = open_source(write_list(tmp_path, "a.jpg\0line\nfeed.jpg\0", name="a.txt"))
    assert keys(source) == ["a.jpg", "line\nfeed.jpg"]
    assert contents(source) == [b"a.jpg", b"line\nfeed.jpg"]


def test_list_in_a_windows_code_page_finds_names_in_utf8(tmp_path: Path) -> None:
    write_files(tmp_path, "café.jpg", os.fsdecode(b"na\xefve.jpg"))
    source = open_source(write_list(tmp_path, b"caf\xe9.jpg\nna\xefve.jpg\n"))
    assert keys(source) == ["café.jpg", "na\\xefve.jpg"]
    assert contents(source) == ["café.jpg".encode(), b"na\xefve.jpg"]


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_name_in_the_other_unicode_form_is_found(
    tmp_path: Path, listed: Literal["NFC", "NFD"], stored: Literal["NFC", "NFD"]
) -> None:
    write_files(tmp_path, unicodedata.normalize(stored, "é/ü.jpg"))
    source = open_source(write_list(tmp_path, unicodedata.normalize(listed, "é/ü.jpg")))
    assert contents(source) == [unicodedata.normalize(stored, "é/ü.jpg").encode()]


def test_names_in_two_unicode_forms_are_two_items(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    write_files(tmp_path, *names)
    source = open_source(write_list(tmp_path, "\n".join(names)))
    assert keys(source) == names
    assert contents(source) == [name.encode() for name in names]


@pytest.mark.parametrize("name", ["UP.TXT", "up.Lst", "x.list", "x.CSV", "x.tsv"])
def test_list_is_recognized_by_its_suffix_in_any_case(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, "plain.jpg")
    assert keys(open_source(write_list(tmp_path, "plain.jpg\n", name=name))) == ["plain.jpg"]


@pytest.mark.parametrize(
    "text",
    [
        'path,label\na.jpg,cat\n"b, c.jpg",dog\n',
        "label;Image_Path\r\ncat;a.jpg\r\ndog;b, c.jpg\r\n",
        "id\tfilename\n1\ta.jpg\n2\tb, c.jpg\n",
        'a.jpg,cat\n"b, c.jpg",dog\n',
        '\n path , x \n a.jpg , 1 \n\n"b, c.jpg",\n',
    ],
)
def test_table_gives_its_column_of_paths(tmp_path: Path, text: str) -> None:
    write_files(tmp_path, "a.jpg", "b, c.jpg")
    assert contents(open_source(write_list(tmp_path, text, name="x.csv"))) == [
        b"a.jpg",
        b"b, c.jpg",
    ]


def test_table_without_paths_is_refused_with_its_columns(tmp_path: Path) -> None:
    path = write_list(tmp_path, "label,score\ncat,1\n", name="x.csv")
    with refused(path, "2 columns", "label, score", "`path`"):
        open_source(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
        (b"<!DOCTYPE html><html><body>403</body></html>", "HTML"),
        (b"%PDF-1.7\n", "PDF"),
        (image_bytes(), "PNG"),
        (b"\xff\xfea.jpg", "UTF-16-LE"),
    ],
)
def test_other_kind_of_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = write_list(tmp_path, content)
    with refused(path, words):
        open_source(path)


@pytest.mark.parametrize("name", ["GGUF/1.jpg", "ID3.jpg", "BZh.jpg", "{a}.jpg", "[1].jpg"])
def test_path_that_begins_like_a_file_format_is_a_path(tmp_path: Path, name: str) -> None:
    write_files(tmp_path, name)
    assert keys(open_source(write_list(tmp_path, name))) == [name]


def test_long_list_opens_in_a_second(tmp_path: Path) -> None:
    lines = [f"d{i // 25:04d}/{i % 25}.jpg" for i in range(100_000)]
    once = write_list(tmp_path, "\n".join(lines), name="once.txt")
    twice = write_list(tmp_path, "\n".join([*lines, lines[-1]]), name="twice.txt")
    started = time.process_time()
    assert len(open_source(once)) == 100_000
    with refused("twice, in lines 100,000 and 100,001"):
        open_source(twice)
    assert time.process_time() - started < 2


def test_list_can_be_pickled(tmp_path: Path) -> None:
    write_files(tmp_path, "a.jpg")
    source = open_source(write_list(tmp_path, "./a.jpg\ngone.jpg\n"))
    copy = pickle.loads(pickle.dumps(source))
    assert keys(copy) == keys(source) == ["a.jpg", "gone.jpg"]
    assert copy.read(0) == b"a.jpg"


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_any_bytes_are_a_list_or_are_refused(cases: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"list{suffix}"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        source = open_source(path)
        assert len(set(keys(source))) == len(source)
        for i in range(len(source)):
            assert isinstance(source.metadata(i), dict)
            with suppress(InputError):
                source.read(i)

    text = '# mine\na.jpg\n./b/c d.jpg\n "é.jpg"\nhttps://x.org/y.jpg\n'
    table = 'path,label\na.jpg,cat\n"b, c.jpg",dog\n'
    fuzz(
        parse,
        [
            text.encode(),
            text.replace("\n", "\r\n").encode("utf-16"),
            table.encode(),
            b"a.jpg\0b.jpg",
        ],
        cases=cases,
    )
