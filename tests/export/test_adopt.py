"""Promises of adoption: a published ONNX file becomes a model file of the same vectors, promises no
size that was not compared, and what cannot be adopted is refused with what was found and wanted."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from featkit.embedder import Embedder
from featkit.modelfile import read_manifest
from featkit_export import adopt as adopt_module
from featkit_export.adopt import AdoptOptions, adopt_file
from featkit_export.adopted_graph import adopt
from featkit_export.recipe import FEATURES
from featkit_export.report import ExportReport
from featkit_export.verify import ParityError, draw_images
from tests.export.published import (
    GEOMETRY,
    NATIVE,
    PATCH,
    WIDTH,
    Published,
    build,
    publish,
    tokens_of,
)
from tests.images import draw_image
from tests.processes import run_python
from tests.sentences import refused

ONE = [(1, 56, 56), (1, 28, 28), (1, 84, 84), (1, 84, 126)]
SEVERAL = [(3, 28, 28), (3, 84, 84), (3, 84, 126), (8, 28, 28)]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Published]:
    """By the number of registers."""
    folder = tmp_path_factory.mktemp("published")
    return {count: publish(folder / f"registers-{count}", num_registers=count) for count in (0, 4)}


def run(model: onnx.ModelProto | Path, images: np.ndarray, *outputs: str) -> list[np.ndarray]:
    """A model file's outputs by onnxruntime, `embedding` by default."""
    given = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(given, options, providers=["CPUExecutionProvider"])
    results: list[np.ndarray] = session.run(list(outputs) or ["embedding"], {"images": images})
    return results


def pooled(tokens: np.ndarray, feature: str, *, num_registers: int = 0) -> np.ndarray:
    """A feature by its definition, from (N, T, D)."""
    patches = tokens[:, 1 + num_registers :].astype(np.float64)
    parts = {
        "cls": tokens[:, 0].astype(np.float64),
        "mean": sum(patches[:, place] for place in range(patches.shape[1])) / patches.shape[1],
        "gem": np.cbrt((np.clip(patches, 1e-6, None) ** 3).mean(axis=1)),
    }
    units = [
        parts[part] / np.sqrt((parts[part] ** 2).sum(axis=1, keepdims=True))
        for part in feature.split("+")
    ]
    joined: np.ndarray = np.concatenate(units, axis=1) / len(units) ** 0.5
    return joined


def hidden_by_transformers(made: Published, images: np.ndarray) -> np.ndarray:
    """last_hidden_state of images that only the published processor's normalization is done to."""
    pixels = made.processor(
        list(images), do_resize=False, do_center_crop=False, return_tensors="pt"
    )["pixel_values"]
    with torch.no_grad():
        hidden: np.ndarray = made.model(pixels).last_hidden_state.numpy()
    return hidden


@pytest.mark.parametrize("num_registers", [0, 4])
@pytest.mark.parametrize("feature", FEATURES)
def test_an_adopted_file_gives_the_vectors_of_transformers(
    published: dict[int, Published], tmp_path: Path, num_registers: int, feature: str
) -> None:
    made = published[num_registers]
    report = adopt_file(
        made.folder, tmp_path / "m.onnx", AdoptOptions(license="apache-2.0", feature=feature)
    )
    manifest = read_manifest(tmp_path / "m.onnx")
    assert manifest == report.manifest
    for batch, height, width in ((1, NATIVE, NATIVE), (2, 42, 98), (5, 28, 28)):
        images = draw_images(batch, height=height, width=width, seed=3)
        expected = pooled(
            hidden_by_transformers(made, images), feature, num_registers=num_registers
        )
        (vectors,) = run(tmp_path / "m.onnx", images)
        assert vectors.dtype == np.float32
        assert vectors.shape == (batch, manifest.width)
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        if batch > 1:  # the images have vectors of their own
            assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_report_and_manifest_describe_the_adoption(
    published: dict[int, Published], tmp_path: Path
) -> None:
    made = published[4]
    report = adopt_file(
        made.folder,
        tmp_path / "m.onnx",
        AdoptOptions(license="apache-2.0", origin={"from": "hand"}),
    )
    manifest, source = report.manifest, made.folder / "onnx" / "model.onnx"
    # as the published processor does
    assert manifest.geometry == dataclasses.replace(GEOMETRY, rounding="down")
    assert (manifest.family, manifest.name) == ("dinov2_with_registers", "registers-4")
    assert (manifest.feature, manifest.width, manifest.patch, manifest.license) == (
        "cls",
        WIDTH,
        PATCH,
        "apache-2.0",
    )
    assert (manifest.fixed_size, manifest.batch_invariant, manifest.precision) == (
        None,
        True,
        "fp32",
    )
    assert manifest.origin["sha256"] == hashlib.sha256(source.read_bytes()).hexdigest()
    assert manifest.origin["from"] == "hand"
    assert manifest.opset == max(
        entry.version for entry in onnx.load(source).opset_import if entry.domain == ""
    )
    assert [(case.batch, case.height, case.width) for case in report.comparisons] == [
        *ONE,
        *SEVERAL,
    ]
    assert report.left_out == ()
    assert (
        manifest.parity["min_cosine"]
        == min(case.min_cosine for case in report.comparisons)
        >= 0.99999
    )
    assert manifest.parity["max_abs"] == max(case.max_abs for case in report.comparisons) <= 1e-4
    assert manifest.notes.startswith("Adopted from model.onnx and compared with it at 1 × 56×56")


def test_an_adopted_graph_names_its_sizes_and_passes_the_checker(
    published: dict[int, Published],
) -> None:
    original = onnx.load(published[0].folder / "onnx" / "model.onnx")
    before = original.SerializeToString(deterministic=True)
    adopted = adopt(
        original, geometry=GEOMETRY, feature="cls+mean", outputs=("embedding", "patches")
    )
    onnx.checker.check_model(adopted, full_check=True)
    assert original.SerializeToString(deterministic=True) == before
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*adopted.graph.input, *adopted.graph.output]
    }
    assert shapes == {
        "images": ["N", "H", "W", 3],
        "embedding": ["N", 2 * WIDTH],
        "patches": ["N", "h", "w", WIDTH],
    }
    assert adopted.graph.input[0].type.tensor_type.elem_type == TensorProto.UINT8


def test_patches_are_the_tokens_at_their_places(
    published: dict[int, Published], tmp_path: Path
) -> None:
    made = published[4]
    adopt_file(
        made.folder,
        tmp_path / "m.onnx",
        AdoptOptions(license="apache-2.0", outputs=("embedding", "patches")),
    )
    images = draw_images(2, height=42, width=98)
    embedding, patches = run(tmp_path / "m.onnx", images, "embedding", "patches")
    hidden = hidden_by_transformers(made, images)
    assert patches.shape == (2, 3, 7, WIDTH)
    for row in range(3):
        for column in range(7):
            np.testing.assert_allclose(
                patches[:, row, column], hidden[:, 5 + 7 * row + column], atol=1e-4
            )
    np.testing.assert_allclose(embedding, pooled(hidden, "cls"), atol=1e-5)


def test_photographs_get_the_vectors_of_the_published_pipeline(
    published: dict[int, Published], tmp_path: Path
) -> None:
    made = published[4]
    adopt_file(
        made.folder,
        tmp_path / "m.onnx",
        AdoptOptions(license="apache-2.0", feature="cls+mean", outputs=("embedding", "patches")),
    )
    # Halved and cropped by whole pixels, so that the two pipelines round alike but for single
    # levels.
    photos = [draw_image(seed, height=128, width=192) for seed in range(3)]
    with torch.no_grad():
        hidden = made.model(
            made.processor(photos, return_tensors="pt")["pixel_values"]
        ).last_hidden_state.numpy()
    embedder = Embedder(tmp_path / "m.onnx", backend="onnxruntime")
    expected = pooled(hidden, "cls+mean", num_registers=4)
    vectors = embedder.embed(photos)
    np.testing.assert_allclose(vectors, expected, atol=5e-3)
    assert np.abs(vectors[0] - vectors[1]).max() > 5e-2
    images = np.stack([embedder.prepare(photo) for photo in photos])
    patches = embedder.outputs(images, ["patches"])["patches"]
    assert (
        np.corrcoef(patches.reshape(3, -1), hidden[:, 5:].reshape(3, -1))[
            range(3), range(3, 6)
        ].min()
        > 0.999
    )


@pytest.mark.parametrize(
    "options", [{"baked": "batch"}, {"baked": "positions"}, {"shape": (1, 3, NATIVE, NATIVE)}]
)
def test_a_file_of_one_image_or_one_size_embeds_any_number(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    model = build(**options)
    onnx.save(model, tmp_path / "m.onnx")
    adopt_hand_built(tmp_path)
    images = draw_images(5, height=NATIVE, width=NATIVE)
    vectors = Embedder(tmp_path / "out.onnx", backend="onnxruntime").infer(images)
    np.testing.assert_allclose(vectors, pooled(tokens_of(model, images), "cls"), atol=1e-5)


@pytest.mark.parametrize("opset", [11, 12, 13, 17, 18, 20])
@pytest.mark.parametrize("feature", FEATURES)
def test_every_opset_is_kept_and_gives_the_same_vectors(opset: int, feature: str) -> None:
    model = build(opset=opset)
    adopted = adopt(model, geometry=GEOMETRY, feature=feature, outputs=("embedding", "patches"))
    assert [(entry.domain, entry.version) for entry in adopted.opset_import] == [("", opset)]
    onnx.checker.check_model(adopted, full_check=True)
    images = draw_images(2, height=28, width=84)
    tokens = tokens_of(model, images)
    embedding, patches = run(adopted, images, "embedding", "patches")
    np.testing.assert_allclose(embedding, pooled(tokens, feature), atol=1e-5)
    np.testing.assert_allclose(patches.reshape(2, -1, WIDTH), tokens[:, 1:], atol=1e-4)


@pytest.mark.parametrize("opset", [11, 13])
def test_a_file_of_one_size_keeps_it_and_is_compared_at_it_alone(
    tmp_path: Path, opset: int
) -> None:
    model = build(opset=opset, shape=("batch", 3, NATIVE, NATIVE), baked="positions")
    onnx.save(model, tmp_path / "m.onnx")
    report = adopt_hand_built(tmp_path, outputs=("embedding", "patches"))
    assert report.manifest.fixed_size == (NATIVE, NATIVE)
    assert [(case.batch, case.height, case.width) for case in report.comparisons] == [
        (n, NATIVE, NATIVE) for n in (1, 3, 8) for _ in (1, 2)
    ]
    shapes = [
        [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values(tmp_path)
    ]
    assert shapes == [["N", NATIVE, NATIVE, 3], ["N", WIDTH], ["N", 4, 4, WIDTH]]
    images = draw_images(2, height=NATIVE, width=NATIVE)
    np.testing.assert_allclose(
        run(tmp_path / "out.onnx", images)[0], pooled(tokens_of(model, images), "cls"), atol=1e-5
    )


def test_size_that_the_original_refuses_is_left_out(
    tmp_path: Path,
) -> None:
    onnx.save(build(baked="positions"), tmp_path / "m.onnx")  # says that it takes any size
    report = adopt_hand_built(tmp_path)
    assert [(case.batch, case.height, case.width) for case in report.left_out] == ONE[1:]
    assert all("Add" in case.reason for case in report.left_out)
    assert [(case.batch, case.height, case.width) for case in report.comparisons] == [
        (n, NATIVE, NATIVE) for n in (1, 3, 8)
    ]
    manifest = read_manifest(tmp_path / "out.onnx")
    assert (manifest.fixed_size, manifest.batch_invariant) == ((NATIVE, NATIVE), True)
    assert "m.onnx itself does not take 1 × 28×28" in manifest.notes
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        run(tmp_path / "out.onnx", draw_images(1, height=28, width=28))


def test_sizes_that_an_exporter_baked_in_are_found_and_left_out(tmp_path: Path) -> None:
    made = publish(tmp_path / "published", num_registers=4, baked=True)
    sides = onnx.load(made.folder / "onnx" / "model.onnx").graph.input[0].type.tensor_type.shape.dim
    report = adopt_file(made.folder, tmp_path / "m.onnx", AdoptOptions(license="apache-2.0"))
    assert [dim.dim_value for dim in sides[2:]] == [0, 0]  # it says of itself that it takes any
    assert {(case.height, case.width) for case in report.left_out} == {case[1:] for case in ONE[1:]}
    assert report.manifest.fixed_size == (NATIVE, NATIVE)
    images = draw_images(2, height=NATIVE, width=NATIVE)
    expected = pooled(hidden_by_transformers(made, images), "cls")
    np.testing.assert_allclose(run(tmp_path / "m.onnx", images)[0], expected, atol=1e-5)


def test_refused_batch_makes_one_image_a_call(
    tmp_path: Path,
) -> None:
    onnx.save(build(baked="batch"), tmp_path / "m.onnx")
    report = adopt_hand_built(tmp_path)
    assert [(case.batch, case.height, case.width) for case in report.left_out] == SEVERAL
    assert (report.manifest.batch_invariant, report.manifest.fixed_size) == (False, None)


def test_a_file_of_one_image_a_call_keeps_that(tmp_path: Path) -> None:
    onnx.save(build(shape=(1, 3, "height", "width")), tmp_path / "m.onnx")
    report = adopt_hand_built(tmp_path)
    assert [(case.batch, case.height, case.width) for case in report.comparisons] == ONE
    assert report.manifest.batch_invariant is False
    assert values(tmp_path)[0].type.tensor_type.shape.dim[0].dim_value == 1


@pytest.mark.parametrize(
    ("feature", "outputs"),
    [("cls+mean", ("embedding", "patches")), ("gem", ("embedding",)), ("pooler", ("embedding",))],
)
def test_half_precision_is_met_by_a_cast(
    tmp_path: Path, feature: str, outputs: tuple[str, ...]
) -> None:
    model = build(kind=np.float16)
    if feature == "pooler":
        model, feature = with_pooler_alone(model), "cls"
        model.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    onnx.save(model, tmp_path / "m.onnx")
    report = adopt_hand_built(tmp_path, feature=feature, outputs=outputs)
    assert (report.manifest.precision, report.manifest.width) == (
        "fp16",
        WIDTH * len(feature.split("+")),
    )
    # of half's own error, 2e-3, the two have the same
    assert report.manifest.parity["max_abs"] < 1e-5
    images = draw_images(2, height=28, width=42)
    (vectors,) = run(tmp_path / "out.onnx", images)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, pooled(tokens_of(model, images), feature), atol=2e-3)


def test_scale_over_the_batch_makes_one_image_a_call(tmp_path: Path) -> None:
    onnx.save(build(extra="quantized"), tmp_path / "m.onnx")
    report = adopt_hand_built(tmp_path)
    assert (report.manifest.batch_invariant, report.manifest.precision) == (False, "quantized")
    assert (
        "Operators of quantization: 1 DequantizeLinear, 1 DynamicQuantizeLinear." in report.remarks
    )
    assert len(report.comparisons) == 8


@pytest.mark.parametrize("extra", ["idle", "mixed"])
def test_batch_dependence_is_found_by_operator_or_measurement(tmp_path: Path, extra: str) -> None:
    onnx.save(build(extra=extra), tmp_path / "m.onnx")
    report = adopt_hand_built(tmp_path)
    assert report.manifest.batch_invariant is False
    assert len(report.comparisons) == 8
    assert (report.remarks[1:] == ()) is (extra == "mixed")


def test_operators_of_other_domains_are_kept_and_noted(tmp_path: Path) -> None:
    onnx.save(build(extra="microsoft"), tmp_path / "m.onnx")
    report = adopt_hand_built(tmp_path)
    assert "Operators that only some runtimes have: 1 com.microsoft.FastGelu." in report.remarks
    assert "FastGelu" in read_manifest(tmp_path / "out.onnx").notes
    assert report.manifest.batch_invariant is True


@pytest.mark.parametrize("extra", ["", "branch"])
@pytest.mark.parametrize(
    "names",
    [
        ("images", "embedding", "last_hidden_state"),
        ("featkit/in/Cast_0", "featkit/out/constant_0", "last_hidden_state"),
    ],
)
def test_values_that_are_called_as_a_model_files_are_stay_apart(
    extra: str, names: tuple[str, str, str]
) -> None:
    plain = adopt(build(extra=extra), geometry=GEOMETRY, feature="cls+mean")
    adopted = adopt(build(extra=extra, names=names), geometry=GEOMETRY, feature="cls+mean")
    onnx.checker.check_model(adopted)
    images = draw_images(2, height=28, width=42)
    np.testing.assert_array_equal(run(adopted, images)[0], run(plain, images)[0])


def test_the_pooler_alone_is_the_class_token(tmp_path: Path) -> None:
    model = with_pooler_alone(build())
    onnx.save(model, tmp_path / "m.onnx")
    report = adopt_hand_built(tmp_path)
    assert (report.manifest.width, report.manifest.feature) == (WIDTH, "cls")
    images = draw_images(2, height=28, width=42)
    np.testing.assert_allclose(
        run(tmp_path / "out.onnx", images)[0], pooled(tokens_of(model, images), "cls"), atol=1e-5
    )


def test_weights_that_are_listed_as_inputs_are_none(tmp_path: Path) -> None:
    model = build(opset=11)
    model.ir_version = 3
    for weight in model.graph.initializer:
        model.graph.input.append(
            helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims)
        )
    onnx.save(model, tmp_path / "m.onnx")
    adopt_hand_built(tmp_path)
    assert [value.name for value in onnx.load(tmp_path / "out.onnx").graph.input] == ["images"]


def test_weights_beside_the_file_are_taken_along(tmp_path: Path) -> None:
    plain, apart = tmp_path / "plain", tmp_path / "apart"
    for folder in (plain, apart):
        folder.mkdir()
    onnx.save(build(), plain / "m.onnx")
    save_apart(build(), apart / "m.onnx")
    assert (apart / "m.onnx_data").stat().st_size > 50_000 > (apart / "m.onnx").stat().st_size
    assert (
        adopt_hand_built(apart).manifest.fingerprint == adopt_hand_built(plain).manifest.fingerprint
    )


def test_weights_past_the_limit_of_one_file_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(build(), tmp_path / "m.onnx")
    whole = adopt_hand_built(tmp_path).manifest
    images = draw_images(2, height=28, width=42)
    (expected,) = run(tmp_path / "out.onnx", images)
    monkeypatch.setattr(adopt_module, "MAX_INLINE_BYTES", 10_000)
    apart = adopt_hand_built(tmp_path).manifest
    assert apart.external is not None
    weights = tmp_path / apart.external.file
    assert (
        weights.stat().st_size == apart.external.num_bytes > (tmp_path / "out.onnx").stat().st_size
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["m.onnx", "out.onnx", weights.name]
    )
    assert apart.fingerprint == whole.fingerprint
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", images)[0], expected)


def point_elsewhere(path: Path, location: str) -> None:
    model = onnx.load(path, load_external_data=False)
    for weight in model.graph.initializer:
        for entry in weight.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(model.SerializeToString())


def cut_short(path: Path) -> None:
    data = path.with_name("m.onnx_data")
    data.write_bytes(data.read_bytes()[:100])


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda path: point_elsewhere(path, "../secret"), id="above"),
        pytest.param(
            lambda path: point_elsewhere(path, str(path.parents[1] / "secret")), id="absolute"
        ),
        pytest.param(lambda path: point_elsewhere(path, "link"), id="link"),
        pytest.param(lambda path: path.with_name("m.onnx_data").unlink(), id="missing"),
        pytest.param(cut_short, id="short"),
    ],
)
def test_weights_elsewhere_missing_or_short_are_refused(
    tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    folder = tmp_path / "published"
    folder.mkdir()
    save_apart(build(), folder / "m.onnx")
    shutil.copyfile(folder / "m.onnx_data", tmp_path / "secret")  # right in all but its place
    (folder / "link").symlink_to(tmp_path / "secret")
    spoil(folder / "m.onnx")
    with refused("m.onnx cannot be read with its weights", "download all its files"):
        adopt_hand_built(folder)
    assert not (folder / "out.onnx").exists()


def with_input(model: onnx.ModelProto, kind: int, shape: tuple[int | str, ...]) -> onnx.ModelProto:
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("pixel_values", kind, shape))
    return model


def with_more(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.input.append(
        helper.make_tensor_value_info("bool_masked_pos", TensorProto.BOOL, ["batch", "tokens"])
    )
    return model


def with_output(model: onnx.ModelProto, name: str, shape: tuple[int | str, ...]) -> onnx.ModelProto:
    model.graph.node[-1].output[0] = name
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


def with_pooler_alone(model: onnx.ModelProto) -> onnx.ModelProto:
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(0), "first"))
    model.graph.node.append(
        helper.make_node("Gather", ["last_hidden_state", "first"], ["pooler_output"], axis=1)
    )
    model.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("pooler_output", TensorProto.FLOAT, ["batch", WIDTH])
    )
    return model


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (
            lambda: with_input(build(), TensorProto.UINT8, ("n", "h", "w", 3)),
            {},
            ["cannot be loaded by ONNX Runtime"],
        ),
        (lambda: with_input(build(), TensorProto.FLOAT, ("n", "h", "w", 4)), {}, []),
        (
            lambda: with_input(build(), TensorProto.FLOAT, ("n", 1, "h", "w")),
            {},
            ["(n, 1, h, w)", "(batch, 3, height, width)"],
        ),
        (
            lambda: with_input(build(), TensorProto.DOUBLE, ("n", 3, "h", "w")),
            {},
            ["float64 (n, 3, h, w)"],
        ),
        (lambda: with_input(build(), TensorProto.FLOAT, ("n", 3)), {}, ["float32 (n, 3)"]),
        (
            lambda: with_input(build(), TensorProto.FLOAT, (4, 3, "h", "w")),
            {},
            ["4 images per call", "a batch of 1 or a dynamic one"],
        ),
        (
            lambda: with_input(build(), TensorProto.FLOAT, ("n", 3, 70, 70)),
            {},
            ["only takes images of 70×70", "56×56", "dynamic sizes"],
        ),
        (
            lambda: with_more(build()),
            {},
            ["bool_masked_pos bool (batch, tokens)", "only that input"],
        ),
        (lambda: onnx.ModelProto(), {}, ["takes nothing"]),
        (lambda: build(opset=10), {}, ["opset 10", "11 or newer"]),
        (
            lambda: with_output(build(), "logits", ("n", 1000)),
            {},
            ["logits float32 (n, 1000)", "without a task's head"],
        ),
        (
            lambda: with_output(build(), "last_hidden_state", ("n", 8, "h", "w")),
            {},
            ["(n, 8, h, w)", "(batch, tokens, width)"],
        ),
        (
            lambda: with_pooler_alone(build()),
            {"feature": "mean"},
            ["gives only pooler_output", "mean", "last_hidden_state"],
        ),
        (
            lambda: with_pooler_alone(build()),
            {"outputs": ("embedding", "patches")},
            ["gives only pooler_output", "patches"],
        ),
        (build, {"feature": "max"}, ["'max'", "cls, mean, gem, cls+mean, cls+gem"]),
        (build, {"outputs": ("embedding", "attention")}, ["gives no attention", "checkpoint"]),
        (build, {"outputs": ("patches",)}, ["patches", "ask for embedding"]),
        (build, {"outputs": ("embedding", "logits")}, ["embedding, logits", "ask for embedding"]),
        (
            build,
            {"num_registers": 4},
            ["17 tokens for 56×56", "means 0 registers, not the 4 registers given"],
        ),
        (build, {"num_registers": -1}, ["-1 registers"]),
        (
            build,
            {"geometry": dataclasses.replace(GEOMETRY, patch=7)},
            ["17 tokens", "another patch"],
        ),
        (build, {"num_registers": None}, ["config.json does not exist", "download it from where"]),
        (
            build,
            {"geometry": None},
            ["preprocessor_config.json does not exist", "download it from where"],
        ),
    ],
)
def test_refusal_names_the_interface_found_and_wanted(
    tmp_path: Path, make: Callable[[], onnx.ModelProto], options: dict[str, Any], words: list[str]
) -> None:
    (tmp_path / "m.onnx").write_bytes(make().SerializeToString())
    with refused(*words):
        adopt_hand_built(tmp_path, **options)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.onnx", "missing.onnx does not exist"),
        ("text.onnx", "text.onnx is not an ONNX file"),
        ("empty", "empty has no onnx/model.onnx and no model.onnx"),
    ],
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "text.onnx").write_text("To whom it may concern")
    (tmp_path / "empty").mkdir()
    with refused(words):
        adopt_file(
            tmp_path / name,
            tmp_path / "out.onnx",
            AdoptOptions(license="x", geometry=GEOMETRY, num_registers=0),
        )


def test_a_file_that_onnxruntime_does_not_load_is_refused(tmp_path: Path) -> None:
    model = build()
    model.graph.node[0].op_type = "Convolve"
    onnx.save(model, tmp_path / "m.onnx")
    with refused("m.onnx cannot be loaded by ONNX Runtime", "Convolve"):
        adopt_hand_built(tmp_path)


def test_nothing_is_written_when_the_two_disagree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(build(), tmp_path / "m.onnx")

    def a_little_wrong(model: onnx.ModelProto, **options: Any) -> onnx.ModelProto:
        options["feed"] = dataclasses.replace(
            options["feed"], mean=255 * np.array([0.5, 0.456, 0.406])
        )
        return adopt(model, **options)

    monkeypatch.setattr(adopt_module, "adopt", a_little_wrong)
    with refused("differs", "nothing was written", error=ParityError):
        adopt_hand_built(tmp_path)
    assert not (tmp_path / "out.onnx").exists()


def test_adoption_needs_no_torch(tmp_path: Path) -> None:
    onnx.save(build(), tmp_path / "m.onnx")
    code = """
import sys
for name in ("torch", "torchvision", "timm", "transformers", "onnxscript", "safetensors"):
    sys.modules[name] = None  # so that its import fails
from pathlib import Path
from featkit_export.adopt import AdoptOptions, adopt_file
from featkit.geometry import Geometry
geometry = Geometry.from_dict(__import__("json").loads(sys.argv[2]))
folder = Path(sys.argv[1])
options = AdoptOptions(license="x", geometry=geometry, num_registers=0)
report = adopt_file(folder / "m.onnx", folder / "out.onnx", options)
print(len(report.comparisons))
"""
    status, out, error = run_python(code, tmp_path, json.dumps(GEOMETRY.to_dict()))
    assert (status, out, error) == (0, "8\n", "")
    assert read_manifest(tmp_path / "out.onnx").width == WIDTH


def adopt_hand_built(folder: Path, **options: Any) -> ExportReport:
    """Adopt `folder`/m.onnx as `folder`/out.onnx."""
    defaults = {"license": "CC0-1.0", "geometry": GEOMETRY, "num_registers": 0}
    return adopt_file(
        folder / "m.onnx", folder / "out.onnx", AdoptOptions(**{**defaults, **options})
    )


def values(folder: Path) -> list[onnx.ValueInfoProto]:
    """Inputs and outputs of what was written."""
    graph = onnx.load(folder / "out.onnx").graph
    return [*graph.input, *graph.output]


def save_apart(model: onnx.ModelProto, path: Path) -> None:
    onnx.save(
        model, path, save_as_external_data=True, location=f"{path.name}_data", size_threshold=1024
    )
