"""Every error that a user can cause, and the exit code each one ends the command with.

    FeatkitError           1    something of featkit's that a user can act on
    ├── InputError         2    a file, value or option is not what it has to be
    ├── EnvironmentProblem 3    the machine lacks something: space, permission, a package, a port
    ├── StrictFailure      4    a batch had failures and --strict was asked for
    └── Interrupted      130    Ctrl-C, at a committed state

A message is one sentence with the file, the value found, the value wanted and the next step. It is
one line of text that can be printed anywhere, whatever the names in it hold.
"""

from __future__ import annotations

from typing import ClassVar

from featkit.wording import on_one_line


class FeatkitError(Exception):
    """Root of all that featkit raises on purpose; `exit_code` is what a command ends with."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(
            *(on_one_line(each) if isinstance(each, str) else each for each in arguments)
        )


class InputError(FeatkitError):
    """A file, value or option is not what it has to be."""

    exit_code: ClassVar[int] = 2


class EnvironmentProblem(FeatkitError):
    """The machine lacks something: space, permission, a package, a port."""

    exit_code: ClassVar[int] = 3


class StrictFailure(FeatkitError):
    """A batch finished with failures and strictness was asked for."""

    exit_code: ClassVar[int] = 4


class Interrupted(FeatkitError):
    """Ctrl-C; what was committed stays, and the message says how to go on."""

    exit_code: ClassVar[int] = 130
