"""Promises of the recipes: each loads, says where its numbers come from, builds at a reduced size, and takes two steps."""

from __future__ import annotations

from pathlib import Path

import pytest

from featkit.errors import InputError
from featkit.sources import open_source
from featkit_train.config import RECIPES, TrainConfig, from_mapping, read_recipe, to_mapping, with_settings
from featkit_train.configure import configure
from featkit_train.loop import train
from featkit_train.methods import METHODS
from featkit_train.networks.vit import VisionTransformer
from featkit_train.weights import load_backbone
from tests.export.backbones import make_run
from tests.pictures import draw_folder

NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml"))
WANTED = (
    "tiny small dino_vits16 dino_vitb16 ibot_vits16 dinov2_vitl14 dinov2_vits14_distill dinov3_vitl16 dinov3_vitl16_gram "
    "dinov3_vitl16_highres adapt_dinov2"
).split()


def methods_of(name: str) -> list[str]:
    """The one that the recipe names, or all that begin from nothing."""
    method = read_recipe(name).get("method")
    return [method] if method else ["dino", "ibot", "dinov2", "dinov3"]


def reduced(config: TrainConfig, pretrained: Path) -> TrainConfig:
    """The same recipe with a model, heads, crops and batch of a second: every choice that is not a size stays."""
    patch = 8
    small = {"num_prototypes": 16, "hidden_width": 16, "bottleneck_width": 8}
    settings = [
        "model.width=16",
        "model.depth=2",
        "model.num_heads=2",
        "model.mlp_width=32",
        f"model.patch={patch}",
        "crops.global_size=32",
        "crops.local_size=16",
        f"crops.num_local={min(config.crops.num_local, 1)}",
        *(f"dino.head.{name}={value}" for name, value in small.items()),
        "run.steps=2",
        "run.batch_size=16",
        "run.workers=0",
        "run.held_out=2",
        "run.device=cpu",
        f"dino.koleo_group={min(config.dino.koleo_group, 8)}",
    ]
    if config.ibot.head is not None:
        settings += [f"ibot.head.{name}={value}" for name, value in small.items()]
    if config.gram.weight > 0:
        settings.append("gram.size=64")
    if config.crops.resolutions:
        sizes = [
            {"share": resolution.share, "global_size": 32 + 8 * place, "local_size": 16, "gram_size": 64}
            for place, resolution in enumerate(config.crops.resolutions)
        ]
        settings.append(f"crops.resolutions={sizes}")
    if config.method in ("distill", "adapt"):
        settings += [f"pretrained.name={pretrained}", "pretrained.head_steps=1"]
    unread = METHODS[config.method].unread
    mapping = with_settings(to_mapping(config), settings)
    return from_mapping(TrainConfig, {name: part for name, part in mapping.items() if name not in unread})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    draw_folder(folder / "pictures", 24)
    make_run(folder / "pretrained")
    return folder


def test_the_recipes_are_these() -> None:
    assert sorted(WANTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_begins_with_how_it_runs_and_where_its_numbers_come_from(name: str) -> None:
    head = [line for line in (RECIPES / f"{name}.yaml").read_text().splitlines() if line.startswith("#")]
    assert any(line.startswith("# Run:") and "featkit train" in line for line in head)
    assert any(line.startswith("# Numbers:") for line in head)
    assert any(line.startswith("# Expect:") for line in head)


@pytest.mark.parametrize(("name", "method"), [(name, method) for name in NAMES for method in methods_of(name)])
def test_a_recipe_builds_at_a_reduced_size_and_takes_two_steps(name: str, method: str, folder: Path, tmp_path: Path) -> None:
    config = reduced(configure(method, name), folder / "pretrained")
    report = train(config, [open_source(folder / "pictures")], tmp_path / "run")
    assert report.steps == 2
    backbone, info = load_backbone(tmp_path / "run")
    assert isinstance(backbone, VisionTransformer)
    assert info.family == method


def test_a_recipe_of_one_method_is_refused_by_another() -> None:
    with pytest.raises(InputError, match="The recipe ibot_vits16 is for ibot; run `featkit train ibot --recipe ibot_vits16`"):
        configure("dino", "ibot_vits16")


def test_sections_of_a_recipe_for_several_methods_are_left_out_but_settings_of_them_are_refused() -> None:
    assert configure("dino", "small").ibot == TrainConfig().ibot
    assert configure("ibot", "small").ibot != TrainConfig().ibot
