"""Promises of the recipes: each loads, says where its numbers come from, builds at a reduced size,
and takes two steps."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from featkit.errors import InputError
from featkit.sources import open_source
from featkit_train.config import TrainConfig
from featkit_train.configure import configure
from featkit_train.labeled import born_again, internal, self_training
from featkit_train.loop import train
from featkit_train.methods import METHODS, Supervised
from featkit_train.networks.base import Backbone
from featkit_train.networks.borrowed import TimmModel, TorchvisionModel
from featkit_train.networks.classifier import ClassifierConfig
from featkit_train.networks.convnet import ConvNet
from featkit_train.networks.exits import ExitedBackbone
from featkit_train.networks.vit import VisionTransformer
from featkit_train.settings import (
    RECIPES,
    from_mapping,
    parse_settings,
    read_recipe,
    to_mapping,
    with_settings,
)
from featkit_train.weights import load_backbone, load_classifier
from tests.export.backbones import make_run
from tests.images import draw_folder
from tests.sentences import refused
from tests.train.labeled.small import draw_kinds

NAMES = sorted(file.stem for file in RECIPES.glob("*.yaml"))
WANTED = (
    "tiny small small_vit dino_vits16 dino_vitb16 ibot_vits16 dinov2_vitl14 dinov2_vits14_distill"
    " dinov3_vitl16 dinov3_vitl16_gram dinov3_vitl16_highres adapt_dinov2 tiny_adapt small_labeled"
    " born_again_cifar born_again_resnet50 internal_resnet18 internal_vits16 self_training_cifar"
).split()
# What makes another size of the networks that recipes name; torchvision's ResNet-50 has its own
# alone.
SMALLER: dict[str, dict[str, Any]] = {
    "timm:resnet18": {"options": {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 12]}},
    "timm:vit_small_patch16_224": {"options": {"img_size": 32, "embed_dim": 24, "num_heads": 2}},
    "featkit:convnet": {"options": {"stem": 4, "widths": [8, 12], "blocks": [1, 1]}},
    "torchvision:resnet50": {"arch": "torchvision:resnet18"},
}


def methods_of(name: str) -> list[str]:
    """Those that the recipe names, or all that its sections are for: those with a classifier to
    begin, or with a model."""
    recipe = read_recipe(name)
    if "method" in recipe:
        return [recipe["method"]]
    if "methods" in recipe:
        return list(recipe["methods"])
    section = "classifier" if "classifier" in recipe else "model"
    return [
        method for method, kind in METHODS.items() if section in kind.reads and method != "distill"
    ]


def reduced_classifier(config: ClassifierConfig) -> dict[str, Any]:
    """The same kind of network in a size of a second: its stem, exits and noise stay."""
    smaller = SMALLER[config.arch]
    return {
        "arch": smaller.get("arch", config.arch),
        "options": {**config.options, **smaller.get("options", {})},
        "small_stem": config.small_stem,
        "exits": list(config.exits),
    }


def reduced(config: TrainConfig, pretrained: Path) -> TrainConfig:
    """The same recipe with a model, heads, crops and batch of a second: every choice that is not a
    size stays."""
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
            {
                "share": resolution.share,
                "global_size": 32 + 8 * place,
                "local_size": 16,
                "gram_size": 64,
            }
            for place, resolution in enumerate(config.crops.resolutions)
        ]
        settings.append(f"crops.resolutions={sizes}")
    if config.method in ("distill", "adapt"):
        settings += [f"pretrained.name={pretrained}", "pretrained.head_steps=1"]
    if config.crops.test_size is not None:
        settings.append("crops.test_size=48")
    if config.network.arch != "vit":
        settings.append(f"network.options={SMALLER[config.network.arch]['options']}")
    if issubclass(METHODS[config.method], Supervised):
        settings.append(f"classifier={json.dumps(reduced_classifier(config.classifier))}")
        settings += [
            "born_again.generations=1",
            "self_training.rounds=1",
            "self_training.confidence=0.0",
        ]
    unread = METHODS[config.method].unread()
    mapping = with_settings(to_mapping(config), parse_settings(settings))
    return from_mapping(
        TrainConfig, {name: part for name, part in mapping.items() if name not in unread}
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipes")
    draw_folder(folder / "images", 24)
    make_run(folder / "pretrained")
    for (part, count), first in zip(
        (("labeled", 10), ("unlabeled", 8), ("held_out", 4)), itertools.count(0, 50)
    ):
        draw_kinds(folder / "kinds" / part, count, first=first)
    return folder


def test_the_recipes_are_these() -> None:
    assert sorted(WANTED) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_its_command_result_and_sources(name: str) -> None:
    head = [
        line for line in (RECIPES / f"{name}.yaml").read_text().splitlines() if line.startswith("#")
    ]
    assert any(line.startswith("# Run:") and "featkit train" in line for line in head)
    assert any(line.startswith("# Numbers:") for line in head)
    assert any(line.startswith("# Expect:") for line in head)


def test_recipes_for_several_methods_serve_those_of_one_kind() -> None:
    assert set(methods_of("tiny")) == {"dino", "joint", "ibot", "dinov2", "dinov3"}
    assert methods_of("small") == ["dino", "joint"]
    assert set(methods_of("small_labeled")) == {"born-again", "self-training", "internal"}


def test_a_recipe_of_other_methods_is_refused() -> None:
    with refused("small is for dino and joint", "featkit train dino --recipe small"):
        configure("ibot", "small")


PAIRS = [(name, method) for name in NAMES for method in methods_of(name)]


@pytest.mark.parametrize(
    ("name", "method"), [pair for pair in PAIRS if not issubclass(METHODS[pair[1]], Supervised)]
)
def test_a_recipe_trains_two_steps_at_a_reduced_size(
    name: str, method: str, folder: Path, tmp_path: Path
) -> None:
    config = reduced(configure(method, name), folder / "pretrained")
    images = folder / ("kinds/labeled" if method == "joint" else "images")
    report = train(config, [open_source(images)], tmp_path / "run")
    assert report.steps == 2
    backbone, info = load_backbone(tmp_path / "run")
    assert isinstance(backbone, ConvNet if name == "small" else VisionTransformer)
    assert info.family == method


@pytest.mark.parametrize(
    ("name", "method"), [pair for pair in PAIRS if issubclass(METHODS[pair[1]], Supervised)]
)
def test_a_recipe_with_labels_trains_at_a_reduced_size(
    name: str, method: str, folder: Path, tmp_path: Path
) -> None:
    exits = {"classifier.exits": [1]} if method == "internal" and name == "small_labeled" else {}
    whole = configure(method, name, exits)
    config, out = reduced(whole, folder / "pretrained"), tmp_path / "run"
    labeled, unlabeled, held_out = (
        open_source(folder / "kinds" / part) for part in ("labeled", "unlabeled", "held_out")
    )
    if method == "self-training":
        self_training(config, [labeled], [unlabeled], out, held_out=held_out)
    else:
        course = {"born-again": born_again, "internal": internal}[method]
        course(config, [labeled], out, held_out=held_out)
    expected = {
        "born-again": ["generation-0", "generation-1"],
        "self-training": ["round-0", "round-1"],
        "internal": ["network"],
    }
    trainings = [path.parent for path in sorted(out.glob("*/metrics.jsonl"))]
    assert [training.name for training in trainings] == expected[method]
    for training in trainings:
        assert (training / "checkpoints" / "step-00000002").is_dir()
        classifier, info, classes = load_classifier(training)
        backbone = load_backbone(training)[0]
        assert (info.family, classes) == (method, ("blue", "red"))
        built = backbone.built_from
        assert isinstance(built, ClassifierConfig)
        assert built == config.classifier
        assert (built.small_stem, built.exits) == (
            whole.classifier.small_stem,
            whole.classifier.exits,
        )
        libraries: dict[str, type[Backbone]] = {
            "timm": TimmModel,
            "torchvision": TorchvisionModel,
            "featkit": ConvNet,
        }
        library = libraries[whole.classifier.arch.partition(":")[0]]
        assert isinstance(backbone, ExitedBackbone if built.exits else library)
        assert len(classifier.heads) == 1 + len(built.exits)


def test_a_recipe_of_one_method_is_refused_by_another() -> None:
    with pytest.raises(
        InputError,
        match="The recipe ibot_vits16 is for ibot; run `featkit train ibot --recipe ibot_vits16`",
    ):
        configure("dino", "ibot_vits16")


def test_unread_sections_of_a_recipe_are_skipped_not_settings() -> None:
    assert configure("dino", "tiny").ibot == TrainConfig().ibot
    assert configure("ibot", "tiny").ibot != TrainConfig().ibot


def test_other_crops_leave_the_test_size_of_a_recipe_behind() -> None:
    assert configure("dino", "small").crops.test_size == 96
    assert configure("dino", "small", {"optim.lr": 0.1}).crops.test_size == 96
    assert configure("dino", "small", {"crops.global_size": 48}).crops.test_size is None
    both = {"crops.test_size": 80, "crops.global_size": 48}
    for settings in (both, dict(reversed(both.items()))):
        assert configure("dino", "small", settings).crops.test_size == 80
