"""OpenVINO: what it is called, how it shares the processors, what it counts, and that it tells
nobody."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from featkit.backends import Run, open_backend
from featkit.errors import EnvironmentProblem
from featkit.modelfile import INPUT, read_manifest
from featkit.models import default_model_path
from featkit.resources import usable_cpus
from tests.featkit.backends.engines import needs_bf16
from tests.featkit.backends.graphs import PATCH, WIDTH, make_layered_file
from tests.processes import run_python
from tests.sentences import refused

if find_spec("openvino") is None:
    pytest.skip("openvino is not installed", allow_module_level=True)

from featkit.backends import openvino as module


def num_multiplied(model: onnx.ModelProto, *, height: int, width: int) -> int:
    """Count the multiply-adds per image from the shapes that ONNX Runtime computes."""
    products = [node for node in model.graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
    names = {name for node in products for name in (node.input[0], node.output[0])} - {INPUT}
    outputs = {value.name for value in model.graph.output}
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:  # weights that are stored in fp16 are cast
        if node.op_type == "Cast" and node.input[0] in weights:
            weights[node.output[0]] = weights[node.input[0]]
    wanted = sorted(names - outputs - weights.keys())
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    every = [output.name for output in session.get_outputs()]
    values = session.run(every, {INPUT: np.zeros((1, height, width, 3), np.uint8)})
    shapes = {name: value.shape for name, value in zip(every, values, strict=True)} | weights
    return sum(
        math.prod(shapes[node.output[0]])
        * (
            math.prod(weights[node.input[1]][1:])
            if node.op_type == "Conv"
            else shapes[node.input[0]][-1]
        )
        for node in products
    )


def test_it_says_what_runs(tmp_path: Path) -> None:
    backend = open_backend(
        make_layered_file(tmp_path / "m.onnx"), Run("openvino", "fp32"), threads=1
    )
    assert (backend.name, str(backend.kind)) == ("openvino CPU fp32", "openvino fp32")


@needs_bf16
def test_it_says_that_bf16_runs_and_bf16_does(tmp_path: Path) -> None:
    backend = module.OpenVinoBackend(
        make_layered_file(tmp_path / "m.onnx"), threads=1, precision="bf16"
    )
    assert (backend.name, str(backend.kind)) == ("openvino CPU bf16", "openvino bf16")
    compiled = backend._requests(("embedding",))._compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").to_string() == "bf16"


@pytest.mark.usefixtures("all_cores")
def test_one_thread_means_a_stream_per_cpu_more_mean_one(tmp_path: Path) -> None:
    # in a new process, since OpenVINO counts the cores once
    code = """
import sys
from pathlib import Path
from featkit.backends.openvino import OpenVinoBackend
for threads in (1, 2):
    backend = OpenVinoBackend(Path(sys.argv[1]), threads=threads)
    compiled = backend._requests(("embedding",))._compiled
    print(compiled.get_property("NUM_STREAMS"), compiled.get_property("INFERENCE_NUM_THREADS"))
"""
    cpus = usable_cpus()
    expected = f"{cpus} {cpus}\n1 {min(2, cpus)}\n"

    assert run_python(code, make_layered_file(tmp_path / "m.onnx")) == (0, expected, "")


def test_bf16_is_refused_where_the_processor_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_layered_file(tmp_path / "m.onnx")
    monkeypatch.setattr(module, "has_bf16", lambda: False)
    with refused(
        "This processor does not compute in bf16; run", "--precision fp32", error=EnvironmentProblem
    ):
        open_backend(file, Run("openvino", "bf16"), threads=1)


def test_multiply_adds_are_those_counted_by_hand(tmp_path: Path) -> None:
    file = make_layered_file(tmp_path / "m.onnx", depth=3, outputs=("embedding",))
    patches = (40 // PATCH) * (64 // PATCH)
    by_hand = patches * (3 * PATCH * PATCH * WIDTH + 3 * WIDTH * WIDTH)
    assert module.num_multiply_adds(file, height=40, width=64) == by_hand


def test_multiply_adds_of_featkit_tiny_match_onnx_runtime() -> None:
    path = default_model_path()
    size = read_manifest(path).geometry
    counted = module.num_multiply_adds(path, height=size.height, width=size.width)
    assert counted == num_multiplied(onnx.load(path), height=size.height, width=size.width)


def test_a_request_is_used_again_but_not_after_an_error(tmp_path: Path) -> None:
    backend = module.OpenVinoBackend(
        make_layered_file(tmp_path / "m.onnx", fixed_size=(32, 32)), threads=1
    )
    requests = backend._requests(("embedding",))
    good, bad = np.zeros((1, 32, 32, 3), np.uint8), np.zeros((1, 40, 32, 3), np.uint8)
    backend.run(good)
    (kept,) = requests._idle
    backend.run(good)
    assert requests._idle == [kept]
    with pytest.raises(Exception, match="failed in OpenVINO"):
        backend.run(bad)
    assert requests._idle == []
