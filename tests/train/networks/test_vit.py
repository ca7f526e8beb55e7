"""The one ViT is each family's backbone: equal to implementations that are not ours, in outputs and
in every gradient.

The references come from transformers, built small from their config classes, with weights drawn at
random. Where transformers stretches position tables otherwise than a family's released code, that
code's rule takes its place.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featkit_train.networks import vit
from featkit_train.networks.base import Activations, Backbone, Features, Masked
from featkit_train.networks.noise import KeptRows, Noise
from featkit_train.networks.vit import Block, VisionTransformer, attend
from featkit_train.networks.vit_config import ViTConfig
from tests.export.backbones import CONFIGS, drawn_backbone
from tests.torchvision_without_cuda import import_quietly

FAMILIES: dict[str, ViTConfig] = {
    **CONFIGS,
    "dinov2_reg_gelu": dataclasses.replace(CONFIGS["dinov2_reg_swiglu"], mlp="gelu", mlp_width=96),
}
# shares of the native side
SIZES = {"native": (1.0, 1.0), "oblong": (5 / 3, 4 / 3), "small": (1 / 2, 2 / 3)}

# Our names to theirs, pattern by pattern; those of the positions and of queries, keys and values
# are put together below.
EMBEDDINGS = {
    r"patch_embed\.": "embeddings.patch_embeddings.projection.",
    r"class_token": "embeddings.cls_token",
    r"registers": "embeddings.register_tokens",
}
BLOCK = {
    r"blocks\.(\d+)\.attention\.out\.": r"encoder.layer.\1.attention.o_proj.",
    r"blocks\.(\d+)\.attention\.": r"encoder.layer.\1.attention.",
    r"blocks\.(\d+)\.scale(\d)\.gamma": r"encoder.layer.\1.layer_scale\2.lambda1",
    r"blocks\.(\d+)\.mlp\.out\.": r"encoder.layer.\1.mlp.down_proj.",
    r"blocks\.(\d+)\.(norm\d|mlp)\.": r"encoder.layer.\1.\2.",
}
VIT_BLOCK = {
    r"blocks\.(\d+)\.attention\.out\.": r"layers.\1.attention.o_proj.",
    r"blocks\.(\d+)\.norm1\.": r"layers.\1.layernorm_before.",
    r"blocks\.(\d+)\.norm2\.": r"layers.\1.layernorm_after.",
    r"blocks\.(\d+)\.": r"layers.\1.",
}
DINOV3 = {
    r"patch_embed\.": "embeddings.patch_embeddings.",
    r"norm\.": "norm.",
    r"blocks\.(\d+)\.mlp\.fc1\.": r"model.layer.\1.mlp.up_proj.",
    r"blocks\.(\d+)\.mlp\.fc2\.": r"model.layer.\1.mlp.down_proj.",
    **{ours: theirs.replace("encoder.", "model.") for ours, theirs in BLOCK.items()},
}
NAMES = {
    "dino": {**EMBEDDINGS, **VIT_BLOCK, r"norm\.": "layernorm."},
    "dinov2": {**EMBEDDINGS, **BLOCK, r"norm\.": "layernorm."},
    "dinov2_reg_swiglu": {**EMBEDDINGS, **BLOCK, r"norm\.": "layernorm."},
    "dinov2_reg_gelu": {**EMBEDDINGS, **BLOCK, r"norm\.": "layernorm."},
    "dinov3": {**EMBEDDINGS, **DINOV3},
}
UNUSED = {"embeddings.mask_token"}  # of their training objective, which the backbone leaves out


def renamed(ours: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """Tensors by our names (weights, or their gradients) by the reference's. KeyError for a name
    that has none."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        # no registers are an empty table
        if "position" in name or name == "rotary_periods" or tensor.numel() == 0:
            continue
        pattern = next((pattern for pattern in NAMES[family] if re.match(pattern, name)), None)
        if pattern is None:
            raise KeyError(name)
        new = re.sub(f"^{pattern}", NAMES[family][pattern], name)
        if ".qkv." in new:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                theirs[new.replace(".qkv.", f".{letter}_proj.")] = part
        elif ".gate_and_value." in new:
            for half, part in zip(("gate_proj", "up_proj"), tensor.chunk(2), strict=True):
                theirs[new.replace("gate_and_value", half)] = part
        else:
            theirs[new] = tensor
    if "patch_positions" in ours:
        positions = [ours["class_position"][0], ours["patch_positions"].flatten(0, 1)]
        theirs["embeddings.position_embeddings"] = torch.cat(positions)[None]
    if not FAMILIES[family].key_bias:
        theirs = {
            name: tensor for name, tensor in theirs.items() if not name.endswith("k_proj.bias")
        }
    return theirs


def official_positions(
    embeddings: nn.Module, _tokens: Tensor, height: int, width: int, *, offset: float
) -> Tensor:
    """`interpolate_pos_encoding` of facebookresearch/dino and dinov2 (vision_transformer.py),
    height first."""
    table: Any = embeddings.position_embeddings
    rows, columns = height // embeddings.patch_size, width // embeddings.patch_size  # type: ignore[operator]
    side = round((table.shape[1] - 1) ** 0.5)
    if rows == columns == side:
        return table  # type: ignore[no-any-return]
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(
        grid, scale_factor=((rows + offset) / side, (columns + offset) / side), mode="bicubic"
    )
    assert grid.shape[2:] == (rows, columns)
    return torch.cat([table[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


def make_reference(family: str) -> Any:
    """The family's model in transformers, of the sizes of its config here."""
    transformers = import_quietly("transformers")
    config = FAMILIES[family]
    sizes = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "patch_size": config.patch,
        "image_size": native_side(config),
        "layer_norm_eps": config.norm_eps,
        "num_register_tokens": config.num_registers,
        "use_swiglu_ffn": config.mlp == "swiglu",
        "rope_theta": config.rotary_base,
    }
    if family == "dino":
        model = transformers.ViTModel(
            transformers.ViTConfig(**sizes, intermediate_size=config.mlp_width),
            add_pooling_layer=False,
        )
        model.forward = partial(model.forward, interpolate_pos_encoding=True)
    elif family == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2))
    elif family == "dinov3":
        model = transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**sizes, intermediate_size=config.mlp_width)
        )
    else:
        model = transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2)
        )
    if config.position == "learned" and config.position_offset:
        rule = partial(official_positions, model.embeddings, offset=config.position_offset)
        model.embeddings.interpolate_pos_encoding = rule
    return model.eval()


def native_side(config: ViTConfig) -> int:
    """In pixels; of families without a table, some."""
    return config.patch * config.position_grid


def draw_images(config: ViTConfig, size: str, *, batch: int = 2) -> Tensor:
    """(B, 3, H, W) normalized noise of one of SIZES."""
    height, width = (
        max(1, round(share * config.position_grid)) * config.patch for share in SIZES[size]
    )
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_match_those_of_the_reference(family: str) -> None:
    ours = drawn_backbone(FAMILIES[family])
    theirs = {
        name: tensor.shape
        for name, tensor in make_reference(family).named_parameters()
        if name not in UNUSED
    }
    assert {
        name: tensor.shape for name, tensor in renamed(ours.state_dict(), family).items()
    } == theirs


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_vit_equals_the_family_in_outputs_and_gradients(family: str, size: str) -> None:
    config = FAMILIES[family]
    ours, theirs = drawn_backbone(config, seed=1), make_reference(family)
    assert (
        set(theirs.load_state_dict(renamed(ours.state_dict(), family), strict=False).missing_keys)
        <= UNUSED
    )
    images = draw_images(config, size)
    class_token, patch_tokens = ours(images)
    expected = theirs(images).last_hidden_state
    prefix = 1 + config.num_registers
    torch.testing.assert_close(class_token, expected[:, 0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(
        patch_tokens.flatten(1, 2), expected[:, prefix:], rtol=1e-4, atol=2e-5
    )
    assert patch_tokens.shape[1:3] == (
        images.shape[2] // config.patch,
        images.shape[3] // config.patch,
    )

    # A weight for every number, so that no two gradients can be exchanged.
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    weights[:, 1:prefix] = 0.0  # registers are thrown away
    (expected * weights).sum().backward()
    (
        (class_token * weights[:, 0]).sum()
        + (patch_tokens.flatten(1, 2) * weights[:, prefix:]).sum()
    ).backward()
    gradients = {name: gradient(parameter) for name, parameter in ours.named_parameters()}
    for name, ours_by_their_name in renamed(gradients, family).items():
        reference = gradient(theirs.get_parameter(name))
        scale = reference.abs().max().item()
        if name.endswith("k_proj.bias"):  # a constant added to all keys changes no softmax
            assert max(scale, ours_by_their_name.abs().max().item()) < 1e-4
            continue
        assert scale > 0.1, name
        torch.testing.assert_close(
            ours_by_their_name, reference, rtol=1e-3, atol=1e-5 * scale, msg=name
        )


def gradient(parameter: nn.Parameter) -> Tensor:
    """Return the gradient of a parameter, zeros if the loss does not depend on it."""
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def test_a_masked_key_bias_changes_and_learns_nothing() -> None:
    config = FAMILIES["dinov3"]
    backbone, images = drawn_backbone(config), draw_images(FAMILIES["dinov3"], "small")
    before = backbone(images)
    before.class_token.sum().backward()
    for number in range(config.depth):
        bias = backbone.get_parameter(f"blocks.{number}.attention.qkv.bias")
        queries, keys, values = gradient(bias).chunk(3)
        assert torch.equal(keys, torch.zeros_like(keys))
        assert queries.abs().min() > 0
        assert values.abs().max() > 0
        with torch.no_grad():
            bias[config.width : 2 * config.width] += 3.0
    torch.testing.assert_close(backbone(images).class_token, before.class_token, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_image_does_not_depend_on_the_rest_of_its_batch(family: str) -> None:
    backbone, images = (
        drawn_backbone(FAMILIES[family]),
        draw_images(FAMILIES[family], "small", batch=3),
    )
    together = backbone(images)
    for number in range(3):
        alone = backbone(images[number : number + 1])
        torch.testing.assert_close(alone.class_token[0], together.class_token[number])
        torch.testing.assert_close(alone.patch_tokens[0], together.patch_tokens[number])


def test_plain_and_fused_attention_are_equal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 7, 16, generator=generator).requires_grad_() for _ in range(3)]
    weights = torch.randn(2, 3, 7, 16, generator=generator)
    plain = attend(*inputs)
    plain_gradients = torch.autograd.grad((plain * weights).sum(), inputs)
    monkeypatch.setattr(vit, "PLAIN_ATTENTION_TOKENS", 0)
    fused = attend(*inputs)
    torch.testing.assert_close(plain, fused)
    torch.testing.assert_close(
        plain_gradients, torch.autograd.grad((fused * weights).sum(), inputs)
    )


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"width": 50, "num_heads": 4}, "width 50 cannot be divided into num_heads 4"),
        (
            {"width": 30, "num_heads": 5, "position": "rotary"},
            "a head width that is a multiple of 4, not 6",
        ),
    ],
)
def test_heads_that_do_not_fit_are_refused(sizes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ViTConfig(**sizes)


def test_new_weights_are_drawn_and_layer_scale_is_constant() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(FAMILIES["dinov2_reg_swiglu"], layer_scale=1e-5)
    backbone = VisionTransformer(config)
    state = dict(backbone.named_parameters())
    for name in (
        "class_token",
        "registers",
        "class_position",
        "patch_positions",
        "blocks.0.attention.qkv.weight",
    ):
        assert 0.015 < state[name].std().item() < 0.025, name
    assert torch.equal(state["blocks.1.scale2.gamma"], torch.full((48,), 1e-5))
    assert torch.equal(state["blocks.0.attention.qkv.bias"], torch.zeros(144))


# -- as a student in training ----------------------------------------------------------------------


def learning(family: str, size: str = "small") -> tuple[VisionTransformer, Tensor]:
    """A backbone and three images."""
    return drawn_backbone(FAMILIES[family], seed=1), draw_images(FAMILIES[family], size, batch=3)


def some_noise(depth: int, *, scale: float = 1.0) -> Noise:
    """Return noise for three images: branches skip different ones, and one keeps all."""
    kept = [KeptRows(torch.tensor([0, 2]), torch.tensor([1])), KeptRows(None, torch.tensor([0, 1]))]
    return Noise(tuple(kept[number % 2] for number in range(depth)), scale)


def weighted_gradients(backbone: VisionTransformer, features: Features) -> dict[str, Tensor]:
    """Gradients of a loss that weighs every number otherwise."""
    generator = torch.Generator().manual_seed(5)
    backbone.zero_grad()
    losses = [(part * torch.randn(part.shape, generator=generator)).sum() for part in features]
    torch.stack(losses).sum().backward()
    return {name: gradient(parameter).clone() for name, parameter in backbone.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_without_masks_and_noise_is_the_backbone(family: str) -> None:
    backbone, images = learning(family)
    for ours, expected in zip(backbone.student_forward(images), backbone(images), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["dino", "dinov3"])
def test_a_masked_patch_is_the_mask_token_at_its_position(family: str) -> None:
    backbone, images = learning(family)
    config = FAMILIES[family]
    height, width = images.shape[2] // config.patch, images.shape[3] // config.patch
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(3, height, width, generator=generator) < 0.4
    token = torch.randn(1, 1, config.width, generator=generator)
    embed = backbone.patch_embed.forward

    def hiding(pixels: Tensor) -> Tensor:
        grid = embed(pixels).clone()
        for image in range(3):
            for row in range(height):
                for column in range(width):
                    if masks[image, row, column]:
                        grid[image, :, row, column] = token.flatten()
        return grid

    hidden = backbone.student_forward(images, masked=Masked(masks, token))
    assert not torch.allclose(hidden.class_token, backbone.student_forward(images).class_token)
    backbone.patch_embed.forward = hiding  # type: ignore[method-assign,assignment]
    for ours, expected in zip(hidden, backbone(images), strict=True):
        torch.testing.assert_close(ours, expected)


def test_masked_pixels_do_not_reach_the_student() -> None:
    backbone, images = learning("dino")
    patch = FAMILIES["dino"].patch
    masks = torch.zeros(3, images.shape[2] // patch, images.shape[3] // patch, dtype=torch.bool)
    masks[:, 0, 1] = True
    masked = Masked(masks, torch.ones(1, 1, FAMILIES["dino"].width))
    before = backbone.student_forward(images, masked=masked)
    images[:, :, :patch, patch : 2 * patch] += 5.0
    assert torch.equal(
        backbone.student_forward(images, masked=masked).class_token, before.class_token
    )


def plain_loop(backbone: VisionTransformer, images: Tensor, noise: Noise) -> Tensor:
    """Stochastic depth image by image: a branch that is left out adds nothing, one that is kept
    the more."""
    rows = []
    grid = images.shape[2] // backbone.patch, images.shape[3] // backbone.patch
    rotation = backbone.rotation(grid, scale=noise.rotary_scale)
    for image in range(len(images)):
        tokens, _ = backbone.tokenize(images[image : image + 1])
        for number, block in enumerate(backbone.blocks):
            assert isinstance(block, Block)
            attention, mlp = noise.of_block(number)
            if attention is None or image in attention.tolist():
                factor = 1.0 if attention is None else len(images) / len(attention)
                mixed, _ = block.attention(block.norm1(tokens), rotation)
                tokens = tokens + factor * block.scale1(mixed)
            if mlp is None or image in mlp.tolist():
                factor = 1.0 if mlp is None else len(images) / len(mlp)
                tokens = tokens + factor * block.scale2(block.mlp(block.norm2(tokens)))
        rows.append(backbone.norm(tokens))
    return torch.cat(rows)


@pytest.mark.parametrize("family", ["dino", "dinov2_reg_swiglu", "dinov3"])
def test_stochastic_depth_equals_the_loop_over_images(family: str) -> None:
    backbone, images = learning(family)
    noise = some_noise(backbone.depth, scale=1.3)
    prefix = 1 + FAMILIES[family].num_registers
    tokens = plain_loop(backbone, images, noise)
    grid = images.shape[2] // backbone.patch, images.shape[3] // backbone.patch
    expected = Features(tokens[:, 0], torch.unflatten(tokens[:, prefix:], 1, grid))
    ours = backbone.student_forward(images, noise=noise)
    torch.testing.assert_close(tuple(ours), tuple(expected), rtol=1e-4, atol=1e-5)
    expected_gradients = weighted_gradients(backbone, expected)
    for name, found in weighted_gradients(
        backbone, backbone.student_forward(images, noise=noise)
    ).items():
        scale = max(expected_gradients[name].norm().item(), 10.0)
        torch.testing.assert_close(
            found, expected_gradients[name], rtol=1e-3, atol=1e-5 * scale, msg=name
        )


def test_skipped_branches_are_not_computed() -> None:
    backbone, images = learning("dino")
    seen: list[int] = []
    for block in backbone.blocks:
        assert isinstance(block, Block)
        block.attention.register_forward_hook(
            lambda _module, inputs, _output: seen.append(len(inputs[0]))
        )
        block.mlp.register_forward_hook(
            lambda _module, inputs, _output: seen.append(len(inputs[0]))
        )
    backbone.student_forward(images, noise=some_noise(backbone.depth))
    assert seen == [2, 1, 3, 2] * (backbone.depth // 2) + [2, 1] * (backbone.depth % 2)


@pytest.mark.parametrize("family", ["dinov2_reg_swiglu", "dinov3"])
def test_activation_checkpointing_changes_no_bit(
    family: str,
) -> None:
    backbone, images = learning(family)
    noise = some_noise(backbone.depth, scale=0.8)
    kept = backbone.student_forward(images, noise=noise)
    gradients = weighted_gradients(backbone, kept)
    calls: list[int] = []
    backbone.blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
    backbone.checkpoint_activations = True
    again = backbone.student_forward(images, noise=noise)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(again, kept, strict=True))
    found = weighted_gradients(backbone, again)
    assert all(torch.equal(found[name], gradients[name]) for name in gradients)
    assert len(calls) == 2


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("left_out", [False, True])
def test_class_only_gives_the_same_class_token(family: str, left_out: bool) -> None:
    backbone, images = learning(family)
    noise = some_noise(backbone.depth) if left_out else Noise()
    weights = torch.randn(backbone.width, generator=torch.Generator().manual_seed(4))
    found = []
    for class_only in (False, True):
        backbone.zero_grad()
        features = backbone.student_forward(images, noise=noise, class_only=class_only)
        (features.class_token @ weights).sum().backward()
        found.append(
            (
                features,
                {name: gradient(parameter) for name, parameter in backbone.named_parameters()},
            )
        )
    (whole, all_gradients), (alone, few_gradients) = found
    assert alone.patch_tokens.shape == (len(images), 0, 0, backbone.width)
    torch.testing.assert_close(alone.class_token, whole.class_token, rtol=1e-5, atol=1e-5)
    for name, expected in all_gradients.items():
        torch.testing.assert_close(few_gradients[name], expected, rtol=1e-3, atol=1e-5, msg=name)


def test_stretched_coordinates_scale_the_angles() -> None:
    backbone, images = learning("dinov3")
    stretched = backbone.student_forward(images, noise=Noise((), 1.5))
    assert not torch.allclose(stretched.class_token, backbone.student_forward(images).class_token)
    backbone.rotary_periods /= 1.5
    torch.testing.assert_close(
        tuple(stretched), tuple(backbone.student_forward(images)), rtol=1e-4, atol=1e-5
    )


def test_a_separate_norm_is_for_the_class_token_only() -> None:
    backbone, images = learning("dinov2")
    norm = nn.LayerNorm(FAMILIES["dinov2"].width)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2.0, generator=torch.Generator().manual_seed(0))
    plain, own = backbone.student_forward(images), backbone.student_forward(images, norm=norm)
    assert torch.equal(own.patch_tokens, plain.patch_tokens)
    before: list[Tensor] = []
    backbone.blocks[-1].register_forward_hook(
        lambda _module, _inputs, output: before.append(output[0])
    )
    backbone.student_forward(images)
    torch.testing.assert_close(own.class_token, norm(before[0][:, 0]))
    assert not torch.allclose(own.class_token, plain.class_token)


class Mean(Backbone):
    """The least that is a backbone: the mean of each patch's colors."""

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Three channels."""
        del layers, attention
        grid = F.avg_pool2d(images, self.patch).permute(0, 2, 3, 1)
        return Activations((Features(grid.mean(dim=(1, 2)), grid),), None)


@pytest.mark.parametrize(
    "more",
    [
        {"masked": Masked(torch.zeros(1, 2, 2, dtype=torch.bool), torch.zeros(1, 1, 3))},
        {"noise": Noise((KeptRows(torch.tensor([0]), None),))},
        {"noise": Noise((), 1.1)},
        {"norm": nn.LayerNorm(3)},
    ],
)
def test_a_backbone_without_masks_or_noise_refuses_them(more: dict[str, Any]) -> None:
    backbone, images = Mean(patch=4, width=3, depth=1), torch.rand(1, 3, 8, 8)
    assert torch.equal(backbone.student_forward(images).class_token, backbone(images).class_token)
    with pytest.raises(ValueError, match="Mean has no mask token, no stochastic depth"):
        backbone.student_forward(images, **more)


def test_widths_of_a_backbone_are_one_for_each_layer() -> None:
    assert Mean(patch=4, width=3, depth=2).widths == (3, 3)
    assert Mean(patch=4, width=3, depth=2, widths=[8, 3]).widths == (8, 3)
    assert Mean(patch=4, width=3, depth=0).widths == ()
    config = FAMILIES["dinov2"]
    assert drawn_backbone(config).widths == (config.width,) * config.depth
    for widths in ((8, 3, 3), (3, 8), ()):
        with pytest.raises(ValueError, match="do not fit depth 2 and width 3"):
            Mean(patch=4, width=3, depth=2, widths=widths)
