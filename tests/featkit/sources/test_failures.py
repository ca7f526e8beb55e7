"""Items that cannot be read become rows with an error, next to other items."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from featkit.errors import InputError
from featkit.sources import Source, concatenate, open_source
from featkit.sources.failures import FailedItems
from tests.featkit.sources.files import keys, write_files

CLOSED = {"b/": "b cannot be opened: Permission denied.", "c.tar": "c.tar is empty."}


def test_each_item_raises_its_own_sentence() -> None:
    failed: Source = FailedItems("photos", CLOSED)
    assert (failed.name, keys(failed)) == ("photos", ["b/", "c.tar"])
    for number, sentence in enumerate(CLOSED.values()):
        with pytest.raises(InputError) as raised:
            failed.read(number)
        assert str(raised.value) == sentence
    assert (failed.metadata(0), failed.file(0), FailedItems("photos", CLOSED).skipped) == (
        {},
        Path("photos"),
        {},
    )
    assert FailedItems("photos", CLOSED, path=Path("b")).file(0) == Path("b")


def test_items_next_to_failed_ones_are_read(tmp_path: Path) -> None:
    source = concatenate(
        [FailedItems("photos", CLOSED), open_source(write_files(tmp_path, "a.jpg"))]
    )
    copy = pickle.loads(pickle.dumps(source))
    assert (keys(copy), copy.read(2)) == (["b/", "c.tar", "a.jpg"], b"a.jpg")
    with pytest.raises(InputError, match=r"c\.tar is empty"):
        copy.read(1)


def test_keys_and_sentences_are_valid_text() -> None:
    name = os.fsdecode(b"caf\xe9.tar")
    failed = FailedItems("photos", {name: f"{name} is empty."})
    assert keys(failed) == ["caf\\xe9.tar"]
    with pytest.raises(InputError, match=r"caf\\xe9\.tar is empty"):
        failed.read(0)
