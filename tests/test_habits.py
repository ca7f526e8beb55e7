"""The worst habits of this project's English stay out of docstrings, comments and strings.

`python -m tests.test_habits featkit/sources docs` prints every hit below the paths named. Text in
backticks is a quotation and may hold any word; so may a line that ends in the comment `# quoted`.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.commands import REPOSITORY
from tests.prose import Passage, passages, read_python

MAX_TEST_NAME = 60
QUOTED = "# quoted"
CONTEXT = 24  # characters shown before and after a hit
SUFFIXES = (".py", ".md")
ROOTS = ("featkit", "train", "export", "demo", "tests", "docs")
PAGES = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md")
NOT_OURS = ("docs/_build", "tests/benchmarks/results")


class Habit(NamedTuple):
    """A turn of phrase and what a native speaker writes."""

    pattern: re.Pattern[str]
    instead: str


def _habit(pattern: str, instead: str) -> Habit:
    # a space of the pattern may be the end of a line in the text
    return Habit(re.compile(pattern.replace(" ", r"\s+"), re.IGNORECASE), instead)


PHRASES = [
    _habit(r"(?<!there\s)\b(is|are|was|were) (?-i:none)\b", "is not a …, there is no …"),
    _habit(
        r"(?<!there\s)\b(is|are|was|were) no"
        r" (?!longer\b|one\b|(more|better|worse|faster|reason)\b)",
        "is not a …, has no …",
    ),
    _habit(r"\banew\b", "again"),
    _habit(r"\bso many\b", "the count itself, or: that many"),
    _habit(r"\bahead of\b(?! time)", "before"),
    _habit(r"\bthat (is|are|was|were) there\b", "existing"),
    _habit(r"\b(goes|go|going|went|gone) on\b", "resumes, continues"),
    _habit(r"\bbeside\b(?!\.)", "next to, besides, compared with"),
    _habit(r"\bbe (it|they) ", "whether … or …"),
    _habit(r"\bas many\b.{1,30}\bas there are\b", "one per …, all …"),
    _habit(r"\blearnt\b", "learned"),
    _habit(r"\b(tells?|told|telling)\b.{0,40}\bapart\b", "distinguishes"),
    _habit(r"\b(is|are|was|were|be|been|being) told\b", "receives, is given, reads"),
    _habit(r"\b(is|are|was|were|be|been|as|so) said\b|\bso says?\b", "is reported, is logged"),
    _habit(r"\bwhere there (is|are)\b", "if there is, when there are"),
    _habit(
        r"\b(numbers?|bytes|seconds|ms|values|crops|images) an? (picture|image|photo|crop|step)\b",
        "… per image; for vectors: dimensions",
    ),
    _habit(r"\bmeanwhile the\b|\bwithal\b|\bwherefore\b|\bthereof\b|\btherein\b", "plain words"),
]
FRAGMENT = Habit(
    re.compile(r"(Of|With|In place of|Instead of|Whether|What|Where|Who|That|So|As) "),
    "an imperative verb (Return whether …) or a plain noun phrase",
)
BRITISH = Habit(
    re.compile(
        r"(normali|quanti|tokeni|initiali|optimi|seriali|summari|generali)s(e|ing|ation)(?!s?[d-z])"
        r"|colour|licence|centre(?!d)|neighbour|behaviour|(?<![a-z])grey",  # quoted
        re.IGNORECASE,
    ),
    "American spelling: normalize, color, quantize, license, center, gray",
)


class Hit(NamedTuple):
    """One line to rewrite."""

    path: str
    line: int
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.text}  → {self.instead}"


def hits(path: Path) -> list[Hit]:
    """Return every hit in one file, in the order of its lines."""
    source = read_python(path)
    name = _name_of(path)
    pairs = _in_python(source) if path.suffix == ".py" else _in_passages([_page(source)])
    lines = source.split("\n")
    return [
        Hit(name, line, text, instead)
        for line, text, instead in sorted(pairs)
        if not lines[line - 1].endswith(QUOTED)
    ]


def _in_python(source: str) -> Iterator[tuple[int, str, str]]:
    yield from _in_passages(passages(source))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            if BRITISH.pattern.search(token.string):
                yield token.start[0], token.string, BRITISH.instead
            if token.string.startswith("test_") and len(token.string) > MAX_TEST_NAME:
                yield token.start[0], token.string, f"a claim of at most {MAX_TEST_NAME} characters"


def _in_passages(texts: Iterable[Passage]) -> Iterator[tuple[int, str, str]]:
    for first_line, kind, text in texts:
        prose = _without_quotations(text)
        if kind == "docstring" and (match := FRAGMENT.pattern.match(prose)):
            yield first_line, f"a docstring begins with {match[1]!r}", FRAGMENT.instead
        for pattern, instead in PHRASES:
            for match in pattern.finditer(prose):
                line = first_line + prose.count("\n", 0, match.start())
                around = prose[max(0, match.start() - CONTEXT) : match.end() + CONTEXT]
                yield line, f"“… {' '.join(around.split())} …”", instead


def _page(text: str) -> Passage:
    without_code = re.sub(
        r"^```.*?^```",
        lambda block: "\n" * block[0].count("\n"),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    return Passage(1, "comment", without_code)


def _without_quotations(text: str) -> str:
    """Blank what stands in backticks; newlines stay, so lines keep their numbers."""
    blank = re.compile(r"`[^`\n]+(\n[^`\n]+)?`")
    return blank.sub(lambda quotation: "`" + "\n" * quotation[0].count("\n") + "`", text)


def _files(below: Iterable[Path]) -> Iterator[Path]:
    for root in below:
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            is_ours = not _name_of(path).startswith(NOT_OURS)
            if path.suffix in SUFFIXES and path.is_file() and is_ours:
                yield path


def _name_of(path: Path) -> str:
    below = path.is_relative_to(REPOSITORY)
    return (path.relative_to(REPOSITORY) if below else path).as_posix()


def test_no_bad_habits_are_left() -> None:
    roots = [REPOSITORY / name for name in (*ROOTS, *PAGES)]
    found = [hit for path in _files(root for root in roots if root.exists()) for hit in hits(path)]

    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize(
    ("source", "num_hits"),
    [
        ('"""Whether it is so."""', 1),
        ('"""Return whether it is so."""', 0),
        ("# it is none of them, and goes on anew", 3),  # quoted
        ("# there is no such file; it is no longer read", 0),
        ("# a quotation of `so many` is fine", 0),
        ("x = 'so many'  # quoted", 0),  # quoted
        ("colour = 1", 1),  # quoted
        ("# longer than one\n# line and that is\n# there", 1),
    ],
)
def test_hits_are_counted(source: str, num_hits: int, tmp_path: Path) -> None:
    path = tmp_path / "source.py"
    path.write_text(source + "\n", encoding="utf-8")

    assert len(hits(path)) == num_hits


if __name__ == "__main__":
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or [
        REPOSITORY / name for name in (*ROOTS, *PAGES)
    ]
    shown = [hit for path in _files(chosen) for hit in hits(path)]
    print(*shown, f"{len(shown)} hits", sep="\n")
