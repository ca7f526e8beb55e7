"""Compare `featkit embed` with its upper bound 1 / (1 / session + 1 / decode).

The model is a ViT-S/14 at 224 with random weights. session: images per second of inference only, on
all CPUs, by the faster of one session with all threads and concurrent single-threaded calls.
decode: images per second of read, decode, thumbnail and resize only, on all CPUs.
Run: python tests/benchmarks/bench_embed.py
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import torch

from featkit.embedder import Embedder
from featkit.images import thumbnail_jpeg
from featkit.pipeline import embed_source
from featkit.resources import usable_cpus
from featkit.sources import Source, open_source
from featkit_export.request import ExportRequest, export
from featkit_train.networks.vit import VisionTransformer
from featkit_train.networks.vit_config import ViTConfig
from featkit_train.published.zoo import PUBLISHED
from featkit_train.weights import BackboneInfo, save_backbone
from tests.benchmarks.record import median_ratio, write_result
from tests.data import shared_data

ROUNDS, IMAGES = 3, 200
VIT_S_14 = PUBLISHED["dinov2_vits14"]


def make_model(folder: Path) -> Path:
    """A ViT-S/14 with random weights as a model file."""
    torch.manual_seed(0)
    info = BackboneInfo(
        name="vits14-random", family="dinov2", geometry=VIT_S_14.geometry, license="none"
    )
    save_backbone(
        folder / "backbone.safetensors", VisionTransformer(ViTConfig(**VIT_S_14.arch)), info
    )
    export(ExportRequest(source=str(folder), out=folder / "m.onnx"))
    return folder / "m.onnx"


def rate(work: Callable[[], object], count: int) -> float:
    """Items a second."""
    started = time.perf_counter()
    work()
    return count / (time.perf_counter() - started)


def session_rate(model: Path, images: np.ndarray) -> float:
    """The faster way of inference alone."""
    whole, single = Embedder(model), Embedder(model, threads=1)
    size = single.batch_size
    turns = [images[at : at + size] for at in range(0, len(images), size)]

    def side_by_side() -> None:
        with ThreadPoolExecutor(usable_cpus()) as pool:
            list(pool.map(single.infer, turns))

    whole.infer(images[:size])
    side_by_side()
    return max(rate(lambda: whole.infer(images), len(images)), rate(side_by_side, len(images)))


def decode_rate(embedder: Embedder, source: Source, count: int) -> float:
    """Do all work for an image except inference."""

    def one(number: int) -> None:
        decoded = embedder.decode(source.read(number), name=source.key(number))
        thumbnail_jpeg(decoded.pixels)
        embedder.geometry.apply(decoded.pixels)

    with ThreadPoolExecutor(usable_cpus()) as pool:
        return rate(lambda: list(pool.map(one, range(count))), count)


def main() -> None:
    """Measure and record."""
    data = shared_data()
    if data is None:
        raise SystemExit("The data for this benchmark is not here; see tests/data.py.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_model(folder)
        chosen = sorted((data / "photos").iterdir())[:IMAGES]
        (folder / "list.txt").write_text("\n".join(str(path.resolve()) for path in chosen))
        source = open_source(folder / "list.txt")
        embedder = Embedder(model, threads=1)
        images = np.stack([embedder.prepare(source.read(number)) for number in range(64)])
        sessions, decodes, ceilings, jobs = [], [], [], []
        for number in range(ROUNDS):
            sessions.append(session_rate(model, images))
            decodes.append(decode_rate(embedder, source, IMAGES))
            ceilings.append(1 / (1 / sessions[-1] + 1 / decodes[-1]))
            out = folder / f"emb{number}"
            job = partial(embed_source, source, embedder, out)
            jobs.append(rate(job, IMAGES))
    figures = {
        "session images/s": [round(value, 1) for value in sessions],
        "decode images/s": [round(value, 1) for value in decodes],
        "ceiling images/s": [round(value, 1) for value in ceilings],
        "featkit embed images/s": [round(value, 1) for value in jobs],
        "median share of the ceiling": round(median_ratio(jobs, ceilings), 3),
        "target share": 0.95,
    }
    write_result("embed", figures)


if __name__ == "__main__":
    main()
