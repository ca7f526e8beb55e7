"""The text of a Python file that counts as prose."""

from __future__ import annotations

from textwrap import dedent

from tests.prose import Passage, passages, sentences

SOURCE = dedent('''
    """What the file holds.

    Two lines. Second sentence here.
    """

    # Why the next line
    # is as it is.
    width = 3  # in pixels
    # noqa: E501
    message = f"{width:>{width}} pixels are" " too few."
''').lstrip()


def test_passages_are_docstrings_comments_and_strings() -> None:
    assert passages(SOURCE) == [
        Passage(1, "docstring", "What the file holds.\n\nTwo lines. Second sentence here.\n"),
        Passage(6, "comment", "Why the next line\nis as it is."),
        Passage(8, "comment", "in pixels"),
        Passage(10, "string", "{} pixels are too few."),
    ]


def test_sentences_skip_indented_blocks() -> None:
    text = (
        "Return the mean of it.\n\n        total = a + b and c\n\n    It is in nats. It adds up.\n"
    )
    passage = Passage(7, "docstring", text)

    assert [sentence for _, sentence in sentences(passage)] == [
        "Return the mean of it.",
        "It is in nats.",
        "It adds up.",
    ]


def test_a_sentence_has_the_line_where_its_paragraph_begins() -> None:
    [first, *_, last] = [drawn for passage in passages(SOURCE) for drawn in sentences(passage)]

    assert first == (1, "What the file holds.")
    assert last == (10, "{} pixels are too few.")
