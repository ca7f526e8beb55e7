"""Flags, warnings and other things that the commands of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from featkit.cli.train.flags import TeacherFlags, TrainFlags
from featkit.cli.train.running import configured
from featkit.errors import InputError


def test_flags_override_the_recipe_and_set_overrides_flags(tmp_path: Path) -> None:
    flags = TrainFlags(out=tmp_path, steps=7, lr=0.5, name="null", set_=["optim.lr=0.25"])
    config = configured("dino", flags, TeacherFlags(init=tmp_path / "a=b"), {"run.seed": None})
    assert (config.run.steps, config.optim.lr, config.name) == (7, 0.25, "null")
    assert config.init == str(tmp_path / "a=b")


def test_an_old_name_is_one_plain_line_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = ["colour.hue=0.2", "colour.contrast=0.1", "licence=MIT"]  # quoted
    config = configured("dino", TrainFlags(out=tmp_path, set_=old), None, None)
    assert (config.color.hue, config.license) == (0.2, "MIT")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("featkit: The setting colour is now called color.")  # quoted


def test_an_error_after_a_warning_is_still_raised(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no setting color\.hu"):
        configured("dino", TrainFlags(out=tmp_path, set_=["color.hu=1"]), None, None)
