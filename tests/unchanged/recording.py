"""Run the commands of one checkout and collect their values: parts train, export and embed."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import yaml

from tests.unchanged.images import draw_inputs
from tests.unchanged.reading import (
    Values,
    by_kind,
    graph_digest,
    leaves,
    read_embeddings,
    read_model,
    read_run,
)
from tests.unchanged.runner import CommandFailed, Featkit
from tests.unchanged.weights import write_weights

PACKAGES = ("torch", "numpy", "onnx", "onnxscript", "onnxruntime", "timm", "pillow", "pyarrow")
INPUTS, OUT = "inputs", "out"  # below the folder that commands run in, so that paths are the same

# Settings of tiny networks. No key here has a British spelling, so that no version warns.
Sections = dict[str, dict[str, Any]]
VIT: Sections = {
    "model": {
        "patch": 8,
        "width": 24,
        "depth": 2,
        "num_heads": 2,
        "mlp_width": 48,
        "position_grid": 4,
    },
    "crops": {"global_size": 32, "local_size": 16, "num_local": 2, "rotation_degrees": 15.0},
    "optim": {"lr": 1e-3, "lr_rule": "constant", "warmup_steps": 2},
    "dino": {
        "head": {"num_prototypes": 16, "hidden_width": 32, "bottleneck_width": 16},
        "freeze_last_layer_steps": 1,
    },
}
LABELED: Sections = {
    "classifier": {
        "arch": "timm:resnet18",
        "small_stem": True,
        "options": {"layers": [1, 1, 1, 1], "channels": [4, 8, 8, 12]},
    },
    "crops": {"global_size": 32, "global_scale": [0.5, 1.0]},
    "optim": {"lr": 0.01, "lr_rule": "constant", "warmup_steps": 0},
}
RUN: dict[str, Any] = {
    "batch_size": 8,
    "workers": 0,
    "device": "cpu",
    "precision": "float32",
    "log_every": 1,
    "evaluate_every": 3,
    "checkpoint_every": 3,
}
PHOTOS = f"{INPUTS}/photos"
LABELED_IMAGES, UNLABELED_IMAGES = f"{INPUTS}/labeled", f"{INPUTS}/unlabeled"
HELD_OUT = ("--held-out", f"{INPUTS}/held-out")
SEPARATE_HEAD = "ibot.head={num_prototypes: 12, hidden_width: 24, bottleneck_width: 12}"
# Each method's arguments, and settings besides those of VIT or LABELED, and RUN. The order matters:
# distill and adapt read the run of dino.
TRAININGS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("dino", (PHOTOS,), ("dino.koleo_weight=0.05",)),
    ("ibot", (PHOTOS,), ("run.seed=3", "noise.drop_path=0.2")),
    (
        "dinov2",
        (PHOTOS,),
        (
            "dino.centering=sinkhorn",
            "dino.koleo_weight=0.1",
            SEPARATE_HEAD,
            "model.num_registers=2",
            "model.layer_scale=0.5",
            "noise.drop_path=0.3",
            "noise.drop_path_rule=uniform",
            "engine.accumulate=2",
        ),
    ),
    (
        "dinov3",
        (PHOTOS,),
        (
            "dino.centering=sinkhorn",
            "model.position=rotary",
            "model.key_bias=false",
            "model.num_registers=2",
            "noise.rotary_rescale=1.5",
            "gram.weight=2.0",
            "gram.size=64",
            "gram.update_every=3",
        ),
    ),
    ("distill", (PHOTOS, "--teacher", f"{OUT}/dino"), ("model.depth=1",)),
    (
        "adapt",
        (PHOTOS, "--model", f"{OUT}/dino"),
        ("pretrained.head_steps=2", "model={}", "watch.tolerance=0.01"),
    ),
    (
        "born-again",
        (LABELED_IMAGES, *HELD_OUT, "--generations", "2"),
        ("born_again.patience=9", "crops.fixed_views=2"),
    ),
    (
        "self-training",
        ("--labelled", LABELED_IMAGES, "--unlabelled", UNLABELED_IMAGES, *HELD_OUT),
        ("self_training.rounds=1", "self_training.confidence=0.1"),
    ),
    ("internal", (LABELED_IMAGES, "--exits", "1,3", *HELD_OUT), ()),
)
LABEL_METHODS = ("born-again", "self-training", "internal")
ON_SHIPPED_RECIPES = ("dino", "born-again")  # their defaults: tiny and small_labelled
STEPS = 6

WEIGHTS = f"{INPUTS}/weights"
ALL_OUTPUTS = ("--outputs", "embedding,patches,attention")
# Name of the result, then arguments of `featkit export`.
EXPORTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("dino_vits16", ("dino_vits16", "--weights", f"{WEIGHTS}/dino_vits16.pth")),
    ("dino_resnet50", ("dino_resnet50", "--weights", f"{WEIGHTS}/dino_resnet50.pth")),
    ("ibot_vits16", ("ibot_vits16", "--weights", f"{WEIGHTS}/ibot_vits16.pth")),
    (
        "dinov2_vits14",
        ("dinov2_vits14", "--weights", f"{WEIGHTS}/dinov2_vits14.pth", "--feature", "cls+mean"),
    ),
    ("dinov2_vits14_reg", (f"{WEIGHTS}/dinov2_vits14_reg",)),
    ("dinov3_vits16", (f"{WEIGHTS}/dinov3_vits16",)),
    ("dinov3_convnext_tiny", (f"{WEIGHTS}/dinov3_convnext_tiny",)),
    ("small", (f"{WEIGHTS}/small", "--feature", "cls+gem", "--layers", "1,2", *ALL_OUTPUTS)),
    ("small_gated", (f"{WEIGHTS}/small_gated", "--feature", "mean", *ALL_OUTPUTS)),
    ("small_fixed", (f"{WEIGHTS}/small", "--size", "64x96")),
    ("small_fp16", (f"{OUT}/small.onnx", "--precision", "fp16")),
    ("adopted", (f"{WEIGHTS}/adopted",)),
)
# `featkit export --precision int8` refuses a file that is not faster, which depends on how busy the
# machine is. So this calls the two functions that make the graph, the second under either spelling.
INT8 = f"""
import sys
import numpy as np
import onnx
from featkit_export import int8
quantize = getattr(int8, "quantize_static", None) or int8.quantise_static
model = onnx.load("{OUT}/small_fixed.onnx")
rng = np.random.default_rng(5)
batches = [rng.integers(0, 256, (4, 64, 96, 3), dtype=np.uint8) for _ in range(2)]
ranges = int8.observe_ranges(model, iter(batches))
onnx.save(quantize(model, ranges, keep_float=[]), "{OUT}/int8.onnx")
"""
QUERIES = ("003.jpg", "transparent.png", "sub folder/größe 1.webp")


class Recorder:
    """Collect values of one checkout by section, such as train/dino/metrics.jsonl."""

    def __init__(self, tree: Path, work: Path, commit: str) -> None:
        self.tree, self.work, self.commit = tree, work, commit
        self.results: dict[str, dict[str, Any]] = {}
        self.metadata: dict[str, dict[str, Any]] = {}

    def record(self, parts: Sequence[str]) -> dict[str, Any]:
        """Run the parts and return the recording."""
        if not (self.work / INPUTS).exists():
            draw_inputs(self.work / INPUTS)
        shutil.rmtree(self.work / OUT, ignore_errors=True)
        (self.work / OUT).mkdir()
        with Featkit(self.tree, self.work) as featkit:
            for part in parts:
                started = time.perf_counter()
                PARTS[part](self, featkit)
                print(f"{self.commit}: {part} took {time.perf_counter() - started:.0f} s")
        environment = {name: version(name) for name in PACKAGES}
        environment |= {"python": platform.python_version(), "processor": _processor()}
        about = {"commit": self.commit, "parts": list(parts), "environment": environment}
        return {"about": about, "results": self.results, "metadata": self.metadata}

    def add(self, section: str, values: Values) -> None:
        """Keep the values of one file."""
        for kind, taken in ((self.results, values.results), (self.metadata, values.metadata)):
            if taken:
                kind[section] = taken

    def attempt(self, section: str, act: Callable[[], Iterable[tuple[str, Values]]]) -> None:
        """Keep what `act` yields; record a failed command as the only result of its section."""
        try:
            for name, values in act():
                self.add(f"{section}/{name}", values)
        except CommandFailed as error:
            print(f"{section}: {error}", file=sys.stderr)
            self.add(f"{section}/failure", Values({"error": str(error).splitlines()[0]}, {}))

    # -- parts ------------------------------------------------------------------------------------

    def train(self, featkit: Featkit) -> None:
        """Train by each method; resume dino from a checkpoint, and born-again from a generation."""
        for method, arguments, settings in TRAININGS:
            train = partial(self._train, featkit, method, arguments, settings)
            self.attempt(f"train/{method}", train)
        for method in ("dino", "born-again"):
            self.attempt(f"train/{method}, resumed", partial(self._resume, featkit, method))

    def _train(
        self, featkit: Featkit, method: str, arguments: Sequence[str], settings: Sequence[str]
    ) -> Iterable[tuple[str, Values]]:
        featkit(*self._training(method, arguments, settings))
        return read_run(self.work / OUT / method)

    def _training(
        self, method: str, arguments: Sequence[str], settings: Sequence[str]
    ) -> list[str]:
        labeled = method in LABEL_METHODS
        run = RUN | ({} if labeled else {"held_out": 4})
        sections = {**(LABELED if labeled else VIT), "run": run}
        words = ["train", method, *arguments, "--out", f"{OUT}/{method}", "--steps", str(STEPS)]
        if method in ON_SHIPPED_RECIPES:
            for section, values in sections.items():
                for key, value in values.items():
                    words += ["--set", f"{section}.{key}={json.dumps(value)}"]
        else:
            recipe = Path(INPUTS) / ("labeled.yaml" if labeled else "vit.yaml")
            (self.work / recipe).write_text(yaml.safe_dump(sections))
            words += ["--recipe", str(recipe)]
        return words + [word for setting in settings for word in ("--set", setting)]

    def _resume(self, featkit: Featkit, method: str) -> Iterable[tuple[str, Values]]:
        """Take away the newest checkpoint, or the last generation, and finish the run again."""
        arguments, settings = next(rest for name, *rest in TRAININGS if name == method)
        run = self.work / OUT / method
        shutil.rmtree(max(run.glob("generation-*"), default=None) or max(run.glob("checkpoints/*")))
        for name in ("backbone.safetensors", "report.html"):
            (run / name).unlink()
        featkit(*self._training(method, arguments, settings), "--resume")
        return read_run(run)

    def export(self, featkit: Featkit) -> None:
        """Export a file of each family, of featkit's own variants, and in lower precisions."""
        if not (self.work / WEIGHTS).exists():
            write_weights(self.work / WEIGHTS)
        for name, arguments in EXPORTS:
            self.attempt(f"export/{name}", partial(self._export, featkit, name, arguments))
        self.attempt("export/small_int8", partial(self._export_int8, featkit))

    def _export(
        self, featkit: Featkit, name: str, arguments: Sequence[str]
    ) -> Iterable[tuple[str, Values]]:
        out = f"{OUT}/{name}.onnx"
        featkit("export", *arguments, "--out", out, "--json")
        yield "model.onnx", read_model(self.work / out)

    def _export_int8(self, featkit: Featkit) -> Iterable[tuple[str, Values]]:
        featkit.python(INT8)
        digest = graph_digest(onnx.load(str(self.work / OUT / "int8.onnx")))
        yield "int8.onnx", Values({"graph": digest}, {})

    def embed(self, featkit: Featkit) -> None:
        """Embed by featkit-tiny, index, and search."""
        for name in ("photos", "broken"):
            self.attempt(f"embed/{name}", partial(self._embed, featkit, name))
        self.attempt("embed/search", partial(self._search, featkit))

    def _embed(self, featkit: Featkit, name: str) -> Iterable[tuple[str, Values]]:
        out = f"{OUT}/{name}.emb"
        options = ("--backend", "onnxruntime", "--threads", "1")  # in the file's own precision
        featkit("embed", f"{INPUTS}/{name}", "--out", out, "--shard-size", 16, "--quiet", *options)
        return read_embeddings(self.work / out)

    def _search(self, featkit: Featkit) -> Iterable[tuple[str, Values]]:
        index = f"{OUT}/photos.index"
        featkit("index", f"{OUT}/photos.emb", "--out", index, "--quiet")
        for query in QUERIES:
            answer = featkit("search", index, f"{PHOTOS}/{query}", "-k", 5, "--json")
            # The last digit of a score differs between runs of one commit.
            hits = json.loads(answer, parse_float=lambda text: round(float(text), 5))
            yield query.replace("/", " "), by_kind(leaves(hits))


PARTS: dict[str, Callable[[Recorder, Featkit], None]] = {
    "train": Recorder.train,
    "export": Recorder.export,
    "embed": Recorder.embed,
}


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
