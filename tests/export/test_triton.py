"""Promises of the Triton repository: its layout, a config that protobuf reads and that agrees with
the file, equal vectors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format  # type: ignore[import-untyped]

from featkit.modelfile import Manifest, read_manifest
from featkit_export.seal import seal
from featkit_export.triton import write_triton
from tests.model_files import make_model_file
from tests.sentences import refused


def make_config_class() -> Any:
    """The part of Triton's model_config.proto that is written here, with its names, types and
    numbers."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="model_config.proto", package="inference", syntax="proto3"
    )
    types = file.enum_type.add(name="DataType")
    for name, number in (("TYPE_INVALID", 0), ("TYPE_UINT8", 2), ("TYPE_FP32", 11)):
        types.value.add(name=name, number=number)
    file.message_type.add(name="ModelDynamicBatching")
    for name, (dims_number, type_number) in {"ModelInput": (4, 2), "ModelOutput": (3, 2)}.items():
        tensor = file.message_type.add(name=name)
        tensor.field.add(name="name", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
        tensor.field.add(
            name="data_type",
            number=type_number,
            type=field.TYPE_ENUM,
            type_name=".inference.DataType",
            label=field.LABEL_OPTIONAL,
        )
        tensor.field.add(
            name="dims", number=dims_number, type=field.TYPE_INT64, label=field.LABEL_REPEATED
        )
    config = file.message_type.add(name="ModelConfig")
    config.field.add(name="name", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    config.field.add(name="backend", number=17, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    config.field.add(
        name="max_batch_size", number=4, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL
    )
    for name, number, kind in (("input", 5, "ModelInput"), ("output", 6, "ModelOutput")):
        config.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=f".inference.{kind}",
            label=field.LABEL_REPEATED,
        )
    config.field.add(
        name="dynamic_batching",
        number=11,
        type=field.TYPE_MESSAGE,
        type_name=".inference.ModelDynamicBatching",
        label=field.LABEL_OPTIONAL,
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("inference.ModelConfig"))


CONFIG = make_config_class()
UINT8, FP32 = 2, 11


def config_of(folder: Path) -> Any:
    return text_format.Parse((folder / "config.pbtxt").read_text(encoding="ascii"), CONFIG())


def reseal(
    source: Path, path: Path, *, shape: tuple[int | str, ...] = ("N", "H", "W", 3), **changes: Any
) -> Path:
    """The same file with another manifest and other declared sizes."""
    model, manifest = onnx.load(source), dataclasses.replace(read_manifest(source), **changes)
    for value in (*model.graph.input, *model.graph.output):
        sides = shape if value.name == "images" else (shape[0], manifest.width)
        value.CopyFrom(
            onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, sides)
        )
    seal(model, manifest, path)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


def test_a_repository_has_the_file_its_config_and_its_manifest(model: Path, tmp_path: Path) -> None:
    folder = write_triton(model, tmp_path / "repository")
    assert folder == tmp_path / "repository" / "test-0"
    assert sorted(
        str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()
    ) == [
        "1/model.onnx",
        "config.pbtxt",
        "featkit.json",
    ]
    assert [path.name for path in (tmp_path / "repository").iterdir()] == ["test-0"]
    assert (folder / "1" / "model.onnx").read_bytes() == model.read_bytes()
    assert Manifest.from_json(
        (folder / "featkit.json").read_text(encoding="utf-8")
    ) == read_manifest(model)


@pytest.mark.parametrize(
    ("shape", "batch_invariant", "max_batch_size", "dims", "vector"),
    [
        (("N", "H", "W", 3), True, 64, [-1, -1, 3], [16]),
        (("N", 32, 40, 3), True, 64, [32, 40, 3], [16]),
        (("N", "H", "W", 3), False, 1, [-1, -1, 3], [16]),
        ((1, "H", "W", 3), False, 0, [1, -1, -1, 3], [1, 16]),
        ((1, 32, 32, 3), True, 0, [1, 32, 32, 3], [1, 16]),
    ],
)
def test_the_config_agrees_with_the_file(
    model: Path,
    tmp_path: Path,
    shape: tuple[int | str, ...],
    batch_invariant: bool,
    max_batch_size: int,
    dims: list[int],
    vector: list[int],
) -> None:
    folder = write_triton(
        reseal(model, tmp_path / "m.onnx", shape=shape, batch_invariant=batch_invariant), tmp_path
    )
    config = config_of(folder)
    assert (config.name, config.backend, config.max_batch_size) == (
        folder.name,
        "onnxruntime",
        max_batch_size,
    )
    assert [(value.name, value.data_type, list(value.dims)) for value in config.input] == [
        ("images", UINT8, dims)
    ]
    assert [(value.name, value.data_type, list(value.dims)) for value in config.output] == [
        ("embedding", FP32, vector)
    ]
    assert config.HasField("dynamic_batching") is (max_batch_size == 64)
    session = ort.InferenceSession(
        str(folder / "1" / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    for told, found in zip(
        [*config.input, *config.output],
        [*session.get_inputs(), *session.get_outputs()],
        strict=True,
    ):
        sides = [side if isinstance(side, int) else -1 for side in found.shape]
        assert (told.name, list(told.dims)) == (
            found.name,
            sides if max_batch_size == 0 else sides[1:],
        )
        assert max_batch_size == 0 or sides[0] == -1  # what Triton asks of a file that it batches


def test_external_weights_go_into_a_folder_named_model_onnx(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    onnx.save(
        proto,
        tmp_path / "graph.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=1024,
    )
    manifest = seal(
        onnx.load(tmp_path / "graph.onnx", load_external_data=False),
        read_manifest(model),
        tmp_path / "m.onnx",
        folder=tmp_path,
    )
    assert manifest.external is not None
    folder = write_triton(tmp_path / "m.onnx", tmp_path / "repository")
    place = folder / "1" / "model.onnx"
    assert {path.name for path in place.iterdir()} == {"model.onnx", manifest.external.file}
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    vectors = [
        ort.InferenceSession(str(file), providers=["CPUExecutionProvider"]).run(
            ["embedding"], {"images": images}
        )[0]
        for file in (place / "model.onnx", model)
    ]
    np.testing.assert_array_equal(*vectors)
    assert config_of(folder).max_batch_size == 64
    (tmp_path / manifest.external.file).write_bytes(b"other")
    with refused(manifest.external.file, "copy both files"):
        write_triton(tmp_path / "m.onnx", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("../../up", "up"),
        ('a"\nname: "b', "a-name-b"),
        ("dünn # größer", "d-nn-gr-er"),
        ("...", "featkit"),
        ("dinov2-small_v1.5", "dinov2-small_v1.5"),
    ],
)
def test_any_name_is_one_folder_and_one_line(
    model: Path, tmp_path: Path, name: str, folder: str
) -> None:
    written = write_triton(reseal(model, tmp_path / "m.onnx", name=name), tmp_path / "repository")
    assert written == tmp_path / "repository" / folder
    assert config_of(written).name == folder


def test_existing_model_stays_and_other_files_are_refused(model: Path, tmp_path: Path) -> None:
    write_triton(model, tmp_path)
    (tmp_path / "test-0" / "mine.txt").touch()
    with refused("test-0 already exists", "another repository"):
        write_triton(model, tmp_path)
    assert (tmp_path / "test-0" / "mine.txt").exists()
    with refused("none.onnx does not exist"):
        write_triton(tmp_path / "none.onnx", tmp_path / "repository")
    assert not (tmp_path / "repository").exists()
