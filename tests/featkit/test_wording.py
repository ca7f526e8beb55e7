"""Words that messages share."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from featkit.wording import counted, first_line, on_one_line, one_line, typed


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 images"),
        (1, "1 image"),
        (2, "2 images"),
        (1234, "1,234 images"),
        (-1, "-1 images"),
    ],
)
def test_count_is_followed_by_its_noun(count: int, words: str) -> None:
    assert counted(count, "image") == words


def test_plural_can_be_given() -> None:
    assert (counted(1, "category", "categories"), counted(3, "category", "categories")) == (
        "1 category",
        "3 categories",
    )


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("a/b.c", "a/b.c"),
        ("my photos/e", "'my photos/e'"),
        ("[2024]", "'[2024]'"),
        ("-e", "./-e"),
        ("it's", "'it'\"'\"'s'"),
    ],
)
def test_path_in_a_command_is_quoted_for_a_shell(path: str, words: str) -> None:
    assert typed(path) == typed(Path(path)) == words
    assert shlex.split(typed(path))[0].removeprefix("./") == path


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain é 日本", "plain é 日本"),
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31m\x00\x9b", r"\x1b[31m\x00\x9b"),
        ("caf\udce9.jpg", r"caf\xe9.jpg"),
        ("\ud83d\u2028\u202e", r"\ud83d\u2028\u202e"),
    ],
)
def test_text_on_one_line_can_be_printed(text: str, line: str) -> None:
    assert on_one_line(text) == line
    on_one_line(text).encode("utf-8")


@pytest.mark.parametrize(
    ("message", "first", "whole"),
    [
        ("no such file", "no such file", "no such file"),
        ("It failed.\n  at line 3.\n", "It failed", "It failed. at line 3"),
        ("two:\n\tlines", "two", "two: lines"),
        ("", "ValueError", "ValueError"),
        (" \n", "ValueError", "ValueError"),
    ],
)
def test_message_of_an_error_fits_into_a_sentence(message: str, first: str, whole: str) -> None:
    assert first_line(ValueError(message)) == first
    assert one_line(ValueError(message)) == whole


def test_message_of_an_error_can_be_cut() -> None:
    assert first_line(ValueError("a b. c\nd"), most=4) == "a b"
    assert one_line(ValueError("a b\nc d"), most=5) == "a b c"
