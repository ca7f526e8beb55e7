"""Promises of internal distillation as a whole: a row an exit with what it costs, and a file that
may stop at any of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from featkit.errors import InputError
from featkit.sources import open_source
from featkit_train.labeled import internal
from featkit_train.networks.exits import ExitedBackbone
from featkit_train.watching.standing import read_standing
from featkit_train.weights import load_backbone
from tests.train.labeled.small import draw_kinds, labeled_config

VIT = (
    "{arch: 'timm:vit_tiny_patch16_224', options: {img_size: 32, patch_size: 8, embed_dim: 24,"
    " depth: 3, num_heads: 2}}"
)


@pytest.mark.parametrize(
    ("settings", "count"), [((), 3), ((f"classifier={VIT}", "classifier.exits=[1,2]"), 3)]
)
def test_every_exit_has_a_row_with_its_cost(
    settings: tuple[str, ...], count: int, tmp_path: Path
) -> None:
    source = open_source(draw_kinds(tmp_path / "images", 40))
    config = labeled_config("internal", "classifier.exits=[1,3]", *settings)
    internal(config, [source], tmp_path / "run")
    standing = read_standing(tmp_path / "run")
    assert [(row.name, row.kind) for row in standing.rows] == [
        *((f"exit {number}", "exit") for number in range(1, count + 1)),
        ("all exits together", "ensemble"),
    ]
    sizes = [row.parameters or 0 for row in standing.rows[:count]]
    assert sizes[0] < sizes[-1]
    assert all(row.images_per_s for row in standing.rows)
    deepest = standing.rows[count - 1]
    assert (standing.rows[0].shared_errors is None) == (deepest.accuracy == 1.0)
    backbone, info = load_backbone(tmp_path / "run")
    assert isinstance(backbone, ExitedBackbone)
    assert backbone.depth == count
    assert info.family == "internal"


def test_a_classifier_without_exits_is_refused(tmp_path: Path) -> None:
    source = open_source(draw_kinds(tmp_path / "images", 20))
    with pytest.raises(InputError, match="names no exit besides the deepest"):
        internal(labeled_config("internal"), [source], tmp_path / "run")
