"""Names of weights in published files, and the names they have here.

A rule is a pattern for a whole name and its name here; None where the tensor belongs to training
alone. `[i/n]` marks a tensor that is part i of n of one of ours, joined along the first axis;
POSITIONS a table whose first row is the class token's.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from featkit.errors import InputError

Rules = tuple[tuple[str, str | None], ...]
POSITIONS = "positions"
LINEAR = r"\.(weight|bias)"
SHOWN_KEYS = 4


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """How a publisher names things. `block`: the pattern before every name of a block, its number
    the only group."""

    block: str | None
    in_block: Rules = ()
    outside: Rules

    def ours(self, name: str) -> str | None:
        """The name here, None for a tensor that is left out on purpose. KeyError for a name that no
        rule knows."""
        inside = re.match(self.block, name) if self.block else None
        prefix, rest, rules = ("", name, self.outside)
        if inside:
            prefix, rest, rules = f"blocks.{inside[1]}.", name[inside.end() :], self.in_block
        for pattern, replacement in rules:
            found = re.fullmatch(pattern, rest)
            if found:
                return None if replacement is None else prefix + found.expand(replacement)
        raise KeyError(name)


# facebookresearch/dino, dinov2 and dinov3, bytedance/ibot, and timm's copies of DINO.
OFFICIAL = KeyMap(
    block=r"blocks\.(?:\d+\.)?(\d+)\.",  # a number more where blocks were wrapped in chunks
    in_block=(
        (r"norm(\d)" + LINEAR, r"norm\1.\2"),
        (r"attn\.qkv" + LINEAR, r"attention.qkv.\1"),
        # 1 for queries and values, 0 for keys: `key_bias=False` here
        (r"attn\.qkv\.bias_mask", None),
        (r"attn\.q_proj" + LINEAR, r"attention.qkv.\1[0/3]"),
        (r"attn\.k_proj" + LINEAR, r"attention.qkv.\1[1/3]"),
        (r"attn\.v_proj" + LINEAR, r"attention.qkv.\1[2/3]"),
        (r"attn\.proj" + LINEAR, r"attention.out.\1"),
        (r"ls(\d)\.gamma", r"scale\1.gamma"),
        (r"mlp\.(fc\d)" + LINEAR, r"mlp.\1.\2"),
        (r"mlp\.w12" + LINEAR, r"mlp.gate_and_value.\1"),
        (r"mlp\.w1" + LINEAR, r"mlp.gate_and_value.\1[0/2]"),
        (r"mlp\.w2" + LINEAR, r"mlp.gate_and_value.\1[1/2]"),
        (r"mlp\.w3" + LINEAR, r"mlp.out.\1"),
    ),
    outside=(
        (r"cls_token", "class_token"),
        (r"pos_embed", POSITIONS),
        (r"(?:register|storage)_tokens|reg_token", "registers"),  # the last by timm
        (r"patch_embed\.proj" + LINEAR, r"patch_embed.\1"),
        (r"norm" + LINEAR, r"norm.\1"),
        (r"rope_embed\.periods", "rotary_periods"),
        (r"mask_token|masked_embed", None),
        (r"local_cls_norm" + LINEAR, None),  # of small crops, while training
    ),
)
# timm's copy of DINOv2's largest size.
OFFICIAL_GATED = dataclasses.replace(
    OFFICIAL,
    in_block=(
        (r"mlp\.fc1" + LINEAR, r"mlp.gate_and_value.\1"),
        (r"mlp\.fc2" + LINEAR, r"mlp.out.\1"),
        *OFFICIAL.in_block,
    ),
)
HUGGING_FACE_BLOCK: Rules = (
    (r"layer_scale(\d)\.lambda1", r"scale\1.gamma"),
    (r"norm(\d)" + LINEAR, r"norm\1.\2"),
    (r"attention\.(?:attention\.query|q_proj)" + LINEAR, r"attention.qkv.\1[0/3]"),
    (r"attention\.(?:attention\.key|k_proj)" + LINEAR, r"attention.qkv.\1[1/3]"),
    (r"attention\.(?:attention\.value|v_proj)" + LINEAR, r"attention.qkv.\1[2/3]"),
    (r"attention\.(?:output\.dense|o_proj)" + LINEAR, r"attention.out.\1"),
    (r"mlp\.(fc\d)" + LINEAR, r"mlp.\1.\2"),
    (r"mlp\.weights_in" + LINEAR, r"mlp.gate_and_value.\1"),
    (r"mlp\.weights_out" + LINEAR, r"mlp.out.\1"),
)
_GATED: Rules = (
    (r"mlp\.gate_proj" + LINEAR, r"mlp.gate_and_value.\1[0/2]"),
    (r"mlp\.up_proj" + LINEAR, r"mlp.gate_and_value.\1[1/2]"),
    (r"mlp\.down_proj" + LINEAR, r"mlp.out.\1"),
)
_LEARNED_OUTSIDE: Rules = (
    (r"embeddings\.cls_token", "class_token"),
    (r"embeddings\.position_embeddings", POSITIONS),
    (r"embeddings\.register_tokens", "registers"),
    (r"embeddings\.patch_embeddings\.projection" + LINEAR, r"patch_embed.\1"),
    (r"embeddings\.mask_token", None),
    (r"layernorm" + LINEAR, r"norm.\1"),
    (r"pooler\.dense" + LINEAR, None),
)
# Names of files; `layers`, `q_proj` and the like are those that modules of transformers 5 have in
# memory.
HUGGING_FACE_DINOV2 = KeyMap(
    block=r"encoder\.layer\.(\d+)\.",
    in_block=(*HUGGING_FACE_BLOCK, *_GATED),
    outside=_LEARNED_OUTSIDE,
)
HUGGING_FACE_VIT = KeyMap(  # DINO
    block=r"(?:encoder\.layer|layers)\.(\d+)\.",
    in_block=(
        (r"layernorm_before" + LINEAR, r"norm1.\1"),
        (r"layernorm_after" + LINEAR, r"norm2.\1"),
        (r"intermediate\.dense" + LINEAR, r"mlp.fc1.\1"),
        (r"output\.dense" + LINEAR, r"mlp.fc2.\1"),
        *HUGGING_FACE_BLOCK,
    ),
    outside=_LEARNED_OUTSIDE,
)
_DINOV3_OUTSIDE: Rules = (
    (r"embeddings\.cls_token", "class_token"),
    (r"embeddings\.register_tokens", "registers"),
    (r"embeddings\.patch_embeddings" + LINEAR, r"patch_embed.\1"),
    (r"embeddings\.mask_token", None),
    (r"norm" + LINEAR, r"norm.\1"),
)
HUGGING_FACE_DINOV3 = KeyMap(
    block=r"(?:model\.)?layer\.(\d+)\.",
    in_block=(
        *HUGGING_FACE_BLOCK,
        (r"mlp\.up_proj" + LINEAR, r"mlp.fc1.\1"),
        (r"mlp\.down_proj" + LINEAR, r"mlp.fc2.\1"),
    ),
    outside=_DINOV3_OUTSIDE,
)
HUGGING_FACE_DINOV3_GATED = KeyMap(
    block=r"(?:model\.)?layer\.(\d+)\.",
    in_block=(*HUGGING_FACE_BLOCK, *_GATED),
    outside=_DINOV3_OUTSIDE,
)
TORCHVISION_RESNET = KeyMap(
    block=None,
    outside=(
        (r"fc" + LINEAR, None),  # a classifier, or the projection that DINO put in its place
        (r"((?:conv1|bn1|layer\d)\..*)", r"body.\1"),
    ),
)
OFFICIAL_CONVNEXT = KeyMap(
    block=None,
    outside=(
        (r"downsample_layers\.0\.(\d)" + LINEAR, r"body.stem.\1.\2"),
        (r"downsample_layers\.(\d)\.(\d)" + LINEAR, r"body.stages.\1.downsample.\2.\3"),
        (r"stages\.(\d)\.(\d+)\.gamma", r"body.stages.\1.blocks.\2.gamma"),
        (r"stages\.(\d)\.(\d+)\.dwconv" + LINEAR, r"body.stages.\1.blocks.\2.conv_dw.\3"),
        (r"stages\.(\d)\.(\d+)\.norm" + LINEAR, r"body.stages.\1.blocks.\2.norm.\3"),
        (r"stages\.(\d)\.(\d+)\.pwconv(\d)" + LINEAR, r"body.stages.\1.blocks.\2.mlp.fc\3.\4"),
        (r"norm" + LINEAR, r"norm.\1"),
        (r"norms\.3" + LINEAR, None),  # the same tensors once more
    ),
)
HUGGING_FACE_CONVNEXT = KeyMap(
    block=None,
    outside=(
        (r"(?:model\.)?stages\.0\.downsample_layers\.(\d)" + LINEAR, r"body.stem.\1.\2"),
        (
            r"(?:model\.)?stages\.(\d)\.downsample_layers\.(\d)" + LINEAR,
            r"body.stages.\1.downsample.\2.\3",
        ),
        (r"(?:model\.)?stages\.(\d)\.layers\.(\d+)\.gamma", r"body.stages.\1.blocks.\2.gamma"),
        (
            r"(?:model\.)?stages\.(\d)\.layers\.(\d+)\.depthwise_conv" + LINEAR,
            r"body.stages.\1.blocks.\2.conv_dw.\3",
        ),
        (
            r"(?:model\.)?stages\.(\d)\.layers\.(\d+)\.layer_norm" + LINEAR,
            r"body.stages.\1.blocks.\2.norm.\3",
        ),
        (
            r"(?:model\.)?stages\.(\d)\.layers\.(\d+)\.pointwise_conv(\d)" + LINEAR,
            r"body.stages.\1.blocks.\2.mlp.fc\3.\4",
        ),
        (r"layer_norm" + LINEAR, r"norm.\1"),
    ),
)
TIMM = KeyMap(
    block=None,
    outside=(
        # a classifier's, in the words of timm's architectures; `head.norm` and the like are the
        # backbone's
        (r"(?:head|head_dist|fc|classifier|last_linear)" + LINEAR, None),
        (r"head\.(?:fc|l)" + LINEAR, None),
        (r"(.*)", r"body.\1"),
    ),
)


def rename(tensors: Mapping[str, Tensor], keys: KeyMap, *, what: str) -> dict[str, Tensor]:
    """Tensors by the names they have here. InputError naming the first few that no rule knows, or a
    part that is missing.

    A query or value bias without one for keys (DINOv3 has none) is joined with zeros in its place.
    """
    ours: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    counts: dict[str, int] = {}
    seen: dict[str, str] = {}
    unknown = []
    for name, tensor in tensors.items():
        try:
            target = keys.ours(name)
        except KeyError:
            unknown.append(name)
            continue
        if target is None:
            continue
        if target in seen:
            raise InputError(
                f"{what} has {target} twice, as {seen[target]} and as {name}; keep the right one"
                " alone."
            )
        seen[target] = name
        part = re.fullmatch(r"(.*)\[(\d)/(\d)\]", target)
        if part:
            parts.setdefault(part[1], {})[int(part[2])] = tensor
            counts[part[1]] = int(part[3])
        elif target == POSITIONS:
            ours.update(_split_positions(tensor, name, what))
        else:
            ours[target] = tensor
    if unknown:
        raise InputError(
            f"{what} names {listed(unknown)}, which no weight of this model is called."
        )
    for target, found in parts.items():
        ours[target] = _joined(target, found, counts[target], what)
    return ours


def listed(names: list[str]) -> str:
    """The first few of them, and how many more there are."""
    more = f" and {len(names) - SHOWN_KEYS} more" if len(names) > SHOWN_KEYS else ""
    return ", ".join(names[:SHOWN_KEYS]) + more


def _joined(target: str, found: dict[int, Tensor], count: int, what: str) -> Tensor:
    if set(found) == {0, 2} and target.endswith("qkv.bias"):
        found = {**found, 1: torch.zeros_like(found[0])}
    if set(found) != set(range(count)):
        raise InputError(
            f"{what} has {len(found)} of the {count} parts of {target}; it is not whole."
        )
    shapes = [tuple(found[number].shape) for number in range(count)]
    if () in shapes or len({shape[1:] for shape in shapes}) > 1:
        raise InputError(
            f"{what} has parts of {target} that do not fit together, of shapes"
            f" {', '.join(map(str, shapes))}."
        )
    return torch.cat([found[number] for number in range(count)])


def _split_positions(table: Tensor, name: str, what: str) -> dict[str, Tensor]:
    """(1, 1 + G * G, D) to the class token's (1, 1, D) and the patches' (G, G, D); without the
    first row (timm), it is zero."""
    length = table.shape[1] if table.ndim == 3 and table.shape[0] == 1 else 0
    for first_row in (1, 0):
        side = math.isqrt(max(0, length - first_row))
        if side and side * side == length - first_row:
            class_position = table[:, :1] if first_row else torch.zeros_like(table[:, :1])
            return {
                "class_position": class_position,
                "patch_positions": table[0, first_row:].unflatten(0, (side, side)),
            }
    raise InputError(
        f"{what} has {name} of shape {tuple(table.shape)}, which is no square of positions, with or"
        " without the class token's."
    )
