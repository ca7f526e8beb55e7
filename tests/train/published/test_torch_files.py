"""Checkpoints of torch.save and torch.distributed.checkpoint give the tensors that torch itself
reads, and nothing is run."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from featkit_train.published import weight_files
from featkit_train.published.distributed_files import METADATA, read_distributed
from featkit_train.published.stored import Stored
from featkit_train.published.torch_files import read_checkpoint
from featkit_train.published.weight_files import read_weights
from tests.sentences import refused
from tests.train.published.harmful import Runs


def read(tree: Any) -> Any:
    """The same with the numbers of its tensors."""
    if isinstance(tree, Stored):
        tensor = tree.read()
        assert (tuple(tensor.shape), tensor.dtype) == (tree.shape, tree.dtype)
        return tensor
    return {name: read(value) for name, value in tree.items()} if isinstance(tree, dict) else tree


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
)
NEW_DTYPES = ("float8_e4m3fn", "float8_e5m2", "uint16", "uint32")


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_type_are_torchs(zipped: bool, tmp_path: Path) -> None:
    state = {
        name: (10 * drawn(3, 5)).to(getattr(torch, name))
        for name in (*DTYPES, *(NEW_DTYPES if zipped else ()))
    }
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read(read_checkpoint(tmp_path / "a.pth"))
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].view(torch.uint8), tensor.view(torch.uint8)), name


@pytest.mark.parametrize("zipped", [True, False])
def test_views_strides_scalars_and_empty_tensors_are_torchs(zipped: bool, tmp_path: Path) -> None:
    base = drawn(6, 8)
    state = {
        "whole": base,
        "part": base[2:4, 1:5],
        "turned": base.T,
        "stepped": base[::2, ::3],
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "repeated": torch.ones(1).expand(3, 4),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    torch.save(state, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    found = read(read_checkpoint(tmp_path / "a.pth"))
    torch.testing.assert_close(
        found, {name: tensor.detach() for name, tensor in state.items()}, rtol=0, atol=0
    )


def test_a_file_without_checksums_or_packed_again_is_read(tmp_path: Path) -> None:
    state = {"a": drawn(40, 50)}
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(state, tmp_path / "plain.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(state, tmp_path / "source.pth")
    with (
        zipfile.ZipFile(tmp_path / "source.pth") as source,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in source.namelist():
            packed.writestr(name, source.read(name))
    for name in ("plain.pth", "packed.pth"):
        torch.testing.assert_close(read(read_checkpoint(tmp_path / name)), state, rtol=0, atol=0)


def test_a_record_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    torch.save({"a": drawn(4)}, tmp_path / "source.pth")
    with (
        zipfile.ZipFile(tmp_path / "source.pth") as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in source.namelist():
            packed.writestr(name, source.read(name))
        packed.writestr("source/data/1", bytes(50_000_000))
    with refused("bomb.pth", "far more than its size"):
        read_checkpoint(tmp_path / "bomb.pth")


@pytest.mark.parametrize("cut", [1, 100, 400])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_is_cut_short_is_refused(cut: int, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save({"a": drawn(40, 50), "b": drawn(10)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-cut])
    with refused(path, "again"):
        read(read_checkpoint(path))


# torch.distributed.checkpoint


@pytest.fixture
def distributed(tmp_path: Path) -> tuple[Path, Mapping[str, Any]]:
    tree = {
        "model": {
            "teacher.backbone.cls_token": drawn(1, 1, 4),
            "teacher.backbone.norm.weight": drawn(4, seed=1).bfloat16(),
        },
        "optimizer": {"state": {"lr": drawn(2, seed=2)}},
        "iteration": 3,
    }
    save(tree, tmp_path / "dcp")
    return tmp_path / "dcp", tree


def save(tree: dict[str, Any], folder: Path) -> None:
    import warnings

    from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it saves in a single process
        save_distributed(tree, checkpoint_id=folder)


def test_a_distributed_checkpoint_is_the_tree_that_was_saved(
    distributed: tuple[Path, Mapping[str, Any]],
) -> None:
    folder, tree = distributed
    found = read(read_distributed(folder))
    torch.testing.assert_close(
        found, {name: tree[name] for name in ("model", "optimizer")}, rtol=0, atol=0
    )


def test_a_distributed_checkpoint_loads_by_any_of_its_files(
    distributed: tuple[Path, Mapping[str, Any]],
) -> None:
    folder, tree = distributed
    for path in (folder, next(folder.glob("*.distcp")), folder / METADATA):
        found = read_weights(path)
        assert torch.equal(
            found.groups["model"]["teacher.backbone.cls_token"].read(),
            tree["model"]["teacher.backbone.cls_token"],
        )
        assert len(found.sha256) == 64


def test_pieces_of_a_tensor_are_put_together(tmp_path: Path) -> None:
    """Save a checkpoint in pieces, as several processes would."""
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    whole = drawn(6, 4)
    chunks = {(0, 0): whole[:4], (4, 0): whole[4:, :3], (4, 3): whole[4:, 3:]}
    storage: dict[Any, Any] = {}
    for index, (offset, piece) in enumerate(chunks.items()):
        path = tmp_path / f"__{index}_0.distcp"
        with path.open("wb") as file:
            file.write(b"before")
            torch.save(piece.clone(), tmp_path / "piece")
            data = (tmp_path / "piece").read_bytes()
            file.write(data)
        storage[dcp.MetadataIndex("w", torch.Size(offset))] = _StorageInfo(path.name, 6, len(data))
    (tmp_path / "piece").unlink()
    tensor = dcp.TensorStorageMetadata(
        properties=dcp.TensorProperties(dtype=torch.float32),
        size=whole.size(),
        chunks=[
            dcp.ChunkStorageMetadata(torch.Size(offset), piece.size())
            for offset, piece in chunks.items()
        ],
    )
    import pickle

    (tmp_path / METADATA).write_bytes(
        pickle.dumps(dcp.Metadata(state_dict_metadata={"w": tensor}, storage_data=storage))
    )
    assert torch.equal(read(read_distributed(tmp_path))["w"], whole)
    (tmp_path / "__1_0.distcp").unlink()
    with refused(tmp_path, "lacks __1_0.distcp"):
        read(read_distributed(tmp_path))


def test_files_without_their_metadata_say_how_to_convert(
    distributed: tuple[Path, Mapping[str, Any]],
) -> None:
    folder, _ = distributed
    (folder / METADATA).unlink()
    with refused(folder, METADATA, "dcp_to_torch"):
        read_weights(folder)


@pytest.mark.parametrize("kind", ["cut", "harmful", "elsewhere", "empty"])
def test_a_damaged_or_harmful_metadata_is_refused(
    kind: str, distributed: tuple[Path, Mapping[str, Any]], tmp_path: Path
) -> None:
    import os
    import pickle

    folder, _ = distributed
    path = folder / METADATA
    content = path.read_bytes()
    marker = tmp_path / "marker"
    if kind == "elsewhere":
        shutil.copy(next(folder.glob("*.distcp")), tmp_path / "_0_0.distcp")
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "harmful": pickle.dumps(Runs(os.system, f"touch {marker}")),
            "elsewhere": content.replace(b"__0_0.distcp", b"../_0.distcp"),
            "empty": b"",
        }[kind]
    )
    with refused(METADATA):
        found = read_weights(folder)
        found.groups["model"]["teacher.backbone.cls_token"].read()
    assert not marker.exists()


def test_numbers_are_read_only_when_they_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An optimizer's state next to the weights takes no memory."""
    torch.save({"model": {"a": drawn(3)}, "optimizer": {"b": drawn(3)}}, tmp_path / "a.pth")
    made: list[object] = []
    memmap = np.memmap

    def watched(*args: Any, **options: Any) -> object:
        made.append(args)
        return memmap(*args, **options)

    monkeypatch.setattr(np, "memmap", watched)
    found = weight_files.read_weights(tmp_path / "a.pth")
    assert made == []
    found.groups["model"]["a"].read()
    assert len(made) == 1
