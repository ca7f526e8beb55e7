"""The built documentation is complete and loads nothing from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from featkit.cli.app import COMMANDS
from featkit_train.published.zoo import PUBLISHED
from featkit_train.settings import RECIPES

# Attributes that make a browser fetch something, by tag. An ordinary link (`a`) fetches nothing.
FETCHING = {
    "audio": "src",
    "embed": "src",
    "iframe": "src",
    "img": "src",
    "link": "href",
    "object": "data",
    "script": "src",
    "source": "src",
    "video": "src",
}
ELSEWHERE = re.compile(r"^(https?:)?//")
MAX_IMAGE_BYTES = 600_000  # of all images of the documentation together


class Fetched(HTMLParser):
    """Collect what a page makes a browser fetch from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.elsewhere: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        url = dict(attrs).get(FETCHING.get(tag, ""), None)
        if url is not None and ELSEWHERE.match(url):
            self.elsewhere.append(url)


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        parser = Fetched()
        parser.feed(page.read_text(encoding="utf-8"))
        assert parser.elsewhere == [], page


def test_no_style_or_script_loads_anything_from_elsewhere(site: Path) -> None:
    for path in [*site.rglob("*.css"), *site.rglob("*.js")]:
        text = path.read_text(encoding="utf-8")
        assert re.findall(r"@import|url\(\s*['\"]?(?:https?:)?//", text) == [], path


def test_every_command_and_option_has_its_place(site: Path) -> None:
    for _, name, _, _ in COMMANDS:
        page = (site / "reference" / "commands" / f"{name}.html").read_text(encoding="utf-8")
        assert f"<h1>featkit {name}" in page
        assert "Parameters\n" not in page
    train = (site / "reference" / "commands" / "train.html").read_text(encoding="utf-8")
    assert train.count("--batch-size") == 1, "options that all methods share stand once"


def test_every_published_model_and_recipe_is_listed(site: Path) -> None:
    models = (site / "reference" / "models.html").read_text(encoding="utf-8")
    recipes = (site / "reference" / "recipes.html").read_text(encoding="utf-8")
    assert [name for name in PUBLISHED if name not in models] == []
    assert [path.stem for path in RECIPES.glob("*.yaml") if path.stem not in recipes] == []


def test_images_of_the_documentation_are_small(site: Path) -> None:
    images = [path for path in (site / "_images").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in images) < MAX_IMAGE_BYTES
