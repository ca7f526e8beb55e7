"""The README is true: its commands run on real photographs, and what they print differs from the
page in numbers only."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import REPOSITORY
from tests.data import needs_shared_data, shared_data

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[tuple[str, str]]:
    """(command line, what the page says it prints) of the console blocks."""
    text = "".join(block for kind, block in BLOCKS if kind == "console")
    return [
        (command, shown)
        for command, shown in re.findall(
            r"^\$ (featkit .*)\n((?:(?!\$ ).*\n)*)", text, flags=re.MULTILINE
        )
    ]


def shape(text: str) -> list[str]:
    """Lines without their numbers, hashes and spacing; which images are nearest is a number too,
    in this respect."""
    text = re.sub(r"n\d{8}_\w+\.jpg|[0-9a-f]{12}", "#", text)
    lines = (
        re.sub(r"[\d#][\d.,:e#×–-]*", "#", " ".join(line.split())) for line in text.splitlines()
    )
    return [line for line in lines if line]


def test_the_readme_shows_the_five_commands_in_order() -> None:
    assert [command.split()[1] for command, _ in commands()] == [
        "train",
        "export",
        "embed",
        "index",
        "search",
    ]
    assert all(shown.strip() for _, shown in commands())


def test_every_file_the_readme_names_is_there() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@needs_shared_data
def test_the_readmes_commands_print_what_it_says(tmp_path: Path) -> None:
    data = shared_data()
    assert data is not None
    (tmp_path / "images").symlink_to(data / "photos")
    shutil.copyfile(sorted((data / "photos").iterdir())[420], tmp_path / "query.jpg")
    for command, shown in commands():
        words = [sys.executable, "-m", *command.split()]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert shape(done.stdout) == shape(shown), command
    (program,) = (block for kind, block in BLOCKS if kind == "python")
    shutil.rmtree(tmp_path / "photos.index")
    ran = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert re.fullmatch(r"1\.000  n\d{8}_\w+\.jpg\n(0\.\d{3}  n\d{8}_\w+\.jpg\n){4}", ran.stdout)
