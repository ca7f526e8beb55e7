"""The published self-distilled backbones, one row each: sizes, preprocessing, weights, license.

Data only and without torch, so that the list prints fast. `published.pretrained` builds and loads
the rows. Sizes of ViTs are in `networks.vit_config.VARIANTS`, with the papers' table numbers.

A new weight family is new rows here and, if its files use new names, a map in `key_maps`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from featkit.geometry import Geometry
from featkit_train.networks.vit_config import VARIANTS
from featkit_train.published.key_maps import CONVNEXT_MAPS, RESNET_MAPS, VIT_MAPS, KeyMap

APACHE, DINOV3_LICENSE = "Apache-2.0", "DINOv3 License"
IMAGENET: Mapping[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SATELLITE: Mapping[str, Any] = {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}
META_DINO = "https://dl.fbaipublicfiles.com/dino"
IBOT_FILES = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published backbone.

    arch: arguments of ViTConfig, or of the constructor in torchvision or timm.
    num_parameters: the backbone's only, without heads.
    hub: the Hugging Face repository; url: a single file elsewhere; onnx_hub: a Hugging Face
    repository with the same model as an ONNX file.
    gated: users have to accept the license on the hub first.
    hub_config: values by which the config.json of a Hugging Face folder is recognized.
    key_maps: how its files may name the weights, in the order to try them.
    """

    name: str
    family: str
    kind: Literal["vit", "resnet", "convnext"] = "vit"
    arch: Mapping[str, Any]
    patch: int
    width: int
    num_parameters: int
    geometry: Geometry
    license: str
    hub: str | None = None
    url: str | None = None
    onnx_hub: str | None = None
    gated: bool = False
    aliases: tuple[str, ...] = ()
    hub_config: Mapping[str, Any] = field(default_factory=dict)
    key_maps: tuple[KeyMap, ...] = VIT_MAPS

    @property
    def source(self) -> str:
        """The address of the weights, for people."""
        return f"hf.co/{self.hub}" if self.hub else str(self.url)


def crop_of_256(patch: int) -> Geometry:
    """DINO, iBOT and DINOv2 at evaluation: shorter side to 256, bicubic, center crop to 224."""
    return Geometry(
        height=224,
        width=224,
        resize="shorter_side",
        resize_to=256,
        interpolation="bicubic",
        patch=patch,
        **IMAGENET,
    )


def stretched(patch: int, statistics: Mapping[str, Any]) -> Geometry:
    """DINOv3 at evaluation: the whole image stretched to 224 × 224, bilinear."""
    return Geometry(
        height=224,
        width=224,
        resize="stretch",
        resize_to=224,
        interpolation="bilinear",
        patch=patch,
        **statistics,
    )


SIZE_NAMES = {"s": "small", "b": "base", "l": "large", "g": "giant"}  # in repositories


def _vit_config_json(model_type: str, arch: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Return what transformers writes into config.json for a ViT of these sizes."""
    sizes = {"hidden_size": arch["width"], "num_hidden_layers": arch["depth"]}
    return {"model_type": model_type, **sizes, **more}


def _dino() -> Iterator[Published]:
    for size, patch, file, parameters in (
        ("s", 16, "deitsmall16", 21_665_664),
        ("s", 8, "deitsmall8", 21_670_272),
        ("b", 16, "vitbase16", 85_798_656),
        ("b", 8, "vitbase8", 85_807_872),
    ):
        arch = {**VARIANTS[f"ViT-{size.upper()}"], "patch": patch, "position_grid": 224 // patch}
        yield Published(
            name=f"dino_vit{size}{patch}",
            family="dino",
            arch=arch,
            patch=patch,
            width=arch["width"],
            num_parameters=parameters,
            geometry=crop_of_256(patch),
            license=APACHE,
            hub=f"timm/vit_{SIZE_NAMES[size]}_patch{patch}_224.dino",
            url=f"{META_DINO}/dino_{file}_pretrain/dino_{file}_pretrain.pth",
            aliases=(f"facebook/dino-vit{size}{patch}",),
            hub_config=_vit_config_json("vit", arch, patch_size=patch),
        )
    yield Published(
        name="dino_resnet50",
        family="dino",
        kind="resnet",
        arch={"arch": "resnet50"},
        patch=32,
        width=2048,
        num_parameters=23_508_032,
        geometry=crop_of_256(32),
        license=APACHE,
        url=f"{META_DINO}/dino_resnet50_pretrain/dino_resnet50_pretrain.pth",
        key_maps=RESNET_MAPS,
    )


def _ibot() -> Iterator[Published]:
    for size, parameters in (("s", 21_665_664), ("b", 85_798_656), ("l", 303_301_632)):
        arch = {**VARIANTS[f"ViT-{size.upper()}"], "patch": 16, "position_grid": 14}
        yield Published(
            name=f"ibot_vit{size}16",
            family="ibot",
            arch=arch,
            patch=16,
            width=arch["width"],
            num_parameters=parameters,
            geometry=crop_of_256(16),
            license=APACHE,
            url=f"{IBOT_FILES}/vit{size}_16/checkpoint_teacher.pth",
        )


def _dinov2() -> Iterator[Published]:
    for variant, parameters in (
        ("ViT-S", 22_056_192),
        ("ViT-B", 86_579_712),
        ("ViT-L", 304_367_616),
        ("ViT-g", 1_136_479_232),
    ):
        size, is_gated = variant[-1].lower(), VARIANTS[variant]["mlp"] == "swiglu"
        arch = {**VARIANTS[variant], "patch": 14, "position_grid": 37, "layer_scale": 1.0}
        yield Published(
            name=f"dinov2_vit{size}14",
            family="dinov2",
            arch=arch,
            patch=14,
            width=arch["width"],
            num_parameters=parameters,
            geometry=crop_of_256(14),
            license=APACHE,
            hub=f"facebook/dinov2-{SIZE_NAMES[size]}",
            onnx_hub=None if size == "g" else f"onnx-community/dinov2-{SIZE_NAMES[size]}",
            aliases=(f"dinov2-{SIZE_NAMES[size]}",),
            hub_config=_vit_config_json("dinov2", arch, use_swiglu_ffn=is_gated),
        )
        yield Published(
            name=f"dinov2_vit{size}14_reg",
            family="dinov2",
            arch={**arch, "num_registers": 4, "position_offset": 0.0, "position_antialias": True},
            patch=14,
            width=arch["width"],
            num_parameters=parameters + 4 * arch["width"],
            geometry=crop_of_256(14),
            license=APACHE,
            hub=f"facebook/dinov2-with-registers-{SIZE_NAMES[size]}",
            aliases=(f"dinov2-with-registers-{SIZE_NAMES[size]}", f"dinov2_vit{size}14_reg4"),
            hub_config=_vit_config_json(
                "dinov2_with_registers", arch, use_swiglu_ffn=is_gated, num_register_tokens=4
            ),
        )


def _dinov3() -> Iterator[Published]:
    for variant, official, parameters, data in (
        ("ViT-S", "vits16", 21_600_768, "lvd1689m"),
        ("ViT-S+", "vits16plus", 28_697_088, "lvd1689m"),
        ("ViT-B", "vitb16", 85_668_864, "lvd1689m"),
        ("ViT-L", "vitl16", 303_153_152, "lvd1689m"),
        ("ViT-L", "vitl16", 303_153_152, "sat493m"),
        ("ViT-H+", "vith16plus", 840_632_320, "lvd1689m"),
        ("ViT-7B", "vit7b16", 6_716_030_976, "lvd1689m"),
        ("ViT-7B", "vit7b16", 6_716_030_976, "sat493m"),
    ):
        arch = {
            **VARIANTS[variant],
            "patch": 16,
            "position": "rotary",
            "num_registers": 4,
            "layer_scale": 1e-5,
            "qkv_bias": variant != "ViT-7B",
            "key_bias": False,
            "norm_eps": 1e-5,
        }
        is_satellite = data == "sat493m"
        plus_first = official.replace("16plus", "plus16")  # as torch.hub names them
        yield Published(
            name=f"dinov3_{official}{'_sat' if is_satellite else ''}",
            family="dinov3",
            arch=arch,
            patch=16,
            width=arch["width"],
            num_parameters=parameters,
            geometry=stretched(16, SATELLITE if is_satellite else IMAGENET),
            license=DINOV3_LICENSE,
            hub=f"facebook/dinov3-{official}-pretrain-{data}",
            gated=True,
            aliases=(f"dinov3_{plus_first}",) if plus_first != official else (),
            hub_config=_vit_config_json(
                "dinov3_vit", arch, use_gated_mlp=arch["mlp"] == "swiglu", num_register_tokens=4
            ),
        )
    for size, depths, dims, parameters in (
        ("tiny", (3, 3, 9, 3), (96, 192, 384, 768), 27_820_128),
        ("small", (3, 3, 27, 3), (96, 192, 384, 768), 49_454_688),
        ("base", (3, 3, 27, 3), (128, 256, 512, 1024), 87_566_464),
        ("large", (3, 3, 27, 3), (192, 384, 768, 1536), 196_230_336),
    ):
        yield Published(
            name=f"dinov3_convnext_{size}",
            family="dinov3",
            kind="convnext",
            arch={"arch": "convnext_tiny", "depths": depths, "dims": dims},
            patch=32,
            width=dims[-1],
            num_parameters=parameters,
            geometry=stretched(32, IMAGENET),
            license=DINOV3_LICENSE,
            hub=f"facebook/dinov3-convnext-{size}-pretrain-lvd1689m",
            gated=True,
            hub_config={
                "model_type": "dinov3_convnext",
                "hidden_sizes": list(dims),
                "depths": list(depths),
            },
            key_maps=CONVNEXT_MAPS,
        )


PUBLISHED: dict[str, Published] = {
    row.name: row for row in (*_dino(), *_ibot(), *_dinov2(), *_dinov3())
}


def find_published(name: str) -> Published | None:
    """Return the row with this name, alias or Hugging Face repository; None if there is none."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    return next((row for row in PUBLISHED.values() if name in row.aliases or name == row.hub), None)


def similar_names(name: str) -> list[str]:
    """Return up to three names of published backbones that resemble an unknown one."""
    known = [alias for row in PUBLISHED.values() for alias in (row.name, *row.aliases)]
    return difflib.get_close_matches(name, known, n=3)


def find_by_config(config: Mapping[str, Any]) -> list[Published]:
    """Return the rows that a Hugging Face config.json describes.

    A value that it leaves out counts as 0 or false.
    """
    return [
        row
        for row in PUBLISHED.values()
        if row.hub_config
        and all((config.get(key) or 0) == (value or 0) for key, value in row.hub_config.items())
    ]


def key_maps_of(kind: str) -> tuple[KeyMap, ...]:
    """Return the key maps of all rows of one kind of network, each once."""
    rows = [row for row in PUBLISHED.values() if row.kind == kind]
    return tuple(dict.fromkeys(keys for row in rows for keys in row.key_maps))
