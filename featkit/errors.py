"""Every error that a user can cause, and the exit code that a command ends with.

    FeatkitError           1    anything that a user can act on
    ├── InputError         2    a file, value or option is not as required
    ├── EnvironmentProblem 3    the machine lacks something: space, permission, a package, a port
    ├── StrictFailure      4    a batch finished with failures, and --strict was given
    └── Interrupted      130    Ctrl-C, with all committed work kept

A message is one sentence: what happened, to which file or value, and what to do. It is a single
line that can be printed anywhere, whatever characters the names in it contain.
"""

from __future__ import annotations

from typing import ClassVar

from featkit.wording import on_one_line


class FeatkitError(Exception):
    """Base class of all errors that featkit raises on purpose. exit_code: the command's exit
    code."""

    exit_code: ClassVar[int] = 1

    def __init__(self, *arguments: object) -> None:
        super().__init__(
            *(on_one_line(value) if isinstance(value, str) else value for value in arguments)
        )


class InputError(FeatkitError):
    """A file, value or option is not as required."""

    exit_code: ClassVar[int] = 2


class EnvironmentProblem(FeatkitError):
    """The machine lacks something: space, permission, a package, a port."""

    exit_code: ClassVar[int] = 3


class StrictFailure(FeatkitError):
    """A batch finished with failures, and --strict was given."""

    exit_code: ClassVar[int] = 4


class Interrupted(FeatkitError):
    """Ctrl-C. Committed work is kept, and the message says how to continue."""

    exit_code: ClassVar[int] = 130
