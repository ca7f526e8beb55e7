"""Images by a list of paths: a text file with one path per line, or a column of a CSV file.

Many tools write lists. A line is first taken literally, if such a file exists. Otherwise it is read
as it is probably meant: without spaces and quotes around it, with `#` for a comment, and `\\`
between folders. Only ambiguous lines are looked up, so that a long list on a slow disk opens at
once.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import unicodedata
from collections.abc import Iterator, Mapping
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
    "path file filename file_name filepath file_path image image_path img img_path picture photo"
).split()
MAX_LIST_BYTES = 2**30
# No path looks like the beginning of one of these.
OTHER_TEXTS = (GIT_LFS_POINTER, HTML, JSON, PDF, SVG, XML, XML_ERROR)
BYTE_ORDER_MARKS = (
    (b"\xef\xbb\xbf", "utf-8"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
MAX_PATH_LENGTH = 4096  # the limit of Linux; no system has a higher one
# A single letter before the colon would be a Windows drive.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|data:")
_RAW_BYTE = re.compile("[\udc80-\udcff]")


class ListedFiles:
    """Files in the order of a list, relative to the list's folder; each key is the path in the
    list.

    A line that does not name a file is an item whose `read` raises.
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
        """The number of images that a `#` excludes from the list."""
        return {"line that begins with #": self._num_comments} if self._num_comments else {}

    def key(self, item: int, /) -> str:
        """Return the path in the list with `/`, and without `./`, `//` and `..`."""
        path = self._paths[item]
        if len(path) > MAX_PATH_LENGTH:
            digest = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
            path = f"{path[:60]}...{digest[:16]}"
        return key_of(_normal(self.root, path).replace("\0", "\\x00"))

    def older_key(self, item: int) -> str:
        """Return the key that an earlier version gave the item."""
        return printable(self._paths[item].replace(os.sep, "/"))

    def read(self, item: int, /) -> bytes:
        """Return the file's bytes. InputError for a line that does not name a file."""
        path = self._paths[item]
        if _ADDRESS.match(path):
            raise InputError(
                f"{self.key(item)} is an address, not a file; download it and list the file."
            )
        if "\0" in path or len(path) > MAX_PATH_LENGTH:
            raise InputError(
                f"{self.key(item)} cannot be the path of a file; see its line in {self.name}."
            )
        return read_file(self.file(item), limits=self.limits)

    def metadata(self, item: int, /) -> Metadata:
        """Return the path of the image's folder as `folder`, if the key has one."""
        parent = self.key(item).rpartition("/")[0]
        return {"folder": parent} if parent else {}

    def file(self, item: int, /) -> Path:
        """Return the image's own file."""
        return self.root / _in_any_form(self.root, self._paths[item])


def open_list(file: Path, *, limits: ImageLimits) -> ListedFiles:
    """Open a list of paths: one per line, or in the column `path`, `file`, `image` or similar of a
    table (.csv, .tsv).

    InputError if the list has no paths, is not text, lists a path twice, or is a table without such
    a column.
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
        absolute = _normal(file.parent, path)
        if not _ADDRESS.match(path):
            absolute = os.path.join(root, absolute)  # noqa: PTH118  a Path would drop a last space
        if (first := line_of.setdefault(absolute, line)) != line:
            raise InputError(
                f"{printable(str(file))} lists {printable(path)} twice, in lines {first:,} and"
                f" {line:,}; remove one of them."
            )
        paths.append(path)
    if not paths:
        raise InputError(f"{printable(str(file))} lists no images; write one path per line.")
    return ListedFiles(file, paths, num_comments=num_comments, limits=limits)


def _read_text(file: Path) -> str:
    """Return the text of a list. Bytes that are not UTF-8 become surrogates, as in file names.
    InputError for a file that is not text."""
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
        encoding = _encoding_without_mark(data)
        kind = what_is(data) if encoding == "utf-8" else None
        if kind is not None and (kind in OTHER_TEXTS or b"\0" in data[:NUM_BYTES].strip(b"\0")):
            raise InputError(
                kind.sentence(shown, otherwise="a list is a text file with one path per line")
            )
    try:
        return data.decode(encoding, "surrogateescape" if encoding == "utf-8" else "strict")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{shown} begins like text in {encoding.upper()}, but not all of it is; save it as"
            " UTF-8."
        ) from error


def _encoding_without_mark(data: bytes) -> str:
    """Guess UTF-16 if every other byte of the first characters is zero, as in Latin text; otherwise
    UTF-8."""
    head = data[:64]
    if len(head) >= 4 and len(data) % 2 == 0:
        for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):
            if not any(head[first::2]) and all(head[1 - first :: 2]):
                return name
    return "utf-8"


def _lines(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and path of each line that is not empty."""
    root = file.parent
    for line_number, line in enumerate(_split(root, text), 1):
        if path := _meant(root, line):
            yield line_number, path


def _split(root: Path, text: str) -> list[str]:
    """Return the lines of a list, with any line ending: LF, CR LF, CR, or the zero byte of
    `find -print0`."""
    # Not splitlines(), which also splits at characters that file names may contain.
    lines = text.split("\n")
    if "\0" in text and (len(lines) == 1 or text.endswith("\0")):
        lines = text.split("\0")
    elif len(lines) == 1 and "\r" in text and not _exists(root, text):
        lines = text.split("\r")
    if lines and not lines[-1]:
        lines.pop()
    return _without_returns(lines)


def _without_returns(lines: list[str]) -> list[str]:
    """Return the lines without CR if all of them end with one, as in lists from Windows: a single
    CR may be part of a name."""
    if len(lines) > 1 and all(line.endswith("\r") for line in lines[:-1]):
        return [line.removesuffix("\r") for line in lines]
    return lines


def _table_rows(file: Path, text: str) -> Iterator[tuple[int, str]]:
    """Yield line number and path of each row of a table. InputError if no column holds paths."""
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
        return
    column, has_names = _path_column(shown, rows[0][1])
    for line_number, row in rows[has_names:]:
        if len(row) > column and (path := _meant(file.parent, row[column])):
            yield line_number, path


def _path_column(shown: str, first_row: list[str]) -> tuple[int, bool]:
    """Return the index of the path column, and whether the first row is a header. InputError if
    there is no such column."""
    names = [cell.strip().casefold() for cell in first_row]
    for name in PATH_COLUMNS:
        if name in names:
            return names.index(name), True
    if is_image(first_row[0].strip()) or len(names) == 1:
        return 0, False
    raise InputError(
        f"{shown} has {counted(len(names), 'column')}, and none has a known name for image paths:"
        f" {', '.join(printable(name) for name in names[:20])}; rename the one with the paths to"
        " `path`."
    )


def _meant(root: Path, line: str) -> str:
    """Return the path that a line stands for: the line itself if such a file exists; "" for an
    empty line."""
    bare = line.strip()
    if line == bare and not _is_ambiguous(bare):
        return bare
    if line != bare and _exists(root, line):
        return line
    if _exists(root, bare) or bare.startswith("#"):
        return bare
    if _is_quoted(bare):
        bare = bare[1:-1]
        if _exists(root, bare):
            return bare
    return _converted(root, bare)


def _is_ambiguous(bare: str) -> bool:
    """Return whether a line may mean a path other than its literal text."""
    return _is_quoted(bare) or _is_raw(bare) or "\\" in bare or bare.startswith("file:")


def _is_quoted(bare: str) -> bool:
    return len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "\"'"


def _is_raw(bare: str) -> bool:
    """Return whether a line has bytes that are not UTF-8."""
    return not bare.isascii() and _RAW_BYTE.search(bare) is not None


def _converted(root: Path, bare: str) -> str:
    """Return the path that an address or a line written on Windows stands for."""
    if bare.startswith("file:"):
        return unquote(urlsplit(bare).path, errors="surrogateescape") or bare
    if "\\" in bare and _exists(root, slashed := bare.replace("\\", "/")):
        return slashed
    # Windows-1252 is the usual encoding of lists that are not UTF-8.
    if _is_raw(bare) and _exists(root, western := os.fsencode(bare).decode("cp1252", "replace")):
        return western
    return bare


def _normal(root: Path, path: str) -> str:
    """Return the path without `.`, `//` and `..`; a `..` after a link to a folder stays, since it
    leads elsewhere."""
    if _ADDRESS.match(path) or "\0" in path:  # no file can have this name
        return path
    normal = os.path.normpath(path)
    normal = "/" + normal.lstrip("/") if normal.startswith("//") else normal
    if "/../" in path and not path.startswith("../"):
        with_dots, without = (
            os.path.realpath(os.path.join(root, way))  # noqa: PTH118  as above
            for way in (path, normal)
        )
        if with_dots != without:
            return path
    return normal


def _in_any_form(root: Path, path: str) -> str:
    """Return the path in the Unicode form that its file's name has."""
    if path.isascii() or _exists(root, path):
        return path
    forms = (unicodedata.normalize(form, path) for form in ("NFC", "NFD"))
    return next((form for form in forms if _exists(root, form)), path)


def _exists(root: Path, path: str) -> bool:
    # Path would cost more than the lookup itself.
    return os.path.lexists(os.path.join(root, path))  # noqa: PTH118
