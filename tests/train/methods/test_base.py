"""Promises that hold for every method of METHODS."""

from __future__ import annotations

import dataclasses

import pytest

from featkit.errors import InputError
from featkit_train.config import TrainConfig
from featkit_train.methods import METHODS, make_method
from featkit_train.methods.base import READ_BY_EVERY_RUN
from tests.train.small import small_config


def test_every_section_is_read_by_a_method_or_every_run() -> None:
    config = TrainConfig()
    sections = {
        field.name
        for field in dataclasses.fields(config)
        if dataclasses.is_dataclass(getattr(config, field.name))
    }
    assert sections == READ_BY_EVERY_RUN.union(*(method.reads for method in METHODS.values()))
    for method in METHODS.values():
        assert method.unread() == sections - READ_BY_EVERY_RUN - method.reads


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["ibot.weight=2.0"], "dino does not read the setting ibot.weight; leave it out."),
        (["gram.weight=2.0"], "dino does not read the setting gram.weight"),
        (
            ["method=dinov2", "pretrained.name=x"],
            "dinov2 does not read the setting pretrained.name",
        ),
        (["method=adapt"], "adapt does not read the setting model.patch"),
        (
            ["method=dinov4"],
            (
                "one of: dino, dinov2, dinov3, ibot, distill, adapt, born-again, internal, joint,"
                " self-training."
            ),
        ),
        (
            ["crops.global_size=36"],
            "crops.global_size 36 is not a multiple of the model's patch",
        ),
        (
            ["crops.local_size=20"],
            "crops.local_size 20 is not a multiple of the model's patch",
        ),
        (
            ["dino.koleo_group=3"],
            "dino.koleo_group is 3, which does not divide the 8 images per process and pass",
        ),
        (["dino.koleo_group=1"], "dino.koleo_group is 1, which does not divide"),
        (
            ["run.batch_size=2", "engine.accumulate=2"],
            "dino.koleo_group is 0, which does not divide the 1 image per",
        ),
        (
            [
                "method=dinov3",
                "gram.weight=1.0",
                "crops.resolutions=[{share: 1.0, global_size: 32, local_size: 16}]",
            ],
            "is not a multiple of the model's patch, 8 pixels",
        ),
        (
            ["crops.resolutions=[{share: 1.0, global_size: 36, local_size: 16}]"],
            "global_size of crops.resolutions 36 is",
        ),
        (
            ["method=dinov3", "gram.weight=1.0", "gram.size=50"],
            "gram.size 50 is not a multiple of the model's patch",
        ),
    ],
)
def test_settings_that_a_method_does_not_read_are_refused(
    settings: list[str], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        make_method(small_config(*settings))
