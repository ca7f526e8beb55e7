"""`featkit train --list` and `featkit train --settings`."""

from __future__ import annotations

import json

import pytest

from featkit_train.config import TrainConfig
from featkit_train.methods import METHODS
from featkit_train.settings import from_mapping, with_settings
from tests.commands import is_one_sentence, run_featkit


def test_every_method_is_listed_on_one_line() -> None:
    assert all(
        "\n" not in words and words
        for method in METHODS.values()
        for words in (method.needs, method.when)
    )


def test_list_names_every_method_and_the_next_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = run_featkit("train", "--list")
    assert (result.code, result.error) == (0, "")
    _, head, *lines, last = result.out.splitlines()
    assert head.split() == ["method", "needs", "when"]
    assert [line.split()[0] for line in lines] == list(METHODS)
    assert last == "Next: featkit train METHOD --help"


@pytest.mark.parametrize("flags", [["--list", "--json"], ["--json"]])
def test_list_as_json_has_every_method(flags: list[str]) -> None:
    rows = json.loads(run_featkit("train", *flags).out)
    assert [row["method"] for row in rows] == list(METHODS)
    assert all(row["needs"] and row["when"] for row in rows)


def test_train_without_a_method_names_one_and_the_list() -> None:
    result = run_featkit("train")
    assert result.code == 2
    assert is_one_sentence(result)
    assert "featkit train dino images/ --out run/" in result.error
    assert "--list" in result.error


def test_settings_print_name_default_bounds_and_meaning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = run_featkit("train", "--settings")
    assert (result.code, result.error) == (0, "")
    assert any(
        line.split(maxsplit=2)[:2] == ["run.steps", "10000"]
        and "int, at least 1" in line
        and line.endswith("Optimization steps.")
        for line in map(str.rstrip, result.out.splitlines())
    )


def test_settings_as_json_give_the_default_config() -> None:
    rows = json.loads(run_featkit("train", "--settings", "--json").out)
    settings = {row["name"]: row["default"] for row in rows}
    assert from_mapping(TrainConfig, with_settings({}, settings)) == TrainConfig()
    momentum = next(row for row in rows if row["name"] == "teacher.momentum")
    assert (momentum["least"], momentum["most"]) == (0, 1)


@pytest.mark.parametrize("method", METHODS)
def test_settings_of_a_method_are_those_that_it_reads(method: str) -> None:
    rows = json.loads(run_featkit("train", "--settings", method, "--json").out)
    sections = {row["name"].partition(".")[0] for row in rows}
    assert "run" in sections
    assert not sections & METHODS[method].unread()
    assert next(row["default"] for row in rows if row["name"] == "method") == method


@pytest.mark.parametrize("methods", [["dinno"], ["dino", "ibot"]])
def test_settings_of_an_unknown_method_are_refused(methods: list[str]) -> None:
    result = run_featkit("train", "--settings", *methods)
    assert result.code == 2
    assert is_one_sentence(result)
