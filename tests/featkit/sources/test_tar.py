"""Pictures in a tar: keys from member names that are never paths, companions as metadata, damage named."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featkit.errors import InputError
from featkit.images import DEFAULT_LIMITS, ImageLimits
from featkit.sources import open_source
from featkit.sources.tar import TarSource
from tests.featkit.sources.files import contents, keys, picture_bytes, write_files, write_tar
from tests.sentences import refused

BLOCK = 512


def test_members_are_items_in_the_order_of_the_archive(tmp_path: Path) -> None:
    members = [("cats/2.jpg", b"two"), ("1.png", picture_bytes()), ("notes.md", b"no"), ("cats/.x.jpg", b"no"), ("a.JPG", b"")]
    source = open_source(write_tar(tmp_path / "t-000.tar", members))
    assert keys(source) == ["t-000.tar/cats/2.jpg", "t-000.tar/1.png", "t-000.tar/a.JPG"]
    assert contents(source) == [b"two", picture_bytes(), b""]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_tar_format_are_read(tmp_path: Path, format: int) -> None:
    names = ["a" * 90 + "/" + "b" * 60 + ".jpg", "é/猫.jpg"]
    with tarfile.open(tmp_path / "t.tar", "w", format=format) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 3
            archive.addfile(entry, io.BytesIO(b"abc"))
    source = open_source(tmp_path / "t.tar")
    assert keys(source) == [f"t.tar/{name}" for name in names]
    assert contents(source) == [b"abc", b"abc"]


def test_companions_of_the_same_stem_are_metadata(tmp_path: Path) -> None:
    members = [
        ("a/0.cls", b"7\n"),
        ("a/0.jpg", b"x"),
        ("a/0.txt", " eine Katze é ".encode()),
        ("a/1.left.jpg", b"x"),
        ("a/1.cls", b"tabby"),
        ("0.jpg", b"x"),
        ("a/2.jpg", b"x"),
        ("a/2.txt", b"caf\xe9"),
        ("a/2.json", b"{}"),
    ]
    source = open_source(write_tar(tmp_path / "t.tar", members))
    assert [source.metadata(number) for number in range(len(source))] == [
        {"folder": "a", "class": 7, "text": "eine Katze é"},
        {"folder": "a", "class": "tabby"},
        {},
        {"folder": "a", "text": "caf\N{REPLACEMENT CHARACTER}"},
    ]


def test_member_names_are_keys_and_never_paths(tmp_path: Path) -> None:
    write_files(tmp_path, "secret.jpg", "in/x.jpg")
    hostile = ["../secret.jpg", str(tmp_path / "secret.jpg"), "in/../../secret.jpg", "./x.jpg"]
    path = write_tar(tmp_path / "in" / "t.tar", [(name, f"member {name}".encode()) for name in hostile])
    before = sorted(tmp_path.rglob("*"))
    source = open_source(path)
    assert keys(source) == [f"t.tar/{name}" for name in hostile]
    assert contents(source) == [f"member {name}".encode() for name in hostile]
    assert sorted(tmp_path.rglob("*")) == before


def test_links_folders_and_devices_are_no_pictures(tmp_path: Path) -> None:
    write_files(tmp_path, "secret.jpg")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        for name, kind in (("s.jpg", tarfile.SYMTYPE), ("d.jpg", tarfile.DIRTYPE), ("p.jpg", tarfile.FIFOTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, str(tmp_path / "secret.jpg")
            archive.addfile(entry)
    with refused(tmp_path / "t.tar", "holds no pictures among its 0 members."):
        open_source(tmp_path / "t.tar")
    write_tar(tmp_path / "t.tar", [("real.jpg", b"x")], mode="a")
    assert keys(open_source(tmp_path / "t.tar")) == ["t.tar/real.jpg"]


def test_a_name_that_stands_twice_is_the_last_as_tar_unpacks_it(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"old"), ("b.jpg", b"b"), ("a.jpg", b"new")])
    source = open_source(path)
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    assert dict(zip(keys(source), contents(source), strict=True)) == {
        f"t.tar/{file.name}": file.read_bytes() for file in (tmp_path / "out").iterdir()
    }


def test_a_name_that_is_no_text_has_a_key_that_is(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "t.tar", [(os.fsdecode(b"caf\xe9/1.jpg"), b"x")]))
    assert keys(source) == ["t.tar/caf\\xe9/1.jpg"]
    assert source.metadata(0) == {"folder": "caf\\xe9"}


def test_a_tar_cut_anywhere_before_its_end_mark_is_refused(tmp_path: Path) -> None:
    whole = write_tar(tmp_path / "t.tar", [(f"{number}.jpg", bytes([number]) * 700) for number in range(3)]).read_bytes()
    end, cut = 3 * 3 * BLOCK, tmp_path / "cut.tar"
    for length in range(0, end, 100):
        cut.write_bytes(whole[:length])
        if length % (3 * BLOCK):
            with refused(cut):
                open_source(cut)
    cut.write_bytes(whole[:end])  # many writers leave the end mark out
    assert len(open_source(cut)) == 3


def test_a_tar_cut_after_it_was_opened_names_the_member(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"a" * 700), ("b.jpg", b"b" * 700)])
    source = open_source(path)
    os.truncate(path, 4 * BLOCK + 100)
    assert source.read(0) == b"a" * 700
    with refused(f"{path} ends inside its member b.jpg; it is truncated."):
        source.read(1)
    path.unlink()
    with refused(f"{path} cannot be read: No such file or directory."):
        source.read(0)


def test_what_is_no_tar_is_refused(tmp_path: Path) -> None:
    for name, content in (("empty.tar", b""), ("text.tar", b"a note\n" * 200), ("picture.tar", picture_bytes())):
        (tmp_path / name).write_bytes(content)
        with refused(f"{tmp_path / name} is not an uncompressed tar file"):
            open_source(tmp_path / name)
    write_tar(tmp_path / "packed.tar", [("a.jpg", b"x")], mode="w:gz")
    with refused(tmp_path / "packed.tar", "a compressed one cannot be read at random: unpack it."):
        open_source(tmp_path / "packed.tar")
    write_tar(tmp_path / "papers.tar", [("a.md", b"x"), ("b.md", b"x")])
    with refused(tmp_path / "papers.tar", "holds no pictures among its 2 members."):
        open_source(tmp_path / "papers.tar")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(changes=st.lists(st.tuples(st.integers(0, 6 * BLOCK - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_damaged_tar_is_items_or_one_input_error(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    path = write_tar(tmp_path_factory.mktemp("tar") / "t.tar", [("a/0.jpg", b"x" * 600), ("a/0.cls", b"1"), ("b.jpg", b"y")])
    data = bytearray(path.read_bytes())
    for place, value in changes:
        data[place] = value
    path.write_bytes(data)
    try:
        source = TarSource(path, limits=DEFAULT_LIMITS)
        assert all(key.startswith("t.tar/") for key in keys(source))
        for number in range(len(source)):
            source.metadata(number)
            source.read(number)
    except InputError as error:
        with refused("t.tar"):
            raise error


def test_the_limit_of_bytes_holds_before_reading(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"12345"), ("b.jpg", b"123456")])
    source = open_source(path, limits=ImageLimits(max_bytes=5))
    assert source.read(0) == b"12345"
    path.unlink()
    with refused("t.tar/b.jpg has 6 bytes, more than the limit of 5."):
        source.read(1)


def test_a_tar_is_read_from_threads_and_after_pickling(tmp_path: Path) -> None:
    members = [(f"{number}.jpg", bytes([number]) * (number * 37)) for number in range(64)]
    source = pickle.loads(pickle.dumps(open_source(write_tar(tmp_path / "t.tar", members))))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(source.read, range(64)))
    assert found == [data for _, data in members]
