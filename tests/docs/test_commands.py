"""The commands in the documentation are right: every command line parses, and those in
console blocks run."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from unittest.mock import patch

import pytest

from featkit.cli.app import make_app
from featkit.embedder import Embedder
from featkit.index import Index
from featkit.serve.app import make_app as make_service
from featkit_demo.gallery import draw_gallery
from featkit_train.configure import configure
from featkit_train.methods import METHODS
from featkit_train.setting_docs import list_settings
from featkit_train.settings import RECIPES
from from_code.tables import read_comment
from tests.commands import run_featkit
from tests.docs.pages import (
    DOCS,
    PAGES,
    README,
    blocks,
    command_lines,
    featkit_arguments,
    name_of,
    shape,
)
from tests.serving import serving
from tests.torchvision_without_cuda import allow_torchvision

# The pages' trainings last minutes; two steps on a few images show that their commands work.
QUICK = {"--steps": "2", "--dim": "4"}
SMALL = {
    "train": ("--batch-size", "8", "--workers", "0", "--set", "run.held_out=4"),
    "adapt": ("--set", "pretrained.head_steps=1"),
}
SERVICE = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's five commands have run."""
    allow_torchvision()
    folder = tmp_path_factory.mktemp("walk")
    draw_gallery(folder / "photos", kinds=("mug", "fish", "tiles", "lake"), num_instances=2)
    for name in ("sorted", "train", "test"):
        shutil.copytree(folder / "photos", folder / name)
    shutil.copyfile(folder / "photos" / "objects" / "mug" / "mug-1-front.jpg", folder / "query.jpg")
    _run_page(README, folder)
    return folder


def test_the_first_page_shows_the_commands_of_the_readme() -> None:
    first, readme = (
        [line for block in blocks(page, "console") for line, _ in command_lines(block)]
        for page in (DOCS / "index.md", README)
    )
    assert first == readme


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_line_is_understood(page: Path) -> None:
    for block in blocks(page, "console", "sh"):
        for line, _ in command_lines(block):
            if (arguments := featkit_arguments(line)) is not None:
                _parse(arguments)


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_names_a_command_that_runs_it(recipe: Path) -> None:
    _, command, _ = read_comment(recipe)
    arguments = featkit_arguments(command.replace("\\\n", " "))
    assert arguments is not None
    _parse(arguments)
    config = configure(arguments[1], recipe.stem)
    assert config.method == arguments[1]
    assert recipe.stem in (*arguments, METHODS[arguments[1]].default_recipe)


@pytest.mark.parametrize(
    "page",
    [
        page
        for page in PAGES
        if page not in (README, DOCS / "index.md") and blocks(page, "console", "python")
    ],
    ids=name_of,
)
def test_console_and_python_blocks_run(page: Path, walked: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(walked, tmp_path / "walk", symlinks=True)
    # A page may add a method, which other tests must not see.
    with _service(page, folder) as address, patch.dict(METHODS):
        _run_page(page, folder, address=address)


def _parse(arguments: list[str]) -> None:
    """Parse a command line without running it, its settings included."""
    app = make_app(arguments[0])
    app.parse_args(arguments, exit_on_error=False, print_error=False)
    known = {setting.name for setting in list_settings()}
    for option, value in pairwise(arguments):
        if option == "--set":
            assert value.split("=")[0] in known, value


def _run_page(page: Path, folder: Path, *, address: str = SERVICE) -> None:
    """Run a page's console and python blocks in order.

    The output of a command may differ from the page in numbers and names only.
    """
    _remove_results(page, folder)
    names: dict[str, object] = {"__name__": page.stem}
    with contextlib.chdir(folder):
        for block in blocks(page, "console", "python"):
            if block.kind == "python":
                with contextlib.redirect_stdout(io.StringIO()):
                    exec(compile(block.text.replace(SERVICE, address), str(page), "exec"), names)
                continue
            for line, printed in command_lines(block):
                if _has_run(line, page):
                    continue
                arguments = featkit_arguments(line)
                assert arguments is not None, line
                said = run_featkit(*_quick(arguments))
                assert said.code == 0, f"{line}\n{said.error}"
                if printed:
                    assert shape(said.out)[: len(shape(printed))] == shape(printed), line


def _remove_results(page: Path, folder: Path) -> None:
    """Remove what the page's own commands are to write: a reader does not have it yet."""
    read: set[str] = set()
    for block in blocks(page, "console"):
        for line, _ in command_lines(block):
            if _has_run(line, page):
                continue
            arguments = featkit_arguments(line) or []
            written = {after for option, after in pairwise(arguments) if option == "--out"}
            if "--resume" not in arguments:
                for name in written - read:
                    path = folder / name
                    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            read |= written | set(arguments)


def _has_run(line: str, page: Path) -> bool:
    """Return whether this is a slow command of the README, whose results a page can use."""
    slow = (" train ", " export ")
    known = [each for block in blocks(README, "console") for each, _ in command_lines(block)]
    return page != README and line in known and any(name in line for name in slow)


def _quick(arguments: list[str]) -> list[str]:
    """A training of two steps in place of minutes."""
    quick = [
        QUICK.get(before, word) for before, word in zip(["", *arguments], arguments, strict=False)
    ]
    return [*quick, *(word for name in quick[:2] for word in SMALL.get(name, ()))]


@contextlib.contextmanager
def _service(page: Path, folder: Path) -> Iterator[str]:
    """The service that a page's programs call, if they do; also run its calls of curl."""
    if not any(SERVICE in block.text for block in blocks(page, "python")):
        yield SERVICE
        return
    with Index.open(folder / "photos.index") as index:
        embedder = Embedder(index.model_path, threads=1)
        with serving(make_service(index, embedder)) as address:
            for block in blocks(page, "sh"):
                for line, _ in command_lines(block):
                    if line.startswith("curl") and shutil.which("curl"):
                        words = shlex.split(line.replace(SERVICE, address))
                        subprocess.run(
                            [*words, "--fail"],
                            cwd=folder,
                            check=True,
                            capture_output=True,
                            env={**os.environ, "no_proxy": "*"},
                        )
            yield address
