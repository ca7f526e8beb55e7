"""Files of weights give their tensors and nothing else: no code, no neighbor's file; other files
are refused by what they are."""

from __future__ import annotations

import hashlib
import json
import pickle
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from featkit.errors import InputError
from featkit_train.published.weight_files import (
    BIN,
    BIN_INDEX,
    INDEX,
    SAFETENSORS,
    Weights,
    read_json,
    read_weights,
)
from tests.commands import run_featkit
from tests.sentences import refused
from tests.train.published.harmful import Runs

STATE = {"cls_token": torch.full((1, 1, 4), 1.0), "norm.weight": torch.arange(4.0)}


def saved(folder: Path, checkpoint: object, **options: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(checkpoint, path, **options)
    return path


def numbers(found: Weights, group: str = "") -> dict[str, Any]:
    return {name: stored.read().tolist() for name, stored in found.groups[group].items()}


def listed(state: dict[str, Tensor]) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in state.items()}


def assert_refused(path: Path, *words: str) -> None:
    """In one sentence, without torch's advice to load with weights_only=False, which runs whatever
    a file holds."""
    with refused(path, *words):
        read_weights(path)
    with pytest.raises(InputError) as caught:
        read_weights(path)
    assert "weights_only" not in str(caught.value)


# Containers


@pytest.mark.parametrize(
    ("wrap", "group"),
    [
        (lambda state: state, ""),
        (OrderedDict, ""),
        (lambda state: {"state_dict": state}, "state_dict"),
        (lambda state: {"model": {"ema": OrderedDict(state)}, "epoch": 3}, "model.ema"),
        (
            lambda state: {
                "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}
            },
            "state_dict",
        ),
        (lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()}, ""),
        (
            lambda state: {
                name.replace(".", "._fsdp_wrapped_module."): tensor
                for name, tensor in state.items()
            },
            "",
        ),
        (lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()}, ""),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_found_in_whatever_they_are_wrapped(
    wrap: Callable[[Any], Any], group: str, zipped: bool, tmp_path: Path
) -> None:
    path = saved(tmp_path, wrap(STATE), _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(path) == zipped
    found = read_weights(path)
    assert numbers(found, group) == listed(STATE)
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.file == path


def test_words_of_wrappers_stay_where_names_would_meet(tmp_path: Path) -> None:
    path = saved(tmp_path, {"module.a": torch.ones(1), "a": torch.zeros(1)})
    assert numbers(read_weights(path)) == {"module.a": [1.0], "a": [0.0]}


class Backbone(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)
        self.blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
def test_a_whole_module_gives_its_weights_without_being_built(zipped: bool, tmp_path: Path) -> None:
    module = Backbone()
    path = saved(
        tmp_path, {"models": {"model": module}, "epoch": 1}, _use_new_zipfile_serialization=zipped
    )
    assert numbers(read_weights(path), "models.model") == listed(module.state_dict())


@pytest.mark.parametrize(
    "checkpoint",
    [{}, [], 3, None, "text", {"epoch": 3}, {"teacher": {}}, [torch.ones(2)], torch.ones(2)],
)
def test_a_checkpoint_without_weights_is_refused(checkpoint: object, tmp_path: Path) -> None:
    path = saved(tmp_path, checkpoint)
    with refused(path, "holds no weights"):
        read_weights(path)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_of_every_protocol_are_read(protocol: int, zipped: bool, tmp_path: Path) -> None:
    path = saved(
        tmp_path, {"model": STATE}, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers(read_weights(path), "model") == listed(STATE)


def test_a_file_is_read_by_what_it_holds_not_by_its_suffix(tmp_path: Path) -> None:
    saved(tmp_path, STATE).rename(tmp_path / "a.safetensors")
    save_file(STATE, tmp_path / "b.pth")
    for name in ("a.safetensors", "b.pth"):
        assert numbers(read_weights(tmp_path / name)) == listed(STATE)


def test_the_command_ends_with_one_sentence_and_code_2(tmp_path: Path) -> None:
    import os

    marker = tmp_path / "marker"
    path = saved(tmp_path, {**STATE, "extra": Runs(os.system, f"touch {marker}")})
    said = run_featkit("export", "dino_vits16", "--weights", path, "--out", tmp_path / "m.onnx")
    assert said.code == InputError.exit_code == 2
    assert "posix.system" in said.error
    assert "Traceback" not in said.out + said.error
    assert "weights_only" not in said.out + said.error
    assert not marker.exists()
    assert not (tmp_path / "m.onnx").exists()


# Damage


def damaged(kind: str, folder: Path) -> Path:
    path = saved(folder, STATE)
    if kind == "truncated zip":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "half a zip":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "truncated legacy":
        saved(folder, STATE, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "half a legacy":
        saved(folder, STATE, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "another zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("cat.txt", "meow")
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "random bytes":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        "truncated zip",
        "half a zip",
        "truncated legacy",
        "half a legacy",
        "another zip",
        "plain pickle",
        "random bytes",
    ],
)
def test_a_damaged_checkpoint_is_refused_without_torchs_advice(kind: str, tmp_path: Path) -> None:
    path = damaged(kind, tmp_path)
    assert_refused(path)


OTHERS: dict[str, tuple[bytes, str]] = {
    "lfs.pth": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 86\n",
        "git lfs pull",
    ),
    "lfs.safetensors": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 86\n",
        "git lfs pull",
    ),
    "page.pth": (b"<!doctype html>\n<html><body>404</body></html>\n", "an HTML page"),
    "page.safetensors": (b"<html><body>Log in</body></html>\n", "an HTML page"),
    "error.bin": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "error"),
    "empty.pth": (b"", "is empty"),
    "empty.safetensors": (b"", "is empty"),
    "a.gguf": (b"GGUF\3\0\0\0" + bytes(100), "a GGUF model"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch\x1a\x052.1.0:\x10" + bytes(16), "ONNX"),
    "flax_model.msgpack": (b"\x82\xa6params\x81\xa3abc\x01\xa4step\x00", "a file of Flax"),
    "weights.npz": (b"PK\3\4" + bytes(22) + b"\5\0\0\0a.npy" + bytes(40), "a NumPy archive"),
    "weights.pth.tar": (
        b"weights.pth".ljust(257, b"\0") + b"ustar\x0000" + bytes(248),
        "a tar archive",
    ),
    "zeros.pth": (bytes(5000), "zero bytes"),
    "picture.pth": (b"\x89PNG\r\n\x1a\n" + bytes(100), "a PNG image"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_no_weights_is_named(name: str, tmp_path: Path) -> None:
    content, words = OTHERS[name]
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, words)


def test_a_torchscript_program_is_named_without_a_warning(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(
            torch.jit.trace(torch.nn.Linear(3, 3), torch.ones(1, 3)), tmp_path / "script.pt"
        )
    with refused("script.pt is a TorchScript program", "state_dict()"):
        read_weights(tmp_path / "script.pt")


@pytest.mark.parametrize("kind", ["broken header", "truncated", "long header", "cut header"])
def test_a_damaged_safetensors_file_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / SAFETENSORS
    save_file(STATE, path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "broken header": content[:8] + b"{" * (len(content) - 8),
            "truncated": content[:-4],
            "long header": (2**62).to_bytes(8, "little") + content[8:],
            "cut header": content[:20],
        }[kind]
    )
    for place in (path, tmp_path):
        with refused(path, "safetensors"):
            read_weights(place)


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path / "none.pth", "does not exist"):
        read_weights(tmp_path / "none.pth")


# Folders


def folder_of(tmp_path: Path, index: object, **files: dict[str, Tensor]) -> Path:
    (tmp_path / INDEX).write_text(json.dumps(index))
    for name, tensors in files.items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    return tmp_path


def test_a_folder_gives_its_weights_and_its_config(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / SAFETENSORS)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    found = read_weights(tmp_path)
    assert numbers(found) == listed(STATE)
    assert found.config == {"model_type": "dinov2"}
    assert found.sha256 == hashlib.sha256((tmp_path / SAFETENSORS).read_bytes()).hexdigest()


def test_a_folder_of_pickles_is_read_too(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / BIN)
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    assert numbers(read_weights(tmp_path)) == listed(STATE)
    (tmp_path / BIN).rename(tmp_path / "pytorch_model-00001-of-00001.bin")
    (tmp_path / BIN_INDEX).write_text(
        json.dumps({"weight_map": dict.fromkeys(STATE, "pytorch_model-00001-of-00001.bin")})
    )
    assert numbers(read_weights(tmp_path)) == listed(STATE)


@pytest.mark.parametrize(
    "name", ["weights.pth", "last.ckpt", "dino.safetensors", "pytorch_model.pt"]
)
def test_the_only_file_of_weights_in_a_folder_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("weights")
    torch.save({"a": torch.ones(1)}, tmp_path / "optimizer.pt")
    (
        save_file(STATE, tmp_path / name)
        if name.endswith("safetensors")
        else torch.save(STATE, tmp_path / name)
    )
    assert numbers(read_weights(tmp_path)) == listed(STATE)
    torch.save(STATE, tmp_path / "another.pth")
    with refused(tmp_path, "2 files of weights", "another.pth", name):
        read_weights(tmp_path)


def test_a_folder_for_another_library_is_named(tmp_path: Path) -> None:
    (tmp_path / "flax_model.msgpack").write_bytes(b"\x82\xa6params")
    with refused(tmp_path, "Flax", "flax_model.msgpack"):
        read_weights(tmp_path)


def test_a_folder_of_the_hubs_cache_says_where_its_files_are(tmp_path: Path) -> None:
    (tmp_path / "snapshots" / "0123").mkdir(parents=True)
    with refused(tmp_path, "snapshots/"):
        read_weights(tmp_path)


def test_an_index_joins_its_files_and_their_sums(tmp_path: Path) -> None:
    index = {"weight_map": {"cls_token": "a.safetensors", "norm.weight": "b.safetensors"}}
    folder = folder_of(
        tmp_path,
        index,
        a={"cls_token": STATE["cls_token"]},
        b={"norm.weight": STATE["norm.weight"]},
    )
    found = read_weights(folder)
    assert numbers(found) == listed(STATE)
    save_file({"norm.weight": torch.ones(4)}, folder / "b.safetensors")
    assert read_weights(folder).sha256 != found.sha256


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_one_shard_stands_for_all_and_a_missing_one_is_named(suffix: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"model-0000{index}-of-00002.{suffix}" for index in (1, 2)]
    for path, (name, tensor) in zip(paths, STATE.items(), strict=True):
        (
            save_file({name: tensor}, path)
            if suffix == "safetensors"
            else torch.save({name: tensor}, path)
        )
    for place in (*paths, tmp_path):
        assert numbers(read_weights(place)) == listed(STATE)
    paths[1].unlink()
    for place in (paths[0], tmp_path):
        with refused("one of 2 files", paths[1].name, "is missing"):
            read_weights(place)


@pytest.mark.parametrize(
    "part",
    [
        "../outside.safetensors",
        "/etc/outside.safetensors",
        "sub/outside.safetensors",
        "..",
        "",
        3,
        None,
    ],
)
def test_an_index_that_names_files_elsewhere_is_refused(part: object, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(STATE, tmp_path / "outside.safetensors")
    with refused(INDEX, "outside its folder"):
        read_weights(folder_of(inside, {"weight_map": {"cls_token": part}}))


@pytest.mark.parametrize(
    "index",
    [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "a"}, {"weight_map": None}, []],
)
def test_an_index_that_names_no_files_is_refused(index: object, tmp_path: Path) -> None:
    with refused(INDEX):
        read_weights(folder_of(tmp_path, index))


def test_a_file_of_an_index_that_is_missing_is_named(tmp_path: Path) -> None:
    with refused(tmp_path, "lacks a.safetensors", INDEX):
        read_weights(folder_of(tmp_path, {"weight_map": {"cls_token": "a.safetensors"}}))


@pytest.mark.parametrize(
    "place", ["checkpoints/last.ckpt", "eval/training_9/teacher_checkpoint.pth"]
)
def test_weights_in_folders_of_a_run_are_named(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(parents=True)
    torch.save(STATE, tmp_path / place)
    with refused(tmp_path, f"Name one of those in its folders: {place}"):
        read_weights(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, SAFETENSORS):
        read_weights(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "\x00", "[" * 100_000])
def test_a_config_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with refused(path):
        read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with refused(path):
        read_json(path)


def test_a_config_that_is_a_page_or_a_pointer_is_named(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("<!doctype html><html></html>")
    with refused(path, "an HTML page"):
        read_json(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 86\n")
    with refused(path, "git lfs pull"):
        read_json(path)
