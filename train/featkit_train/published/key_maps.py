"""The names of weights in published files, and featkit's names for them. Data only, without torch.

A rule is a regular expression for a whole name, and the new name; None leaves the tensor out, since
only training needs it. A new name that ends in `[i/n]` is part i of n of one of our tensors, joined
along the first axis. POSITIONS is a position table whose first row belongs to the class token.

A new publisher's names are one more KeyMap here; a row of `zoo` lists the maps that its files use.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass

Rules = tuple[tuple[str, str | None], ...]
POSITIONS = "positions"
LINEAR = r"\.(weight|bias)"


@dataclass(frozen=True, kw_only=True)
class KeyMap:
    """One publisher's naming scheme. The first rule that matches wins.

    block: the pattern before every name inside a block; its one group is the block's index.
    """

    block: str | None = None
    in_block: Rules = ()
    outside: Rules

    def ours(self, name: str) -> str | None:
        """Return featkit's name, None for a tensor to leave out. KeyError for an unknown name."""
        inside = re.match(self.block, name) if self.block else None
        if inside:
            prefix, rest, rules = f"blocks.{inside[1]}.", name[inside.end() :], self.in_block
        else:
            prefix, rest, rules = "", name, self.outside
        for pattern, replacement in rules:
            match = re.fullmatch(pattern, rest)
            if match:
                return None if replacement is None else prefix + match.expand(replacement)
        raise KeyError(name)


# facebookresearch/dino, dinov2 and dinov3, bytedance/ibot, and timm's copies of DINO.
OFFICIAL = KeyMap(
    block=r"blocks\.(?:\d+\.)?(\d+)\.",  # FSDP chunks add an index of their own
    in_block=(
        (r"norm(\d)" + LINEAR, r"norm\1.\2"),
        (r"attn\.qkv" + LINEAR, r"attention.qkv.\1"),
        # 1 for queries and values, 0 for keys; `key_bias=False` in our config does the same
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
        (r"(?:register|storage)_tokens|reg_token", "registers"),  # reg_token: timm
        (r"patch_embed\.proj" + LINEAR, r"patch_embed.\1"),
        (r"norm" + LINEAR, r"norm.\1"),
        (r"rope_embed\.periods", "rotary_periods"),
        (r"mask_token|masked_embed", None),
        (r"local_cls_norm" + LINEAR, None),  # for small crops in training
    ),
)
# timm's copy of DINOv2's largest size, whose fc1 and fc2 are a SwiGLU.
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
# Names in files. `layers`, `q_proj` and similar are names of modules of transformers 5 in memory.
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
    outside=(
        (r"fc" + LINEAR, None),  # a classifier, or DINO's projection head
        (r"((?:conv1|bn1|layer\d)\..*)", r"body.\1"),
    ),
)
OFFICIAL_CONVNEXT = KeyMap(
    outside=(
        (r"downsample_layers\.0\.(\d)" + LINEAR, r"body.stem.\1.\2"),
        (r"downsample_layers\.(\d)\.(\d)" + LINEAR, r"body.stages.\1.downsample.\2.\3"),
        (r"stages\.(\d)\.(\d+)\.gamma", r"body.stages.\1.blocks.\2.gamma"),
        (r"stages\.(\d)\.(\d+)\.dwconv" + LINEAR, r"body.stages.\1.blocks.\2.conv_dw.\3"),
        (r"stages\.(\d)\.(\d+)\.norm" + LINEAR, r"body.stages.\1.blocks.\2.norm.\3"),
        (r"stages\.(\d)\.(\d+)\.pwconv(\d)" + LINEAR, r"body.stages.\1.blocks.\2.mlp.fc\3.\4"),
        (r"norm" + LINEAR, r"norm.\1"),
        (r"norms\.3" + LINEAR, None),  # a second copy of `norm`
    ),
)
HUGGING_FACE_CONVNEXT = KeyMap(
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
    outside=(
        # The classifier, by its names in timm's architectures. `head.norm` and similar are the
        # backbone's.
        (r"(?:head|head_dist|fc|classifier|last_linear)" + LINEAR, None),
        (r"head\.(?:fc|l)" + LINEAR, None),
        (r"(.*)", r"body.\1"),
    ),
)

# For each kind of network, the maps in the order they are tried: if two know all names of a file,
# the first is used.
VIT_MAPS = (
    OFFICIAL,
    HUGGING_FACE_DINOV2,
    HUGGING_FACE_VIT,
    HUGGING_FACE_DINOV3,
    HUGGING_FACE_DINOV3_GATED,
    OFFICIAL_GATED,
)
RESNET_MAPS = (TORCHVISION_RESNET,)
CONVNEXT_MAPS = (OFFICIAL_CONVNEXT, HUGGING_FACE_CONVNEXT)
