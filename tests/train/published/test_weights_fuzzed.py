"""Any bytes are weights or are refused in a sentence: safetensors, both forms of torch.save, and
.distcp folders."""

from __future__ import annotations

import dataclasses
import io
import shutil
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from featkit_train.networks.vit import VisionTransformer
from featkit_train.networks.vit_config import ViTConfig
from featkit_train.published.building import build
from featkit_train.published.distributed_files import METADATA
from featkit_train.published.pretrained import load_published
from featkit_train.published.weight_files import read_weights
from featkit_train.published.zoo import PUBLISHED, Published
from tests.fuzzing import CASES, fuzz
from tests.torchvision_without_cuda import allow_torchvision
from tests.train.published_files import drawn

ARCH: dict[str, Any] = {
    "width": 8,
    "depth": 1,
    "num_heads": 2,
    "mlp_width": 16,
    "patch": 4,
    "position_grid": 2,
}


@pytest.fixture(autouse=True, scope="module")
def _torchvision() -> None:
    allow_torchvision()


def row() -> Published:
    """A backbone of a few numbers."""
    published = PUBLISHED["dino_vits16"]
    geometry = dataclasses.replace(published.geometry, height=16, width=16, resize_to=16, patch=4)
    return dataclasses.replace(published, arch=ARCH, patch=4, width=8, geometry=geometry)


def state() -> dict[str, Tensor]:
    """Its weights, by the released names."""
    with torch.device("meta"):
        ours = VisionTransformer(ViTConfig(**ARCH)).state_dict()
    made = {}
    for name, tensor in drawn(
        {name: tensor for name, tensor in ours.items() if tensor.numel()}, seed=0
    ).items():
        theirs = name.replace("attention.qkv", "attn.qkv").replace("attention.out", "attn.proj")
        theirs = theirs.replace("patch_embed.", "patch_embed.proj.").replace(
            "class_token", "cls_token"
        )
        made[theirs] = tensor
    positions = [made.pop("class_position"), made.pop("patch_positions").reshape(1, -1, 8)]
    return {**made, "pos_embed": torch.cat(positions, dim=1)}


def saved(tree: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(tree, buffer, **options)
    return buffer.getvalue()


def checkpoint() -> dict[str, Any]:
    """Return a checkpoint of teacher and student, with other things besides weights."""
    weights = state()
    module = torch.nn.Sequential(torch.nn.Linear(2, 2))
    return {
        "teacher": {f"backbone.{name}": tensor for name, tensor in weights.items()},
        "student": {f"module.backbone.{name}": tensor + 1 for name, tensor in weights.items()},
        "module": module,
        "epoch": 3,
        "lr": 0.5,
        "names": ("a", ["b"]),
    }


def loading(path: Path) -> Callable[[bytes], object]:
    """Load the weights that a file holds, and every other number in it."""

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        for group in read_weights(path).groups.values():
            for stored in group.values():
                stored.read().sum()
        return load_published(row(), weights=path)

    return parse


def test_the_seeds_are_whole() -> None:
    assert {name for name, tensor in build(row()).state_dict().items() if tensor.numel()}
    assert (
        len(state())
        == len([name for name, tensor in build(row()).state_dict().items() if tensor.numel()]) - 1
    )


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_any_bytes_are_a_checkpoint_of_torch_or_refused(cases: int, tmp_path: Path) -> None:
    seeds = [
        saved(checkpoint()),
        saved(checkpoint(), _use_new_zipfile_serialization=False),
        saved(state(), pickle_protocol=4),
        saved(state(), pickle_protocol=4, _use_new_zipfile_serialization=False),
    ]
    fuzz(loading(tmp_path / "weights.pth"), seeds, cases=cases)


def with_length(data: bytes) -> bytes:
    """The length of a safetensors header set right, so that what is in the header is read."""
    end = data.find(b"}}", 8)
    return struct.pack("<Q", end + 2 - 8) + data[8:] if end > 0 else data


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_safetensors_or_refused(cases: int, tmp_path: Path) -> None:
    seeds = [
        save_safetensors(state()),
        save_safetensors({name: tensor.half() for name, tensor in state().items()}),
    ]
    fuzz(loading(tmp_path / "weights.safetensors"), seeds, cases=cases, repair=with_length)


@pytest.mark.parametrize("cases", CASES)
@pytest.mark.parametrize("file", [METADATA, "__0_0.distcp"])
def test_any_bytes_are_a_distributed_checkpoint_or_refused(
    file: str, cases: int, tmp_path: Path
) -> None:
    from torch.distributed.checkpoint.state_dict_saver import save

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it saves in a single process
        save(
            {"model": {f"teacher.backbone.{name}": tensor for name, tensor in state().items()}},
            checkpoint_id=tmp_path / "dcp",
        )
    folder = tmp_path / "mutated"
    shutil.copytree(tmp_path / "dcp", folder)

    def parse(data: bytes) -> object:
        (folder / file).write_bytes(data)
        return load_published(row(), weights=folder)

    fuzz(parse, [(folder / file).read_bytes()], cases=cases)


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_an_index_or_refused(cases: int, tmp_path: Path) -> None:
    (tmp_path / "model-00001-of-00001.safetensors").write_bytes(save_safetensors(state()))
    path = tmp_path / "model.safetensors.index.json"

    def parse(data: bytes) -> object:
        path.write_bytes(data)
        return read_weights(tmp_path)

    fuzz(
        parse,
        [b'{"metadata": {}, "weight_map": {"cls_token": "model-00001-of-00001.safetensors"}}'],
        cases=cases,
    )
