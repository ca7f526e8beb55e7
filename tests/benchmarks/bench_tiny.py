"""featkit-tiny, the model that ships: train and export it by the commands of its card, and measure
it next to the model before it.

All of `featkit evaluate all` on images that it was not trained on: kNN and a linear classifier on
`things`, retrieval on the three sets of `retrieval`, and copies of the last 200 of `photos`. Then
the images per second of `featkit embed` with both models in turn.

The training is kept in --room and resumes if it was stopped; --model measures a finished file
instead. --before names the file to compare with, such as that of an earlier commit.

Run: python tests/benchmarks/bench_tiny.py [--room FOLDER] [--model NEW.onnx] [--before OLD.onnx]
[--quick]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from featkit.embedder import Embedder
from featkit.evaluate import Choices, Material, evaluate_all, markdown
from featkit.modelfile import read_manifest
from featkit.pipeline import EmbedOptions, embed_source
from featkit.sources import Source, open_source, subset
from featkit_train.report.metrics import read_metrics
from featkit_train.run_folder import CONFIG_FILE, METRICS_FILE
from featkit_train.weights import load_backbone
from tests.benchmarks.photos import NUM_HELD_OUT, data_folder, open_part
from tests.benchmarks.record import alternate, median_ratio, write_result

ROUNDS = 5
LICENSE = "for research and evaluation (trained on mini-ImageNet and Tiny ImageNet)"
DATA = "38,125 images of mini-ImageNet and Tiny ImageNet, 275 classes"
RETRIEVAL = ("caltech", "clothes", "groceries")


def training(things: Path, run: Path, *, steps: int | None = None) -> list[str]:
    """Return the command that trains, or resumes the run in its folder. steps: if not the
    recipe's."""
    return [
        *("train", "joint", str(things / "train-00000.parquet")),
        *(str(things / "train-00001.parquet"), "--held-out", str(things / "val-00000.parquet")),
        *("--recipe", "small", "--name", "featkit-tiny"),
        *([] if steps is None else ["--steps", str(steps)]),
        *("--set", f"license={LICENSE}", "--set", f"data_name={DATA}", "--out", str(run)),
        *(["--resume"] if (run / CONFIG_FILE).is_file() else []),
    ]


def exporting(things: Path, run: Path, out: Path) -> list[str]:
    """Return the command that exports the last two stages, each whitened on half of the images."""
    return [
        *("export", str(run), "--feature", "gem", "--layers", "2,3"),
        *("--whiten-on", str(things / "train-00000.parquet"), "--each-layer"),
        *("--dim", "256", "--power", "0.75"),
        *("--outputs", "embedding,patches", "--half-weights", "--out", str(out)),
    ]


def featkit(words: Sequence[str]) -> None:
    """Run a command of featkit's, and print it first."""
    print("featkit", *words, flush=True)
    subprocess.run([sys.executable, "-m", "featkit", *words], check=True)


def seconds_to_embed(model: Path, photos: Source) -> float:
    """Time of a batch job over the photographs, without opening the model."""
    embedder = Embedder(model)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        embed_source(photos, embedder, Path(folder) / "embeddings", EmbedOptions())
        return time.perf_counter() - started


def facts_of(run: Path, model: Path, things: Path) -> dict[str, Any]:
    """Return the sizes of the model and of its training."""
    manifest = read_manifest(model)
    backbone, _ = load_backbone(run)
    training_images = [open_source(things / f"train-0000{number}.parquet") for number in range(2)]
    labels = {
        source.metadata(index)["label"]
        for source in training_images
        for index in range(len(source))
    }
    return {
        "minutes of training": round(read_metrics(run / METRICS_FILE).seconds / 60, 1),
        "images": sum(map(len, training_images)),
        "classes": len(labels),
        "weights": sum(parameter.numel() for parameter in backbone.parameters()),
        "width": manifest.width,
        "side": manifest.geometry.height,
    }


def main(words: Sequence[str] | None = None) -> None:
    """Train, export, measure and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--room", type=Path, default=Path("build/tiny"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--quick", action="store_true", help="try the code; figures mean nothing")
    options = parser.parse_args(words)
    data = data_folder()
    things, run, made = data / "things", options.room / "run", options.room / "featkit-tiny.onnx"
    figures: dict[str, Any] = {}
    if options.model is None:
        featkit(training(things, run, steps=2 if options.quick else None))
        featkit(exporting(things, run, made))
        figures |= facts_of(run, made, things)
    files = {"featkit-tiny": options.model or made}
    if options.before is not None:
        files["before"] = options.before
    with tempfile.TemporaryDirectory() as folder:
        photos = sorted((data / "photos").iterdir())[-NUM_HELD_OUT:]
        held_out = open_part(photos, Path(folder) / "last.txt")

        def opened(path: Path) -> Source:
            source = open_source(path)
            return subset(source, range(60)) if options.quick else source

        material = Material(
            train=opened(things / "train-00000.parquet"),
            test=opened(things / "val-00000.parquet"),
            retrieval=[opened(data / f"retrieval/{name}.parquet") for name in RETRIEVAL],
            copies=held_out,
        )
        models = {name: Embedder(path) for name, path in files.items()}
        report = evaluate_all(models, material, choices=Choices(linear=not options.quick))
        print(markdown(report))
        figures |= {
            "bytes": files["featkit-tiny"].stat().st_size,
            "table": markdown(report),
            "report": asdict(report),
        }
        if len(files) > 1:
            new, old = alternate(
                lambda: seconds_to_embed(files["featkit-tiny"], held_out),
                lambda: seconds_to_embed(files["before"], held_out),
                rounds=ROUNDS,
            )
            figures["images/s of featkit embed, relative to before"] = round(
                median_ratio(old, new), 3
            )
            figures["seconds to embed"] = {"featkit-tiny": new, "before": old}
    write_result("tiny", figures, keep=not options.quick)


if __name__ == "__main__":
    main()
