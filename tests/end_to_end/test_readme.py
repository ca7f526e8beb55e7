"""README and CONTRIBUTING.md are true; tests/docs/test_commands.py runs the README's commands."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from featkit_train.published.zoo import PUBLISHED
from tests.commands import REPOSITORY, run_featkit

PAGES = [
    REPOSITORY / name
    for name in (
        "README.md",
        "CONTRIBUTING.md",
        "ARCHITECTURE.md",
        "train/README.md",
        "export/README.md",
        "demo/README.md",
        "featkit/models/README.md",
    )
]
HOW_TO_EXTEND = [
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs" / "extend").glob("*.md")),
]
# What these pages call a file that a contributor adds.
NEW_FILES = {"x", "x_tab", "mine", "zip", "test_zip", "dino_variance"}
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def test_readme_lists_every_method_with_its_paper() -> None:
    rows = json.loads(run_featkit("train", "--list", "--json").out)
    listed = re.findall(r"^\| `([\w-]+)` \| .*/abs/([\d.]+)\) \|$", README, flags=re.MULTILINE)
    assert [name for name, _ in listed] == [row["method"] for row in rows]
    assert all(paper in row["paper"] for (_, paper), row in zip(listed, rows, strict=True))


def test_readme_lists_every_family_with_its_license() -> None:
    table = README.partition("## Published models")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| (\w+) \| .* \| (.*) \|$", table, flags=re.MULTILINE))
    for model in PUBLISHED.values():
        (listed,) = [text for name, text in rows.items() if name.lower() == model.family]
        assert listed.startswith(model.license)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_every_file_that_a_page_links_to_exists(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [link for link in links if not link.startswith("http")]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", HOW_TO_EXTEND, ids=lambda page: page.stem)
def test_every_file_that_an_addition_touches_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:featkit|train|export|demo|tests)/[\w/.]+)`", text)
    existing = [name for name in named if Path(name).stem not in NEW_FILES]
    assert existing
    assert [name for name in existing if not (REPOSITORY / name).exists()] == []


@pytest.mark.parametrize("package", ["train", "export", "demo"])
def test_every_file_that_a_package_names_exists(package: str) -> None:
    text = (REPOSITORY / package / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert len(named) > 5
    roots = (REPOSITORY, REPOSITORY / package / f"featkit_{package}")
    assert [name for name in named if not any((root / name).exists() for root in roots)] == []
