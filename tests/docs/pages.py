"""The commands and programs on the pages of the documentation."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.commands import REPOSITORY

DOCS = REPOSITORY / "docs"
README = REPOSITORY / "README.md"
PAGES = sorted([*DOCS.rglob("*.md"), README, REPOSITORY / "CONTRIBUTING.md"])
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A fenced block: `console` is run by the tests, `sh` needs a network, a GPU or a browser."""

    kind: str
    text: str


def blocks(page: Path, *kinds: str) -> list[Block]:
    """The blocks of these kinds on a page, in order."""
    found = [Block(*each) for each in BLOCK.findall(page.read_text(encoding="utf-8"))]
    return [block for block in found if block.kind in kinds]


def command_lines(block: Block) -> Iterator[tuple[str, str]]:
    """Return the command lines of a block with their output, which an sh block leaves empty."""
    text = block.text.replace("\\\n", " ")
    if block.kind == "console":
        yield from re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", text, flags=re.MULTILINE)
    else:
        yield from ((line, "") for line in text.splitlines() if line.strip())


def featkit_arguments(line: str) -> list[str] | None:
    """Return featkit's arguments in a shell line, also after torchrun; None for other programs."""
    words = shlex.split(line, comments=True)
    ends = [i for i, word in enumerate(words) if word in ("|", "&&", ";") or word.startswith(">")]
    words = words[: min(ends, default=len(words))]
    if not words or "featkit" not in words or words[0] not in ("featkit", "torchrun"):
        return None
    return words[words.index("featkit") + 1 :]


def name_of(page: Path) -> str:
    """A page's path in the repository."""
    return page.relative_to(REPOSITORY).as_posix()


def shape(text: str) -> Sequence[str]:
    """Return printed lines without numbers, hashes, image names and spacing, which differ."""
    text = re.sub(r"\S+\.jpe?g|\w+=\S+/\S+|[0-9a-f]{12,}", "#", text)
    lines = (
        re.sub(r"[\d#][\d.,:e#×–%-]*", "#", " ".join(line.split())) for line in text.splitlines()
    )
    return [line for line in lines if line]
