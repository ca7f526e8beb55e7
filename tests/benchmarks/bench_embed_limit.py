"""Compare `featkit embed` with transformers' pipeline on the same photographs, all in one run.

The model is a ViT-S/14 at 224 with random weights, in the format of DINOv2's repository on Hugging
Face, which both read. 160 photographs, from JPEG files to vectors; models are loaded before. The
pipeline returns tensors, and featkit writes its folder with thumbnails. Processor time with one
thread is disturbed least by other processes, and leaves out what the pipeline's threads wait.
`class token` is a file whose last block computes the class token alone, `all tokens` the file with
patches.
Run: python tests/benchmarks/bench_embed_limit.py [FOLDER to keep the model files in]
"""

from __future__ import annotations

import dataclasses
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import onnx
import torch

from featkit.backends import Run
from featkit.embedder import Embedder
from featkit.modelfile import read_manifest
from featkit.pipeline import embed_source
from featkit.resources import usable_cpus
from featkit.sources import Source
from featkit_export.int8 import observe_ranges, quantize_static
from featkit_export.request import ExportRequest, export
from featkit_export.seal import seal
from featkit_train.published.zoo import PUBLISHED
from tests.benchmarks.photos import data_folder, open_part
from tests.benchmarks.record import arguments, is_quick, write_result
from tests.export.backbones import drawn_published
from tests.export.zoo_files import write_published
from tests.torchvision_without_cuda import import_quietly

ROUNDS, IMAGES, WARMUP, CALIBRATION = (1, 8, 2, 4) if is_quick() else (2, 160, 8, 64)
FEW = 32  # images of a round of the pipeline, whose threads wait for each other on a busy machine
ROW = PUBLISHED["dinov2_vits14"]
OUTPUTS = {"class token": ("embedding",), "all tokens": ("embedding", "patches")}
RUNS = {
    "onnxruntime fp32": Run("onnxruntime", "fp32"),
    "openvino bf16": Run("openvino", "bf16"),
    "openvino int8": Run("openvino", "int8"),
}
TARGETS = {"openvino bf16": 3.0, "openvino int8": 4.5}


def make_files(folder: Path, calibration: Source) -> None:
    """Write the published folder and the model files, unless they are in `folder` already."""
    transformers = import_quietly("transformers")
    weights = folder / "weights"
    if not weights.is_dir():
        write_published(ROW, drawn_published(ROW).state_dict(), weights)
        geometry = ROW.geometry
        transformers.BitImageProcessor(
            size={"shortest_edge": geometry.resize_to},
            crop_size={"height": geometry.height, "width": geometry.width},
            image_mean=list(geometry.mean),
            image_std=list(geometry.std),
        ).save_pretrained(weights)
    for graph, outputs in OUTPUTS.items():
        full, int8 = folder / f"{graph}.onnx", folder / f"{graph} int8.onnx"
        if int8.is_file():
            continue
        export(ExportRequest(source=ROW.name, weights=weights, out=full, outputs=outputs))
        embedder = Embedder(full, backend="onnxruntime")
        images = np.stack([embedder.prepare(calibration.read(at)) for at in range(CALIBRATION)])
        model = onnx.load(full)
        ranges = observe_ranges(model, (images[at : at + 4] for at in range(0, CALIBRATION, 4)))
        manifest = dataclasses.replace(read_manifest(full), precision="int8", parity={})
        seal(quantize_static(model, ranges), manifest, int8)


def pipeline(weights: Path) -> Callable[[list[str], int], np.ndarray]:
    """Return a function of files and batch size that runs transformers' pipeline and returns the
    class tokens."""
    transformers = import_quietly("transformers")
    transformers.utils.logging.set_verbosity_error()
    extract = transformers.pipeline("image-feature-extraction", model=str(weights), device="cpu")

    def run(paths: list[str], batch_size: int) -> np.ndarray:
        with torch.inference_mode():
            given = extract(paths, batch_size=batch_size, return_tensors=True)
        return np.stack([each.reshape(-1, ROW.width)[0].numpy() for each in given])

    return run


def with_threads(count: int, call: Callable[[], object]) -> None:
    """Make a call with `count` threads of torch."""
    torch.set_num_threads(count)
    call()


def rounded(values: dict[str, float], digits: int) -> dict[str, float]:
    """Return the values rounded to `digits` digits."""
    return {name: round(value, digits) for name, value in values.items()}


def least_cosine(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Return the least cosine of the rows of both."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (ours, theirs)]
    return float((unit[0] * unit[1]).sum(axis=1).min())


def main() -> None:
    """Measure and record."""
    photographs = sorted((data_folder() / "photos").iterdir())
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        files = Path(arguments()[0]) if arguments() else work / "files"
        files.mkdir(parents=True, exist_ok=True)
        make_files(files, open_part(photographs[-CALIBRATION:], work / "last.txt"))
        chosen = [str(path.resolve()) for path in photographs[:IMAGES]]
        run, embedders = pipeline(files / "weights"), {}
        for engine, kind in RUNS.items():
            for graph in OUTPUTS:
                file = files / f"{graph}{' int8' * (kind.precision == 'int8')}.onnx"
                embedders[f"{engine}, {graph}"] = Embedder(
                    file, backend=kind.backend, precision=kind.precision, threads=1
                )
        rates: dict[str, list[float]] = {}
        times: dict[str, list[float]] = {}
        for number in range(ROUNDS + 1):
            count = IMAGES if number else WARMUP
            source = open_part(photographs[:count], work / f"{number}.txt")
            few = chosen[: min(count, FEW)]
            works: dict[str, tuple[Callable[[], object], int]] = {
                f"transformers, batch {size}, {threads} threads": (
                    partial(with_threads, threads, partial(run, few, size)),
                    len(few),
                )
                for size in (1, 8)
                for threads in (1, usable_cpus())
            }
            for name, embedder in embedders.items():
                out = work / f"{name} {number}"
                works[name] = (partial(embed_source, source, embedder, out), count)
            for name, (call, num_images) in works.items():
                started, used = time.perf_counter(), time.process_time()
                call()
                if number:
                    rate = num_images / (time.perf_counter() - started)
                    spent = 1000 * (time.process_time() - used) / num_images
                    rates.setdefault(name, []).append(rate)
                    times.setdefault(name, []).append(spent)
                    print(f"{name}: {rate:.1f} images/s, {spent:.1f} ms", file=sys.stderr)
        few = chosen[:FEW]
        first = embedders["onnxruntime fp32, class token"]
        cosine = least_cosine(first.embed(few), run(few, 8))
    rate_of, time_of = (
        {name: statistics.median(values) for name, values in each.items()}
        for each in (rates, times)
    )
    theirs_only = [name for name in rate_of if name.startswith("transformers")]
    best_rate = max(rate_of[name] for name in theirs_only)
    best_time = min(time_of[name] for name in theirs_only)
    figures: dict[str, Any] = {
        "images/s": rounded(rate_of, 1),
        "times the pipeline's best": rounded(
            {name: value / best_rate for name, value in rate_of.items()}, 2
        ),
        "processor ms per image": rounded(time_of, 1),
        "times less processor time than its best": rounded(
            {name: best_time / value for name, value in time_of.items()}, 2
        ),
        "targets": TARGETS,
        "least cosine of the two with each other": round(cosine, 5),
    }
    write_result("embed_limit", figures)


if __name__ == "__main__":
    main()
