"""A model file as a model repository of NVIDIA's Triton Inference Server.

Laid out as its documentation has it (model_repository.md, model_configuration.md): one folder a
model, with `config.pbtxt` and a folder for version 1. A file with weights beside it lies in a
folder that is called model.onnx itself, as models of several files do there. The manifest lies
beside as `featkit.json`, which Triton leaves alone: it tells the resize and crop to do first.

Left out: instance groups, accelerators and queue delays, which depend on the machine and have
defaults.
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
    """Write REPOSITORY/NAME/ for a model file, whole or not at all, and return that folder. NAME is
    the manifest's.

    Requests are batched where the file allows it. A file whose vectors depend on their batch, or
    that takes one image, is given one image at a time.

    InputError when it is no model file, lacks its weights, or the repository has a model of that
    name already.
    """
    manifest = read_manifest(model_path)
    check_weights(model_path, manifest, digest=True)
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", manifest.name).strip(".-") or "featkit"
    folder = repository / name
    if folder.exists():
        raise InputError(f"{folder} exists already; remove it, or choose another repository.")
    config = make_config(name, manifest, load_session(model_path))
    with replace_folder(folder) as temporary:
        place = (
            temporary / "1" / MODEL
            if manifest.external is None
            else temporary / "1" / MODEL / MODEL
        )
        place.parent.mkdir(parents=True)
        shutil.copyfile(model_path, place)
        if manifest.external is not None:
            shutil.copyfile(
                model_path.parent / manifest.external.file, place.parent / manifest.external.file
            )
        (temporary / CONFIG).write_text(config, encoding="utf-8")
        (temporary / MANIFEST).write_text(manifest.to_json() + "\n", encoding="utf-8")
    return folder


def make_config(name: str, manifest: Manifest, session: ort.InferenceSession) -> str:
    """The text of config.pbtxt. Sizes are what onnxruntime reports of the file, -1 where any will
    do.

    max_batch_size above 0 means that the first size is left out and that Triton fills it: 64 with
    its dynamic batcher, or 1 where a vector depends on its batch. 0 means that all sizes are given
    and a request is one call: for a file of fixed N.
    """
    takes_any_number = not isinstance(session.get_inputs()[0].shape[0], int)
    is_batched = takes_any_number and manifest.batch_invariant
    max_batch_size = MAX_BATCH_SIZE if is_batched else 1 if takes_any_number else 0
    lines = [
        f"# {json.dumps(manifest.name)}, fingerprint {json.dumps(manifest.fingerprint)}",
        f"# {INPUT}: RGB pixels that {MANIFEST} says how to resize and crop",
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
    """One block for each input or output, without its first `skip` sizes."""
    lines = []
    for value in values:
        if value.type not in TYPES:
            raise InputError(
                f"The model file's {kind} {value.name} is {value.type}, which no model file has;"
                " export it again."
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
