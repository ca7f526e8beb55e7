"""Tests of what every engine guarantees: outputs, batch invariance, threads and canceling."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from featkit.backends import Cancel, Cancelled, Run, open_backend
from featkit.backends.base import BF16
from featkit.backends.drawn import drawn_images
from featkit.errors import FeatkitError
from featkit.modelfile import ATTENTION, EMBEDDING, OUTPUTS, PATCHES, read_manifest
from featkit.models import default_model_path
from tests.featkit.backends.engines import RUNS
from tests.featkit.backends.graphs import HEADS, WIDTH, make_layered_file
from tests.sentences import refused


@pytest.fixture(scope="module")
def layered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file with every output."""
    return make_layered_file(tmp_path_factory.mktemp("layered") / "m.onnx")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file of many small steps, between which a call can end."""
    return make_layered_file(
        tmp_path_factory.mktemp("deep") / "m.onnx", depth=60, outputs=(EMBEDDING,)
    )


def checkerboard(height: int, width: int) -> np.ndarray:
    """(H, W, 3) uint8 of black and white pixels: the widest range that a neighbor in a batch can
    have."""
    squares = (np.indices((height, width)).sum(axis=0) % 2 * 255).astype(np.uint8)
    return np.repeat(squares[..., None], 3, axis=2)


@pytest.mark.parametrize(
    "text", ["onnxruntime fp32", "openvino bf16", "tensorrt fp32", "onnxruntime int8"]
)
def test_a_run_is_read_back_from_its_words(text: str) -> None:
    assert str(Run.parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "openvino", "openvino ", "cuda fp32", "openvino bf16 fast", "openvino  bf16"]
)
def test_other_words_are_no_run(text: str) -> None:
    with pytest.raises(ValueError, match="is not an engine and a precision"):
        Run.parse(text)


@pytest.mark.parametrize("run", RUNS)
def test_outputs_are_those_of_onnxs_own_evaluator(layered: Path, run: Run) -> None:
    images = np.concatenate([drawn_images(3, height=40, width=48), checkerboard(40, 48)[None]])
    expected = dict(
        zip(OUTPUTS, ReferenceEvaluator(str(layered)).run(None, {"images": images}), strict=True)
    )
    found = open_backend(layered, run, threads=1).run(
        images, outputs=(ATTENTION, EMBEDDING, PATCHES)
    )
    assert list(found) == [ATTENTION, EMBEDDING, PATCHES]
    assert found[EMBEDDING].shape == (4, WIDTH)
    assert found[PATCHES].shape == (4, 5, 6, WIDTH)
    assert found[ATTENTION].shape == (4, HEADS, 5, 6)
    tolerance = 0.05 if run.precision == BF16 else 1e-5
    for name, values in found.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(
            values, expected[name], rtol=tolerance, atol=tolerance, err_msg=name
        )
    cosines = np.einsum("nd,nd->n", found[EMBEDDING], expected[EMBEDDING])
    assert cosines.min() > (0.999 if run.precision == BF16 else 1 - 1e-6)
    if run.precision == BF16:  # it is not float32 under another name
        assert np.abs(found[PATCHES] - expected[PATCHES]).max() > 1e-4


@pytest.mark.parametrize("run", RUNS)
def test_an_output_by_itself_is_what_it_is_among_others(layered: Path, run: Run) -> None:
    backend = open_backend(layered, run, threads=1)
    images = drawn_images(2, height=32, width=32)
    every = backend.run(images, outputs=OUTPUTS)
    for name in OUTPUTS:
        alone = backend.run(images, outputs=(name,))
        assert list(alone) == [name]
        np.testing.assert_allclose(
            alone[name], every[name], rtol=0, atol=0.02 if run.precision == BF16 else 1e-6
        )


@pytest.mark.parametrize("run", RUNS)
def test_a_vector_ignores_a_checkerboard_in_its_batch(run: Run) -> None:
    path = default_model_path()
    backend, size = open_backend(path, run, threads=1), read_manifest(path).geometry
    images = drawn_images(4, height=size.height, width=size.width)
    extreme = checkerboard(size.height, size.width)
    alone = np.concatenate([backend.run(image[None])[EMBEDDING] for image in images])
    for count in (1, 3, 7):
        batch = np.concatenate([images, np.repeat(extreme[None], count, axis=0)])
        np.testing.assert_allclose(backend.run(batch)[EMBEDDING][:4], alone, rtol=0, atol=2e-7)
        np.testing.assert_allclose(
            backend.run(batch[::-1])[EMBEDDING][::-1][:4], alone, rtol=0, atol=2e-7
        )


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("run", RUNS)
def test_eight_threads_get_what_one_gets(layered: Path, run: Run, threads: int) -> None:
    backend = open_backend(layered, run, threads=threads)
    batches = [
        drawn_images(1 + number % 3, height=32 + 8 * (number % 4), width=40) for number in range(12)
    ]
    expected = [backend.run(batch)[EMBEDDING] for batch in batches]
    with ThreadPoolExecutor(8) as callers:
        found = list(callers.map(lambda batch: backend.run(batch)[EMBEDDING], batches * 10))
    for place, vectors in enumerate(found):
        np.testing.assert_array_equal(vectors, expected[place % len(batches)])


@pytest.mark.parametrize("run", RUNS)
def test_a_result_is_not_changed_by_later_calls(layered: Path, run: Run) -> None:
    backend = open_backend(layered, run, threads=1)
    first = backend.run(drawn_images(2, height=32, width=32), outputs=OUTPUTS)
    kept = {name: values.copy() for name, values in first.items()}
    backend.run(255 - drawn_images(2, height=32, width=32), outputs=OUTPUTS)
    for name in OUTPUTS:
        np.testing.assert_array_equal(first[name], kept[name])


@pytest.mark.parametrize("run", RUNS)
def test_a_cancelled_call_ends_early_and_later_calls_run(deep: Path, run: Run) -> None:
    backend = open_backend(deep, run, threads=1)
    images = np.zeros((8, 1024, 1024, 3), np.uint8)
    small = drawn_images(2, height=32, width=32)
    expected = backend.run(small)[EMBEDDING]
    backend.run(images)
    started = time.perf_counter()
    backend.run(images)
    whole = time.perf_counter() - started
    cancel = Cancel()
    timer = threading.Timer(whole / 10, cancel.set)
    started = time.perf_counter()
    timer.start()
    with pytest.raises(Cancelled):
        backend.run(images, cancel=cancel)
    assert time.perf_counter() - started < 0.7 * whole
    timer.join()
    np.testing.assert_array_equal(backend.run(small)[EMBEDDING], expected)
    with pytest.raises(Cancelled):
        backend.run(small, cancel=cancel)


@pytest.mark.parametrize("run", RUNS)
def test_cancelling_ends_every_call_under_way(deep: Path, run: Run) -> None:
    backend = open_backend(deep, run, threads=1)
    images = np.zeros((8, 1024, 1024, 3), np.uint8)
    cancel = Cancel()
    ended: list[BaseException | None] = []

    def call() -> None:
        try:
            backend.run(images, cancel=cancel)
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    time.sleep(0.05)
    cancel.set()
    for caller in callers:
        caller.join(timeout=30)
    assert [type(error) for error in ended] == [Cancelled] * 4


@pytest.mark.parametrize("run", RUNS)
def test_a_graph_that_does_not_load_is_refused(layered: Path, tmp_path: Path, run: Run) -> None:
    model = onnx.load(layered)
    model.graph.node[4].input[0] = "nowhere"
    onnx.save(model, tmp_path / "torn.onnx")
    with pytest.raises(
        FeatkitError, match=r"torn.onnx cannot be loaded by (ONNX Runtime|OpenVINO): .*\S"
    ) as caught:
        open_backend(tmp_path / "torn.onnx", run, threads=1)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("run", RUNS)
def test_a_graph_that_takes_other_images_is_refused(tmp_path: Path, run: Run) -> None:
    graph = helper.make_graph(
        [helper.make_node("Mul", ["images", "two"], [EMBEDDING])],
        "other",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info(EMBEDDING, onnx.TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(np.array(2, np.float32), "two")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "other.onnx")
    with refused(
        tmp_path / "other.onnx",
        "is not a featkit model file",
        "not images as uint8 and embedding as float32",
    ):
        open_backend(tmp_path / "other.onnx", run, threads=1)


@pytest.mark.parametrize("run", RUNS)
def test_sizes_the_graph_cannot_take_raise_an_error(tmp_path: Path, run: Run) -> None:
    file = make_layered_file(tmp_path / "m.onnx", fixed_size=(32, 40))
    backend = open_backend(file, run, threads=1)
    with pytest.raises(
        FeatkitError,
        match=r"m.onnx failed in (ONNX Runtime|OpenVINO) on images \(1, 64, 64, 3\): ",
    ):
        backend.run(np.zeros((1, 64, 64, 3), np.uint8))
    assert backend.run(np.zeros((1, 32, 40, 3), np.uint8))[EMBEDDING].shape == (1, WIDTH)
