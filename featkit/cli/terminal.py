"""Print to a terminal of any encoding: characters that it cannot show are replaced, and never end a
command."""

from __future__ import annotations

import codecs
import io
import sys

from featkit.wording import on_one_line

# Replacements for characters that ASCII or a Windows code page lacks.
LOOKALIKES = str.maketrans(
    {
        "×": "x",
        "–": "-",
        "—": "-",
        "−": "-",
        "…": "...",
        "’": "'",
        "“": '"',
        "”": '"',
        "•": "*",
        "→": "->",
    }
)


def never_fail_to_print() -> None:
    """Make stdout and stderr replace or escape characters that their encoding lacks.

    Call this only in featkit's own process. If a stream passes undecodable bytes of file names
    through (`surrogateescape`), it still does.
    """
    codecs.register_error("featkit", _spell_out)
    codecs.register_error("featkit-bytes", _pass_bytes)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(
                errors="featkit-bytes" if stream.errors == "surrogateescape" else "featkit"
            )


def _spell_out(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = on_one_line(error.object[error.start : error.end]).translate(LOOKALIKES)
    return text.encode("ascii", "backslashreplace").decode("ascii"), error.end


def _pass_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    if isinstance(error, UnicodeEncodeError) and "\udc80" <= error.object[error.start] <= "\udcff":
        return bytes([ord(error.object[error.start]) - 0xDC00]), error.start + 1
    return _spell_out(error)
