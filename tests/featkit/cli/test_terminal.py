"""Names that a terminal cannot show are printed in part, and the command ends as usual."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

SHOW = r"""
from featkit.cli.console import print_json, print_table, stdout
from featkit.cli.terminal import never_fail_to_print
import sys
never_fail_to_print()
name = "caf\udce9 日本 320×240…"
print(name)
print(name, file=sys.stderr)
stdout().print(name)
print_table(name, ("é", ""), [(name, 1)])
print_json({"name": name})
"""
SPELLED = {
    "utf-8": "caf\\xe9 日本 320×240…",
    "ascii": "caf\\xe9 \\u65e5\\u672c 320x240...",
    "cp1252": "caf\\xe9 \\u65e5\\u672c 320×240…",
}


def show(**environment: str) -> tuple[bytes, bytes]:
    """Return the output of a process in the C locale, unless `variables` change that."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHONIO", "PYTHONUTF8"))
    }
    done = subprocess.run(
        [sys.executable, "-c", SHOW.encode("ascii", "backslashreplace").decode()],
        env={**variables, "LC_ALL": "C", **environment},
        capture_output=True,
    )
    assert (done.returncode, b"Traceback" in done.stderr) == (0, False), done.stderr.decode(
        "utf-8", "replace"
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize("encoding", SPELLED)
def test_what_an_encoding_lacks_is_spelled_out(encoding: str) -> None:
    out, error = (text.decode(encoding) for text in show(PYTHONIOENCODING=f"{encoding}:strict"))
    line, again, *table, text = out.splitlines()
    assert line == again == error.rstrip("\n") == SPELLED[encoding]
    assert len(table) == 3
    assert json.loads(text) == {"name": "caf\udce9 日本 320×240…"}


@pytest.mark.parametrize("utf8", ["0", "1"])
def test_bytes_of_names_are_passed_through_where_python_does(utf8: str) -> None:
    out, _ = show(PYTHONUTF8=utf8, PYTHONCOERCECLOCALE="0")
    line, *_, text = out.split(b"\n")[:-1]
    assert line.startswith(b"caf\xe9 ")
    assert json.loads(text.decode("utf-8")) == {"name": "caf\udce9 日本 320×240…"}
