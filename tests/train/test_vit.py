"""The one ViT is each family's backbone: equal to implementations that are not ours, in outputs and in every gradient.

The references come from transformers, built small from their config classes, with weights drawn at random. Where transformers
stretches position tables otherwise than a family's released code, that code's rule takes its place.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featkit_train import vit
from featkit_train.vit import VisionTransformer, ViTConfig, attend
from tests.export.backbones import CONFIGS, drawn_backbone
from tests.torchvision_without_cuda import import_quietly

FAMILIES: dict[str, ViTConfig] = {
    **CONFIGS,
    "dinov2_reg_gelu": dataclasses.replace(CONFIGS["dinov2_reg_swiglu"], mlp="gelu", mlp_width=96),
}
SIZES = {"native": (1.0, 1.0), "oblong": (5 / 3, 4 / 3), "small": (1 / 2, 2 / 3)}  # shares of the native side

# Our names to theirs, pattern by pattern; those of the positions and of queries, keys and values are put together below.
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
    """Tensors by our names (weights, or their gradients) by the reference's. KeyError for a name that has none."""
    theirs: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        if "position" in name or name == "rotary_periods" or tensor.numel() == 0:  # no registers are an empty table
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
        theirs = {name: tensor for name, tensor in theirs.items() if not name.endswith("k_proj.bias")}
    return theirs


def official_positions(embeddings: nn.Module, _tokens: Tensor, height: int, width: int, *, offset: float) -> Tensor:
    """`interpolate_pos_encoding` of facebookresearch/dino and dinov2 (vision_transformer.py), height first."""
    table: Any = embeddings.position_embeddings
    rows, columns = height // embeddings.patch_size, width // embeddings.patch_size  # type: ignore[operator]
    side = round((table.shape[1] - 1) ** 0.5)
    if rows == columns == side:
        return table  # type: ignore[no-any-return]
    grid = table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, scale_factor=((rows + offset) / side, (columns + offset) / side), mode="bicubic")
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
            transformers.ViTConfig(**sizes, intermediate_size=config.mlp_width), add_pooling_layer=False
        )
        model.forward = partial(model.forward, interpolate_pos_encoding=True)
    elif family == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=2))
    elif family == "dinov3":
        model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**sizes, intermediate_size=config.mlp_width))
    else:
        model = transformers.Dinov2WithRegistersModel(transformers.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2))
    if config.position == "learned" and config.position_offset:
        rule = partial(official_positions, model.embeddings, offset=config.position_offset)
        model.embeddings.interpolate_pos_encoding = rule
    return model.eval()


def native_side(config: ViTConfig) -> int:
    """In pixels; of families without a table, some."""
    return config.patch * config.position_grid


def pictures(config: ViTConfig, size: str, *, batch: int = 2) -> Tensor:
    """(B, 3, H, W) normalised noise of one of SIZES."""
    height, width = (max(1, round(share * config.position_grid)) * config.patch for share in SIZES[size])
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(height))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_one_name_in_the_reference_and_none_is_left_over(family: str) -> None:
    ours = drawn_backbone(FAMILIES[family])
    theirs = {name: tensor.shape for name, tensor in make_reference(family).named_parameters() if name not in UNUSED}
    assert {name: tensor.shape for name, tensor in renamed(ours.state_dict(), family).items()} == theirs


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_vit_is_the_family_in_outputs_and_gradients(family: str, size: str) -> None:
    config = FAMILIES[family]
    ours, theirs = drawn_backbone(config, seed=1), make_reference(family)
    assert set(theirs.load_state_dict(renamed(ours.state_dict(), family), strict=False).missing_keys) <= UNUSED
    images = pictures(config, size)
    class_token, patch_tokens = ours(images)
    expected = theirs(images).last_hidden_state
    prefix = 1 + config.num_registers
    torch.testing.assert_close(class_token, expected[:, 0], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(patch_tokens.flatten(1, 2), expected[:, prefix:], rtol=1e-4, atol=2e-5)
    assert patch_tokens.shape[1:3] == (images.shape[2] // config.patch, images.shape[3] // config.patch)

    # A weight for every number, so that no two gradients can be exchanged.
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    weights[:, 1:prefix] = 0.0  # registers are thrown away
    (expected * weights).sum().backward()
    ((class_token * weights[:, 0]).sum() + (patch_tokens.flatten(1, 2) * weights[:, prefix:]).sum()).backward()
    gradients = {name: gradient(parameter) for name, parameter in ours.named_parameters()}
    for name, ours_by_their_name in renamed(gradients, family).items():
        reference = gradient(theirs.get_parameter(name))
        scale = reference.abs().max().item()
        if name.endswith("k_proj.bias"):  # a constant added to all keys changes no softmax
            assert max(scale, ours_by_their_name.abs().max().item()) < 1e-4
            continue
        assert scale > 0.1, name
        torch.testing.assert_close(ours_by_their_name, reference, rtol=1e-3, atol=1e-5 * scale, msg=name)


def gradient(parameter: nn.Parameter) -> Tensor:
    """Of a parameter that a loss depends on, or an empty one."""
    return parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)


def test_a_masked_key_bias_changes_nothing_and_learns_nothing() -> None:
    config = FAMILIES["dinov3"]
    backbone, images = drawn_backbone(config), pictures(FAMILIES["dinov3"], "small")
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
def test_a_picture_does_not_see_the_others_of_its_batch(family: str) -> None:
    backbone, images = drawn_backbone(FAMILIES[family]), pictures(FAMILIES[family], "small", batch=3)
    together = backbone(images)
    for number in range(3):
        alone = backbone(images[number : number + 1])
        torch.testing.assert_close(alone.class_token[0], together.class_token[number])
        torch.testing.assert_close(alone.patch_tokens[0], together.patch_tokens[number])


def test_both_ways_to_attend_are_one_in_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(2, 3, 7, 16, generator=generator).requires_grad_() for _ in range(3)]
    weights = torch.randn(2, 3, 7, 16, generator=generator)
    plain = attend(*inputs)
    plain_gradients = torch.autograd.grad((plain * weights).sum(), inputs)
    monkeypatch.setattr(vit, "PLAIN_ATTENTION_TOKENS", 0)
    fused = attend(*inputs)
    torch.testing.assert_close(plain, fused)
    torch.testing.assert_close(plain_gradients, torch.autograd.grad((fused * weights).sum(), inputs))


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"width": 50, "num_heads": 4}, "width 50 is no multiple of num_heads 4"),
        ({"width": 30, "num_heads": 5, "position": "rotary"}, "a multiple of 4 channels, not 6"),
    ],
)
def test_heads_that_do_not_fit_are_refused(sizes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        ViTConfig(**sizes)


def test_new_weights_are_drawn_and_a_new_layer_scale_is_its_config() -> None:
    torch.manual_seed(0)
    config = dataclasses.replace(FAMILIES["dinov2_reg_swiglu"], layer_scale=1e-5)
    backbone = VisionTransformer(config)
    state = dict(backbone.named_parameters())
    for name in ("class_token", "registers", "class_position", "patch_positions", "blocks.0.attention.qkv.weight"):
        assert 0.015 < state[name].std().item() < 0.025, name
    assert torch.equal(state["blocks.1.scale2.gamma"], torch.full((48,), 1e-5))
    assert torch.equal(state["blocks.0.attention.qkv.bias"], torch.zeros(144))
