"""A row of the zoo and a key map are all that a new weight family needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import featkit
from featkit.errors import InputError
from featkit_train.networks.vit import VisionTransformer
from featkit_train.published.key_maps import POSITIONS, KeyMap
from featkit_train.published.pretrained import load_pretrained
from featkit_train.published.zoo import PUBLISHED, Published, crop_of_256
from tests.commands import run_featkit
from tests.export.backbones import drawn_published

KEYS = KeyMap(
    block=r"trunk\.layers\.(\d+)\.",
    in_block=(
        (r"ln_(\d)\.(weight|bias)", r"norm\1.\2"),
        (r"(qkv|out)\.(weight|bias)", r"attention.\1.\2"),
        (r"up\.(weight|bias)", r"mlp.fc1.\1"),
        (r"down\.(weight|bias)", r"mlp.fc2.\1"),
    ),
    outside=(
        (r"trunk\.cls", "class_token"),
        (r"trunk\.positions", POSITIONS),
        (r"trunk\.patchify\.(weight|bias)", r"patch_embed.\1"),
        (r"trunk\.ln\.(weight|bias)", r"norm.\1"),
    ),
)
ROW = Published(
    name="nova_vitxs8",
    family="nova",
    arch={
        "width": 48,
        "depth": 2,
        "num_heads": 3,
        "mlp_width": 96,
        "patch": 8,
        "position_grid": 28,
    },
    patch=8,
    width=48,
    num_parameters=85_440,
    geometry=crop_of_256(8),
    license="CC0-1.0",
    hub="nova/vit-xs8",
    hub_config={"model_type": "nova", "hidden_size": 48},
    key_maps=(KEYS,),
)


def nova_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a backbone's tensors as the new family's files name them."""
    positions = [state["class_position"][0], state["patch_positions"].flatten(0, 1)]
    tensors = {
        "trunk.cls": state["class_token"],
        "trunk.positions": torch.cat(positions)[None],  # (1, 1 + G * G, D)
    }
    for kind in ("weight", "bias"):
        tensors[f"trunk.patchify.{kind}"] = state[f"patch_embed.{kind}"]
        tensors[f"trunk.ln.{kind}"] = state[f"norm.{kind}"]
        for block in range(ROW.arch["depth"]):
            for theirs, ours in {
                "ln_1": "norm1",
                "qkv": "attention.qkv",
                "out": "attention.out",
                "ln_2": "norm2",
                "up": "mlp.fc1",
                "down": "mlp.fc2",
            }.items():
                name = f"trunk.layers.{block}.{theirs}.{kind}"
                tensors[name] = state[f"blocks.{block}.{ours}.{kind}"]
    return tensors


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Hugging Face folder of the new family, whose row is in the zoo."""
    monkeypatch.setitem(PUBLISHED, ROW.name, ROW)
    folder = tmp_path / "nova"
    folder.mkdir()
    state = drawn_published(ROW).state_dict()
    save_file(nova_names(dict(state)), folder / "model.safetensors")
    config = {"model_type": "nova", "hidden_size": 48}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_new_family_is_loaded_by_name(folder: Path) -> None:
    backbone, info = load_pretrained(ROW.name, weights=folder / "model.safetensors")

    assert isinstance(backbone, VisionTransformer)
    expected = drawn_published(ROW).state_dict()
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert (info.name, info.family, info.license) == (ROW.name, "nova", "CC0-1.0")


def test_a_new_family_is_recognized_by_its_config_json(folder: Path) -> None:
    _, info = load_pretrained(str(folder))

    assert info.name == ROW.name


def test_a_nameless_file_of_a_new_family_is_identified(folder: Path) -> None:
    with pytest.raises(InputError, match=f"Its shapes fit {ROW.name}: featkit export {ROW.name}"):
        load_pretrained(str(folder / "model.safetensors"))


def test_a_new_family_is_exported(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "nova.onnx"
    weights = folder / "model.safetensors"
    said = run_featkit("export", ROW.name, "--weights", weights, "--out", out, "--size", "32")

    assert said.code == 0, said.error
    assert featkit.Embedder(out).manifest.family == "nova"
