"""Images by a list of their paths: a text file with one path a line, or a column of a CSV file.

A list is written by many tools, so a line is first taken exactly as it stands, where such a file
exists. Otherwise it is read as what people mean: without spaces around it and without quotes, `#`
begins a comment, `\\` may separate folders. Only lines that could be read in two ways are looked
up, so that a long list on a slow disk opens at once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import unquote, urlsplit

from featkit.errors import InputError
from featkit.filetypes import (
    GIT_LFS_POINTER,
    HTML,
    JSON,
    NUM_BYTES,
    PDF,
    SVG,
    XML,
    XML_ERROR,
    what_is,
)
from featkit.images import ImageLimits, printable, read_file
from featkit.sources.base import Metadata, is_image
from featkit.sources.keys import key_of
from featkit.wording import counted

LIST_SUFFIXES = (".txt", ".lst", ".list")
TABLE_SUFFIXES = (".csv", ".tsv")
PATH_COLUMNS = (
    "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "img", "img_path", "picture",
    "photo",
)  # fmt: skip
MAX_LIST_BYTES = 2**30
# no path looks like the beginning of one of these
OTHER_TEXTS = (GIT_LFS_POINTER, HTML, JSON, PDF, SVG, XML, XML_ERROR)
BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
MAX_PATH_LENGTH = 4096  # of Linux; no system takes more
# one letter before the colon would be a Windows drive
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")
_RAW_BYTE = re.compile("[\udc80-\udcff]")


class ListedFiles:
    """Files by path, in the list's order, relative to the list's folder; each key is the path as it
    stands in the list.

    A line that names no file is an item whose `read` says why.
    """

    def __init__(
        self, file: Path, paths: list[str], *, num_comments: int, limits: ImageLimits
    ) -> None:
        self.name, self.root, self.limits = printable(str(file)), file.parent, limits
        self._paths = paths
        self._num_comments = num_comments

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def skipped(self) -> Mapping[str, int]:
        """Images that a `#` keeps out of the list."""
        return {"line that begins with #": self._num_comments} if self._num_comments else {}

    def key(self, i: int) -> str:
        """The path as the list has it, without `./`, `//` and `..` in it, and with `/`."""
        path = self._paths[i]
        if len(path) > MAX_PATH_LENGTH:
            digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
            path = f"{path[:60]}...{digest[:16]}"
        return key_of(_normal(self.root, path).replace("\0", "\\x00"))

    def older_key(self, i: int) -> str:
        """The key by which an earlier version knew the item."""
        return printable(self._paths[i].replace(os.sep, "/"))

    def read(self, i: int) -> bytes:
        """The file's bytes; InputError for a line that names none."""
        path = self._paths[i]
        if _ADDRESS.match(path):
            raise InputError(
                f"{self.key(i)} is an address, not a file; download it and list the file."
            )
        if "\0" in path or len(path) > MAX_PATH_LENGTH:
            raise InputError(
                f"{self.key(i)} cannot be the path of a file; see its line in {self.name}."
            )
        return read_file(self.file(i), limits=self.limits)

    def metadata(self, i: int) -> Metadata:
        """The folder it lies in as `folder`, where it has one."""
        parent = self.key(i).rpartition("/")[0]
        return {"folder": parent} if parent else {}

    def file(self, i: int, /) -> Path:
        """The image's own file."""
        return self.root / _in_any_form(self.root, self._paths[i])


def open_list(file: Path, *, limits: ImageLimits) -> ListedFiles:
    """Open a list of paths: a line each, or the column of a table (.csv, .tsv) that is called
    `path`, `file`, `image` or alike.

    InputError for a list without paths, one that is no text, one that lists a path twice, and a
    table without such a column.
    """
    text = _read_text(file)
    rows = _table_rows(file, text) if file.suffix.lower() in TABLE_SUFFIXES else _lines(file, text)
    paths: list[str] = []
    line_of: dict[str, int] = {}
    num_comments = 0
    root = str(file.parent.absolute())
    for line, path in rows:
        if path.startswith("#") and not _exists(file.parent, path):
            num_comments += is_image(path)
            continue
        place = _normal(file.parent, path)
        place = place if _ADDRESS.match(path) else os.path.join(root, place)  # noqa: PTH118  a Path would drop a last space
        if (first := line_of.setdefault(place, line)) != line:
            raise InputError(
                f"{printable(str(file))} lists {printable(path)} twice, in lines {first:,} and"
                f" {line:,}; remove one of them."
            )
        paths.append(path)
    if not paths:
        raise InputError(f"{printable(str(file))} lists no images; write one path a line.")
    return ListedFiles(file, paths, num_comments=num_comments, limits=limits)


def _read_text(file: Path) -> str:
    """The list as text; in UTF-8, bytes that are none stand for themselves, as in file names.
    InputError for anything else."""
    shown = printable(str(file))
    try:
        num_bytes = file.stat().st_size
        if num_bytes > MAX_LIST_BYTES:
            raise InputError(
                f"{shown} has {counted(num_bytes, 'byte')}, which is too long for a list; split it."
            )
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {error.strerror}.") from error
    mark, encoding = next(
        ((mark, name) for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), (b"", "")
    )
    data = data[len(mark) :]
    if not encoding:
        encoding = _without_mark(data)
        kind = what_is(data) if encoding == "utf-8" else None
        if kind is not None and (kind in OTHER_TEXTS or b"\0" in data[:NUM_BYTES].strip(b"\0")):
            raise InputError(
                kind.sentence(shown, otherwise="a list is a text file with one path a line")
            )
    try:
        return data.decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown} begins like a text in {encoding.upper()} and is none; save it as UTF-8."
        ) from error


def _without_mark(data: bytes) -> str:
    """UTF-16 when every other byte of the first characters is zero, as in a Latin text; else UTF-8."""
    head = data[:64]
    if len(head) >= 4 and len(data) % 2 == 0:
        for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            if not any(head[first::2]) and all(head[1 - first :: 2]):
                return name
    return "utf-8"


def _lines(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """(line, path) of each line that is not empty, as it is meant."""
    root = file.parent
    # Not splitlines(), which also cuts at characters that names may hold.
    lines = text.split("\n")
    if "\0" in text and (len(lines) == 1 or text.endswith("\0")):  # find -print0
        lines = text.split("\0")
    elif len(lines) == 1 and "\r" in text and not _exists(root, text):
        lines = text.split("\r")
    if lines and not lines[-1]:
        lines.pop()
    if all(line.endswith("\r") for line in lines[:-1]) and len(lines) > 1:  # written on Windows
        lines = [line.removesuffix("\r") for line in lines]
    for number, line in enumerate(lines, 1):
        if path := _meant(root, line):
            yield number, path


def _table_rows(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """(line, path) of each row of a table. InputError when no column holds paths."""
    shown = printable(str(file))
    head = text.lstrip().partition("\n")[0]
    delimiter = "\t" if "\t" in head else max(",;|", key=head.count)
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        rows = [(table.line_num, row) for row in table if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise InputError(
            f"{shown} is not a table that can be read: {error} in line {table.line_num:,}."
        ) from error
    if not rows:
        return iter(())
    names = [cell.strip().casefold() for cell in rows[0][1]]
    column = next((names.index(name) for name in PATH_COLUMNS if name in names), None)
    if column is not None:
        rows = rows[1:]
    elif is_image(rows[0][1][0].strip()) or len(names) == 1:
        column = 0
    else:
        raise InputError(
            f"{shown} has {counted(len(names), 'column')} and none of images among"
            f" {', '.join(printable(name) for name in names[:20])}; call the one that holds their"
            " paths `path`."
        )
    return _cells(file.parent, rows, column)


def _cells(
    root: Path, rows: Iterable[tuple[int, list[str]]], column: int
) -> Iterator[tuple[int, str]]:
    for line, row in rows:
        if len(row) > column and (path := _meant(root, row[column])):
            yield line, path


def _meant(root: Path, line: str) -> str:
    """The path that a line stands for, empty for an empty line: the line itself where such a file
    exists."""
    bare = line.strip()
    quoted = len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'"
    raw = not bare.isascii() and _RAW_BYTE.search(bare) is not None
    if line == bare and not (quoted or raw or "\\" in bare or bare.startswith("file:")):
        return bare
    if line != bare and _exists(root, line):
        return line
    if _exists(root, bare) or bare.startswith("#"):
        return bare
    if quoted:
        bare = bare[1:-1]
        if _exists(root, bare):
            return bare
    if bare.startswith("file:"):
        return unquote(urlsplit(bare).path, errors="surrogateescape") or bare
    if "\\" in bare and _exists(root, slashed := bare.replace("\\", "/")):
        return slashed
    # as Windows writes such lists
    if raw and _exists(root, western := os.fsencode(bare).decode("cp1252", "replace")):
        return western
    return bare


def _normal(root: Path, path: str) -> str:
    """The path without `.`, `//` and `..` in it; `..` stays where it does not lead back, after a
    link to a folder."""
    if _ADDRESS.match(path) or "\0" in path:  # no file has such a name
        return path
    normal = os.path.normpath(path)
    normal = "/" + normal.lstrip("/") if normal.startswith("//") else normal
    if "/../" in path and not path.startswith("../"):
        ways = [os.path.realpath(os.path.join(root, way)) for way in (path, normal)]  # noqa: PTH118  as above
        if ways[0] != ways[1]:
            return path
    return normal


def _in_any_form(root: Path, path: str) -> str:
    """The path, or the same in the Unicode form that its file has, when that is another one."""
    if path.isascii() or _exists(root, path):
        return path
    forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    return next((form for form in forms if _exists(root, form)), path)


def _exists(root: Path, path: str) -> bool:
    return os.path.lexists(os.path.join(root, path))  # noqa: PTH118  a Path would cost more than the look-up
