"""Promises of snapshots: they are true to the network, keep their colors, and do not change the
run."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from featkit.geometry import Geometry
from featkit_train.networks.base import Activations, Backbone, Features
from featkit_train.networks.normalization import normalize
from featkit_train.networks.vit import VisionTransformer
from featkit_train.networks.vit_config import ViTConfig
from featkit_train.watching.snapshot_files import glow, list_snapshots, read_pca, read_photographs
from featkit_train.watching.snapshots import (
    MAX_SNAPSHOTS,
    NUM_IMAGES,
    Snapshots,
    enlarged,
    is_kept,
    joint_pca_colors,
    laid_onto,
    patch_colors,
    pca_scores,
)
from tests.commands import digests
from tests.images import draw_image

GEOMETRY = Geometry(
    height=32,
    width=32,
    resize="stretch",
    resize_to=32,
    interpolation="bicubic",
    patch=8,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
NAMES = [f"{number:03d}.jpg" for number in range(8)]
IMAGES = [np.asarray(draw_image(number)) for number in range(8)]


def drawn_vit(seed: int = 0) -> VisionTransformer:
    """Make a small ViT with weights so large that its attention is not uniform."""
    torch.manual_seed(seed)
    backbone = VisionTransformer(
        ViTConfig(patch=8, width=24, depth=2, num_heads=3, mlp_width=48, position_grid=4)
    )
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    return backbone


class Convolutions(Backbone):
    """A network without a class token, which gives `tokens` if there are any, and what its
    convolution makes otherwise."""

    def __init__(self, tokens: Tensor | None = None) -> None:
        super().__init__(patch=8, width=5, depth=1)
        self.tokens = tokens
        self.body: nn.Module = nn.Conv2d(3, 5, 8, stride=8)

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        assert (tuple(layers), attention) == ((1,), False)
        places = self.body(images).permute(0, 2, 3, 1)
        places = places if self.tokens is None else self.tokens.expand_as(places)
        return Activations((Features(places.mean(dim=(1, 2)), places),), None)


def snapshots_in(folder: Path, *, drawn_images: int = 2, enlarge: bool = True) -> Snapshots:
    return Snapshots(
        folder, IMAGES[:drawn_images], NAMES[:drawn_images], GEOMETRY, every=10, enlarge=enlarge
    )


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1])


# -- the mathematics -------------------------------------------------------------------------------


def test_pca_scores_equal_the_svd_up_to_signs() -> None:
    tokens = np.random.default_rng(0).normal(size=(50, 7)) * [3, 0.1, 1, 2, 0.5, 0.2, 5]
    centered = tokens - np.array([sum(column) / len(column) for column in tokens.T])
    left, values, _ = np.linalg.svd(centered, full_matrices=False)
    scores = pca_scores(tokens)
    for component in range(3):
        wanted = left[:, component] * values[component]
        assert (
            min(
                np.abs(scores[:, component] - wanted).max(),
                np.abs(scores[:, component] + wanted).max(),
            )
            < 1e-9
        )


@pytest.mark.parametrize("width", [1, 2])
def test_pca_scores_of_few_channels_are_padded_with_zeros(width: int) -> None:
    scores = pca_scores(np.random.default_rng(0).normal(size=(20, width)))
    assert scores.shape == (20, 3)
    assert np.abs(scores[:, :width]).min(axis=0).max() > 0
    assert (scores[:, width:] == 0).all()


def test_laid_onto_finds_a_turned_and_mirrored_reference_again() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(200, 3))
    reference, _ = np.linalg.qr(drawn - drawn.mean(axis=0))
    turned = reference @ np.linalg.qr(rng.normal(size=(3, 3)))[0]
    for component in range(3):
        assert correlation(
            laid_onto(turned, reference)[:, component], reference[:, component]
        ) == pytest.approx(1)


def test_laid_onto_is_nearer_than_a_thousand_other_rotations() -> None:
    rng = np.random.default_rng(1)
    scores, reference = rng.normal(size=(30, 3)), rng.normal(size=(30, 3))
    scores, reference = (
        (part - part.mean(axis=0)) / part.std(axis=0) for part in (scores, reference)
    )
    best = np.square(laid_onto(scores, reference) - reference).sum()
    for _ in range(1000):
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        assert best <= np.square(scores @ turn - reference).sum() + 1e-9


def test_colors_come_from_one_pca_over_all_images() -> None:
    rng = np.random.default_rng(0)
    tokens = [rng.normal(size=(4, 5, 6)) + offset for offset in (0, 8)]
    reference = [rng.uniform(0, 255, (4, 5, 3)) for _ in tokens]
    together = joint_pca_colors(tokens, reference)
    flat = laid_onto(
        pca_scores(np.concatenate([part.reshape(-1, 6) for part in tokens])),
        np.concatenate(reference).reshape(-1, 3),
    )
    low, high = np.percentile(flat, (2, 98), axis=0)
    wanted = np.round(np.clip((flat - low) / (high - low), 0, 1) * 255)
    assert [part.shape for part in together] == [(4, 5, 3)] * 2
    assert np.concatenate([part.reshape(-1, 3) for part in together]).tolist() == wanted.tolist()
    apart = [
        joint_pca_colors([part], [colors])[0]
        for part, colors in zip(tokens, reference, strict=True)
    ]
    assert np.concatenate(together).tolist() != np.concatenate(apart).tolist()


def test_colors_do_not_depend_on_rotation_of_the_features() -> None:
    """The features are the same up to a rotation of their axes."""
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(12, 12, 16)) * np.linspace(3, 0.1, 16)
    before = joint_pca_colors([tokens], [rng.uniform(0, 255, (12, 12, 3))])[0]
    for _ in range(5):
        turned = (
            tokens @ np.linalg.qr(rng.normal(size=(16, 16)))[0]
            + rng.normal(size=tokens.shape) * 0.02
        )
        after = joint_pca_colors([turned], [before])[0]
        assert np.abs(after.astype(int) - before).mean() < 8


def test_the_first_snapshots_colors_are_near_the_photographs_own() -> None:
    image = GEOMETRY.apply(IMAGES[0])
    own = patch_colors(image, (4, 4))
    assert own[1, 2].tolist() == pytest.approx(
        image[8:16, 16:24].reshape(-1, 3).mean(axis=0).tolist()
    )
    features = (own - 100) @ np.random.default_rng(0).normal(size=(3, 9))
    colored = joint_pca_colors([features], [own])[0]
    assert all(correlation(colored[..., channel], own[..., channel]) > 0.5 for channel in range(3))


def test_equal_features_are_gray_and_infinite_ones_are_drawn() -> None:
    reference = [np.random.default_rng(0).uniform(0, 255, (4, 4, 3))]
    constant = joint_pca_colors([np.full((4, 4, 8), 1.7, dtype=np.float32)], reference)[0]
    assert np.unique(constant).tolist() == [128]
    assert np.unique(glow(np.full((4, 4), math.nan))).tolist() == [0]
    broken = np.full((4, 4, 8), math.nan)
    broken[0] = math.inf
    assert np.unique(joint_pca_colors([broken], reference)[0]).tolist() == [128]


# -- what is drawn ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "patch", "wanted"),
    [(64, 8, 192), (224, 14, 448), (224, 16, 448), (512, 16, 512), (224, 32, 672)],
)
def test_images_are_enlarged_to_24_patches_or_three_times(
    size: int, patch: int, wanted: int
) -> None:
    native = Geometry(
        height=size,
        width=size,
        resize="shorter_side",
        resize_to=size + 32,
        interpolation="bicubic",
        patch=patch,
        mean=GEOMETRY.mean,
        std=GEOMETRY.std,
    )
    larger = enlarged(native)
    assert (larger.height, larger.width, larger.height % patch) == (wanted, wanted, 0)
    assert larger.resize_to / larger.height == native.resize_to / native.height


def test_attention_is_the_backbones_own(tmp_path: Path) -> None:
    backbone = drawn_vit()
    drawn = snapshots_in(tmp_path).draw(backbone, 0)
    assert drawn is not None
    prepared = (
        torch.from_numpy(enlarged(GEOMETRY).apply(IMAGES[1]).copy()).permute(2, 0, 1)[None].float()
        / 255
    )
    images = normalize(prepared, mean=GEOMETRY.mean, std=GEOMETRY.std)
    with torch.no_grad():
        attention = backbone.activations(images, layers=(2,), attention=True).attention
    assert attention is not None
    assert attention.shape == (1, 3, 12, 12)
    assert (
        shades(drawn.folder / "01-attention.png") == glow(attention[0].mean(dim=0).numpy()).tolist()
    )
    heads = np.concatenate([glow(head) for head in attention[0].numpy()])
    assert shades(drawn.folder / "01-heads.png") == heads.tolist()
    assert len(np.unique(heads)) > 50


def shades(path: Path) -> list[list[int]]:
    with Image.open(path) as image:
        assert image.mode == "P"
        return np.asarray(image).tolist()  # type: ignore[no-any-return]


def test_without_a_class_token_there_are_colors_only(tmp_path: Path) -> None:
    drawn = snapshots_in(tmp_path).draw(Convolutions(), 0)
    assert drawn is not None
    assert sorted(path.name for path in drawn.folder.iterdir()) == [
        f"{number:02d}-pca.png" for number in range(2)
    ]


def test_a_network_of_broken_numbers_is_drawn_all_the_same(tmp_path: Path) -> None:
    drawn = snapshots_in(tmp_path).draw(Convolutions(torch.full((5,), math.nan)), 0)
    assert drawn is not None
    colors = read_pca(drawn, 2)
    assert colors is not None
    assert np.unique(colors).tolist() == [128]


def test_a_snapshot_is_small_and_keeps_the_images_names(tmp_path: Path) -> None:
    drawn = snapshots_in(tmp_path, drawn_images=8).draw(drawn_vit(), 200)
    assert drawn is not None
    assert drawn.folder.name == "step-00000200"
    assert sum(path.stat().st_size for path in drawn.folder.iterdir()) < 200_000
    assert [name for name, _ in read_photographs(tmp_path)] == NAMES[:NUM_IMAGES]


def test_the_same_network_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        snapshots_in(tmp_path / name).draw(drawn_vit(), 0)
    assert digests(tmp_path / "one") == digests(tmp_path / "two") != {}


def test_drawing_changes_nothing_of_the_run(tmp_path: Path) -> None:
    backbone = drawn_vit()
    backbone.train()
    backbone.blocks[0].eval()
    modes, weights = (
        [part.training for part in backbone.modules()],
        copy.deepcopy(backbone.state_dict()),
    )
    torch.manual_seed(7)
    np.random.seed(7)
    state = torch.get_rng_state()
    numpy_state = np.random.get_state()[1].tolist()  # type: ignore[index]
    snapshots_in(tmp_path).draw(backbone, 0)
    assert [part.training for part in backbone.modules()] == modes
    assert all(torch.equal(weights[name], tensor) for name, tensor in backbone.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state  # type: ignore[index]
    assert all(parameter.grad is None for parameter in backbone.parameters())


def test_a_network_in_training_is_drawn_as_it_is_when_it_is_used(tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = Convolutions()
    backbone.body = nn.Sequential(backbone.body, nn.Dropout(0.5))
    for name in ("training", "evaluating"):
        backbone.train(name == "training")
        snapshots_in(tmp_path / name).draw(backbone, 0)
    assert digests(tmp_path / "training") == digests(tmp_path / "evaluating")


def test_without_images_nothing_is_drawn(tmp_path: Path) -> None:
    assert (
        Snapshots(tmp_path / "snapshots", [], [], GEOMETRY, every=10).draw(drawn_vit(), 0) is None
    )
    assert not (tmp_path / "snapshots").exists()


# -- over time -------------------------------------------------------------------------------------


def test_at_most_twelve_steps_are_kept_evenly_spread() -> None:
    for every in (1, 20, 200):
        kept: list[int] = []
        for count in range(200):
            newest = count * every
            kept = [step for step in kept if is_kept(step, newest=newest, every=every)] + [newest]
            assert len(kept) <= MAX_SNAPSHOTS
            assert kept[0] == 0
            gaps = {after - before for before, after in itertools.pairwise(kept[:-1])}
            assert len(gaps) <= 1
            assert count < 12 or len(kept) > MAX_SNAPSHOTS // 2


def test_snapshots_on_disk_are_those_that_are_kept(tmp_path: Path) -> None:
    snapshots, backbone = snapshots_in(tmp_path, enlarge=False), Convolutions()
    for step in [*range(0, 130, 10), 134]:
        snapshots.draw(backbone, step)
    assert [snapshot.step for snapshot in list_snapshots(tmp_path)] == [
        0,
        20,
        40,
        60,
        80,
        100,
        120,
        134,
    ]


def test_a_resumed_run_leaves_the_snapshots_of_an_unbroken_one(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    networks = {step: Convolutions() for step in range(0, 220, 10)}
    unbroken, broken = (
        snapshots_in(tmp_path / name, enlarge=False) for name in ("unbroken", "broken")
    )
    for step, network in networks.items():
        unbroken.draw(network, step)
    for step in range(0, 150, 10):
        broken.draw(networks[step], step)
    (tmp_path / "broken" / "step-00000150.partial-0a1b").mkdir()
    again = snapshots_in(tmp_path / "broken", enlarge=False)
    for step in range(100, 220, 10):  # from the checkpoint of step 90, whose own snapshot is gone
        again.draw(networks[step], step)
        assert list_snapshots(tmp_path / "broken")[-1].step == step
    assert digests(tmp_path / "broken") == digests(tmp_path / "unbroken")
    assert not list((tmp_path / "broken").glob("*.partial-*"))


def test_colors_keep_to_the_snapshot_before_on_disk(tmp_path: Path) -> None:
    """A network that is the same but for the sign of all it says."""
    backbone = drawn_vit()
    turned = copy.deepcopy(backbone)
    with torch.no_grad():
        turned.norm.weight.copy_(-backbone.norm.weight)
        turned.norm.bias.copy_(-backbone.norm.bias)
    snapshots = snapshots_in(tmp_path)
    before, after = snapshots.draw(backbone, 0), snapshots.draw(turned, 10)
    assert before is not None
    assert after is not None
    one, other = read_pca(before, 2), read_pca(after, 2)
    assert one is not None
    assert other is not None
    assert np.abs(np.stack(one).astype(int) - np.stack(other)).mean() < 8


def test_a_torn_snapshot_is_not_used_as_the_reference(tmp_path: Path) -> None:
    snapshots = snapshots_in(tmp_path)
    drawn = snapshots.draw(drawn_vit(), 0)
    assert drawn is not None
    (drawn.folder / "00-pca.png").write_bytes(b"torn")
    assert snapshots.draw(drawn_vit(), 10) is not None
