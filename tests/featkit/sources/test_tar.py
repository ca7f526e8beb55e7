"""Images in a tar: keys, companions as metadata, links, and damage."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
import subprocess
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from featkit.errors import InputError
from featkit.images import ImageLimits
from featkit.sources import Source, open_source
from featkit.sources.tar import TarSource
from tests.featkit.sources.files import contents, image_bytes, keys, write_files, write_tar
from tests.fuzzing import CASES, fuzz
from tests.sentences import refused

BLOCK = 512
HOLE = 4096
GNU_TAR = (
    shutil.which("tar") is not None
    and b"GNU tar" in subprocess.run(["tar", "--version"], capture_output=True).stdout
)
needs_gnu_tar = pytest.mark.skipif(not GNU_TAR, reason="compares with GNU tar")


def write_entries(
    path: Path,
    *entries: tuple[str, bytes, bytes],
    format: int = tarfile.PAX_FORMAT,
    mode: str = "w",
) -> Path:
    """Write a tar of names, types and data; the data of a link is its target."""
    with tarfile.open(path, mode, format=format) as archive:  # type: ignore[call-overload]
        for name, kind, data in entries:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
                entry.linkname = data.decode()
                archive.addfile(entry)
            else:
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
    return path


def read_all(source: Source) -> dict[str, bytes | str]:
    """Return the bytes of each key, or its error."""
    found: dict[str, bytes | str] = {}
    for number, key in enumerate(keys(source)):
        try:
            found[key] = source.read(number)
        except InputError as error:
            found[key] = str(error)
    return found


def unpacked(path: Path, out: Path) -> dict[str, bytes]:
    """Return what GNU tar unpacks, by key."""
    out.mkdir()
    subprocess.run(
        ["tar", "-C", out, "-xf", path, "--ignore-zeros", "-p"], capture_output=True, check=False
    )
    return {
        f"{path.name}/{file.relative_to(out)}": file.read_bytes()
        for file in out.rglob("*")
        if file.is_file()
    }


SIX = [(f"{number}.jpg", bytes([65 + number]) * 700) for number in range(6)]  # three blocks each


def test_members_are_items_in_the_order_of_the_archive(tmp_path: Path) -> None:
    members = [
        ("cats/2.jpg", b"two"),
        ("1.png", image_bytes()),
        ("notes.md", b"no"),
        ("cats/.x.jpg", b"no"),
        ("a.JPG", b""),
    ]
    source = open_source(write_tar(tmp_path / "t-000.tar", members))
    assert keys(source) == ["t-000.tar/cats/2.jpg", "t-000.tar/1.png", "t-000.tar/a.JPG"]
    assert contents(source) == [b"two", image_bytes(), b""]


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


def test_companions_with_the_same_stem_are_metadata(tmp_path: Path) -> None:
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
    path = write_tar(
        tmp_path / "in" / "t.tar", [(name, f"member {name}".encode()) for name in hostile]
    )
    before = sorted(tmp_path.rglob("*"))
    source = open_source(path)
    assert keys(source) == [f"t.tar/{name}" for name in hostile]
    assert contents(source) == [f"member {name}".encode() for name in hostile]
    assert sorted(tmp_path.rglob("*")) == before


def test_folders_and_devices_are_not_images(tmp_path: Path) -> None:
    path = write_entries(
        tmp_path / "t.tar", ("d.jpg", tarfile.DIRTYPE, b""), ("p.jpg", tarfile.FIFOTYPE, b"")
    )
    with refused(path, "holds no images among its 2 members. Skipped: 1 special file."):
        open_source(path)
    write_tar(path, [("real.jpg", b"x")], mode="a")
    source = open_source(path)
    assert (keys(source), source.skipped) == (["t.tar/real.jpg"], {"special file": 1})


def test_repeated_name_is_the_last_member(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"old"), ("b.jpg", b"b"), ("a.jpg", b"new")])
    source = open_source(path)
    with tarfile.open(path) as archive:
        archive.extractall(tmp_path / "out", filter="data")
    assert dict(zip(keys(source), contents(source), strict=True)) == {
        f"t.tar/{file.name}": file.read_bytes() for file in (tmp_path / "out").iterdir()
    }


def test_name_that_is_not_utf8_has_a_key_that_is(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "t.tar", [(os.fsdecode(b"caf\xe9/1.jpg"), b"x")]))
    assert keys(source) == ["t.tar/caf\\xe9/1.jpg"]
    assert source.metadata(0) == {"folder": "caf\\xe9"}


@pytest.mark.parametrize("length", range(1, 3 * 3 * BLOCK, 100))
def test_tar_cut_anywhere_gives_its_whole_members(tmp_path: Path, length: int) -> None:
    members = [(f"{number}.jpg", bytes([number]) * 700) for number in range(3)]
    whole = write_tar(tmp_path / "t.tar", members).read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole[:length])
    num_whole = max(0, length - BLOCK - 700 + 3 * BLOCK) // (3 * BLOCK)
    if num_whole == 0:
        with refused(cut):
            open_source(cut)
        return
    source = open_source(cut)
    assert [source.read(number) for number in range(num_whole)] == [
        data for _, data in members[:num_whole]
    ]
    assert len(source) == num_whole + bool(length % (3 * BLOCK))
    if len(source) > num_whole:
        with refused(cut, "truncated"):
            source.read(num_whole)


def test_end_mark_can_be_missing(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("0.jpg", bytes(700)), ("1.jpg", b"x")])
    # some writers do not fill the last block
    for length in (3 * BLOCK + BLOCK + 1, 5 * BLOCK, 6 * BLOCK):
        path.write_bytes(
            path.read_bytes()[:length]
            if length < path.stat().st_size
            else path.read_bytes() + bytes(BLOCK)
        )
        assert contents(open_source(path)) == [bytes(700), b"x"]
        write_tar(path, [("0.jpg", bytes(700)), ("1.jpg", b"x")])


def test_tar_cut_after_opening_names_the_member(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"a" * 700), ("b.jpg", b"b" * 700)])
    source = open_source(path)
    os.truncate(path, 4 * BLOCK + 100)
    assert source.read(0) == b"a" * 700
    with refused(f"{path} ends inside its member b.jpg; it is truncated."):
        source.read(1)
    path.unlink()
    with refused(f"{path} cannot be read: No such file or directory."):
        source.read(0)


def test_other_kind_of_file_is_refused_and_named(tmp_path: Path) -> None:
    noise = random.Random(0).randbytes(5000)
    for content, words in (
        (b"", "is empty (0 bytes)"),
        (b"a note\n" * 200, "is plain text"),
        (bytes(10240), "is filled with zero bytes"),
        (image_bytes(), "is a PNG image"),
        (noise, "is not an uncompressed tar file: it has no valid header"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ):
        (tmp_path / "x.tar").write_bytes(content)
        with refused(tmp_path / "x.tar", words):
            open_source(tmp_path / "x.tar")
    write_tar(tmp_path / "packed.tar", [("a.jpg", b"x")], mode="w:gz")
    with refused(f"{tmp_path / 'packed.tar'} is a gzip file; extract it first."):
        open_source(tmp_path / "packed.tar")
    write_tar(tmp_path / "papers.tar", [("a.md", b"x"), ("b.md", b"x")])
    with refused(tmp_path / "papers.tar", "holds no images among its 2 members."):
        open_source(tmp_path / "papers.tar")


@pytest.mark.parametrize("name", ["BZhoo.jpg", "PK.jpg", "GIF89a.jpg", "%PDF-.jpg"])
def test_first_name_does_not_change_the_kind_of_file(tmp_path: Path, name: str) -> None:
    assert contents(open_source(write_tar(tmp_path / "t.tar", [(name, b"x")]))) == [b"x"]


def with_checksums(data: bytes) -> bytes:
    """Return the archive with correct checksums, so that changed headers are read."""
    mended = bytearray(data)
    for start in range(0, len(data) - BLOCK + 1, BLOCK):
        if data[start + 257 : start + 262] == b"ustar":
            mended[start + 148 : start + 156] = b"        "
            mended[start + 148 : start + 156] = b"%06o\0 " % sum(mended[start : start + BLOCK])
    return bytes(mended)


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_items_or_are_refused(cases: int, tmp_path: Path) -> None:
    path = tmp_path / "t.tar"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        source = TarSource(path, limits=ImageLimits(max_bytes=2**20))
        assert all(key.startswith("t.tar/") for key in keys(source))
        for number in range(len(source)):
            with suppress(InputError):
                source.metadata(number)
                assert len(source.read(number)) <= 2**20

    entries = (
        ("d" * 120 + "/0.jpg", tarfile.REGTYPE, b"x" * 600),
        ("d" * 120 + "/0.cls", tarfile.REGTYPE, b"1"),
        ("b.jpg", tarfile.LNKTYPE, b"d" * 120 + b"/0.jpg"),
        ("c.jpg", tarfile.SYMTYPE, b"b.jpg"),
    )
    seeds = [
        write_entries(path, *entries, format=format).read_bytes()
        for format in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT)
    ]
    if GNU_TAR:
        write_sparse(tmp_path / "a.jpg", "d..d.")
        for version in (["--format=gnu"], ["--format=posix"]):
            subprocess.run(
                ["tar", "-C", str(tmp_path), "-S", *version, "-cf", str(path), "a.jpg"], check=True
            )
            seeds.append(path.read_bytes())
    fuzz(parse, seeds, cases=cases, repair=with_checksums)


def test_member_over_the_byte_limit_is_not_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"12345"), ("b.jpg", b"123456")])
    source = open_source(path, limits=ImageLimits(max_bytes=5))
    assert source.read(0) == b"12345"
    path.unlink()
    with refused("t.tar/b.jpg has 6 bytes, more than the limit of 5."):
        source.read(1)


def test_tar_is_read_from_threads_and_after_pickling(tmp_path: Path) -> None:
    members = [(f"{number}.jpg", bytes([number]) * (number * 37)) for number in range(64)]
    source = pickle.loads(pickle.dumps(open_source(write_tar(tmp_path / "t.tar", members))))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(source.read, range(64)))
    assert found == [data for _, data in members]


@pytest.mark.parametrize(
    "damage", [b"X" * BLOCK, bytes(BLOCK), None], ids=["overwritten", "zeros", "checksum"]
)
@pytest.mark.parametrize("lost", range(6))
def test_damaged_header_costs_only_its_member(
    tmp_path: Path, lost: int, damage: bytes | None
) -> None:
    data = bytearray(write_tar(tmp_path / "t.tar", SIX).read_bytes())
    start = lost * 3 * BLOCK
    data[start : start + BLOCK] = (
        damage or data[start : start + 148] + b"0000000\0" + data[start + 156 : start + BLOCK]
    )
    (tmp_path / "t.tar").write_bytes(data)
    found = read_all(open_source(tmp_path / "t.tar"))
    rest = {
        f"t.tar/{name}": content for number, (name, content) in enumerate(SIX) if number != lost
    }
    assert {key: value for key, value in found.items() if isinstance(value, bytes)} == rest
    told = " ".join(value for value in found.values() if isinstance(value, str))
    assert str(tmp_path / "t.tar") in told
    assert f"from byte {start:,} to " in told
    assert "Copy or create the archive again." in told


def test_each_damaged_region_is_an_item(tmp_path: Path) -> None:
    data = bytearray(write_tar(tmp_path / "t.tar", SIX).read_bytes())
    for lost in (1, 2, 4):
        data[lost * 3 * BLOCK : lost * 3 * BLOCK + 200] = b"?" * 200
    (tmp_path / "t.tar").write_bytes(data)
    assert keys(open_source(tmp_path / "t.tar")) == [
        *(f"t.tar/{number}.jpg" for number in (0, 3, 5)),
        "t.tar/bytes 1536-4608",
        "t.tar/bytes 6144-7680",
    ]


@pytest.mark.parametrize("change", [-300, -1, 1, 400, 1000], ids=str)
def test_bytes_lost_or_added_in_a_member_cost_only_it(tmp_path: Path, change: int) -> None:
    members = [(name, content * 3) for name, content in SIX]
    data = write_tar(tmp_path / "t.tar", members).read_bytes()
    place = (1 + 5 + 1) * BLOCK + 100  # in the data of 1.jpg
    data = data[:place] + b"!" * max(0, change) + data[place + max(0, -change) :]
    (tmp_path / "t.tar").write_bytes(data)
    found = read_all(open_source(tmp_path / "t.tar"))
    rest = {f"t.tar/{name}": content for name, content in members if name != "1.jpg"}
    assert {key: value for key, value in found.items() if isinstance(value, bytes)} == rest
    assert "bytes inside its member 1.jpg" in str(found["t.tar/1.jpg"])


def test_inner_archive_is_not_taken_for_the_outer_one(tmp_path: Path) -> None:
    inner = write_tar(tmp_path / "inner.tar", [("inner.jpg", b"i")]).read_bytes()
    path = write_tar(
        tmp_path / "t.tar",
        [("0.jpg", b"0"), ("inner.tar", inner), ("1.jpg", b"1"), ("2.jpg", b"2")],
    )
    data = bytearray(path.read_bytes())
    start = 3 * BLOCK + len(inner)
    data[start : start + BLOCK] = b"X" * BLOCK
    path.write_bytes(data)
    assert keys(open_source(path)) == [
        "t.tar/0.jpg",
        "t.tar/2.jpg",
        f"t.tar/bytes {start}-{start + 2 * BLOCK}",
    ]


def test_concatenated_archives_are_read_to_the_last(tmp_path: Path) -> None:
    first = write_tar(tmp_path / "a.tar", SIX[:3]).read_bytes()
    second = write_tar(tmp_path / "b.tar", SIX[3:]).read_bytes()
    expected = {f"t.tar/{name}": content for name, content in SIX}
    for joined in (
        first + second,
        first[: 3 * 3 * BLOCK + 2 * BLOCK] + second,
        second + bytes(99) + first[:0] + first,
    ):
        (tmp_path / "t.tar").write_bytes(joined)
        found = read_all(open_source(tmp_path / "t.tar"))
        assert {key: found.get(key) for key in expected} == expected
    (tmp_path / "t.tar").write_bytes(first + b"X" * BLOCK + second[BLOCK:])
    found = read_all(open_source(tmp_path / "t.tar"))
    assert [key for key, value in found.items() if isinstance(value, bytes)] == [
        f"t.tar/{n}.jpg" for n in (0, 1, 2, 4, 5)
    ]
    assert f"t.tar/bytes {len(first)}-{len(first) + 3 * BLOCK}" in found


def test_junk_after_the_end_mark_is_reported(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", SIX[:1])
    size = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"signature" * 100)
    source = open_source(path)
    assert keys(source) == ["t.tar/0.jpg", f"t.tar/bytes {size}-{size + 900}"]
    with refused("the bytes after the end mark are not an archive"):
        source.read(1)


def write_sparse(path: Path, blocks: str) -> bytes:
    """Write a file of blocks with data (d) and holes (.), and a few more bytes; return its
    content."""
    noise = random.Random(1)
    with path.open("wb") as file:
        for block in blocks:
            if block == "d":
                file.write(noise.randbytes(HOLE))
            else:
                file.seek(HOLE, os.SEEK_CUR)
        file.truncate(HOLE * len(blocks) + 100)
    return path.read_bytes()


@needs_gnu_tar
@pytest.mark.parametrize("format", ["gnu", "0.0", "0.1", "1.0"])
@pytest.mark.parametrize(
    "blocks", ["d.", ".d", ".", ".d.d.d.", "d.d.d.d.d.d.d.", "d." * 40 + "d", ".d" * 130]
)
def test_sparse_members_have_zeros_for_holes(tmp_path: Path, format: str, blocks: str) -> None:
    sparse = write_sparse(tmp_path / "a.jpg", blocks)
    (tmp_path / "b.jpg").write_bytes(b"after it")
    version = (
        ["--format=gnu"] if format == "gnu" else ["--format=posix", f"--sparse-version={format}"]
    )
    command = [
        "tar",
        "-C",
        str(tmp_path),
        "-S",
        "--hole-detection=raw",
        *version,
        "-cf",
        str(tmp_path / "t.tar"),
        "a.jpg",
        "b.jpg",
    ]
    subprocess.run(command, check=True)
    archive = (tmp_path / "t.tar").read_bytes()
    assert (archive[156:157] == b"S") if format == "gnu" else (b"GNU.sparse" in archive)
    assert read_all(open_source(tmp_path / "t.tar")) == {
        "t.tar/a.jpg": sparse,
        "t.tar/b.jpg": b"after it",
    }


@needs_gnu_tar
def test_damaged_sparse_map_is_an_item_with_an_error(tmp_path: Path) -> None:
    write_sparse(tmp_path / "a.jpg", "d..d")
    (tmp_path / "b.jpg").write_bytes(b"b")
    for version, old, new in (
        ("0.1", b"=0,4096,12288,", b"=0,4097,12288,"),
        ("1.0", b"\n12288\n", b"\n92288\n"),
    ):
        command = [
            "tar",
            "-C",
            str(tmp_path),
            "-S",
            "--format=posix",
            f"--sparse-version={version}",
        ]
        subprocess.run([*command, "-cf", str(tmp_path / "t.tar"), "a.jpg", "b.jpg"], check=True)
        data = (tmp_path / "t.tar").read_bytes()
        assert data.count(old) == 1
        (tmp_path / "t.tar").write_bytes(data.replace(old, new))
        found = read_all(open_source(tmp_path / "t.tar"))
        assert found["t.tar/b.jpg"] == b"b"
        assert "has a damaged header of its member a.jpg" in str(found["t.tar/a.jpg"])


@needs_gnu_tar
@pytest.mark.parametrize("format", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_every_format_of_gnu_tar_is_read_as_unpacked(tmp_path: Path, format: str) -> None:
    long = "d" * 90 + "/" + "n" * 5
    root = tmp_path / "in"
    for name in ("a.jpg", "sub/b.jpg", "\N{LATIN SMALL LETTER E WITH ACUTE}.jpg", f"{long}.jpg"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode() * 50)
    os.link(root / "a.jpg", root / "hard.jpg")
    command = [
        "tar",
        "-C",
        str(root),
        f"--format={format}",
        "-cf",
        str(tmp_path / "t.tar"),
        "a.jpg",
        "hard.jpg",
        "sub",
        "d" * 90,
    ]
    if format not in ("v7", "ustar"):  # these formats would split or refuse the name
        (root / ("x" * 150 + ".jpg")).write_bytes(b"long")
        command.append("x" * 150 + ".jpg")
        command += (
            [f"--listed-incremental={tmp_path / 'snapshot'}"] if format == "gnu" else []
        )  # GNU stores times in the prefix
    subprocess.run(command, check=True, capture_output=True)
    assert read_all(open_source(tmp_path / "t.tar")) == unpacked(
        tmp_path / "t.tar", tmp_path / "out"
    )


def test_hard_link_has_the_bytes_of_its_target(tmp_path: Path) -> None:
    path = write_entries(
        tmp_path / "t.tar",
        ("a.jpg", tarfile.REGTYPE, b"one"),
        ("cats/a.jpg", tarfile.LNKTYPE, b"./a.jpg"),
        ("a.jpg", tarfile.REGTYPE, b"two"),
        ("dogs/a.jpg", tarfile.LNKTYPE, b"a.jpg"),
        ("objects/1", tarfile.REGTYPE, b"three"),
        ("b.jpg", tarfile.LNKTYPE, b"objects/1"),
        ("a.jpg", tarfile.LNKTYPE, b"a.jpg"),  # as tar writes a name given twice
    )
    source = open_source(path)
    assert read_all(source) == {
        "t.tar/a.jpg": b"two",
        "t.tar/cats/a.jpg": b"one",
        "t.tar/dogs/a.jpg": b"two",
        "t.tar/b.jpg": b"three",
    }
    assert source.skipped == {"repeated name": 2, "file without a suffix": 1}
    assert source.metadata(1) == {"folder": "cats"}


def test_hard_link_before_its_target_has_its_bytes(tmp_path: Path) -> None:
    path = write_entries(
        tmp_path / "t.tar",
        ("early.jpg", tarfile.LNKTYPE, b"./objects/1"),
        ("gone.jpg", tarfile.LNKTYPE, b"nothing"),
        ("objects/1", tarfile.REGTYPE, b"one"),
    )
    found = read_all(open_source(path))
    assert found["t.tar/early.jpg"] == b"one"
    assert str(found["t.tar/gone.jpg"]).endswith(
        "is a link to nothing, which is not in the archive."
    )


def test_hard_link_can_have_bytes_of_its_own(tmp_path: Path) -> None:
    path = write_entries(
        tmp_path / "t.tar", ("a.jpg", tarfile.REGTYPE, b"x"), ("b.jpg", tarfile.LNKTYPE, b"a.jpg")
    )
    data = bytearray(path.read_bytes())
    entry = tarfile.TarInfo("b.jpg")
    entry.type, entry.linkname, entry.size = tarfile.LNKTYPE, "a.jpg", 1
    header = entry.tobuf()
    path.write_bytes(bytes(data[: 2 * BLOCK]) + header + b"y" + bytes(BLOCK - 1 + 2 * BLOCK))
    assert read_all(open_source(path)) == {"t.tar/a.jpg": b"x", "t.tar/b.jpg": b"y"}
    third = tarfile.TarInfo("c.jpg").tobuf()
    # a size without bytes
    path.write_bytes(bytes(data[: 2 * BLOCK]) + header + third + bytes(2 * BLOCK))
    assert read_all(open_source(path)) == {
        "t.tar/a.jpg": b"x",
        "t.tar/b.jpg": b"x",
        "t.tar/c.jpg": b"",
    }


def test_symbolic_links_are_followed_only_inside_the_archive(tmp_path: Path) -> None:
    write_files(tmp_path, "secret.jpg")
    path = write_entries(
        tmp_path / "t.tar",
        ("objects/1", tarfile.REGTYPE, b"one"),
        ("a/x.jpg", tarfile.SYMTYPE, b"../objects/1"),
        ("b", tarfile.SYMTYPE, b"a"),
        ("c/y.jpg", tarfile.SYMTYPE, b"../b/../a/./x.jpg"),
        ("d.jpg", tarfile.SYMTYPE, b"real.jpg"),
        ("real.jpg", tarfile.REGTYPE, b"real"),
        ("loop.jpg", tarfile.SYMTYPE, b"loop.jpg"),
        ("gone.jpg", tarfile.SYMTYPE, b"nothing.jpg"),
        ("out.jpg", tarfile.SYMTYPE, str(tmp_path / "secret.jpg").encode()),
        ("up.jpg", tarfile.SYMTYPE, b"../secret.jpg"),
        ("README", tarfile.SYMTYPE, b"objects/1"),
    )
    source = open_source(path)
    found = read_all(source)
    readable = {key: value for key, value in found.items() if isinstance(value, bytes)}
    assert readable == {"t.tar/a/x.jpg": b"one", "t.tar/real.jpg": b"real"}
    assert source.skipped == {
        "link to a file already taken": 2,  # c/y.jpg and d.jpg
        "link to a folder": 1,
        "file without a suffix": 2,
    }
    for name in ("loop.jpg", "gone.jpg", "out.jpg", "up.jpg"):
        assert f"{name} in {path} is a link to " in str(found[f"t.tar/{name}"])
    assert str(found["t.tar/loop.jpg"]).endswith(
        "is a link to loop.jpg, which is itself a link that leads to no file."
    )
    assert str(found["t.tar/gone.jpg"]).endswith(
        "is a link to nothing.jpg, which is not in the archive."
    )
    with refused(
        "holds no images that can be read", "is a link to nothing.jpg", "not in the archive"
    ):
        open_source(
            write_entries(tmp_path / "u.tar", ("gone.jpg", tarfile.SYMTYPE, b"nothing.jpg"))
        )


def test_spellings_of_a_name_are_one_item(tmp_path: Path) -> None:
    names = ["x.jpg", "./x.jpg", ".//x.jpg", "a//y.jpg", "a/./y.jpg", "/a/y.jpg", "a/Y.jpg"]
    path = write_tar(tmp_path / "t.tar", [(name, name.encode()) for name in names])
    source = open_source(path)
    assert list(read_all(source).values()) == [b".//x.jpg", b"/a/y.jpg", b"a/Y.jpg"]
    assert source.skipped == {"repeated name": 4}


def test_hidden_and_system_folders_are_passed_over(tmp_path: Path) -> None:
    names = [
        "p.jpg",
        "@eaDir/p.jpg/THUMB.jpg",
        "a/.Trashes/501/x.jpg",
        "a/.Trashes/502/x.jpg",
        "a/._p.jpg",
        "__MACOSX/p.jpg",
    ]
    source = open_source(write_tar(tmp_path / "t.tar", [(name, b"x") for name in names]))
    assert keys(source) == ["t.tar/p.jpg"]
    assert sum(source.skipped.values()) == 4


def test_damaged_extended_header_gives_no_wrong_name(tmp_path: Path) -> None:
    long = "d" * 120 + "/x.jpg"
    for format, place in ((tarfile.PAX_FORMAT, BLOCK), (tarfile.GNU_FORMAT, None)):
        path = tmp_path / "t.tar"
        write_entries(
            path,
            ("a.jpg", tarfile.REGTYPE, b"a"),
            (long, tarfile.REGTYPE, b"b"),
            ("c.jpg", b"0", b"c"),
            format=format,
        )
        data = bytearray(path.read_bytes())
        if place is not None:
            data[3 * BLOCK : 3 * BLOCK + 2] = b"zz"  # the length of the first record
        else:
            data[2 * BLOCK + 10 : 2 * BLOCK + 20] = b"z" * 10  # the header of the long name
        path.write_bytes(data)
        found = read_all(open_source(path))
        assert [found["t.tar/a.jpg"], found["t.tar/c.jpg"]] == [b"a", b"c"]
        assert any(
            isinstance(value, str) and "is damaged from byte 1,024" in value
            for value in found.values()
        )


def test_changed_archive_is_not_read_at_old_offsets(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"a" * 600), ("b.jpg", b"b")])
    source = open_source(path)
    write_tar(path, [("c.jpg", b"c" * 600), ("b.jpg", b"b")])
    os.utime(path, ns=(1, 1))
    with refused(f"{path} has changed since it was opened"):
        source.read(0)
    assert source.read(1) == b"b"


def test_only_the_beginning_of_a_companion_is_read(tmp_path: Path) -> None:
    source = open_source(
        write_tar(tmp_path / "t.tar", [("0.jpg", b"x"), ("0.txt", b"y" * 5000), ("./0.cls", b"4")])
    )
    assert source.metadata(0) == {"text": "y" * 4096, "class": 4}


def test_images_with_one_stem_share_their_companions(tmp_path: Path) -> None:
    names = ["s/0.jpg", "s/0.png", "s/0.img.jpg", "s/0.cls"]
    source = open_source(write_tar(tmp_path / "t.tar", [(name, b"7") for name in names]))
    assert keys(source) == [f"t.tar/{name}" for name in names[:3]]
    assert [source.metadata(number) for number in range(3)] == [{"folder": "s", "class": 7}] * 3


def test_size_over_8_gib_is_read(tmp_path: Path) -> None:
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):  # base 256, and a record
        entry = tarfile.TarInfo("giant.jpg")
        entry.size = 9 * 2**30 + 5
        with (tmp_path / "t.tar").open("wb") as file:
            file.write(entry.tobuf(format))
            file.seek(entry.size - entry.size % BLOCK + BLOCK, os.SEEK_CUR)  # a hole
            last = tarfile.TarInfo("x.jpg")
            last.size = 1
            file.write(last.tobuf() + b"x".ljust(3 * BLOCK, b"\0"))
        source = open_source(tmp_path / "t.tar")
        assert keys(source) == ["t.tar/giant.jpg", "t.tar/x.jpg"]
        assert source.read(1) == b"x"
        with refused("t.tar/giant.jpg has 9,663,676,421 bytes, more than the limit"):
            source.read(0)


def test_endless_name_is_refused_quickly(tmp_path: Path) -> None:
    endless = "a/" * 500_000
    path = write_entries(
        tmp_path / "t.tar",
        ("x.jpg", tarfile.SYMTYPE, endless.encode()),
        (endless + "y.jpg", tarfile.REGTYPE, b"y"),
        ("z.jpg", tarfile.REGTYPE, b"z"),
    )
    started = time.process_time()
    found = read_all(open_source(path))
    assert time.process_time() - started < 5
    assert found["t.tar/z.jpg"] == b"z"
    assert sum("the name of a member has 1,000,0" in str(value) for value in found.values()) == 2


def test_100000_members_are_listed_in_seconds(tmp_path: Path) -> None:
    header = bytearray(tarfile.TarInfo("000000.jpg").tobuf(tarfile.USTAR_FORMAT))
    with (tmp_path / "t.tar").open("wb") as file:
        for number in range(100_000):
            header[:6] = b"%06d" % number
            header[148:156] = b"        "
            header[148:156] = b"%06o\0 " % sum(header)
            file.write(header)
    started = time.process_time()
    assert len(open_source(tmp_path / "t.tar")) == 100_000
    assert time.process_time() - started < 10


def test_member_larger_than_its_archive_is_truncated(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "t.tar", [("a.jpg", b"a")])
    entry = tarfile.TarInfo("b.jpg")
    entry.size = 2**40
    path.write_bytes(
        path.read_bytes()[: 2 * BLOCK] + entry.tobuf(tarfile.GNU_FORMAT) + bytes(BLOCK)
    )
    assert (
        read_all(open_source(path))["t.tar/b.jpg"]
        == f"{path} ends inside its member b.jpg; it is truncated."
    )
