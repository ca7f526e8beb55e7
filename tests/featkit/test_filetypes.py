"""The type of a file, whatever its name: real files of each kind, made here, and bytes that
are close but are not."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import sqlite3
import struct
import tarfile
import wave
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from featkit.filetypes import AUDIO, AVIF, HEIC, NUM_BYTES, Kind, what_is
from featkit.models import default_model_path
from tests.image_files import encoded
from tests.images import draw_image

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 12345\n"
)
INSTALL = "run `pip install 'featkit[formats]'` to read it"


def iso_media(*brands: str) -> bytes:
    """The first box of an ISO base media file: the major brand, and those it is compatible with."""
    body = brands[0].encode() + bytes(4) + "".join(brands[1:]).encode()
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body + b"\0\0\0\x08meta" + bytes(200)


def tiff_header(*tags: tuple[int, int, int, int], order: str = "<") -> bytes:
    """A TIFF's first directory with (tag, type, count, value) and nothing else."""
    entries = b"".join(
        struct.pack(order + "HHI", *tag[:3]) + _value(order, *tag[1:]) for tag in tags
    )
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "IH", 8, len(tags)) + entries + bytes(4)


def _value(order: str, type_: int, _count: int, value: int) -> bytes:
    return struct.pack(
        order + ("HH" if type_ == 3 else "I"), *((value, 0) if type_ == 3 else (value,))
    )


def written(write: Callable[[io.BytesIO], object]) -> bytes:
    """The bytes that `write` puts into a file."""
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def tar_of(format: int) -> bytes:
    """A tar archive of one member."""

    def write(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w", format=format) as archive:
            archive.addfile(tarfile.TarInfo("x.txt"))

    return written(write)


def v7_tar() -> bytes:
    """A tar archive as it was before POSIX: no word `ustar` in it, a checksum of the rest."""
    header = bytearray(tar_of(tarfile.USTAR_FORMAT)[:512])
    header[257:265] = bytes(8)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def zip_of(name: str) -> bytes:
    """A zip archive of one member."""

    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, b"content")

    return written(write)


def wav() -> bytes:
    """A few samples of silence."""

    def write(file: io.BytesIO) -> None:
        with wave.open(file, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(bytes(64))

    return written(write)


def arrow_stream(table: pa.Table) -> bytes:
    """Write a table as in a saved Hugging Face data set."""

    def write(file: io.BytesIO) -> None:
        with pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)

    return written(write)


TABLE = pa.table({"a": [1, 2]})

FILES: dict[str, tuple[bytes, str]] = {
    "lfs": (POINTER, "a Git LFS pointer"),
    "annex": (b"/annex/objects/SHA256E-s123--" + b"ab" * 32 + b".jpg\n", "a git-annex pointer"),
    "html": (b"\xef\xbb\xbf \n<!DOCTYPE html><html>404 Not Found</html>", "an HTML page"),
    "html upper": (b"<HTML><BODY>Sign in</BODY></HTML>", "an HTML page"),
    "html comment": (b"<!-- saved -->\n<html lang='en'>", "an HTML page"),
    "html utf-16": ("<!doctype html><p>".encode("utf-16"), "an HTML page"),
    "xhtml": (b"<?xml version='1.0'?>\n<html xmlns='x'/>", "an HTML page"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    "svg xml": (b"<?xml version='1.0'?><!-- made -->\n<!DOCTYPE svg><svg/>", "an SVG drawing"),
    "s3": (
        b"<?xml version='1.0'?>\n<Error><Code>AccessDenied</Code></Error>",
        "an error message in XML",
    ),
    "xmp": (b"<x:xmpmeta xmlns:x='adobe:ns:meta/'/>", "an XML document"),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "a PDF document"),
    "json": (b'{"detail": "Not found"}', "a JSON document"),
    "long json": (json.dumps([{"a": 1}] * 2000).encode(), "a JSON document"),
    "text": (b"a note", "plain text"),
    "text utf-8": ("Grüße aus Köln".encode() * 400, "plain text"),
    "text utf-16": ("a note".encode("utf-16"), "plain text"),
    "zeros": (bytes(5000), "filled with zero bytes"),
    "jpeg": (encoded(draw_image(0), "JPEG"), "a JPEG image"),
    "png": (encoded(draw_image(0), "PNG"), "a PNG image"),
    "gif": (encoded(draw_image(0), "GIF"), "a GIF image"),
    "bmp": (encoded(draw_image(0), "BMP"), "a BMP image"),
    "webp": (encoded(draw_image(0), "WEBP"), "a WebP image"),
    "tiff": (encoded(draw_image(0), "TIFF"), "a TIFF image"),
    "big tiff": (encoded(draw_image(0), "TIFF", big_tiff=True), "a TIFF image"),
    "jpeg 2000": (encoded(draw_image(0), "JPEG2000"), "a JPEG 2000 image"),
    "icon": (encoded(draw_image(0), "ICO"), "an icon"),
    "avif": (encoded(draw_image(0), "AVIF"), "AVIF"),
    "avif by mif1": (iso_media("mif1", "miaf", "avif"), "AVIF"),
    "jxl": (b"\0\0\0\x0cJXL \r\n\x87\n\0\0\0\x14ftypjxl ", "JPEG XL"),
    "jxl codestream": (b"\xff\x0a\xfa\x1f\x01", "JPEG XL"),
    "psd": (b"8BPS\0\x01" + bytes(30), "a Photoshop document"),
    "cr2": (b"II*\0\x10\0\0\0CR\x02\0" + bytes(200), "a camera RAW photo (CR2)"),
    "cr3": (iso_media("crx ", "crx ", "isom"), "a camera RAW photo (CR3)"),
    "raf": (b"FUJIFILMCCD-RAW 0201FF", "a camera RAW photo (RAF)"),
    "orf": (b"IIRO\x08\0\0\0", "a camera RAW photo (ORF)"),
    "rw2": (b"IIU\0\x18\0\0\0", "a camera RAW photo (RW2)"),
    "dng": (tiff_header((254, 4, 1, 1), (50706, 1, 4, 0x401)), "a camera RAW photo (DNG)"),
    "dng big-endian": (tiff_header((50706, 1, 4, 0x401), order=">"), "a camera RAW photo (DNG)"),
    "nef": (
        tiff_header((254, 4, 1, 1), (271, 2, 6, 58), (330, 4, 1, 0)) + b"\0\0\0\0\0\0\0\0NIKON\0",
        "a camera RAW photo (NEF)",
    ),
    "sensor": (tiff_header((262, 3, 1, 32803)), "a camera RAW photo (TIFF)"),
    "mp4": (iso_media("isom", "isom", "iso2", "avc1", "mp41"), "a video"),
    "mov": (iso_media("qt  "), "a video"),
    "mov without ftyp": (b"\0\0\x6d\x18moov\0\0\0lmvhd", "a video"),
    "3gp": (iso_media("3gp5", "3gp5", "isom"), "a video"),
    "mkv": (b"\x1aE\xdf\xa3\x9fB\x86\x81\x01", "a video"),
    "avi": (b"RIFF\x24\0\0\0AVI LIST", "a video"),
    "m4a": (iso_media("M4A ", "M4A ", "mp42"), "an audio file"),
    "wav": (wav(), "an audio file"),
    "mp3": (b"ID3\x04\0\0\0\0\0\x23TSSE", "an audio file"),
    "mp3 bare": (b"\xff\xfb\x90\x64\0\x0f\xf0", "an audio file"),
    "parquet": (written(lambda file: pa.parquet.write_table(TABLE, file)), "a Parquet file"),
    "arrow": (written(lambda file: pa.feather.write_feather(TABLE, file)), "an Arrow file"),
    "arrow stream": (arrow_stream(TABLE), "an Arrow stream"),
    "orc": (written(lambda file: pa.orc.write_table(TABLE, file)), "an ORC file"),
    "tar": (tar_of(tarfile.PAX_FORMAT), "a tar archive"),
    "tar gnu": (tar_of(tarfile.GNU_FORMAT), "a tar archive"),
    "tar v7": (v7_tar(), "a tar archive"),
    "zip": (zip_of("a/b.jpg"), "a zip archive"),
    "empty zip": (written(lambda file: zipfile.ZipFile(file, "w").close()), "a zip archive"),
    "docx": (zip_of("[Content_Types].xml"), "an office document"),
    "torch": (zip_of("archive/data.pkl"), "a PyTorch checkpoint"),
    "npz": (written(lambda file: np.savez(file, a=np.zeros(3))), "a NumPy archive (.npz)"),
    "npy": (written(lambda file: np.save(file, np.zeros(3))), "a NumPy array (.npy)"),
    "torch legacy": (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), "a PyTorch checkpoint"),
    "pickle": (pickle.dumps({"a": [1, 2]}), "a Python pickle"),
    "pickle 2": (pickle.dumps({"a": [1, 2]}, protocol=2), "a Python pickle"),
    "safetensors": (
        struct.pack("<Q", 40) + b'{"__metadata__":{"format":"pt"}}' + bytes(30),
        "a safetensors file",
    ),
    "gzip": (gzip.compress(b"x"), "a gzip file"),
    "bz2": (bz2.compress(b"x"), "a bzip2 file"),
    "xz": (lzma.compress(b"x"), "an xz file"),
    "zstd": (pa.compress(b"x" * 99, codec="zstd", asbytes=True), "a Zstandard file"),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0", "an HDF5 file"),
    "ds_store": (b"\0\0\0\x01Bud1\0\0\x10\0", "a .DS_Store file of macOS"),
    "apple double": (
        b"\0\x05\x16\x07\0\x02\0\0Mac OS X",
        "an AppleDouble file, which macOS writes for attributes of another file",
    ),
    "dicom": (bytes(128) + b"DICM", "a DICOM image"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_is_named_by_its_bytes(case: str) -> None:
    data, name = FILES[case]
    found = what_is(data)
    assert found is not None
    assert found.name == name
    assert what_is(data[:NUM_BYTES]) == found


def test_a_model_and_a_database_are_named(tmp_path: Path) -> None:
    model = what_is(default_model_path().read_bytes()[:NUM_BYTES])
    assert model is not None
    assert model.name == "an ONNX model"
    with sqlite3.connect(tmp_path / "x.db") as connection:
        connection.execute("CREATE TABLE a (b)")
    connection.close()
    assert what_is((tmp_path / "x.db").read_bytes()) == Kind("an SQLite database")


@pytest.mark.parametrize("brand", "heic heix heim heis hevc hevx hevm hevs mif1 msf1 miaf".split())
def test_heic_is_known_by_each_of_its_brands(brand: str) -> None:
    assert (
        what_is(iso_media(brand, "mif1"))
        == what_is(iso_media(brand))
        == HEIC
        == Kind("HEIC", INSTALL)
    )
    assert what_is(iso_media("isom", brand)) == HEIC


def test_what_a_brand_says_only_of_images_its_code_decides() -> None:
    assert what_is(iso_media("mif1", "heic")) == HEIC
    assert what_is(iso_media("msf1", "avis")) == AVIF
    assert what_is(iso_media("M4A ", "heic")) == AUDIO


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"\x08",
        b"\x08\x07",
        b"\x08\x07\x99\x99",
        b"BM and a few words\x00\x01",
        b"\x80\x02nothing",
        bytes(8),
        np.random.default_rng(0).bytes(5000),
        b"\x7b\x00\x00\x00\x00\x00\x00\x00not json",
        "Grüße".encode("latin-1"),
    ],
)
def test_bytes_that_tell_nothing_are_nothing(data: bytes) -> None:
    assert what_is(data) is None


def test_a_photo_of_a_camera_maker_is_no_raw_file() -> None:
    exif = Image.Exif()
    exif[271] = "NIKON CORPORATION"
    assert what_is(encoded(draw_image(0), "TIFF", exif=exif)) == Kind("a TIFF image")


def test_advice_says_what_to_do_and_a_sentence_ends() -> None:
    pointer, parquet = what_is(POINTER), what_is(b"PAR1")
    assert pointer is not None
    assert parquet is not None
    advice = "run `git lfs pull` to fetch the file it points to"
    assert (
        pointer.sentence("x.jpg", otherwise="give an image")
        == f"x.jpg is a Git LFS pointer; {advice}."
    )
    assert (
        parquet.sentence("x.jpg", otherwise="give an image")
        == "x.jpg is a Parquet file; give an image."
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    start=st.sampled_from([data[:600] for data, _ in FILES.values()]),
    cut=st.integers(0, 600),
    end=st.binary(max_size=80),
)
def test_any_bytes_are_a_kind_or_none(start: bytes, cut: int, end: bytes) -> None:
    found = what_is(start[:cut] + end)
    assert found is None or isinstance(found, Kind)
