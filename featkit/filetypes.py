"""Identify a file by its first bytes: images, archives, models, tables, web pages and more.

Suffixes can be wrong. A failed download leaves an HTML page named `cat.jpg`, and a clone without
Git LFS holds pointers named `model.onnx`. Code that opens a file and finds something else in it
calls `what_is` and names what it found.
"""

from __future__ import annotations

import codecs
import json
import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

NUM_BYTES = 4096  # enough for every kind; only the tags at the end of a TIFF need more


class Kind(NamedTuple):
    """A kind of file: its name with an article, and advice for a file in the wrong place, or ""."""

    name: str
    advice: str = ""

    def sentence(self, file: str, *, otherwise: str) -> str:
        """Return "FILE is a KIND; ADVICE."; `otherwise` is used if the kind has no advice."""
        return f"{file} is {self.name}; {self.advice or otherwise}."


_INSTALL = "run `pip install 'featkit[formats]'` to read it"
_CONVERT = "convert it to PNG or JPEG"
_EXTRACT = "extract it first"
_AGAIN = "copy or download it again"

GIT_LFS_POINTER = Kind("a Git LFS pointer", "run `git lfs pull` to fetch the file it points to")
HTML = Kind(
    "an HTML page",
    "the download was probably answered with an error or a login page; download it again",
)
XML_ERROR = Kind("an error message in XML", "the download was refused; download it again")
XML = Kind("an XML document")
SVG = Kind("an SVG drawing", _CONVERT)
PDF = Kind("a PDF document", "save its pages as PNG or JPEG")
JSON = Kind("a JSON document")
TEXT = Kind("plain text")
ZEROS = Kind("filled with zero bytes", _AGAIN)

HEIC = Kind("HEIC", _INSTALL)
AVIF = Kind("AVIF", "install a Pillow with AVIF (11.3 or later)")
JPEG_XL = Kind("JPEG XL", _INSTALL)
PSD = Kind("a Photoshop document", _CONVERT)
VIDEO = Kind("a video", "extract its frames as images, for example with ffmpeg")
AUDIO = Kind("an audio file")
TIFF = Kind("a TIFF image")
WEBP = Kind("a WebP image")

TAR = Kind("a tar archive")
ZIP = Kind("a zip archive", _EXTRACT)
PARQUET = Kind("a Parquet file")
ARROW_STREAM = Kind("an Arrow stream", "convert it to Parquet")
NUMPY_ARCHIVE = Kind("a NumPy archive (.npz)")
OFFICE = Kind("an office document", "export its images first")
PICKLE = Kind("a Python pickle")
TORCH = Kind("a PyTorch checkpoint")
SAFETENSORS = Kind("a safetensors file")
ONNX = Kind("an ONNX model")
SQLITE = Kind("an SQLite database")

HEIC_BRANDS = frozenset(
    b"heic heix heim heis hevc hevx hevm hevs mif1 mif2 msf1 miaf MiHB MiHE".split()
)
AVIF_BRANDS = frozenset(b"avif avis avio MA1A MA1B".split())
AUDIO_BRANDS = frozenset((b"M4A ", b"M4B ", b"M4P "))

# Unambiguous first bytes, at offset 0. A longer entry precedes entries that are prefixes of it.
MAGIC: tuple[tuple[bytes, Kind], ...] = (
    (b"version https://git-lfs", GIT_LFS_POINTER),
    (b"version https://hawser", GIT_LFS_POINTER),  # its first name
    (
        b"/annex/objects/",
        Kind("a git-annex pointer", "run `git annex get` to fetch the file it points to"),
    ),
    # images
    (b"\xff\xd8\xff", Kind("a JPEG image")),
    (b"\x89PNG\r\n\x1a\n", Kind("a PNG image")),
    (b"\x8aMNG\r\n\x1a\n", Kind("an MNG animation", _CONVERT)),
    (b"GIF87a", Kind("a GIF image")),
    (b"GIF89a", Kind("a GIF image")),
    (b"\0\0\0\x0cjP  \r\n\x87\n", Kind("a JPEG 2000 image")),
    (b"\xffO\xffQ", Kind("a JPEG 2000 image")),
    (b"\0\0\0\x0cJXL \r\n\x87\n", JPEG_XL),
    (b"\xff\x0a", JPEG_XL),
    (b"II\xbc\x01", Kind("JPEG XR", _CONVERT)),
    (b"8BPS", PSD),
    (b"8BPB", PSD),
    (b"gimp xcf", Kind("a GIMP document", _CONVERT)),
    (b"qoif", Kind("a QOI image")),
    (b"FLIF", Kind("FLIF", _CONVERT)),
    (b"BPG\xfb", Kind("BPG", _CONVERT)),
    (b"v/1\x01", Kind("an OpenEXR image", _CONVERT)),
    (b"#?RADIANCE", Kind("a Radiance HDR image", _CONVERT)),
    (b"#?RGBE", Kind("a Radiance HDR image", _CONVERT)),
    (b"DDS ", Kind("a DirectDraw surface", _CONVERT)),
    (b"SIMPLE  =", Kind("a FITS image", _CONVERT)),
    (b"%!PS", Kind("a PostScript document", _CONVERT)),
    (b"\xc5\xd0\xd3\xc6", Kind("a PostScript document", _CONVERT)),
    (b"\xd7\xcd\xc6\x9a", Kind("a Windows metafile", _CONVERT)),
    (b"AT&TFORM", Kind("a DjVu document", _CONVERT)),
    (b"FUJIFILMCCD-RAW", Kind("a camera RAW photo (RAF)", _INSTALL)),
    (b"IIRO", Kind("a camera RAW photo (ORF)", _INSTALL)),
    (b"IIRS", Kind("a camera RAW photo (ORF)", _INSTALL)),
    (b"MMOR", Kind("a camera RAW photo (ORF)", _INSTALL)),
    (b"IIU\0", Kind("a camera RAW photo (RW2)", _INSTALL)),
    (b"II\x1a\0\0\0HEAPCCDR", Kind("a camera RAW photo (CRW)", _INSTALL)),
    (b"\0MRM", Kind("a camera RAW photo (MRW)", _INSTALL)),
    (b"FOVb", Kind("a camera RAW photo (X3F)", _INSTALL)),
    # documents
    (b"%PDF-", PDF),
    (b"{\\rtf", Kind("an RTF document")),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        Kind("an old Office document or a Windows thumbnail cache"),
    ),
    (b"\0\0\0\x01Bud1", Kind("a .DS_Store file of macOS", "delete it")),
    (
        b"\0\x05\x16\x07",
        Kind("an AppleDouble file, which macOS writes for attributes of another file", "delete it"),
    ),
    (b"bplist00", Kind("a property list of macOS")),
    (b"L\0\0\0\x01\x14\x02\0", Kind("a Windows shortcut", "copy the file it points to")),
    (b"[InternetShortcut]", Kind("a shortcut to a web page", "download the file it points to")),
    # sound and moving images
    (b"\x1aE\xdf\xa3", VIDEO),  # Matroska, WebM
    (b"0&\xb2u\x8ef\xcf\x11", VIDEO),  # ASF, WMV
    (b"FLV\x01", VIDEO),
    (b"\0\0\x01\xba", VIDEO),  # MPEG program stream
    (b"\0\0\x01\xb3", VIDEO),  # MPEG elementary stream
    (b".RMF", VIDEO),
    (b"OggS", Kind("an Ogg audio or video file")),
    (b"fLaC", AUDIO),
    (b"ID3", AUDIO),
    (b"MThd", AUDIO),
    (b"#!AMR", AUDIO),
    # tables and databases
    (b"PAR1", PARQUET),
    (b"PARE", Kind("an encrypted Parquet file", "decrypt it first")),
    (b"ARROW1\0\0", Kind("an Arrow file", "convert it to Parquet")),
    (b"FEA1", Kind("a Feather file", "convert it to Parquet")),
    (b"ORC", Kind("an ORC file", "convert it to Parquet")),
    (b"SQLite format 3\0", SQLITE),
    (b"\x0a\x23\xd7\xce", Kind("an MXNet RecordIO file", "convert it to a tar archive")),
    # weights, arrays
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file")),
    (b"\x93NUMPY", Kind("a NumPy array (.npy)")),
    (b"GGUF", Kind("a GGUF model")),
    (b"MATLAB 5.0", Kind("a MATLAB file")),
    # archives and compressed files
    (b"\x1f\x8b\x08", Kind("a gzip file", _EXTRACT)),
    (b"BZh", Kind("a bzip2 file", _EXTRACT)),
    (b"\xfd7zXZ\0", Kind("an xz file", _EXTRACT)),
    (b"\x28\xb5\x2f\xfd", Kind("a Zstandard file", _EXTRACT)),
    (b"\x04\x22\x4d\x18", Kind("an LZ4 file", _EXTRACT)),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7-Zip archive", _EXTRACT)),
    (b"Rar!\x1a\x07", Kind("a RAR archive", _EXTRACT)),
    # programs
    (b"\x7fELF", Kind("a program")),
    (b"\xcf\xfa\xed\xfe", Kind("a program")),
)


def what_is(data: bytes) -> Kind | None:
    """Return the kind of file that begins with `data`, or None if it is unknown or empty.

    4,096 bytes are enough. Never raises, whatever `data` contains.
    """
    if not data:
        return None
    head = bytes(data[:NUM_BYTES])
    for magic, kind in MAGIC:
        if head.startswith(magic):
            return kind
    for look in _LOOKS:
        found = look(head)
        if found is not None:
            return found
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _camera_raw(data) or TIFF
    return _text(head)


def _iso_media(head: bytes) -> Kind | None:
    """Recognize HEIC, AVIF, camera RAW, audio and video by the brands of an ISO base media file.

    QuickTime files are also recognized by their first atom.
    """
    if head[4:8] in (b"moov", b"mdat", b"wide", b"pnot") and head[8:12].strip(b"\0"):
        return VIDEO
    if head[4:8] != b"ftyp":
        return None
    size = min(struct.unpack(">I", head[:4])[0], len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, size - 3, 4))]
    if brands[0] == b"crx ":
        return Kind("a camera RAW photo (CR3)", _INSTALL)
    if brands[0] == b"jxl ":
        return JPEG_XL
    if brands[0] in AUDIO_BRANDS:
        return AUDIO
    # `mif1` and `msf1` only mean "an image"; the compatible brands then name the codec.
    if brands[0] in AVIF_BRANDS or (
        brands[0] in (b"mif1", b"msf1", b"miaf") and AVIF_BRANDS.intersection(brands)
    ):
        return AVIF
    return HEIC if HEIC_BRANDS.intersection(brands) else VIDEO


def _riff(head: bytes) -> Kind | None:
    if head[:4] not in (b"RIFF", b"RIFX", b"FORM"):
        return None
    kinds = {b"WEBP": WEBP, b"AVI ": VIDEO, b"WAVE": AUDIO, b"AIFF": AUDIO, b"AIFC": AUDIO}
    return kinds.get(head[8:12])


def _zip(head: bytes) -> Kind | None:
    """Recognize a zip archive, or a checkpoint, arrays or an office document stored as one."""
    if head[:4] not in (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"):
        return None
    length = int.from_bytes(head[26:28], "little")
    first = head[30 : 30 + length]
    if first.endswith(b"/data.pkl") or b"/data.pkl" in head[: 30 + length + 512]:
        return TORCH
    if first.endswith(b".npy"):
        return NUMPY_ARCHIVE
    if first in (b"[Content_Types].xml", b"mimetype") or first.startswith(
        (b"_rels/", b"docProps/")
    ):
        return OFFICE
    return ZIP


def _tar(head: bytes) -> Kind | None:
    """Recognize a tar archive by its magic or, in formats without one, by its header's checksum."""
    if head[257:262] == b"ustar":
        return TAR
    if len(head) < 512 or not head[0]:
        return None
    told = re.fullmatch(rb" *([0-7]{1,7})[ \0]*", head[148:156])
    if told is None:
        return None
    return TAR if int(told[1], 8) == sum(head[:148]) + 8 * ord(" ") + sum(head[156:512]) else None


def _pickle(head: bytes) -> Kind | None:
    if re.match(rb"\x80[\x02-\x05][\x8a\x95c}\](NKXBUGMJq\x8c)]", head) is None:
        return None
    return TORCH if head[2:15] == b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." else PICKLE


def _safetensors(head: bytes) -> Kind | None:
    length = int.from_bytes(head[:8], "little")
    return SAFETENSORS if 2 <= length < 2**32 and re.match(rb"\{\s*[\"}]", head[8:]) else None


def _onnx(head: bytes) -> Kind | None:
    """Recognize a ModelProto: `ir_version`, then one or two fields of the right number and type."""
    fields = _proto_fields(head)
    if next(fields, None) != (1, 0) or not 1 <= head[1] <= 40:
        return None
    second, third = next(fields, None), next(fields, None)
    # ModelProto: 2 producer_name, 3 producer_version, 4 domain, 5 model_version, 6 doc_string, 7
    # graph, 8 opset_import ...
    allowed = {
        (2, 2),
        (3, 2),
        (4, 2),
        (5, 0),
        (6, 2),
        (7, 2),
        (8, 2),
        (14, 2),
        (20, 2),
        (25, 2),
        None,
    }
    return ONNX if second is not None and second in allowed and third in allowed else None


def _proto_fields(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (number, wire type) of each protobuf field of a message, up to an invalid one."""
    at = 0

    def varint() -> int | None:
        nonlocal at
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(data):
                return None
            at += 1
            value |= (data[at - 1] & 0x7F) << shift
            if data[at - 1] < 0x80:
                return value
        return None

    while (tag := varint()) is not None:
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            end = varint()
        elif wire == 2:
            end = length = varint()
            at += length or 0
        else:
            end = None
        if end is None or field == 0:
            return
        yield field, wire


def _other_magic(head: bytes) -> Kind | None:
    """Recognize kinds whose magic is not at offset 0, or too short to be reliable by itself."""
    if head[128:132] == b"DICM":
        return Kind("a DICOM image", _CONVERT)
    if head[4:8] == b"TFL3":
        return Kind("a TensorFlow Lite model")
    if head[:4] == b"\xff\xff\xff\xff" and head[8:12] == b"\x10\0\0\0":
        return ARROW_STREAM
    if head[16:20] == b"\xde\xc0\xef\xbe":
        return Kind("an LMDB database")
    if head[:2] == b"BM" and head[6:10] == bytes(4) and head[14:18] in _BMP_HEADERS:
        return Kind("a BMP image")
    if head[:2] == b"MZ" and len(head) > 64 and b"PE\0\0" in head:
        return Kind("a program")
    if (
        head[:4] in (b"\0\0\1\0", b"\0\0\2\0")
        and len(head) >= 22
        and head[4]
        and not head[5]
        and not head[9]
    ):
        return Kind("an icon")
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return VIDEO  # MPEG transport stream
    if (
        head[0] == 0xFF
        and len(head) > 3
        and head[1] in (0xFA, 0xFB, 0xF2, 0xF3, 0xE2, 0xE3, 0xF1, 0xF9)
    ):
        return AUDIO if head[2] >> 4 != 0xF else None  # MP3 or AAC without tags
    return None


_BMP_HEADERS = tuple(size.to_bytes(4, "little") for size in (12, 16, 40, 52, 56, 64, 108, 124))

_LOOKS: tuple[Callable[[bytes], Kind | None], ...] = (
    _iso_media,
    _riff,
    _zip,
    _tar,
    _pickle,
    _safetensors,
    _onnx,
    _other_magic,
)


# --- camera RAW files based on TIFF

_NEW_SUBFILE_TYPE, _PHOTOMETRIC, _MAKE, _SUB_IFDS, _DNG_VERSION = 254, 262, 271, 330, 50706
_CFA, _LINEAR_RAW = 32803, 34892
_RAW_NAMES = (
    (b"NIKON", "NEF"),
    (b"SONY", "ARW"),
    (b"PENTAX", "PEF"),
    (b"RICOH", "PEF"),
    (b"SAMSUNG", "SRW"),
    (b"Hasselblad", "3FR"),
    (b"Phase One", "IIQ"),
    (b"Leaf", "MOS"),
    (b"EPSON", "ERF"),
    (b"Kodak", "DCR"),
    (b"EASTMAN KODAK", "KDC"),
    (b"Canon", "TIF"),
)


def _camera_raw(data: bytes) -> Kind | None:
    """Recognize a camera RAW file based on TIFF, whose first image may be a thumbnail.

    Returns None for an ordinary TIFF.
    """
    if data[8:11] == b"CR\x02":
        return Kind("a camera RAW photo (CR2)", _INSTALL)
    if data[8:12] in (b"IIII", b"MMMM"):
        return Kind("a camera RAW photo (IIQ)", _INSTALL)
    tags = _first_tags(data)
    if _DNG_VERSION in tags:
        return Kind("a camera RAW photo (DNG)", _INSTALL)
    is_thumbnail = _number(tags.get(_NEW_SUBFILE_TYPE)) == 1 and _SUB_IFDS in tags
    is_sensor = _number(tags.get(_PHOTOMETRIC)) in (_CFA, _LINEAR_RAW)
    if not is_thumbnail and not is_sensor:
        return None
    make = tags.get(_MAKE, b"").strip(b"\0 ")
    name = next(
        (name for begin, name in _RAW_NAMES if make.upper().startswith(begin.upper())), "TIFF"
    )
    return Kind(f"a camera RAW photo ({name})", _INSTALL)


def _first_tags(data: bytes) -> dict[int, bytes]:
    """Return the tags of a classic TIFF's first directory, as little-endian numbers or text.

    Returns {} if the directory is beyond the given bytes.
    """
    order = "<" if data[:2] == b"II" else ">"
    if data[2:4] not in (b"*\0", b"\0*") or len(data) < 8:
        return {}
    start = struct.unpack_from(order + "I", data, 4)[0]
    if start + 2 > len(data):
        return {}
    tags = {}
    for entry in range(struct.unpack_from(order + "H", data, start)[0]):
        at = start + 2 + 12 * entry
        if at + 12 > len(data):
            break
        tag, type_, count = struct.unpack_from(order + "HHI", data, at)
        value = bytes(data[at + 8 : at + 12])
        if type_ == 2 and count > 4:  # longer text is stored outside the directory
            offset = struct.unpack(order + "I", value)[0]
            value = bytes(data[offset : offset + min(count, 64)])
        elif type_ in (3, 4):
            value = struct.unpack(
                order + ("H" if type_ == 3 else "I"), value[: 2 if type_ == 3 else 4]
            )[0].to_bytes(4, "little")
        tags[tag] = value
    return tags


def _number(value: bytes | None) -> int | None:
    return None if value is None else int.from_bytes(value[:4], "little")


# --- text

_HTML = re.compile(
    rb"(<!--.*?-->\s*)*<(!doctype html|html|head|body|title|script|meta|div)\b",
    re.IGNORECASE | re.DOTALL,
)
_XML = re.compile(
    rb"(<!--.*?-->\s*)*<(\?xml|!doctype|[a-z_][\w.-]*(:[\w.-]+)?[\s/>])", re.IGNORECASE | re.DOTALL
)
_UNPRINTABLE = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def _text(head: bytes) -> Kind | None:
    """Recognize text in UTF-8 or UTF-16, such as HTML, XML and JSON, and files of zeros."""
    if len(head) >= 16 and not head.strip(b"\0"):
        return ZEROS
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = _decoded(head, encoding)
    if text is None or not text.strip() or _UNPRINTABLE.search(text):
        return None
    plain = text.strip().encode()
    if _HTML.match(plain):
        return HTML
    if _XML.match(plain):
        inner = plain[:NUM_BYTES].lower()
        if re.search(rb"<(\w+:)?svg\b", inner):
            return SVG
        if re.search(rb"<html\b", inner):
            return HTML
        return XML_ERROR if re.search(rb"<error\b", inner) else XML
    return JSON if _is_json(plain, whole=len(head) < NUM_BYTES) else TEXT


def _decoded(head: bytes, encoding: str) -> str | None:
    """Decode text, dropping a truncated last character; return None for bytes that are not text."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeError:
        return None


def _is_json(plain: bytes, *, whole: bool) -> bool:
    if plain[:1] not in (b"{", b"["):
        return False
    if not whole:
        return re.match(rb"[\[{\s]*(\"|[\[{]|-?\d|true|false|null)", plain) is not None
    try:
        json.loads(plain)
    except (ValueError, RecursionError):
        return False
    return True
