"""Key maps name every tensor of the files they are for, and leave out what only training needs."""

from __future__ import annotations

import pytest

from featkit_train.published.key_maps import (
    OFFICIAL,
    OFFICIAL_CONVNEXT,
    POSITIONS,
    TIMM,
    TORCHVISION_RESNET,
    KeyMap,
)


def test_blocks_in_chunks_keep_their_overall_index() -> None:
    assert OFFICIAL.ours("blocks.3.39.norm1.weight") == "blocks.39.norm1.weight"
    assert OFFICIAL.ours("blocks.39.norm1.weight") == "blocks.39.norm1.weight"


def test_tensors_of_training_are_left_out() -> None:
    assert (
        OFFICIAL.ours("mask_token")
        is OFFICIAL.ours("masked_embed")
        is OFFICIAL.ours("local_cls_norm.bias")
        is None
    )
    assert OFFICIAL.ours("blocks.0.attn.qkv.bias_mask") is None
    assert TORCHVISION_RESNET.ours("fc.weight") is None
    assert OFFICIAL_CONVNEXT.ours("norms.3.weight") is None


def test_timm_heads_are_left_out_but_for_their_norm() -> None:
    for classifier in (
        "head.weight",
        "head.fc.bias",
        "fc.weight",
        "classifier.bias",
        "head_dist.weight",
        "head.l.bias",
    ):
        assert TIMM.ours(classifier) is None
    assert TIMM.ours("head.norm.weight") == "body.head.norm.weight"
    assert TIMM.ours("blocks.0.mlp.fc1.weight") == "body.blocks.0.mlp.fc1.weight"
    assert TIMM.ours("fc_norm.weight") == "body.fc_norm.weight"


def test_a_new_key_map_follows_its_rules() -> None:
    keys = KeyMap(
        block=r"h\.(\d+)\.", in_block=(("a", "b"), ("c", None)), outside=(("p", POSITIONS),)
    )
    assert (keys.ours("h.7.a"), keys.ours("h.7.c"), keys.ours("p")) == (
        "blocks.7.b",
        None,
        POSITIONS,
    )
    with pytest.raises(KeyError):
        keys.ours("a")
