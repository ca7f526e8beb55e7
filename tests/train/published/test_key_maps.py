"""Every name of a published file has its place here, parts are joined in their order, and nothing
is passed over in silence."""

from __future__ import annotations

import pytest
import torch

from featkit_train.published.building import build
from featkit_train.published.key_maps import (
    HUGGING_FACE_DINOV2,
    HUGGING_FACE_DINOV3,
    HUGGING_FACE_DINOV3_GATED,
    OFFICIAL,
    OFFICIAL_CONVNEXT,
    POSITIONS,
    TIMM,
    TORCHVISION_RESNET,
    KeyMap,
    listed,
    rename,
)
from featkit_train.published.zoo import PUBLISHED
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision
from tests.train import published_files as published

WHAT = "weights.pth, read as a model,"
MAPS = {"vit": OFFICIAL, "resnet": TORCHVISION_RESNET, "convnext": OFFICIAL_CONVNEXT}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_released_names_at_full_depth_are_all_of_the_backbone(name: str) -> None:
    allow_torchvision()
    row = PUBLISHED[name]
    theirs = published.official(name, published.reference(name, empty=True))
    ours = {key: tensor.shape for key, tensor in rename(theirs, MAPS[row.kind], what=WHAT).items()}
    # no registers are empty
    wanted = {
        key: tensor.shape for key, tensor in build(row).state_dict().items() if tensor.numel()
    }
    if row.family == "dinov3" and row.kind == "vit":
        assert "rotary_periods" in wanted
    assert ours == wanted


def test_parts_are_joined_in_their_order_whatever_the_files() -> None:
    query, key, value = (torch.full((2, 4), float(number)) for number in range(3))
    start = "encoder.layer.11.attention.attention."
    files = {
        f"{start}value.weight": value,
        f"{start}query.weight": query,
        f"{start}key.weight": key,
    }
    (joined,) = rename(files, HUGGING_FACE_DINOV2, what=WHAT).items()
    assert joined[0] == "blocks.11.attention.qkv.weight"
    assert torch.equal(joined[1], torch.cat([query, key, value]))


def test_the_gate_comes_before_the_value_in_both_ways_of_writing() -> None:
    gate, value = torch.zeros(3), torch.ones(3)
    expected = {"blocks.0.mlp.gate_and_value.bias": torch.cat([gate, value])}
    official = rename(
        {"blocks.0.mlp.w2.bias": value, "blocks.0.mlp.w1.bias": gate}, OFFICIAL, what=WHAT
    )
    files = {"layer.0.mlp.up_proj.bias": value, "layer.0.mlp.gate_proj.bias": gate}
    for ours in (official, rename(files, HUGGING_FACE_DINOV3_GATED, what=WHAT)):
        torch.testing.assert_close(ours, expected)


def test_separate_queries_keys_and_values_are_joined_under_released_names_too() -> None:
    files = {
        f"blocks.2.attn.{letter}_proj.bias": torch.full((2,), float(at))
        for at, letter in enumerate("qkv")
    }
    (joined,) = rename(files, OFFICIAL, what=WHAT).items()
    assert (joined[0], joined[1].tolist()) == ("blocks.2.attention.qkv.bias", [0, 0, 1, 1, 2, 2])


def test_a_bias_that_keys_do_not_have_is_zero_and_no_other_part_may_be_missing() -> None:
    files = {
        "layer.3.attention.q_proj.bias": torch.ones(2),
        "layer.3.attention.v_proj.bias": torch.ones(2),
    }
    ours = rename(files, HUGGING_FACE_DINOV3, what=WHAT)
    assert ours["blocks.3.attention.qkv.bias"].tolist() == [1, 1, 0, 0, 1, 1]
    del files["layer.3.attention.v_proj.bias"]
    with refused(WHAT, "1 of the 3 parts of blocks.3.attention.qkv.bias"):
        rename(files, HUGGING_FACE_DINOV3, what=WHAT)
    weights = {
        "layer.3.attention.q_proj.weight": torch.ones(2, 2),
        "layer.3.attention.v_proj.weight": torch.ones(2, 2),
    }
    with refused("2 of the 3 parts of blocks.3.attention.qkv.weight"):
        rename(weights, HUGGING_FACE_DINOV3, what=WHAT)
    with refused("1 of the 2 parts of blocks.0.mlp.gate_and_value.bias"):
        rename({"blocks.0.mlp.w1.bias": torch.ones(2)}, OFFICIAL, what=WHAT)


def test_parts_that_do_not_fit_together_are_refused_with_their_shapes() -> None:
    start = "layer.0.attention."
    for shape in ((2, 3), (2,), ()):
        files = {f"{start}{letter}_proj.weight": torch.ones(2, 2) for letter in "qk"}
        with refused(WHAT, "blocks.0.attention.qkv.weight", (2, 2), shape):
            rename(
                {**files, f"{start}v_proj.weight": torch.ones(shape)},
                HUGGING_FACE_DINOV3,
                what=WHAT,
            )


def test_blocks_in_chunks_keep_the_number_that_counts_through_all_of_them() -> None:
    assert OFFICIAL.ours("blocks.3.39.norm1.weight") == "blocks.39.norm1.weight"
    assert OFFICIAL.ours("blocks.39.norm1.weight") == "blocks.39.norm1.weight"


def test_what_belongs_to_training_is_left_out_by_name() -> None:
    assert (
        OFFICIAL.ours("mask_token")
        is OFFICIAL.ours("masked_embed")
        is OFFICIAL.ours("local_cls_norm.bias")
        is None
    )
    assert OFFICIAL.ours("blocks.0.attn.qkv.bias_mask") is None
    assert TORCHVISION_RESNET.ours("fc.weight") is None
    assert OFFICIAL_CONVNEXT.ours("norms.3.weight") is None


@pytest.mark.parametrize(
    "name",
    [
        "head.weight",
        "norms.3.weight",
        "blocks.0.attn.k.weight",
        "xcls_token",
        "cls_token2",
        "norm.gamma",
    ],
)
def test_a_name_that_no_rule_knows_is_an_error(name: str) -> None:
    with pytest.raises(KeyError):
        OFFICIAL.ours(name)
    with refused(WHAT, name):
        rename({name: torch.ones(1), "cls_token": torch.ones(1)}, OFFICIAL, what=WHAT)


def test_timms_classifiers_are_left_out_and_the_norm_of_a_head_is_not() -> None:
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


def test_the_first_few_names_are_listed_and_the_rest_is_counted() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdef")) == "a, b, c, d and 2 more"


def test_a_table_is_the_class_tokens_row_and_a_square() -> None:
    table = torch.arange(1 + 9).float().reshape(1, 10, 1).expand(1, 10, 2)
    ours = rename({"pos_embed": table}, OFFICIAL, what=WHAT)
    assert ours["class_position"].tolist() == [[[0.0, 0.0]]]
    assert ours["patch_positions"][..., 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_a_table_without_the_class_tokens_row_gives_it_zeros() -> None:
    table = torch.arange(9).float().reshape(1, 9, 1).expand(1, 9, 2)
    ours = rename({"pos_embed": table}, OFFICIAL, what=WHAT)
    assert ours["class_position"].tolist() == [[[0.0, 0.0]]]
    assert ours["patch_positions"][..., 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("shape", [(1, 8, 2), (2, 10, 2), (10, 2), (1, 10), (1, 0, 2)])
def test_another_table_is_refused_with_its_shape(shape: tuple[int, ...]) -> None:
    with refused(WHAT, "pos_embed", shape):
        rename({"pos_embed": torch.zeros(shape)}, OFFICIAL, what=WHAT)


def test_two_names_of_one_weight_are_refused() -> None:
    with refused("blocks.0.norm1.bias", "twice"):
        rename(
            {"blocks.0.norm1.bias": torch.ones(2), "blocks.0.0.norm1.bias": torch.zeros(2)},
            OFFICIAL,
            what=WHAT,
        )


def test_a_map_of_its_own_is_read_as_its_docstring_says() -> None:
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
