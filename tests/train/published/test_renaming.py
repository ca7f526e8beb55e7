"""Published tensors get featkit's names, parts are joined in order, and leftovers are refused."""

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
    TORCHVISION_RESNET,
)
from featkit_train.published.renaming import listed, rename
from featkit_train.published.zoo import PUBLISHED
from tests.sentences import refused
from tests.torchvision_without_cuda import allow_torchvision
from tests.train import published_files as published

WHAT = "weights.pth, read as a model,"
MAPS = {"vit": OFFICIAL, "resnet": TORCHVISION_RESNET, "convnext": OFFICIAL_CONVNEXT}


@pytest.mark.parametrize("name", PUBLISHED)
def test_released_names_are_all_of_the_backbone(name: str) -> None:
    allow_torchvision()
    row = PUBLISHED[name]
    theirs = published.official(name, published.reference(name, empty=True))
    ours = {key: tensor.shape for key, tensor in rename(theirs, MAPS[row.kind], what=WHAT).items()}
    # a backbone without registers has an empty tensor for them, which files leave out
    wanted = {
        key: tensor.shape for key, tensor in build(row).state_dict().items() if tensor.numel()
    }
    if row.family == "dinov3" and row.kind == "vit":
        assert "rotary_periods" in wanted
    assert ours == wanted


def test_parts_are_joined_in_order_of_their_index() -> None:
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


def test_the_gate_comes_before_the_value() -> None:
    gate, value = torch.zeros(3), torch.ones(3)
    expected = {"blocks.0.mlp.gate_and_value.bias": torch.cat([gate, value])}
    official = rename(
        {"blocks.0.mlp.w2.bias": value, "blocks.0.mlp.w1.bias": gate}, OFFICIAL, what=WHAT
    )
    files = {"layer.0.mlp.up_proj.bias": value, "layer.0.mlp.gate_proj.bias": gate}
    for ours in (official, rename(files, HUGGING_FACE_DINOV3_GATED, what=WHAT)):
        torch.testing.assert_close(ours, expected)


def test_released_files_may_store_q_k_and_v_separately() -> None:
    files = {
        f"blocks.2.attn.{letter}_proj.bias": torch.full((2,), float(at))
        for at, letter in enumerate("qkv")
    }
    (joined,) = rename(files, OFFICIAL, what=WHAT).items()
    assert (joined[0], joined[1].tolist()) == ("blocks.2.attention.qkv.bias", [0, 0, 1, 1, 2, 2])


def test_only_the_key_bias_may_be_missing() -> None:
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


def test_parts_of_different_shapes_are_refused() -> None:
    start = "layer.0.attention."
    for shape in ((2, 3), (2,), ()):
        files = {f"{start}{letter}_proj.weight": torch.ones(2, 2) for letter in "qk"}
        with refused(WHAT, "blocks.0.attention.qkv.weight", (2, 2), shape):
            rename(
                {**files, f"{start}v_proj.weight": torch.ones(shape)},
                HUGGING_FACE_DINOV3,
                what=WHAT,
            )


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
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(KeyError):
        OFFICIAL.ours(name)
    with refused(WHAT, name):
        rename({name: torch.ones(1), "cls_token": torch.ones(1)}, OFFICIAL, what=WHAT)


def test_a_long_list_of_names_ends_with_a_count() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed(list("abcdef")) == "a, b, c, d and 2 more"


def test_a_position_table_is_split_into_class_row_and_square() -> None:
    table = torch.arange(1 + 9).float().reshape(1, 10, 1).expand(1, 10, 2)
    ours = rename({"pos_embed": table}, OFFICIAL, what=WHAT)
    assert ours["class_position"].tolist() == [[[0.0, 0.0]]]
    assert ours["patch_positions"][..., 0].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_a_table_without_a_class_row_gives_zeros_for_it() -> None:
    table = torch.arange(9).float().reshape(1, 9, 1).expand(1, 9, 2)
    ours = rename({"pos_embed": table}, OFFICIAL, what=WHAT)
    assert ours["class_position"].tolist() == [[[0.0, 0.0]]]
    assert ours["patch_positions"][..., 0].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]


@pytest.mark.parametrize("shape", [(1, 8, 2), (2, 10, 2), (10, 2), (1, 10), (1, 0, 2)])
def test_a_table_that_is_not_square_is_refused(shape: tuple[int, ...]) -> None:
    with refused(WHAT, "pos_embed", shape):
        rename({"pos_embed": torch.zeros(shape)}, OFFICIAL, what=WHAT)


def test_a_weight_stored_twice_is_refused() -> None:
    with refused("blocks.0.norm1.bias", "twice"):
        rename(
            {"blocks.0.norm1.bias": torch.ones(2), "blocks.0.0.norm1.bias": torch.zeros(2)},
            OFFICIAL,
            what=WHAT,
        )
