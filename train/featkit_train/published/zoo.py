"""The published self-distilled backbones, a row each: what they are made of, how they see a
image, where their weights are.

Data alone, so that the list prints without torch. `featkit_train.published.pretrained` builds and
loads them.

DINO: arXiv 2104.14294, table 1. iBOT: 2111.07832, section 4. DINOv2: 2304.07193, table 17;
registers 2309.16588. DINOv3: 2508.10104, tables 2 and 14.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from featkit.geometry import Geometry
from featkit_train.networks.vit_config import VARIANTS

APACHE, DINOV3_LICENSE = "Apache-2.0", "DINOv3 License"
IMAGENET: Mapping[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SATELLITE: Mapping[str, Any] = {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}
META_DINO = "https://dl.fbaipublicfiles.com/dino"
IBOT_FILES = "https://lf3-nlp-opensource.bytetos.com/obj/nlp-opensource/archive/2022/ibot"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published backbone. `arch` are the arguments of its ViTConfig, or of the network that
    torchvision or timm has.

    num_parameters: of the backbone alone. hub: a repository of Hugging Face; url: one file
    elsewhere; onnx_hub: a repository of Hugging Face where others keep it as an ONNX file.
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
    aliases: tuple[str, ...] = field(default=())

    @property
    def source(self) -> str:
        """Where the weights are, in words that can be looked up."""
        return f"hf.co/{self.hub}" if self.hub else str(self.url)


def crop_of_256(patch: int) -> Geometry:
    """DINO, iBOT and DINOv2 at evaluation: the shorter side to 256, bicubic, then the middle 224 ×
    224."""
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
    """DINOv3: the whole image to 224 × 224, bilinear."""
    return Geometry(
        height=224,
        width=224,
        resize="stretch",
        resize_to=224,
        interpolation="bilinear",
        patch=patch,
        **statistics,
    )


# `model_type` in the config.json of a Hugging Face folder with a Vision Transformer.
FAMILY_OF_MODEL_TYPE = {
    "dinov2": "dinov2",
    "dinov2_with_registers": "dinov2",
    "dinov3_vit": "dinov3",
    "vit": "dino",
}
SIZE_NAMES = {"s": "small", "b": "base", "l": "large", "g": "giant"}  # in repositories


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
        size = variant[-1].lower()
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
        )


PUBLISHED: dict[str, Published] = {
    row.name: row for row in (*_dino(), *_ibot(), *_dinov2(), *_dinov3())
}


def find_published(name: str) -> Published | None:
    """The row of a name, of one of its aliases, or of the hub's repository; None for a name that is
    none."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    return next((row for row in PUBLISHED.values() if name in row.aliases or name == row.hub), None)
