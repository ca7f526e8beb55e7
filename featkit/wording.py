"""Words that messages share."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

# Control characters, line separators, marks that change the direction of text, and surrogates,
# which cannot be encoded.
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a count with its noun: "1 image", "2 images", "1,234 images". plural: the noun with an
    s by default."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """Return seconds in the unit a person would use."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 120 * 60 else f"{seconds / 3600:.1f} h"


def typed(path: str | Path) -> str:
    """Return a path as it is typed in a shell, for a command in a message: quoted if it has spaces
    or special characters."""
    text = str(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def on_one_line(text: str) -> str:
    """Return the text with every character escaped that would end the line, move the cursor, or
    cannot be encoded.

    Names of files and members can contain anything: a line feed becomes `\\n`, and the byte E9 in a
    name that is not UTF-8 becomes `\\xe9`.
    """
    return _UNPRINTABLE.sub(lambda match: _escaped(match[0]), text)


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that os.fsdecode could not decode
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def first_line(error: BaseException, *, most: int | None = None) -> str:
    """Return the first line of an exception's message without its final period, to end a sentence
    with; the name of its class if it has no message.

    most: cut the line after this many characters.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:most].rstrip(".: ")


def one_line(error: BaseException, *, most: int | None = None) -> str:
    """Return the whole message of an exception on one line without its final period, to end a
    sentence with; the name of its class if it has no message.

    most: cut the message after this many characters.
    """
    return " ".join(str(error).split())[:most].rstrip(". ") or type(error).__name__
