"""Promises of settings and recipes under their old names."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path

import pytest
import yaml

from featkit_train.config import TrainConfig
from featkit_train.renamed import RenamedWarning, current_keys
from featkit_train.settings import from_mapping, read_recipe, with_settings

OLD = {
    "licence": "MIT",  # quoted
    "colour": {"grey_probability": 0.5, "solarise_probability": [0.0, 0.0, 0.0]},  # quoted
    "self_training": {"labelled_share": 0.5},
}


def test_old_keys_are_read_with_one_warning_each(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(OLD))
    for read in (partial(read_recipe, str(path)), partial(with_settings, OLD, {})):
        with pytest.warns(RenamedWarning) as warned:
            config = from_mapping(TrainConfig, read())
        messages = [str(warning.message) for warning in warned]
        assert len(messages) == len(set(messages)) == 5
        note = "setting licence is now called license."  # quoted
        assert any(note in message for message in messages)
        assert (config.license, config.color.gray_probability) == ("MIT", 0.5)
        assert config.color.solarize_probability == (0.0, 0.0, 0.0)
        assert config.self_training.labeled_share == 0.5


def test_an_old_name_after_set_joins_the_new_section() -> None:
    with pytest.warns(RenamedWarning, match="colour is now called color"):  # quoted
        merged = with_settings({"color": {"hue": 0.2}}, {"colour.contrast": 0.3})  # quoted
    assert merged == {"color": {"hue": 0.2, "contrast": 0.3}}


def test_an_old_recipe_name_is_read_with_a_warning() -> None:
    with pytest.warns(RenamedWarning, match="small_labeled"):
        assert read_recipe("small_labelled") == read_recipe("small_labeled")


def test_old_keys_of_a_run_folder_are_renamed_silently() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        current = current_keys(OLD, warn=False)
    assert current["color"] == {
        "gray_probability": 0.5,
        "solarize_probability": [0.0, 0.0, 0.0],
    }
