"""Keys are valid text, and different for different names."""

from __future__ import annotations

import hashlib
import itertools
import os
import unicodedata
from pathlib import Path
from typing import Literal

from hypothesis import given
from hypothesis import strategies as st

from featkit.sources import open_source
from featkit.sources.base import has_keys, keys_sha256
from featkit.sources.keys import key_of, other_spellings, twins
from tests.featkit.sources.files import contents, keys, write_files

FORMS: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
_names = st.lists(
    st.sampled_from([b"\\", b"x", b"e9", b"\xe9", b"a", "é".encode(), b"ud83d", b"/", b".jpg"]),
    max_size=7,
)


@given(_names, _names)
def test_different_names_have_different_keys(one: list[bytes], other: list[bytes]) -> None:
    names = [b"".join(parts) for parts in (one, other)]
    found = [key_of(os.fsdecode(name)) for name in names]
    assert (found[0] == found[1]) == (names[0] == names[1])
    assert all(key.encode() for key in found if key)


def test_escaped_byte_and_its_text_have_different_keys(tmp_path: Path) -> None:
    write_files(
        tmp_path,
        os.fsdecode(b"caf\xe9.jpg"),
        "caf\\xe9.jpg",
        "caf\\\\xe9.jpg",
        "café.jpg",
        "C\\xmas.jpg",
    )
    source = open_source(tmp_path)
    assert sorted(keys(source)) == sorted(
        ["caf\\xe9.jpg", "caf\\\\xe9.jpg", "caf\\\\\\\\xe9.jpg", "café.jpg", "C\\xmas.jpg"]
    )
    by_key = dict(zip(keys(source), contents(source), strict=True))
    assert (by_key["caf\\xe9.jpg"], by_key["caf\\\\xe9.jpg"]) == (b"caf\xe9.jpg", b"caf\\xe9.jpg")


def test_names_in_two_unicode_forms_are_two_items(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    assert sorted(keys(open_source(write_files(tmp_path, *names)))) == sorted(names)


def test_other_spellings_vary_unicode_forms_and_a_leading_dot() -> None:
    forms = [
        (unicodedata.normalize("NFC", part), unicodedata.normalize("NFD", part))
        for part in ("é", "ü.jpg")
    ]
    every = {"/".join(parts) for parts in itertools.product(*forms)}
    for key in every:
        spelled = other_spellings(key)
        assert set(spelled) == (every | {f"./{path}" for path in every}) - {key}
        assert len(spelled) == len(set(spelled))
    assert other_spellings("./a.jpg") == ["a.jpg"]
    assert other_spellings("/a.jpg") == []
    assert len(other_spellings("é/" * 40)) < 200


def test_keys_of_an_earlier_version_are_recognized(tmp_path: Path) -> None:
    write_files(tmp_path / "photos", "a.jpg", "b.jpg")
    (tmp_path / "list.txt").write_text("./photos/a.jpg\nphotos//b.jpg\n")
    source = open_source(tmp_path / "list.txt")
    older = hashlib.sha256(b"./photos/a.jpg\0photos//b.jpg\0").hexdigest()
    assert has_keys(source, older)
    assert has_keys(source, keys_sha256(source))
    assert not has_keys(source, keys_sha256(open_source(tmp_path / "photos")))


def test_twins_are_spellings_of_one_name() -> None:
    composed, decomposed = (unicodedata.normalize(form, "é.jpg") for form in FORMS)
    every = [composed, "a.jpg", decomposed, "b.jpg", "./b.jpg", "c.jpg", "c.jpg"]
    assert twins(lambda: every) == {composed, decomposed, "b.jpg", "./b.jpg"}
    assert twins(list) == set()
