"""Promises of recipes and settings."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest
import yaml

from featkit.errors import InputError
from featkit_train.config import (
    RECIPES,
    Resolution,
    TrainConfig,
    from_mapping,
    read_recipe,
    to_mapping,
    with_settings,
)
from featkit_train.networks.heads import HeadConfig


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_that_ships_is_a_valid_config(recipe: str) -> None:
    config = from_mapping(TrainConfig, read_recipe(recipe))
    assert config != TrainConfig()


def test_a_config_survives_its_mapping() -> None:
    config = from_mapping(TrainConfig, read_recipe("tiny"))
    assert from_mapping(TrainConfig, to_mapping(config)) == config


def test_settings_reach_every_depth_and_are_read_as_yaml() -> None:
    mapping = with_settings(
        {},
        [
            "optim.lr=1e-3",
            "dino.head.num_prototypes=32",
            "crops.global_scale=[0.2, 0.9]",
            "name=mine",
        ],
    )
    config = from_mapping(TrainConfig, mapping)
    assert config.optim.lr == 0.001
    assert config.dino.head.num_prototypes == 32
    assert config.crops.global_scale == (0.2, 0.9)
    assert config.name == "mine"


def test_a_section_that_may_be_absent_is_begun_by_any_of_its_keys() -> None:
    assert from_mapping(TrainConfig, {}).ibot.head is None
    config = from_mapping(TrainConfig, with_settings({}, ["ibot.head.num_prototypes=32"]))
    assert config.ibot.head == HeadConfig(num_prototypes=32)
    assert (
        from_mapping(TrainConfig, with_settings(to_mapping(config), ["ibot.head=null"])).ibot.head
        is None
    )


def test_a_list_of_sections_survives_its_mapping() -> None:
    setting = (
        "crops.resolutions=[{share: 3, global_size: 32, local_size: 16}, {share: 1, global_size:"
        " 64, local_size: 32}]"
    )
    config = from_mapping(TrainConfig, with_settings({}, [setting]))
    assert config.crops.resolutions == (
        Resolution(share=3.0, global_size=32, local_size=16),
        Resolution(share=1.0, global_size=64, local_size=32),
    )
    assert from_mapping(TrainConfig, to_mapping(config)) == config


def test_settings_leave_the_recipe_as_it_was() -> None:
    recipe = {"optim": {"lr": 0.1}}
    with_settings(recipe, ["optim.lr=0.2"])
    assert recipe == {"optim": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("optim.lrr=1", "no setting optim.lrr; did you mean optim.lr"),
        ("optim=3", "optim is a section"),
        ("run.steps=many", "run.steps is of type int, not 'many'"),
        ("run.steps=true", "run.steps is of type int, not True"),
        ("dino.centering=middle", "one of center, sinkhorn, not 'middle'"),
        ("crops.global_scale=[0.1]", "a list of 2 values"),
        ("optim.lr", "write it as section.key=value"),
        ("crops.resolutions=[{share: 1.0}]", "crops.resolutions has no global_size"),
        (
            "crops.resolutions=[{share: 0, global_size: 64, local_size: 32}]",
            "share of 0.0 of the steps is none",
        ),
        ("crops.local_scale=[0.4, 0.1]", "scales of 0.4 to 0.1"),
        ("ibot.mask_ratio=[0.5, 0.1]", "mask ratios of 0.5 to 0.1"),
        ("ibot.mask_aspect=0", "mask_aspect 0.0"),
        ("crops.resolutions=[{shear: 1.0}]", "no setting .*shear; did you mean .*share"),
        ("crops.resolutions=3", "crops.resolutions is a list"),
        ("engine.accumulate=0", "engine.accumulate is 0; it must be at least 1"),
        (
            "engine.accumulate=5",
            "run.batch_size 64 is not a multiple of engine.accumulate 5; change either.",
        ),
        ("run.batch_size=1", "run.batch_size is 1; it must be at least 2"),
        ("gram.update_every=0", "gram.update_every is 0; it must be at least 1"),
        ("watch.patience=0", "watch.patience is 0; it must be at least 1"),
        ("pretrained.head_steps=-1", "pretrained.head_steps is -1; it must be at least 0"),
        (
            "teacher.momentum=1.5",
            "The settings of teacher do not go together: a momentum of 1.5 is not between 0 and 1",
        ),
        ("run.on_collapse=cry", "one of stop, warn, not 'cry'"),
        ("ibot.head=3", "ibot.head is a section with keys of its own"),
        (
            "ibot.head.num_prototype=3",
            "no setting ibot.head.num_prototype; did you mean ibot.head.num_prototypes",
        ),
        ("run.workers=-1", "run.workers is -1; it must be at least 0"),
        ("run.log_every=0", "run.log_every is 0; it must be at least 1"),
        (
            "model.num_heads=7",
            "The settings of model do not go together: width 192 is no multiple of num_heads 7",
        ),
        ("run.steps=0", "run.steps is 0; it must be at least 1"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(setting: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence.replace("(", r"\(")):
        from_mapping(TrainConfig, with_settings(read_recipe("tiny"), [setting]))


def test_a_recipe_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(InputError, match="tiny"):
        read_recipe("huge")


def test_a_recipe_that_is_no_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="no mapping"):
        read_recipe(str(path))


def test_nothing_can_be_written_back_into_a_config() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        TrainConfig().optim.lr = 1.0  # type: ignore[misc]


def test_old_spellings_are_read_with_a_warning(tmp_path: Path) -> None:
    old = {
        "licence": "MIT",  # quoted
        "colour": {"grey_probability": 0.5, "solarise_probability": [0.0, 0.0, 0.0]},  # quoted
        "self_training": {"labelled_share": 0.5},
    }
    path = tmp_path / "old.yaml"
    path.write_text(yaml.safe_dump(old))
    for read in (partial(read_recipe, str(path)), partial(with_settings, old, [])):
        with pytest.warns(FutureWarning) as warned:
            config = from_mapping(TrainConfig, read())
        messages = {str(warning.message) for warning in warned}
        assert len(messages) == 5
        note = "setting licence is called license now"  # quoted
        assert any(note in message for message in messages)
        assert (config.license, config.color.gray_probability) == ("MIT", 0.5)
        assert config.color.solarize_probability == (0.0, 0.0, 0.0)
        assert config.self_training.labeled_share == 0.5
    with pytest.warns(FutureWarning, match="colour is called color"):  # quoted
        merged = with_settings({"color": {"hue": 0.2}}, ["colour.contrast=0.3"])  # quoted
    assert merged == {"color": {"hue": 0.2, "contrast": 0.3}}
    with pytest.warns(FutureWarning, match="small_labeled"):
        assert read_recipe("small_labelled") == read_recipe("small_labeled")
