"""The published networks as transformers and timm write them, with a row's tensors in them: what
ours are compared with."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from featkit.geometry import Geometry
from featkit_train.published.zoo import Published
from tests.export.zoo_files import hugging_face_config, hugging_face_names, official_names
from tests.torchvision_without_cuda import import_quietly
from tests.train.networks.test_vit import UNUSED, official_positions, renamed

TIMM = {
    "dino_vits16": "vit_small_patch16_224",
    "dino_vits8": "vit_small_patch8_224",
    "dino_vitb16": "vit_base_patch16_224",
    "dino_vitb8": "vit_base_patch8_224",
    "ibot_vits16": "vit_small_patch16_224",
    "ibot_vitb16": "vit_base_patch16_224",
    "ibot_vitl16": "vit_large_patch16_224",
    "dino_resnet50": "resnet50",
    "dinov2_vits14": "vit_small_patch14_dinov2",
    "dinov2_vitb14": "vit_base_patch14_dinov2",
    "dinov2_vitl14": "vit_large_patch14_dinov2",
    "dinov2_vitg14": "vit_giant_patch14_dinov2",
    "dinov2_vits14_reg": "vit_small_patch14_reg4_dinov2",
    "dinov2_vitb14_reg": "vit_base_patch14_reg4_dinov2",
    "dinov2_vitl14_reg": "vit_large_patch14_reg4_dinov2",
    "dinov2_vitg14_reg": "vit_giant_patch14_reg4_dinov2",
}


def normalized(images: np.ndarray, geometry: Geometry) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32, in plain numpy."""
    pixels = (images.astype(np.float64) / 255 - np.array(geometry.mean)) / np.array(geometry.std)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def native_side(published: Published) -> int:
    """Pixels at which every position rule agrees: the table's own size; without a table,
    what the row resizes to."""
    arch = published.arch
    return (
        int(arch["position_grid"] * arch["patch"])
        if "position_grid" in arch
        else published.geometry.height
    )


def transformers_model(published: Published, ours: Mapping[str, Tensor], *, official: bool) -> Any:
    """The row's network in transformers. official: with the position rule of the family's released
    code where that differs."""
    transformers = import_quietly("transformers")
    values = (
        hugging_face_config(published)
        if published.kind == "convnext" or published.family.startswith("dinov")
        else {}
    )
    arch, kind = published.arch, values.pop("model_type", "vit")
    form = {
        "vit": "dino",
        "dinov2": "dinov2",
        "dinov2_with_registers": "dinov2_reg_swiglu",
        "dinov3_vit": "dinov3",
    }.get(kind)
    if kind == "dinov3_convnext":
        model = transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**values))
        names = model.state_dict()
        theirs = hugging_face_names(ours, published)
        theirs = {
            name if name in names else f"model.{name}": tensor for name, tensor in theirs.items()
        }
        model.load_state_dict(theirs)
        return model.eval()
    if kind == "vit":
        config = transformers.ViTConfig(
            hidden_size=arch["width"],
            num_hidden_layers=arch["depth"],
            num_attention_heads=arch["num_heads"],
            intermediate_size=arch["mlp_width"],
            patch_size=arch["patch"],
            image_size=native_side(published),
            layer_norm_eps=1e-6,
        )
        model = transformers.ViTModel(config, add_pooling_layer=False)
        model.forward = partial(model.forward, interpolate_pos_encoding=True)
    elif kind == "dinov2":
        model = transformers.Dinov2Model(transformers.Dinov2Config(**values))
    elif kind == "dinov2_with_registers":
        model = transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**values)
        )
    else:
        model = transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**values))
    assert form is not None
    problems = model.load_state_dict(renamed(ours, form), strict=False)
    assert set(problems.missing_keys) <= UNUSED
    assert not problems.unexpected_keys
    offset = arch.get("position_offset", 0.1)
    if official and "position_grid" in arch and offset:
        model.embeddings.interpolate_pos_encoding = partial(
            official_positions, model.embeddings, offset=offset
        )
    return model.eval()


def class_token(model: Any, pixels: Tensor) -> np.ndarray:
    """(N, D) of a model of transformers; of a ConvNeXt the pooled vector."""
    with torch.no_grad():
        given = model(pixels)
    return given.last_hidden_state[:, 0].numpy()  # type: ignore[no-any-return]


def patch_tokens(model: Any, pixels: Tensor, published: Published) -> np.ndarray:
    """(N, P, D) of a model of transformers, of a ConvNeXt its places."""
    with torch.no_grad():
        return (  # type: ignore[no-any-return]
            model(pixels).last_hidden_state[:, 1 + published.arch.get("num_registers", 0) :].numpy()
        )


def timm_model(published: Published, ours: Mapping[str, Tensor]) -> Any:
    """The row's network in timm, which converts the official names by its own code; any size for a
    ViT."""
    timm = import_quietly("timm")
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    if published.kind == "vit":
        options |= {"dynamic_img_size": True, "depth": published.arch["depth"]}
    model = timm.create_model(TIMM[published.name], **options)
    theirs = official_names(ours, published)
    if published.kind == "vit":
        theirs = import_quietly("timm.models.vision_transformer").checkpoint_filter_fn(
            theirs, model
        )
    model.load_state_dict(theirs)
    return model.eval()


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(N,) of rows, in float64."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)  # type: ignore[no-any-return]
