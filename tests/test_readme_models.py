"""The README's table of models is the one that the command prints."""

from __future__ import annotations

from tests.readme_models import README, in_readme, models_table


def test_the_readme_lists_the_models_that_the_command_lists() -> None:
    table = models_table()
    assert table.count("\n") > 25
    assert in_readme(README.read_text(encoding="utf-8")) == table, (
        "run: python -m tests.readme_models"
    )
