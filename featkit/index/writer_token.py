"""The writer's token: which opening of an index may write, stored in the catalogue itself.

The lock file (featkit/lock.py) keeps writers apart wherever the file system's locks work. On some
file systems they do nothing (NFS mounted with local locks, some FUSE), and a lock file can be
deleted by hand. So whoever opens an index for writing stores a random token in the settings, and
every write transaction checks, under SQLite's own write lock, that the token is still its own. A
second opening is refused if the first one's process is known to be alive on this machine.
Otherwise it takes over, and the first one is refused at its next transaction. Either way, nothing
committed is overwritten.

This relies on SQLite's locks (fcntl, LockFileEx). Where those do nothing either, no SQLite file is
safe with two writers.
"""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from sqlite3 import Connection
from typing import Any

from featkit.errors import EnvironmentProblem
from featkit.lock import describe, who_am_i

SETTING = "writer"
FORMAT = 3  # of the catalogue, the latest that this version writes

# Tokens of this process. A stored token with our pid that is missing here was left by an opening
# that failed to remove it, or by an earlier process with the same pid.
_own_tokens: set[str] = set()


def take(connection: Connection, folder: Path) -> str:
    """Store a new token within a write transaction, and return it.

    EnvironmentProblem if the process of the stored token is alive on this machine.
    """
    text = _stored(connection)
    if text is not None and is_alive(text):
        raise EnvironmentProblem(
            f"{folder} is being written by {describe(text)}; wait for it to finish, or stop it."
        )
    token = secrets.token_hex(16)
    who = {"token": token, "format": FORMAT, **who_am_i(), **_process_identity(os.getpid())}
    connection.execute(
        "INSERT OR REPLACE INTO settings (name, value) VALUES (?, ?)", [SETTING, json.dumps(who)]
    )
    _own_tokens.add(token)
    return token


def refuse_older(connection: Connection, folder: Path) -> None:
    """Make sure, within a write transaction, that no version writes that knows no row map.

    EnvironmentProblem if one is alive; a token of another one is removed, so that its next
    transaction is refused.
    """
    text = _stored(connection)
    who = _parsed(text)
    if text is None or (who is not None and who.get("format") == FORMAT):
        return
    if is_alive(text):
        raise EnvironmentProblem(
            f"{folder} is being written by an earlier version of featkit, {describe(text)}; wait"
            " for it to finish, or stop it."
        )
    connection.execute("DELETE FROM settings WHERE name = ?", [SETTING])


def check(connection: Connection, token: str, folder: Path) -> None:
    """Raise EnvironmentProblem, naming the other writer, unless the token is the stored one.

    Called within a write transaction.
    """
    text = _stored(connection)
    if _token_of(text) != token:
        other = describe(text or "")
        raise EnvironmentProblem(
            f"{folder} was opened for writing by {other} after this process opened it. Earlier"
            " commits are kept, but this change is not; open the index again to continue writing."
        )


def drop(connection: Connection, token: str) -> None:
    """Remove the token if it is the stored one, within a write transaction."""
    if _token_of(_stored(connection)) == token:
        connection.execute("DELETE FROM settings WHERE name = ?", [SETTING])


def forget(token: str) -> None:
    """Note that this process no longer writes with the token, even if it is still stored."""
    _own_tokens.discard(token)


def is_alive(text: str) -> bool:
    """Return whether the process that stored this text is known to be running.

    False for a process of another machine or container.
    """
    who = _parsed(text)
    if who is None or type(who.get("pid")) is not int:
        return False
    if who["pid"] == os.getpid() and who.get("token") not in _own_tokens:
        return False
    identity = _process_identity(who["pid"])
    return bool(identity) and all(who.get(name) == value for name, value in identity.items())


def _stored(connection: Connection) -> str | None:
    row = connection.execute("SELECT value FROM settings WHERE name = ?", [SETTING]).fetchone()
    return None if row is None else str(row[0])


def _token_of(text: str | None) -> str | None:
    who = _parsed(text)
    return who.get("token") if who else None


def _parsed(text: str | None) -> dict[str, Any] | None:
    try:
        who = json.loads(text or "")
    except ValueError:
        return None
    return who if isinstance(who, dict) else None


def _process_identity(pid: int) -> dict[str, str]:
    """Return what distinguishes a process from all others, past and future.

    On Linux: the id of this boot, the pid namespace, and the start time in clock ticks. Empty on
    other systems, or if there is no such process.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip(),
            "namespace": str(Path("/proc/self/ns/pid").readlink()),
            # the command that precedes it may contain blanks and parentheses
            "started": stat.rpartition(")")[2].split()[19],
        }
    except (OSError, IndexError):
        return {}
