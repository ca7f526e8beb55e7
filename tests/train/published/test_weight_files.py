"""Files that others published give their tensors and nothing else: no code, no neighbour's file, no wrong branch in silence."""

from __future__ import annotations

import argparse
import hashlib
import json
import pathlib
import pickle
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from featkit.errors import InputError
from featkit_train.published.weight_files import ALLOWED, INDEX, SAFETENSORS, find_tensors, read_json, read_weights
from tests.commands import run_featkit
from tests.sentences import refused
from tests.train import published_files as published

TEACHER = {"cls_token": torch.full((1, 1, 4), 1.0), "norm.weight": torch.arange(4.0)}
STUDENT = {"cls_token": torch.full((1, 1, 4), 2.0), "norm.weight": -torch.arange(4.0)}


class Runs:
    """Unpickled, it calls a function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


def saved(folder: Path, checkpoint: object, **options: Any) -> Path:
    path = folder / "weights.pth"
    torch.save(checkpoint, path, **options)
    return path


def assert_holds(path: Path, expected: dict[str, Tensor], *, branch: str = "teacher") -> None:
    found = read_weights(path, branch=branch)
    torch.testing.assert_close(found.tensors, expected, rtol=0, atol=0)


# Containers


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        OrderedDict,
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {"teacher": state, "epoch": 3},
        lambda state: {
            "model_state_dict": OrderedDict(state),
            "args": argparse.Namespace(lr=0.1, folder=pathlib.PosixPath("/a")),
        },
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"teacher": {f"module.backbone.{name}": tensor for name, tensor in state.items()}},
        lambda state: {f"_orig_mod.module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"teacher": {f"backbone._orig_mod.{name}": tensor for name, tensor in state.items()}},
        lambda state: {name: torch.nn.Parameter(tensor) for name, tensor in state.items()},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_are_found_in_whatever_they_are_wrapped(wrap: Callable[[Any], Any], zipped: bool, tmp_path: Path) -> None:
    path = saved(tmp_path, wrap(TEACHER), _use_new_zipfile_serialization=zipped)
    assert zipfile.is_zipfile(path) == zipped
    found = read_weights(path)
    assert {name: tensor.tolist() for name, tensor in found.tensors.items()} == {
        name: tensor.tolist() for name, tensor in TEACHER.items()
    }
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.file == path


@pytest.mark.parametrize("zipped", [True, False])
def test_a_full_checkpoint_gives_the_branch_asked_for_without_its_head(zipped: bool, tmp_path: Path) -> None:
    path = saved(tmp_path, published.full_checkpoint(TEACHER, STUDENT), _use_new_zipfile_serialization=zipped)
    assert_holds(path, TEACHER)
    assert_holds(path, TEACHER, branch="teacher")
    assert_holds(path, STUDENT, branch="student")


def test_ibots_student_keeps_the_token_of_masked_patches_by_its_name(tmp_path: Path) -> None:
    path = saved(tmp_path, published.full_checkpoint(TEACHER, STUDENT, masked=True))
    assert_holds(path, TEACHER)
    assert set(read_weights(path, branch="student").tensors) == {*STUDENT, "masked_embed"}


@pytest.mark.parametrize(("held", "asked"), [("teacher", "student"), ("student", "teacher")])
def test_a_branch_that_is_not_there_is_not_replaced_by_the_other(held: str, asked: str, tmp_path: Path) -> None:
    path = saved(tmp_path, {held: TEACHER, "epoch": 1})
    assert_holds(path, TEACHER, branch=held)
    with refused(path, asked, f"--branch {held}"):
        read_weights(path, branch=asked)


def test_a_head_alone_is_refused(tmp_path: Path) -> None:
    head = {"mlp.0.weight": torch.ones(2, 2), "last_layer.weight_g": torch.ones(2, 1)}
    for checkpoint in (head, {"teacher": {f"head.{name}": tensor for name, tensor in head.items()}}):
        with refused("head alone", "mlp.0.weight"):
            read_weights(saved(tmp_path, checkpoint))


@pytest.mark.parametrize(
    "checkpoint",
    [
        {},
        [],
        3,
        None,
        "text",
        {"epoch": 3},
        {"teacher": {}},
        {"model": {"a": {"b": {"c": torch.ones(1)}}}},
        [torch.ones(2)],
        torch.ones(2),
    ],
)
def test_a_checkpoint_without_weights_is_refused(checkpoint: object, tmp_path: Path) -> None:
    path = saved(tmp_path, checkpoint)
    with refused(path):
        read_weights(path)


def test_pickles_of_another_protocol_are_read_without_a_warning_or_refused(tmp_path: Path) -> None:
    assert_holds(saved(tmp_path, {"model": TEACHER}, pickle_protocol=3), TEACHER)
    with refused("without running what is in it"):  # torch's restricted unpickler lacks what protocol 4 added
        read_weights(saved(tmp_path, {"model": TEACHER}, pickle_protocol=4))


def test_find_tensors_says_what_lies_where_weights_should(tmp_path: Path) -> None:
    with refused("epoch, lr"):
        find_tensors({"epoch": 3, "lr": 1}, tmp_path)
    with refused("int"):
        find_tensors(3, tmp_path)


# Code


def test_the_classes_that_a_pickle_may_name_are_these() -> None:
    """A new one has to be argued for: it must run nothing, whatever arguments and state a file gives it."""
    scalar = np.float32(0).__reduce__()[0]
    assert list(ALLOWED) == [
        argparse.Namespace,
        pathlib.PosixPath,
        np.dtype,
        np.dtypes.Float32DType,
        np.dtypes.Float64DType,
        np.dtypes.Int64DType,
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
    ]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("beside", [False, True])
def test_a_pickle_that_runs_a_command_runs_nothing(beside: bool, zipped: bool, tmp_path: Path) -> None:
    import os

    marker = tmp_path / "marker"
    harmful = Runs(os.system, f"touch {marker}")
    path = saved(tmp_path, {**TEACHER, "extra": harmful} if beside else harmful, _use_new_zipfile_serialization=zipped)
    with refused(path, "posix.system", "safetensors"):
        read_weights(path)
    assert not marker.exists()
    assert torch.load(path, weights_only=False) is not None  # so that the test itself would notice
    assert marker.exists()


def test_the_command_ends_with_one_sentence_and_code_2(tmp_path: Path) -> None:
    import os

    marker = tmp_path / "marker"
    path = saved(tmp_path, {**TEACHER, "extra": Runs(os.system, f"touch {marker}")})
    said = run_featkit("export", "dino_vits16", "--weights", path, "--out", tmp_path / "m.onnx")
    assert said.code == InputError.exit_code == 2
    assert "posix.system" in said.error
    assert "Traceback" not in said.out + said.error
    assert not marker.exists()
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("harmful", "named"),
    [
        (Runs(eval, "1 + 1"), "eval"),
        (Runs(exec, "pass"), "exec"),
        (Runs(getattr, argparse.Namespace(), "__dict__"), "getattr"),
        (Runs(pathlib.Path.touch, pathlib.PosixPath("/nowhere/at/all")), "getattr"),
        (Runs(np.load, "/etc/hostname"), "numpy"),
        (Runs(torch.load, "/etc/hostname"), "torch.serialization.load"),
        (Fraction(1, 2), "fractions.Fraction"),
        (types.SimpleNamespace(lr=0.1), "types.SimpleNamespace"),
        (np.ones(3), "numpy"),
    ],
)
def test_any_other_function_or_class_is_refused_by_its_name(harmful: object, named: str, tmp_path: Path) -> None:
    path = saved(tmp_path, {**TEACHER, "extra": harmful})
    with refused(path, named):
        read_weights(path)


def test_options_of_a_run_and_numbers_of_numpys_are_read(tmp_path: Path) -> None:
    extra = {
        "args": argparse.Namespace(lr=0.1, names=["a"], nested=argparse.Namespace(b=None), folder=pathlib.PosixPath("/x")),
        "loss": np.float64(0.5),
        "least": np.float32(0.25),
        "step": np.int64(3),
        "dtype": torch.float16,
        "size": torch.Size([1, 2]),
    }
    assert_holds(saved(tmp_path, {"teacher": TEACHER, **extra}), TEACHER)


def test_old_and_new_names_of_numpys_scalar_are_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"teacher": TEACHER, "loss": np.float64(0.5)}, path, _use_new_zipfile_serialization=False, pickle_protocol=2)
    content = path.read_bytes()
    new, old = b"numpy._core.multiarray", b"numpy.core.multiarray"
    assert new in content
    assert_holds(path, TEACHER)
    path.write_bytes(content.replace(new, old))
    assert_holds(path, TEACHER)


# Damage


def damaged(kind: str, folder: Path) -> Path:
    path = saved(folder, TEACHER)
    if kind == "truncated zip":
        path.write_bytes(path.read_bytes()[:-200])
    elif kind == "half a zip":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "truncated legacy":
        saved(folder, TEACHER, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes()[:-20])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 86\n")
    elif kind == "HTML":
        path.write_text("<!doctype html>\n<html><body>404</body></html>\n")
    elif kind == "another zip":
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("cat.txt", "meow")
    elif kind == "plain pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif kind == "random bytes":
        path.write_bytes(np.random.default_rng(0).bytes(5000))
    elif kind == "zip behind a legacy file":
        content = path.read_bytes()
        saved(folder, TEACHER, _use_new_zipfile_serialization=False)
        path.write_bytes(path.read_bytes() + content)
    return path


DAMAGES = [
    "truncated zip",
    "half a zip",
    "truncated legacy",
    "empty",
    "text",
    "HTML",
    "another zip",
    "plain pickle",
    "random bytes",
    "zip behind a legacy file",
]


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_pickle_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    path = damaged(kind, tmp_path)
    with refused(path):
        read_weights(path)


@pytest.mark.parametrize("kind", ["broken header", "truncated", "empty", "text", "long header"])
def test_a_damaged_safetensors_file_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    path = tmp_path / SAFETENSORS
    save_file(TEACHER, path)
    content = path.read_bytes()
    path.write_bytes(
        {
            "broken header": content[:8] + b"{" * (len(content) - 8),
            "truncated": content[:-4],
            "empty": b"",
            "text": b"version https://git-lfs.github.com/spec/v1\n",
            "long header": (2**62).to_bytes(8, "little") + content[8:],
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
    save_file(TEACHER, tmp_path / SAFETENSORS)
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    found = read_weights(tmp_path)
    torch.testing.assert_close(found.tensors, TEACHER)
    assert found.config == {"model_type": "dinov2"}
    assert found.sha256 == hashlib.sha256((tmp_path / SAFETENSORS).read_bytes()).hexdigest()


def test_an_index_joins_its_files_and_the_sum_is_over_all_of_them(tmp_path: Path) -> None:
    index = {"weight_map": {"cls_token": "a.safetensors", "norm.weight": "b.safetensors"}}
    folder = folder_of(tmp_path, index, a={"cls_token": TEACHER["cls_token"]}, b={"norm.weight": TEACHER["norm.weight"]})
    found = read_weights(folder)
    torch.testing.assert_close(found.tensors, TEACHER)
    save_file({"norm.weight": torch.ones(4)}, folder / "b.safetensors")
    assert read_weights(folder).sha256 != found.sha256


@pytest.mark.parametrize(
    "part", ["../outside.safetensors", "/etc/outside.safetensors", "sub/outside.safetensors", "..", "", 3, None]
)
def test_an_index_that_names_files_elsewhere_is_refused(part: object, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    save_file(TEACHER, tmp_path / "outside.safetensors")
    with refused(INDEX, "outside its folder"):
        read_weights(folder_of(inside, {"weight_map": {"cls_token": part}}))


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": []}, {"weight_map": "a"}, {"weight_map": None}, []])
def test_an_index_that_names_no_files_is_refused(index: object, tmp_path: Path) -> None:
    with refused(INDEX):
        read_weights(folder_of(tmp_path, index))


def test_a_file_of_an_index_that_is_missing_is_named(tmp_path: Path) -> None:
    with refused("a.safetensors"):
        read_weights(folder_of(tmp_path, {"weight_map": {"cls_token": "a.safetensors"}}))


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with refused(tmp_path, SAFETENSORS):
        read_weights(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[1]", "3", "\x00"])
def test_a_config_that_is_no_json_object_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with refused(path):
        read_json(path)
    path.write_bytes(b"\xff\xfe\x00")
    with refused(path):
        read_json(path)
