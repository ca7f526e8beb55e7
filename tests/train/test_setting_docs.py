"""Promises of the list of settings."""

from __future__ import annotations

import yaml

from featkit_train.config import Bounds, TrainConfig
from featkit_train.setting_docs import list_settings
from featkit_train.settings import from_mapping, parse_settings, read_recipe, with_settings

SETTINGS = {setting.name: setting for setting in list_settings()}


def test_every_setting_is_documented_in_sentences() -> None:
    for setting in SETTINGS.values():
        assert setting.doc.endswith("."), setting.name
        assert "  " not in setting.doc, setting.name


def test_a_setting_has_its_type_default_and_bounds() -> None:
    momentum, steps = SETTINGS["teacher.momentum"], SETTINGS["run.steps"]
    assert (momentum.type, momentum.default, momentum.bounds) == (
        "float | null",
        None,
        Bounds(0, 1),
    )
    assert (steps.type, steps.default, str(steps.bounds)) == ("int", 10_000, "at least 1")
    assert SETTINGS["ibot.head"].type == "section | null"
    assert SETTINGS["dino.head.prototypes"].type == "unit | gain | free"
    assert SETTINGS["color.blur_sigma"].type == "list of 2 float"


def test_every_default_can_be_given_back_with_set() -> None:
    texts = [f"{setting.name}={setting.default_text}" for setting in SETTINGS.values()]
    assert from_mapping(TrainConfig, with_settings({}, parse_settings(texts))) == TrainConfig()


def test_a_config_replaces_the_defaults() -> None:
    config = from_mapping(TrainConfig, read_recipe("tiny"))
    values = {setting.name: setting.default_text for setting in list_settings(config)}
    assert yaml.safe_load(values["run.steps"]) == config.run.steps
