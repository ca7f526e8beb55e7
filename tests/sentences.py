"""Check that a refusal is one sentence on one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from featkit.errors import FeatkitError, InputError


@contextmanager
def refused(*words: object, error: type[FeatkitError] = InputError) -> Iterator[None]:
    """Require the block to raise exactly `error`, with one sentence that contains each of
    `words`."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    assert caught.type is error
    assert "\n" not in message
    assert message.endswith(".")
    for word in words:
        assert str(word) in message
