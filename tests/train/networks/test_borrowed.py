"""Networks of torchvision's and timm's behind featkit's interface: their own numbers, in the places
they belong to."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from featkit.errors import EnvironmentProblem
from featkit_train.networks.base import Backbone
from featkit_train.networks.bodies import borrow
from featkit_train.networks.borrowed import ConvNeXt, ResNet, TimmModel, TorchvisionModel
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision, import_quietly
from tests.train import published_files as published
from tests.train.networks.networks import (
    SMALL_RESNET,
    SMALL_VIT,
    add_tiny_vit,
    draw_images,
    drawn,
)

# Names of timm's, with sizes that make the large among them small.
TIMM: dict[str, dict[str, Any]] = {
    "test_vit": {},  # a class token
    "test_vit2": {},  # the mean of the patches
    "test_vit3": {},  # attention pooling
    "test_convnext": {},
    "test_resnet": {},
    "test_efficientnet": {},
    "test_byobnet": {},
    "mobilenetv3_small_050": {},  # a classifier's layer that is wider than the map
    # height and width before the channels
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 24},
    "vit_small_patch14_reg4_dinov2": {"depth": 1},  # registers
    "vit_small_plus_patch16_dinov3": {"depth": 1},
}
# Names of torchvision's, the side in pixels that each is given, and the places of its map along it.
TORCHVISION: dict[str, tuple[int, int]] = {
    "resnet18": (64, 2),
    "convnext_tiny": (64, 2),
    "mobilenet_v3_small": (64, 2),  # a layer between the map and the classifier's last
    "efficientnet_b0": (64, 2),
    "featkit_tiny_vit": (32, 4),  # tokens
    "swin_t": (64, 2),  # height and width before the channels
    "densenet121": (64, 2),  # pooled by a function
    "shufflenet_v2_x0_5": (64, 2),  # pooled by a tensor's own mean
}


@pytest.fixture(autouse=True)
def _quietly() -> Iterator[None]:
    allow_torchvision()
    with torch.no_grad():
        yield


def timm_model(arch: str) -> TimmModel:
    model = TimmModel(arch, **TIMM[arch])
    model.load_state_dict(published.drawn(model.state_dict(), seed=0), assign=True)
    return model.eval()


@pytest.mark.parametrize("arch", TIMM)
def test_a_timm_model_gives_timms_vector_and_map(arch: str) -> None:
    model = timm_model(arch)
    side = 224 if arch.startswith("swin") else 4 * model.patch
    images = torch.randn(
        2,
        3,
        side,
        side if arch.startswith("swin") else 6 * model.patch,
        generator=torch.Generator().manual_seed(0),
    )
    class_token, places = model(images)
    assert class_token.shape == (2, model.width)
    assert places.shape[:3] == (2, images.shape[2] // model.patch, images.shape[3] // model.patch)
    pooled = model.body.forward_head(model.body.forward_features(images), pre_logits=True)
    torch.testing.assert_close(class_token, pooled)
    # their last layer is behind what timm calls the last map
    if arch.startswith(("test_efficientnet", "mobilenet")):
        maps = model.body.forward_features(images)
    else:
        maps = model.body.forward_intermediates(
            images, indices=1, norm=True, intermediates_only=True, output_fmt="NCHW"
        )[0]
    if arch in ("test_convnext", "test_resnet", "test_byobnet"):
        maps = model.body.forward_features(images)
    scale = maps.std().item()
    torch.testing.assert_close(
        places / scale, maps.permute(0, 2, 3, 1) / scale, rtol=1e-4, atol=2e-5
    )


@pytest.mark.parametrize("arch", ["test_vit", "test_resnet", "swin_tiny_patch4_window7_224"])
def test_a_place_of_the_map_looks_at_its_own_part_of_the_image(arch: str) -> None:
    """The corner that changes is the corner of the map that changes most."""
    model = timm_model(arch)
    rows, columns = (7, 7) if arch.startswith("swin") else (4, 6)
    images = torch.zeros(1, 3, model.patch * rows, model.patch * columns)
    before = model(images).patch_tokens[0]
    images[..., -model.patch :, : model.patch] = 3.0  # bottom left
    change = (model(images).patch_tokens[0] - before).norm(dim=-1)
    assert divmod(int(change.argmax()), columns) == (rows - 1, 0)


def torchvision_model(arch: str, side: int) -> tuple[TorchvisionModel, Any]:
    """Ours and the plain one of torchvision's, with equal drawn weights; the latter with its
    classifier."""
    add_tiny_vit()
    options: dict[str, Any] = {"image_size": side} if "vit" in arch else {}
    # weights of its own are never looked at, and take longer than the test
    with torch.device("meta"):
        model, plain = (
            TorchvisionModel(arch, **options),
            borrow("torchvision.models").get_model(arch, weights=None, **options),
        )
    state = published.drawn(plain.state_dict(), seed=0)
    plain.load_state_dict(state, assign=True)
    model.load_state_dict(
        {key: state[key.removeprefix("body.")].clone() for key in model.state_dict()}, assign=True
    )
    return model.eval(), plain.eval()


@pytest.mark.parametrize("arch", TORCHVISION)
def test_a_torchvision_vector_gives_the_classifiers_logits(arch: str) -> None:
    side, places = TORCHVISION[arch]
    model, plain = torchvision_model(arch, side)
    last = [module for module in plain.modules() if isinstance(module, nn.Linear)][-1]
    images = draw_images(2, height=side, width=side)
    class_token, patch_tokens = model(images)
    torch.testing.assert_close(last(class_token), plain(images))
    assert class_token.shape == (2, model.width) == (2, last.in_features)
    assert patch_tokens.shape[:3] == (2, places, places)
    assert model.patch == side // places
    assert model.depth == {"resnet18": 4, "featkit_tiny_vit": 3}.get(arch, 1)
    # Nothing is held that has no part in it; of the whole the last layer is missing.
    assert len(plain.state_dict()) - len(model.state_dict()) == 2


@pytest.mark.parametrize("arch", ["resnet18", "featkit_tiny_vit", "swin_t", "convnext_tiny"])
def test_the_places_of_torchvisions_are_what_it_pools(arch: str) -> None:
    side, _ = TORCHVISION[arch]
    model, plain = torchvision_model(arch, side)
    images = draw_images(2, height=side, width=side)
    class_token, patch_tokens = model(images)
    if arch == "featkit_tiny_vit":
        seen: list[torch.Tensor] = []
        plain.encoder.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        plain(images)
        torch.testing.assert_close(patch_tokens.flatten(1, 2), seen[0][:, 1:])
        torch.testing.assert_close(class_token, seen[0][:, 0])
    else:
        mean = patch_tokens.mean(dim=(1, 2))
        norm = plain.classifier[0] if arch == "convnext_tiny" else nn.Identity()
        torch.testing.assert_close(class_token, norm(mean[:, :, None, None]).flatten(1))


def test_torchvision_networks_train_as_in_torchvision() -> None:
    model, plain = torchvision_model("resnet18", 64)
    images = draw_images(4, height=64, width=64)
    with torch.enable_grad():
        model.train()(images).class_token.square().sum().backward()
        plain.fc = nn.Identity()
        plain.train()(images).square().sum().backward()
    theirs = {f"body.{key}": weight for key, weight in plain.named_parameters()}
    assert theirs.keys() == dict(model.named_parameters()).keys()
    for key, weight in model.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(
            weight.grad, theirs[key].grad, rtol=1e-3, atol=1e-3 * float(weight.grad.abs().max())
        )
    for key, buffer in plain.named_buffers():
        torch.testing.assert_close(model.get_buffer(f"body.{key}"), buffer)
    torch.testing.assert_close(model.eval()(images).class_token, plain.eval()(images))


def test_torchvisions_dropout_is_drawn_in_training_alone() -> None:
    add_tiny_vit()
    model, images = TorchvisionModel("featkit_tiny_vit", dropout=0.5).eval(), draw_images()
    torch.testing.assert_close(model(images), model(images), rtol=0, atol=0)
    model.train()
    assert not torch.equal(model(images).class_token, model(images).class_token)


@pytest.mark.parametrize(
    ("arch", "near"),
    [("resnet81", "resnet18"), ("vit_b16", "vit_b_16"), ("fcn_resnet50", "resnet50")],
)
def test_an_unknown_torchvision_name_gets_a_suggestion(arch: str, near: str) -> None:
    with refused(arch, near):
        TorchvisionModel(arch)


def test_a_torchvision_network_without_last_linear_is_refused() -> None:
    with refused("squeezenet1_1", "Linear"):
        TorchvisionModel("squeezenet1_1")


# How each is built, and where its stages or blocks are in its body. A norm follows blocks.
LAYERED: dict[str, tuple[Any, tuple[str, ...]]] = {
    "DINO ResNet": (lambda: ResNet("resnet18"), ("layer1", "layer2", "layer3", "layer4")),
    "DINOv3 ConvNeXt": (
        lambda: ConvNeXt("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 12, 16, 24)),
        ("stages.0", "stages.1", "stages.2", "stages.3"),
    ),
    "timm CNN": (
        lambda: TimmModel("resnet18", **SMALL_RESNET, small_stem=True),
        ("layer1", "layer2", "layer3", "layer4"),
    ),
    "timm CNN with a stem row": (
        lambda: TimmModel("regnetx_002"),
        ("s1", "s2", "s3", "s4"),
    ),
    "timm CNN, height and width first": (
        lambda: TimmModel("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1), embed_dim=24),
        ("layers.0", "layers.1", "layers.2", "layers.3"),
    ),
}
BLOCKS: dict[str, tuple[Any, str, str]] = {
    "class token": (lambda: TimmModel("test_vit", **SMALL_VIT), "blocks", "norm"),
    "mean of the patches": (lambda: TimmModel("test_vit2", **SMALL_VIT), "blocks", "norm"),
    "registers": (
        lambda: TimmModel("vit_small_patch14_reg4_dinov2", depth=3, embed_dim=24, num_heads=2),
        "blocks",
        "norm",
    ),
    "torchvision": (lambda: TorchvisionModel("featkit_tiny_vit"), "encoder.layers", "encoder.ln"),
}


@pytest.mark.parametrize("name", LAYERED)
def test_layers_of_a_cnn_are_its_stages(name: str) -> None:
    make, places = LAYERED[name]
    backbone, is_swin = drawn(make()), name == "timm CNN, height and width first"
    height, width = (224, 224) if is_swin else (3 * backbone.patch, 5 * backbone.patch)
    images = draw_images(2, height=height, width=width)
    whole, maps = backbone(images), []
    for place in places:
        backbone.body.get_submodule(place).register_forward_hook(
            lambda _module, _inputs, output: maps.append(output)
        )
    features = backbone.activations(images, layers=(3, 1, 4, 2)).features
    for layer, found in zip((3, 1, 4, 2), features, strict=True):
        if layer == 4:
            torch.testing.assert_close(found, whole)
            continue
        places_of_stage = maps[layer - 1] if is_swin else maps[layer - 1].permute(0, 2, 3, 1)
        torch.testing.assert_close(found.patch_tokens, places_of_stage)
        torch.testing.assert_close(found.class_token, places_of_stage.mean(dim=(1, 2)))
    assert [found.class_token.shape for found in features] == [
        (2, backbone.widths[layer - 1]) for layer in (3, 1, 4, 2)
    ]
    heights = [found.patch_tokens.shape[1] for found in features]
    assert heights[1] > heights[3] > heights[0] > heights[2] == height // backbone.patch
    assert (backbone.depth, backbone.width) == (4, backbone.widths[-1])
    torch.testing.assert_close(backbone.activations(images, layers=(2,)).features[0], features[3])


def test_stages_of_both_libraries_are_equal() -> None:
    """torch.fx hides torchvision's stages, so timm's ResNet of equal weights shows them."""
    ours, images = drawn(TorchvisionModel("resnet18")), draw_images(2, height=64, width=96)
    theirs, dino = TimmModel("resnet18").eval(), ResNet("resnet18").eval()
    for other in (theirs, dino):
        other.load_state_dict(ours.state_dict())
        torch.testing.assert_close(
            ours.activations(images, layers=(1, 2, 3, 4)),
            other.activations(images, layers=(1, 2, 3, 4)),
        )
        assert ours.widths == other.widths == (64, 128, 256, 512)


@pytest.mark.parametrize("name", BLOCKS)
def test_layers_of_a_transformer_are_its_normed_blocks(name: str) -> None:
    make, places, norm = BLOCKS[name]
    add_tiny_vit()
    backbone = drawn(make())
    images = draw_images(2, height=4 * backbone.patch, width=4 * backbone.patch)
    normed: list[torch.Tensor] = []
    plain = backbone.activations(images, layers=(3,)).features[0]
    if name == "torchvision":  # torch.fx keeps leaves alone, so the plain model is asked
        model = borrow("torchvision.models").get_model("featkit_tiny_vit", weights=None).eval()
        model.load_state_dict(
            {key.removeprefix("body."): value for key, value in backbone.state_dict().items()},
            strict=False,
        )
    else:
        model = backbone.body
    for block in model.get_submodule(places):
        block.register_forward_hook(
            lambda _m, _i, output: normed.append(model.get_submodule(norm)(output))
        )
    model(images)
    blocks, normed = list(normed), []
    features = backbone.activations(images, layers=(2, 3, 1)).features
    num_prefix = getattr(model, "num_prefix_tokens", 1)
    for layer, found in zip((2, 3, 1), features, strict=True):
        tokens = blocks[layer - 1]
        patches = tokens[:, num_prefix:]
        torch.testing.assert_close(found.patch_tokens.flatten(1, 2), patches)
        if name == "mean of the patches":
            torch.testing.assert_close(found.class_token, model.fc_norm(patches.mean(dim=1)))
        else:
            torch.testing.assert_close(found.class_token, tokens[:, 0])
    torch.testing.assert_close(features[1], plain)
    assert (backbone.depth, backbone.widths) == (3, (backbone.width,) * 3)


@pytest.mark.parametrize(
    ("make", "depth"),
    [
        (lambda: ResNet("resnet18"), 4),
        (lambda: TimmModel("test_vit"), 6),
        (lambda: ConvNeXt("test_convnext"), 4),
        (lambda: TorchvisionModel("resnet18"), 4),
        (lambda: TorchvisionModel("mobilenet_v3_small"), 1),
        (lambda: TimmModel("cait_xxs24_224", depth=1, embed_dim=24, num_heads=2), 1),
    ],
)
def test_missing_layers_and_attention_are_refused(make: Any, depth: int) -> None:
    backbone: Backbone = make().eval()
    images = torch.zeros(1, 3, 2 * backbone.patch, 2 * backbone.patch)
    if backbone.patch == 16:
        images = torch.zeros(1, 3, 224, 224)
    assert (backbone.depth, backbone.has_attention) == (depth, False)
    assert backbone.activations(images, layers=(depth,)).attention is None
    words = "only its last layer" if depth == 1 else f"layers 1 to {depth}"
    for layers, attention in (((depth + 1,), False), ((0,), False), ((), False), ((depth,), True)):
        with pytest.raises(ValueError, match=words):
            backbone.activations(images, layers=layers, attention=attention)


def test_the_resnet_has_torchvisions_stride_and_width() -> None:
    resnet = ResNet("resnet18").eval()
    class_token, places = resnet(
        torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    )
    assert (resnet.width, resnet.patch) == (512, 32)
    assert (class_token.shape, places.shape) == ((2, 512), (2, 2, 3, 512))
    torch.testing.assert_close(class_token, places.mean(dim=(1, 2)))


@pytest.mark.parametrize(("arch", "near"), [("test_vitt", "test_vit"), ("resnet5", "resnet50")])
def test_a_model_that_timm_does_not_know_is_told_its_nearest(arch: str, near: str) -> None:
    with refused(arch, near):
        TimmModel(arch)


def test_a_model_near_to_none_is_refused_too() -> None:
    with refused("qqqq", "none"):
        TimmModel("qqqq")


def test_an_unknown_tag_of_a_timm_model_is_refused() -> None:
    with refused("'cats' for test_vit", "test_vit.r160_in1k"):
        TimmModel("test_vit.cats")


def test_a_package_that_is_missing_is_named_with_the_command() -> None:
    with refused("no_such_package", "pip install 'featkit[train]'", error=EnvironmentProblem):
        borrow("no_such_package")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("operator torchvision::nms does not exist"), OSError("libcudart.so.13: no")],
)
def test_a_torchvision_that_does_not_fit_torch_is_told(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def import_module(_name: str) -> None:
        raise error

    monkeypatch.setattr(importlib, "import_module", import_module)
    words = (
        "torchvision",
        str(error),
        torch.__version__,
        "pip install --upgrade torch torchvision",
    )
    with refused(*words, error=EnvironmentProblem):
        borrow("torchvision.models")


def test_timm_and_torchvision_are_imported_lazily() -> None:
    look = (
        "import sys, featkit_train.published.pretrained; "
        "print(sorted({'timm', 'torchvision', 'huggingface_hub'} & set(sys.modules)))"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", look], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
    assert import_quietly("timm").__name__ == "timm"
