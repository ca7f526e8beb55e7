"""Write a model file into a model repository of NVIDIA's Triton Inference Server.

The layout follows Triton's documentation (model_repository.md, model_configuration.md): a folder
for each model, with `config.pbtxt` and a folder for version 1. If the weights are in a second file,
both files go into a folder named model.onnx, as Triton requires. The manifest is added as
`featkit.json`, which Triton ignores: it says how to resize and crop images.

Instance groups, accelerators and queue delays are left at their defaults, since they depend on the
machine.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import onnxruntime as ort

from featkit.atomic import replace_folder
from featkit.errors import InputError
from featkit.modelfile import INPUT, Manifest, check_weights, read_manifest
from featkit_export.original import load_session

MAX_BATCH_SIZE = 64
MODEL, CONFIG, MANIFEST = "model.onnx", "config.pbtxt", "featkit.json"
TYPES = {"tensor(uint8)": "TYPE_UINT8", "tensor(float)": "TYPE_FP32"}


def write_triton(model_path: Path, repository: Path) -> Path:
    """Write REPOSITORY/NAME/ for a model file atomically, and return that folder. NAME is from the
    manifest.

    Triton batches requests if the file allows it. A file whose vectors depend on their batch, or
    that takes one image per call, gets one image at a time.

    Raises InputError if the file is not a model file or lacks its weights, or if the repository
    already has a model of that name.
    """
    manifest = read_manifest(model_path)
    check_weights(model_path, manifest, digest=True)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", manifest.name).strip(".-") or "featkit"
    folder = repository / name
    if folder.exists():
        raise InputError(f"{folder} already exists; remove it, or choose another repository.")
    config = make_config(name, manifest, load_session(model_path))
    with replace_folder(folder) as temporary:
        files = temporary / "1" if manifest.external is None else temporary / "1" / MODEL
        files.mkdir(parents=True)
        shutil.copyfile(model_path, files / MODEL)
        if manifest.external is not None:
            weights = manifest.external.file
            shutil.copyfile(model_path.parent / weights, files / weights)
        (temporary / CONFIG).write_text(config, encoding="utf-8")
        (temporary / MANIFEST).write_text(manifest.to_json() + "\n", encoding="utf-8")
    return folder


def make_config(name: str, manifest: Manifest, session: ort.InferenceSession) -> str:
    """Return the text of config.pbtxt. Sizes are those of onnxruntime, -1 for dynamic ones.

    With a max_batch_size above 0, the first size is left out and Triton fills it: up to 64 with its
    dynamic batcher, or 1 if a vector depends on its batch. 0 is for a file with a fixed batch size:
    all sizes are given and each request is one call.
    """
    takes_any_number = not isinstance(session.get_inputs()[0].shape[0], int)
    is_batched = takes_any_number and manifest.batch_invariant
    max_batch_size = MAX_BATCH_SIZE if is_batched else 1 if takes_any_number else 0
    lines = [
        f"# {json.dumps(manifest.name)}, fingerprint {json.dumps(manifest.fingerprint)}",
        f"# {INPUT}: RGB pixels, resized and cropped as described in {MANIFEST}",
        f"name: {json.dumps(name)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {max_batch_size}",
        *_tensors("input", session.get_inputs(), skip=int(takes_any_number)),
        *_tensors("output", session.get_outputs(), skip=int(takes_any_number)),
    ]
    if is_batched:
        lines.append("dynamic_batching { }")
    return "\n".join(lines) + "\n"


def _tensors(kind: str, values: list[ort.NodeArg], *, skip: int) -> list[str]:
    """Return a block for each input or output, without its first `skip` sizes."""
    lines = []
    for value in values:
        if value.type not in TYPES:
            raise InputError(
                f"The model file's {kind} {value.name} has the type {value.type}, which featkit"
                " never writes; export it again."
            )
        dims = ", ".join(
            str(side) if isinstance(side, int) else "-1" for side in value.shape[skip:]
        )
        lines += [
            f"{kind} [",
            "  {",
            f"    name: {json.dumps(value.name)}",
            f"    data_type: {TYPES[value.type]}",
            f"    dims: [ {dims} ]",
            "  }",
            "]",
        ]
    return lines
