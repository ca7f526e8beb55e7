"""Measure an exported ViT-S/14 in every engine and precision, relative to ONNX Runtime in fp32.

More outputs and a single fixed size are measured as well. All weights are random. Ratios are
medians of alternating rounds in one run, with one thread and two images per call.
Run: python tests/benchmarks/bench_export.py
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import onnx
import torch

from featkit.backends import Run, open_backend
from featkit.embedder import Embedder
from featkit.evaluate.speed import matrix_flops, multiply_adds
from featkit.modelfile import EMBEDDING, OUTPUTS, read_manifest
from featkit_export.export import export_backbone
from featkit_export.graph import EmbeddingGraph
from featkit_export.int8 import observe_ranges, quantize_static
from featkit_export.recipe import Recipe
from featkit_export.seal import seal
from featkit_train.networks.vit_config import ViTConfig
from featkit_train.published.zoo import PUBLISHED
from featkit_train.weights import BackboneInfo
from tests.benchmarks.record import write_result
from tests.data import shared_data
from tests.export.backbones import drawn_backbone

ROUNDS, IMAGES_A_CALL, CALIBRATION = 15, 2, 64
VIT_S_14 = PUBLISHED["dinov2_vits14"]
INFO = BackboneInfo(
    name="vits14-random",
    family="dinov2",
    geometry=VIT_S_14.geometry,
    license="none",
    origin={"sha256": "drawn"},
)


def medians(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Seconds of each, in turns."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times) for name, times in seconds.items()}


def ratios(works: dict[str, Callable[[], object]], first: str) -> dict[str, float]:
    """How many times as fast as `first` each is."""
    times = medians(works)
    return {name: round(times[first] / seconds, 3) for name, seconds in times.items()}


def caller(
    model: Path, run: Run, images: np.ndarray, outputs: tuple[str, ...] = (EMBEDDING,)
) -> Callable[[], object]:
    """A session with one thread, and a call of it."""
    backend = open_backend(model, run, threads=1)
    return lambda: backend.run(images, outputs=outputs)


def cosines(
    works: dict[str, Path], run_of: dict[str, Run], images: np.ndarray, reference: str
) -> dict[str, float]:
    """The least cosine of each session's vectors with the reference's."""
    vectors = {
        name: (
            Embedder(path, backend=run_of[name].backend, precision=run_of[name].precision).infer(
                images
            )
        )
        for name, path in works.items()
    }
    return {
        name: round(float(np.einsum("nd,nd->n", found, vectors[reference]).min()), 6)
        for name, found in vectors.items()
    }


def main() -> None:
    """Measure and record."""
    data = shared_data()
    if data is None:
        raise SystemExit("The data for this benchmark is not here; see tests/data.py.")
    torch.set_num_threads(1)
    figures: dict[str, Any] = {}
    backbone = drawn_backbone(ViTConfig(**VIT_S_14.arch))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain, whole, fixed, int8 = (
            folder / f"{kind}.onnx" for kind in ("plain", "whole", "fixed", "int8")
        )
        export_backbone(backbone, INFO, plain)
        export_backbone(backbone, INFO, whole, recipe=Recipe(outputs=OUTPUTS))
        export_backbone(backbone, INFO, fixed, size=(224, 224))
        embedder = Embedder(plain, backend="onnxruntime")
        photographs = sorted((data / "photos").iterdir())
        prepared = np.stack([embedder.prepare(path) for path in photographs[: 2 * CALIBRATION]])
        model = onnx.load(plain)
        batches = (prepared[at : at + 4] for at in range(0, CALIBRATION, 4))
        seal(
            quantize_static(model, observe_ranges(model, batches)),
            replace(read_manifest(plain), precision="int8"),
            int8,
        )

        images = prepared[-IMAGES_A_CALL:]
        ort, ov, bf16 = Run("onnxruntime", "fp32"), Run("openvino", "fp32"), Run("openvino", "bf16")
        ort8, ov8 = Run("onnxruntime", "int8"), Run("openvino", "int8")
        graph = EmbeddingGraph(backbone, VIT_S_14.geometry, Recipe()).eval()
        runs = {"onnxruntime fp32": ort, "openvino fp32": ov, "openvino bf16": bf16}
        runs |= {"onnxruntime int8": ort8, "openvino int8": ov8}
        files = {name: int8 if name.endswith("int8") else plain for name in runs}
        sessions = {name: caller(files[name], run, images) for name, run in runs.items()}
        figures["speed over onnxruntime fp32"] = ratios(
            {**sessions, "torch": lambda: graph.run(images)}, "onnxruntime fp32"
        )
        figures["least cosine, 64 other photographs"] = cosines(
            files, runs, prepared[CALIBRATION:], "onnxruntime fp32"
        )
        for engine, run in (("onnxruntime fp32", ort), ("openvino bf16", bf16)):
            figures[f"time of all outputs over the embedding alone, {engine}"] = round(
                1
                / ratios(
                    {"one": caller(plain, run, images), "all": caller(whole, run, images, OUTPUTS)},
                    "one",
                )["all"],
                3,
            )
            works = {"every": caller(plain, run, images[:1]), "one": caller(fixed, run, images[:1])}
            figures[f"speed of one size alone, one image, {engine}"] = ratios(works, "every")["one"]
        figures["operations an image, GFLOP"] = round(2 * (multiply_adds(plain) or 0) / 1e9, 2)
        figures["matrix product of numpy, one thread, GFLOP/s"] = round(matrix_flops(1) / 1e9, 1)
    write_result("export", figures)


if __name__ == "__main__":
    main()
