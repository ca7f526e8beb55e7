"""Try what might make embedding faster; nothing of this is part of featkit.

A ViT-S/14 at 224 with random weights, two images per call. Changes to the graph are measured in
processor time per image, which other processes disturb least. Streams, pinning and decoding ahead
are measured in images per second.
Run: python tests/benchmarks/bench_embed_trials.py [FOLDER with bench_embed_limit.py's model files]
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

from featkit.backends import Run
from featkit.backends import openvino as engine
from featkit.embedder import Embedder
from featkit.modelfile import INPUT
from featkit.pipeline import EmbedOptions, embed_source
from featkit_export.int8 import EditedGraph
from featkit_export.verify import open_session
from tests.benchmarks.bench_embed_limit import CALIBRATION, ROW, make_files
from tests.benchmarks.photos import data_folder, open_part
from tests.benchmarks.record import arguments, is_quick, write_result

ROUNDS, TURNS, IMAGES = (1, 1, 8) if is_quick() else (30, 3, 40)
BF16 = {"INFERENCE_PRECISION_HINT": "bf16"}
FP32 = {"INFERENCE_PRECISION_HINT": "f32"}


def with_folded_pixels(full: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with mean and std in the weights and the bias of the patch embedding."""
    graph = EditedGraph(full)
    nodes = {node.output[0]: node for node in graph.model.graph.node}
    (conv,) = (node for node in nodes.values() if node.op_type == "Conv")
    divided = nodes[conv.input[0]]
    centered = nodes[divided.input[0]]
    mean, std = (graph.array(node.input[1]).astype(np.float64) for node in (centered, divided))
    weight = graph.array(conv.input[1]) / std
    bias = graph.array(conv.input[2]) - (weight * mean).sum(axis=(1, 2, 3))
    graph.set_constant(conv.input[1], weight.astype(np.float32))
    graph.set_constant(conv.input[2], bias.astype(np.float32))
    conv.input[0] = centered.input[0]
    for node in (divided, centered):
        graph.model.graph.node.remove(node)
    return graph.finish()


def with_fused_attention(full: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph with com.microsoft.Attention in every block that computes all tokens."""
    graph = EditedGraph(full)
    nodes = {node.output[0]: node for node in graph.model.graph.node}

    def reader(name: str, kind: str) -> onnx.NodeProto:
        return next(node for node in graph.readers[name] if node.op_type == kind)

    for softmax in [node for node in nodes.values() if node.op_type == "Softmax"]:
        value = nodes[softmax.input[0]].input[0]  # the scaled query
        while nodes[value].op_type != "Add":
            value = nodes[value].input[0]
        added = nodes[value]
        product = nodes[added.input[0]]
        weight = graph.array(product.input[1])
        if weight.shape[1] != 3 * weight.shape[0]:
            continue  # the class token alone
        mixed = reader(softmax.output[0], "MatMul")
        joined = reader(reader(mixed.output[0], "Transpose").output[0], "Reshape")
        fused = helper.make_node(
            "Attention",
            [product.input[0], product.input[1], added.input[1]],
            [joined.output[0]],
            name=f"{joined.name}/fused",
            domain="com.microsoft",
            num_heads=ROW.arch["num_heads"],
        )
        position = list(graph.model.graph.node).index(joined)
        graph.model.graph.node.remove(joined)
        graph.model.graph.node.insert(position, fused)
    graph.model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model = graph.finish()
    needed = {value.name for value in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed & {*node.output}:
            kept.append(node)
            needed |= {*node.input}
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    return model


def with_fused_products(graph: Any) -> Any:
    """Replace softmax and both products of every block of an OpenVINO graph by its fused node."""
    from openvino import opset13 as operators  # after featkit has imported it without telemetry

    for node in graph.get_ordered_ops():
        if node.get_type_name() != "Softmax":
            continue
        scores = node.input_value(0).get_node()
        keys = scores.input_value(1).get_node().input_value(0)
        (mixed,) = (each.get_node() for each in node.output(0).get_target_inputs())
        one = operators.constant(np.array(1, np.float32))
        mask = operators.constant(np.array(0, np.float32))
        fused = operators.scaled_dot_product_attention(
            scores.input_value(0), keys, mixed.input_value(1), mask, one, causal=False
        )
        mixed.output(0).replace(fused.output(0))
    graph.validate_nodes_and_infer_types()
    return graph


def by_onnxruntime(model: onnx.ModelProto, images: np.ndarray) -> Callable[[], np.ndarray]:
    """Return a call of a session with one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda: session.run(None, {INPUT: images})[0]


def by_openvino(graph: Any, images: np.ndarray, config: dict[str, Any]) -> Callable[[], np.ndarray]:
    """Return a call of a compiled graph with one thread."""
    settings = {"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "ENABLE_CPU_PINNING": False}
    request = engine._core().compile_model(graph, "CPU", {**settings, **config})
    return lambda: request(images)[0]


def processor_ms(works: dict[str, Callable[[], np.ndarray]], count: int) -> dict[str, float]:
    """Return the median processor time per image of each, in turns."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(ROUNDS + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if number:
                times[name].append(1000 * (time.process_time() - started) / count)
    return {name: round(statistics.median(values), 2) for name, values in times.items()}


def graph_trials(files: Path, images: np.ndarray) -> dict[str, Any]:
    """Measure changes of the graph in both engines, and how far their vectors move."""
    path = files / "class token.onnx"
    full = onnx.load(path)
    folded, fused = with_folded_pixels(full), with_fused_attention(full)
    onnx.save(folded, files / "folded.onnx")
    works = {
        "onnxruntime": by_onnxruntime(full, images),
        "onnxruntime, fused attention": by_onnxruntime(fused, images),
        "onnxruntime, folded pixels": by_onnxruntime(folded, images),
    }
    for precision, config in (("fp32", FP32), ("bf16", BF16)):
        name = f"openvino {precision}"
        works[name] = by_openvino(engine._read(path), images, config)
        works[f"{name}, fused attention"] = by_openvino(
            with_fused_products(engine._read(path)), images, config
        )
        works[f"{name}, folded pixels"] = by_openvino(
            engine._read(files / "folded.onnx"), images, config
        )
    int8 = files / "class token int8.onnx"
    works["openvino int8"] = by_openvino(engine._read(int8), images, BF16)
    works["openvino int8, fused attention"] = by_openvino(
        with_fused_products(engine._read(int8)), images, BF16
    )
    onnx.save(with_folded_pixels(onnx.load(int8)), files / "folded.onnx")
    works["openvino int8, folded pixels"] = by_openvino(
        engine._read(files / "folded.onnx"), images, BF16
    )
    first = open_session(str(path)).run(None, {INPUT: images})[0]
    return {
        "processor ms per image": processor_ms(works, len(images)),
        "least cosine with the file in fp32": {
            name: round(float((work() * first).sum(axis=1).min()), 6)
            for name, work in works.items()
        },
    }


def stream_trials(files: Path, images: np.ndarray) -> dict[str, Any]:
    """Measure ways to use two processors for many images: images per second."""
    settings = {
        "a stream per processor": ({"NUM_STREAMS": 2, "INFERENCE_NUM_THREADS": 2}, False, 2),
        "the same, pinned": ({"NUM_STREAMS": 2, "INFERENCE_NUM_THREADS": 2}, True, 2),
        "one stream of two threads": ({"NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 2}, False, 1),
    }
    calls: dict[str, tuple[list[Callable[[], object]], int]] = {}
    for name, (config, pinned, callers) in settings.items():
        compiled = engine._core().compile_model(
            engine._read(files / "class token.onnx"),
            "CPU",
            {**BF16, **config, "ENABLE_CPU_PINNING": pinned},
        )
        requests = [compiled.create_infer_request() for _ in range(callers)]
        calls[name] = ([partial(request.infer, {INPUT: images}) for request in requests], callers)
    rates: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(TURNS + 1):
        for name, (infer, callers) in calls.items():
            count = IMAGES // len(images) // callers if number else 1

            def work(call: Callable[[], object], times: int) -> None:
                for _ in range(times):
                    call()

            threads = [threading.Thread(target=work, args=(call, count)) for call in infer]
            started = time.perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if number:
                elapsed = time.perf_counter() - started
                rates[name].append(count * callers * len(images) / elapsed)
    return {"openvino bf16, images/s": medians(rates)}


def ahead_trials(files: Path, folder: Path, photographs: list[Path]) -> dict[str, Any]:
    """Measure `featkit embed` with more workers than engine streams: the others decode ahead."""
    source = open_part(photographs[:IMAGES], folder / "ahead.txt")
    kind = Run("openvino", "bf16")
    rates: dict[str, list[float]] = {}
    embedder = Embedder(
        files / "class token.onnx", backend=kind.backend, precision=kind.precision, threads=1
    )
    for number in range(TURNS):
        for workers in (2, 3, 4):
            started = time.perf_counter()
            out = folder / f"ahead {number} {workers}"
            embed_source(source, embedder, out, EmbedOptions(workers=workers))
            name = f"{workers} workers"
            rates.setdefault(name, []).append(IMAGES / (time.perf_counter() - started))
    return {"featkit embed on two processors, images/s": medians(rates)}


def medians(rates: dict[str, list[float]]) -> dict[str, float]:
    """Return the median of each."""
    return {name: round(statistics.median(values), 1) for name, values in rates.items()}


def main() -> None:
    """Measure and record."""
    photographs = sorted((data_folder() / "photos").iterdir())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = Path(arguments()[0]) if arguments() else folder / "files"
        files.mkdir(parents=True, exist_ok=True)
        make_files(files, open_part(photographs[-CALIBRATION:], folder / "last.txt"))
        embedder = Embedder(files / "class token.onnx", backend="onnxruntime")
        images = np.stack([embedder.prepare(path) for path in photographs[:2]])
        figures = {
            **graph_trials(files, images),
            **stream_trials(files, images),
            **ahead_trials(files, folder, photographs),
        }
    write_result("embed_trials", figures)


if __name__ == "__main__":
    main()
