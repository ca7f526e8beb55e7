"""Promises of a backbone's file: it comes back whole, with what it is and where it comes from, or is refused by name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from featkit.errors import InputError
from featkit_train.weights import BACKBONE_FILE, FORMAT, BackboneInfo, load_backbone, read_header, save_backbone
from tests.export.backbones import CONFIGS, drawn_backbone, geometry_for

INFO = BackboneInfo(
    name="drawn", family="dino", geometry=geometry_for(CONFIGS["dino"]), licence="CC0-1.0", origin={"data": "é", "steps": "3"}
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A backbone in a run folder."""
    path = tmp_path / "run" / BACKBONE_FILE
    save_backbone(path, drawn_backbone(CONFIGS["dino"]), INFO)
    return path


def rewrite(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """The same tensors under a changed header."""
    header = dict(read_header(file))
    change(header)
    save_file(load_file(file), file, metadata={"featkit": json.dumps(header)})


@pytest.mark.parametrize("family", CONFIGS)
def test_a_backbone_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    backbone = drawn_backbone(CONFIGS[family])
    save_backbone(tmp_path / BACKBONE_FILE, backbone, INFO)
    images = torch.randn(2, 3, 2 * backbone.config.patch, 3 * backbone.config.patch, generator=torch.Generator().manual_seed(0))
    for path in (tmp_path, tmp_path / BACKBONE_FILE):
        loaded, info = load_backbone(path)
        assert info == INFO
        assert loaded.config == backbone.config
        assert not loaded.training
        assert loaded.state_dict().keys() == backbone.state_dict().keys()
        for name, tensor in backbone.state_dict().items():
            assert torch.equal(tensor, loaded.state_dict()[name]), name
        with torch.no_grad():
            assert torch.equal(loaded(images).class_token, backbone(images).class_token)


def test_the_header_builds_the_backbone_and_names_its_origin(file: Path) -> None:
    with safe_open(file, framework="pt") as tensors:
        header = json.loads(tensors.metadata()["featkit"])
    assert header == read_header(file)
    assert header == {
        "format": FORMAT,
        "vit": dataclasses.asdict(CONFIGS["dino"]),
        "name": "drawn",
        "family": "dino",
        "geometry": INFO.geometry.to_dict(),
        "licence": "CC0-1.0",
        "origin": {"data": "é", "steps": "3"},
    }


def test_equal_weights_and_header_give_equal_bytes(file: Path, tmp_path: Path) -> None:
    save_backbone(tmp_path / "again", drawn_backbone(CONFIGS["dino"]), INFO)
    assert (tmp_path / "again").read_bytes() == file.read_bytes()
    save_backbone(tmp_path / "again", drawn_backbone(CONFIGS["dino"], seed=1), INFO)
    assert (tmp_path / "again").read_bytes() != file.read_bytes()


def test_an_interrupted_save_leaves_the_older_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def stop(_tensors: dict[str, torch.Tensor], path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("featkit_train.weights.save_file", stop)
    with pytest.raises(KeyboardInterrupt):
        save_backbone(file, drawn_backbone(CONFIGS["dino"], seed=1), INFO)
    assert file.read_bytes() == before
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize("place", ["", "none", BACKBONE_FILE])
def test_where_there_is_no_backbone_the_next_step_is_named(tmp_path: Path, place: str) -> None:
    with pytest.raises(InputError, match=r"has no backbone\.safetensors; name a folder that `featkit train` has written"):
        load_backbone(tmp_path / place)


@pytest.mark.parametrize("length", [0, 5, 1000, -1000])
def test_a_damaged_file_is_refused_by_name(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(InputError, match=f"{file} is not a safetensors file") as raised:
        load_backbone(file.parent)
    assert "\n" not in str(raised.value)


def test_a_foreign_file_is_refused_by_name(file: Path) -> None:
    save_file({"x": torch.zeros(1)}, file, metadata={"format": "pt"})
    with pytest.raises(InputError, match=f"{file} was not written by featkit"):
        load_backbone(file)


def test_a_newer_file_is_refused_with_its_format(file: Path) -> None:
    rewrite(file, lambda header: header.update(format=FORMAT + 1, vit={"a word": "of later"}))
    with pytest.raises(InputError, match=f"{file} has format 2, newer than the 1 read here; update featkit"):
        load_backbone(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["vit"].update(width=96),
        lambda header: header["vit"].update(depth=1),
        lambda header: header["vit"].update(num_registers=2),
    ],
)
def test_tensors_that_do_not_fit_the_header_are_refused_in_one_sentence(
    file: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    rewrite(file, change)
    with pytest.raises(InputError, match=f"{file} holds tensors that do not fit its own header") as raised:
        load_backbone(file)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < len(str(file)) + 300


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header.clear(),
        lambda header: header.pop("vit"),
        lambda header: header.pop("licence"),
        lambda header: header["vit"].update(colour=1),
        lambda header: header["vit"].update(num_heads=5),
        lambda header: header["geometry"].pop("patch"),
    ],
)
def test_a_header_that_is_not_whole_is_refused_in_one_sentence(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    rewrite(file, change)
    with pytest.raises(InputError, match=f"{file} has a header that cannot be used") as raised:
        load_backbone(file)
    assert "\n" not in str(raised.value)


def test_a_header_that_is_no_json_is_refused_in_one_sentence(file: Path) -> None:
    save_file(load_file(file), file, metadata={"featkit": "{"})
    with pytest.raises(InputError, match=f"{file} has a header that cannot be used"):
        load_backbone(file)
