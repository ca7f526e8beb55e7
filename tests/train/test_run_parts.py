"""Promises of the parts of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from featkit.errors import InputError
from featkit.sources import open_source
from featkit_train.run_parts import RunParts, geometry_of, run_folder
from tests.images import draw_folder
from tests.train.small import small_config


def test_geometry_is_that_of_the_global_crops() -> None:
    config = small_config("crops.global_size=48", "resize=stretch")
    geometry = geometry_of(config, patch=8, mean=(0.1, 0.2, 0.3))
    assert (geometry.height, geometry.width, geometry.resize_to) == (48, 48, 48)
    assert (geometry.resize, geometry.patch, geometry.mean) == ("stretch", 8, (0.1, 0.2, 0.3))


def test_held_out_images_are_a_share_or_those_named(tmp_path: Path) -> None:
    images = open_source(draw_folder(tmp_path / "images", 24))
    others = open_source(draw_folder(tmp_path / "others", 3))
    config = small_config("run.held_out=2", "run.batch_size=4")
    drawn = RunParts(config, [images], tmp_path / "a")
    named = RunParts(config, [images], tmp_path / "b", held_out=others)
    assert (len(drawn.train_ids), len(drawn.held_out.images)) == (22, 2)
    assert (len(named.train_ids), len(named.held_out.images)) == (24, 3)


def test_a_folder_knows_its_images_by_their_keys(tmp_path: Path) -> None:
    first = open_source(draw_folder(tmp_path / "first", 2))
    second = open_source(draw_folder(tmp_path / "second", 3))
    config = small_config()
    run_folder(tmp_path / "run", config, first, None).path.mkdir()
    run_folder(tmp_path / "run", config, first, None).begin()
    run_folder(tmp_path / "run", config, first, None).check_same()
    with pytest.raises(InputError, match="begun with other images to learn from"):
        run_folder(tmp_path / "run", config, second, None).check_same()
    with pytest.raises(InputError, match="begun with other images held out"):
        run_folder(tmp_path / "run", config, first, second).check_same()
