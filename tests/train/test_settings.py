"""Promises of recipes and settings."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from featkit.errors import InputError
from featkit_train.config import Resolution, TrainConfig
from featkit_train.networks.heads import HeadConfig
from featkit_train.settings import (
    RECIPES,
    from_mapping,
    parse_settings,
    read_recipe,
    to_mapping,
    with_settings,
)


def config_with(*settings: str) -> TrainConfig:
    return from_mapping(TrainConfig, with_settings({}, parse_settings(settings)))


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_shipped_recipe_is_a_valid_config(recipe: str) -> None:
    mapping = read_recipe(recipe)
    methods = mapping.pop("methods", None)
    if methods:
        mapping["method"] = methods[0]
    config = from_mapping(TrainConfig, mapping)
    assert config != TrainConfig()


def test_a_config_survives_its_mapping() -> None:
    config = from_mapping(TrainConfig, read_recipe("tiny"))
    assert from_mapping(TrainConfig, to_mapping(config)) == config


def test_settings_are_parsed_as_yaml_at_every_depth() -> None:
    config = config_with(
        "optim.lr=1e-3",
        "dino.head.num_prototypes=32",
        "crops.global_scale=[0.2, 0.9]",
        "name=mine",
    )
    assert config.optim.lr == 0.001
    assert config.dino.head.num_prototypes == 32
    assert config.crops.global_scale == (0.2, 0.9)
    assert config.name == "mine"


def test_typed_settings_are_not_parsed() -> None:
    config = from_mapping(TrainConfig, with_settings({}, {"name": "null", "classifier.exits": [1]}))
    assert (config.name, config.classifier.exits) == ("null", (1,))


def test_the_last_of_repeated_settings_wins() -> None:
    repeated = ["ibot.head.num_layers=3", "ibot.head=null", "ibot.head.num_layers=2"]
    assert list(parse_settings(repeated)) == ["ibot.head", "ibot.head.num_layers"]
    assert parse_settings(["run.steps=1", "run.steps=2"]) == {"run.steps": 2}


def test_an_optional_section_begins_with_any_of_its_keys() -> None:
    assert config_with().ibot.head is None
    config = config_with("ibot.head.num_prototypes=32")
    assert config.ibot.head == HeadConfig(num_prototypes=32)
    without = with_settings(to_mapping(config), {"ibot.head": None})
    assert from_mapping(TrainConfig, without).ibot.head is None


def test_a_list_of_sections_survives_its_mapping() -> None:
    config = config_with(
        "crops.resolutions=[{share: 3, global_size: 32, local_size: 16},"
        " {share: 1, global_size: 64, local_size: 32}]"
    )
    assert config.crops.resolutions == (
        Resolution(share=3.0, global_size=32, local_size=16),
        Resolution(share=1.0, global_size=64, local_size=32),
    )
    assert from_mapping(TrainConfig, to_mapping(config)) == config


def test_settings_do_not_change_the_recipe() -> None:
    recipe = {"optim": {"lr": 0.1}}
    with_settings(recipe, {"optim.lr": 0.2})
    assert recipe == {"optim": {"lr": 0.1}}


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("optim.lrr=1", "no setting optim.lrr; did you mean optim.lr"),
        ("optim=3", "optim is a section"),
        ("optim.lr.x=3", "optim.lr is a value, not a section, so there is no optim.lr.x"),
        ("run.steps=many", "run.steps is of type int, not 'many'"),
        ("run.steps=true", "run.steps is of type int, not True"),
        ("dino.centering=middle", "one of center, sinkhorn, not 'middle'"),
        ("crops.global_scale=[0.1]", "a list of 2 values"),
        ("optim.lr", "write it as section.key=value"),
        ("optim.lr=[", "has a value that is not YAML"),
        ("crops.resolutions=[{share: 1.0}]", "crops.resolutions has no global_size"),
        (
            "crops.resolutions=[{share: 0, global_size: 64, local_size: 32}]",
            "share is 0.0, not above 0",
        ),
        ("crops.local_scale=[0.4, 0.1]", "scales from 0.4 to 0.1"),
        ("ibot.mask_ratio=[0.5, 0.1]", "mask ratios of 0.5 to 0.1"),
        ("ibot.mask_aspect=0", "mask_aspect 0.0"),
        ("crops.resolutions=[{shear: 1.0}]", "crops.resolutions.shear; did you mean"),
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
        ("teacher.momentum=1.5", "teacher.momentum is 1.5; it must be from 0 to 1"),
        ("internal.alpha=-0.5", "internal.alpha is -0.5; it must be from 0 to 1"),
        ("self_training.labeled_share=1", "labeled_share is 1, which leaves no room"),
        ("self_training.student_length=0", "student_length is 0.0, not above 0"),
        ("knowledge={mode: cwtm, temperature: 2}", "does not use temperature"),
        ("run.on_collapse=cry", "one of stop, warn, not 'cry'"),
        ("ibot.head=3", "ibot.head is a section with keys of its own"),
        ("ibot.head.num_prototype=3", "ibot.head.num_prototype; did you mean"),
        ("run.workers=-1", "run.workers is -1; it must be at least 0"),
        ("run.log_every=0", "run.log_every is 0; it must be at least 1"),
        ("model.num_heads=7", "The settings of model do not go together: width 192"),
        ("run.steps=0", "run.steps is 0; it must be at least 1"),
        ("zzz=1", "no setting zzz. It must be one of: method, name, "),
    ],
)
def test_a_wrong_setting_is_refused_by_name(setting: str, sentence: str) -> None:
    with pytest.raises(InputError, match=re.escape(sentence)):
        from_mapping(TrainConfig, with_settings(read_recipe("tiny"), parse_settings([setting])))


def test_an_unknown_recipe_is_refused_naming_the_shipped() -> None:
    with pytest.raises(InputError, match="tiny"):
        read_recipe("huge")


def test_a_recipe_that_is_not_a_mapping_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    path.write_text("- 1\n- 2\n")
    with pytest.raises(InputError, match="not a mapping"):
        read_recipe(str(path))
