"""The generated parts of pages say what the code says."""

from __future__ import annotations

import json

import pytest

from featkit_train.published.zoo import PUBLISHED
from featkit_train.setting_docs import list_settings
from featkit_train.settings import RECIPES
from from_code.commands import command_page
from from_code.http_api import routes_page
from from_code.inserting import insert_generated
from from_code.markdown import prose, table
from from_code.python_api import plain_docstring
from from_code.tables import methods_table, models_table, recipes_page
from from_code.train_settings import settings_page
from tests.commands import run_featkit


def test_request_is_replaced_where_it_stands() -> None:
    source = ["# Title\n\n<!-- from code: command search -->\n\nThe end.\n"]
    insert_generated(None, "page", source)
    assert source[0].startswith(
        "# Title\n\n```text\nfeatkit search INDEX IMAGE [MORE...] [OPTIONS]\n```"
    )
    assert source[0].endswith("\n\nThe end.\n")


def test_request_for_an_unknown_part_fails() -> None:
    with pytest.raises(KeyError):
        insert_generated(None, "page", ["<!-- from code: poetry -->"])


def test_table_cells_keep_pipes_and_newlines_inside() -> None:
    assert table(("a",), [("x | y\nz",)]) == "| a |\n| --- |\n| x \\| y z |"


def test_prose_shows_options_and_papers_and_escapes_the_rest() -> None:
    assert prose("--set a_b *x*, `*y*`") == "`--set` a\\_b \\*x\\*, `*y*`"
    assert prose("(arXiv 2104.14294)") == "([arXiv 2104.14294](https://arxiv.org/abs/2104.14294))"


def test_command_page_has_every_option_of_its_help() -> None:
    page = command_page("embed")
    for option in (
        "`--out` `PATH`",
        "`--model` `PATH`",
        "`--backend` `auto\\|onnxruntime",
        "`--json`",
    ):
        assert option in page
    assert "--no-json" not in page
    assert "Parameters\n" not in page


def test_options_that_subcommands_share_stand_once() -> None:
    page = command_page("train")
    assert page.count("| `--batch-size` `N` |") == 1
    assert page.count("| `--arch` `TEXT` |") == 1
    assert page.count("## featkit train ") == len(
        json.loads(run_featkit("train", "--list", "--json").out)
    )


def test_settings_page_has_every_setting_with_its_meaning() -> None:
    page = settings_page()
    for setting in list_settings():
        assert f"| `{setting.name.rpartition('.')[2]}` | " in page
        assert prose(setting.doc).replace("|", "\\|") in page
    assert "### " not in page
    assert "## dino.head\n" in page


def test_routes_page_has_every_route_and_no_schema_of_fastapi() -> None:
    page = routes_page()
    for route in ("POST /v1/search", "POST /v1/embed", "GET /v1/items", "GET /healthz"):
        assert f"### `{route}`" in page
    assert "HTTPValidationError" not in page


def test_tables_list_all_methods_models_and_recipes() -> None:
    methods, models, recipes = methods_table(), models_table(), recipes_page()
    for row in json.loads(run_featkit("train", "--list", "--json").out):
        assert f"[`{row['method']}`]" in methods
        assert row["when"] in methods
    assert all(f"| `{name}` |" in models for name in PUBLISHED)
    assert all(f"## {path.stem}\n" in recipes for path in RECIPES.glob("*.yaml"))


def converted(text: str, thing: object = None) -> list[str]:
    """A docstring's lines as reStructuredText."""
    lines = text.splitlines()
    plain_docstring(None, "function", "f", thing, None, lines)
    return lines


def test_docstring_markup_is_escaped_but_not_in_backticks() -> None:
    assert converted("A *star* and `a*b`.") == ["A \\*star\\* and `a*b`."]


def test_docstring_loop_becomes_a_literal_block() -> None:
    lines = converted("Mean:\n\n    total / count\n\nDone.")
    assert lines == ["Mean:", "", "::", "", "    total / count", "", "", "Done."]


def test_docstring_lines_about_parameters_become_fields() -> None:
    def embed(image: str, size: int) -> None:
        """Do nothing."""

    lines = converted("Embed.\n\nimage: a path\nor a URL.\nsize: in pixels.\n\nother: no.", embed)
    assert lines[2:6] == ["", ":param image: a path", "    or a URL.", ":param size: in pixels."]
    assert lines[-1] == "other: no."
