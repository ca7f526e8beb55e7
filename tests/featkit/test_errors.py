"""Errors: their exit codes, and messages that are always one printable line."""

from __future__ import annotations

import pytest

from featkit.errors import (
    EnvironmentProblem,
    FeatkitError,
    InputError,
    Interrupted,
    StrictFailure,
)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (FeatkitError, 1),
        (InputError, 2),
        (EnvironmentProblem, 3),
        (StrictFailure, 4),
        (Interrupted, 130),
    ],
)
def test_each_error_has_its_exit_code(kind: type[FeatkitError], code: int) -> None:
    assert kind("message").exit_code == code
    assert issubclass(kind, FeatkitError)


def test_message_is_one_printable_line() -> None:
    assert str(InputError("caf\udce9.jpg\nis broken\x1b.")) == "caf\\xe9.jpg\\nis broken\\x1b."


def test_arguments_that_are_not_text_are_kept() -> None:
    assert InputError("a\nb", 3).args == ("a\\nb", 3)
