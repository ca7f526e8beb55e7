"""Turn what featkit wrote into flat values that can be compared.

Each reader returns results, which a refactoring must not change, and metadata, which it may change
on purpose: settings, headers and sentences. Figures of time, rate and memory are left out.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
import pyarrow.parquet as pq
import yaml
from onnx import numpy_helper

VOLATILE = re.compile(r"per_s$|^waiting|seconds|memory|hours|speedup|_ms$|^time|^versions")
LEFT_OUT = re.compile(r"report\.html|events\.out\.|\.lock$")
SHORT = 16  # digits of a sha256


class Values(NamedTuple):
    """Values of one file or command by name."""

    results: dict[str, Any]
    metadata: dict[str, Any]


def sha256(data: bytes) -> str:
    """Return the first digits of the sha256 of `data`."""
    return hashlib.sha256(data).hexdigest()[:SHORT]


def read_run(folder: Path) -> Iterator[tuple[str, Values]]:
    """Yield (name, values) for the files of a run folder; of checkpoints, for the newest one."""
    checkpoints = [path for path in folder.rglob("checkpoints/*") if path.is_dir()]
    newest = {max(each.parent.iterdir()) for each in checkpoints}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if LEFT_OUT.search(name) or (path.parent in checkpoints and path.parent not in newest):
            continue
        if path.name == "metrics.jsonl":
            yield name, Values(read_metrics(path.read_text()), {})
        elif path.suffix == ".jsonl":
            yield name, Values({}, {"text": path.read_text()})
        elif path.suffix == ".safetensors":
            yield name, read_safetensors(path)
        elif path.suffix == ".yaml":
            yield name, Values({}, leaves(yaml.safe_load(path.read_text())))
        elif path.suffix == ".json":
            yield name, by_kind(leaves(json.loads(path.read_text())))
        else:
            yield name, Values({"sha256": sha256(path.read_bytes())}, {})


def read_metrics(text: str) -> dict[str, Any]:
    """Return each column of metrics.jsonl as a list of [step, value]."""
    columns: dict[str, Any] = {}
    for line in text.splitlines():
        row = json.loads(line)
        step = row.pop("step")
        for name, value in row.items():
            if not VOLATILE.search(name):
                columns.setdefault(name, []).append([step, value])
    return columns


def read_safetensors(path: Path) -> Values:
    """Return a digest of each tensor, and the leaves of the header's metadata."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, entry in header.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        shape = "×".join(map(str, entry["shape"]))
        tensors[name] = f"{entry['dtype']} {shape} {sha256(data[start:end])}"
    inside = {name: _parsed(text) for name, text in metadata.items()}
    return Values(tensors, leaves(inside))


def read_embeddings(folder: Path) -> Iterator[tuple[str, Values]]:
    """Yield the values of plan.json, and of each shard and file of stamps: bytes and columns."""
    plan = leaves(json.loads((folder / "plan.json").read_text()))
    yield "plan.json", Values({}, plan)
    for path in sorted(folder.rglob("*.parquet")):
        table = pq.read_table(path)
        results = {"bytes": sha256(path.read_bytes())}
        metadata = {}
        for name in table.column_names:
            values = table[name].to_pylist()
            if name == "error":  # a sentence, which may be written better
                metadata = {f"error of {table['key'][i]}": v for i, v in enumerate(values) if v}
                values = [value is not None for value in values]
            results[f"column {name}"] = sha256(repr(values).encode())
        if metadata:  # the bytes contain those sentences
            metadata["bytes"] = results.pop("bytes")
        yield path.relative_to(folder).as_posix(), Values(results, metadata)


def read_model(path: Path) -> Values:
    """Return fingerprint, graph digest and vectors of a model file; the manifest as metadata."""
    model = onnx.load(str(path))
    manifest = json.loads({entry.key: entry.value for entry in model.metadata_props}["featkit"])
    results = {"fingerprint": manifest.pop("fingerprint"), "graph": graph_digest(model)}
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    height, width = (manifest["geometry"][side] for side in ("height", "width"))
    images = np.random.default_rng(3).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    names = [output.name for output in session.get_outputs()]
    for name, value in zip(names, session.run(names, {"images": images}), strict=True):
        results[f"output {name}"] = f"{value.shape} {sha256(np.ascontiguousarray(value).tobytes())}"
    return Values(results, {k: v for k, v in leaves(manifest).items() if not _is_volatile(k)})


def graph_digest(model: onnx.ModelProto) -> str:
    """Return a digest of operators, attributes, wiring and weights; names do not matter."""
    numbers: dict[str, int] = {}
    digest = hashlib.sha256()
    graph = model.graph
    for name in [*(value.name for value in graph.input), *(t.name for t in graph.initializer)]:
        numbers.setdefault(name, len(numbers))
    for node in graph.node:
        wiring = [numbers.setdefault(name, len(numbers)) for name in (*node.input, *node.output)]
        attributes = sorted(a.SerializeToString(deterministic=True) for a in node.attribute)
        digest.update(repr((node.domain, node.op_type, wiring, attributes)).encode())
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        digest.update(repr((array.shape, str(array.dtype))).encode() + array.tobytes())
    return digest.hexdigest()[:SHORT]


def leaves(value: Any, at: str = "") -> dict[str, Any]:
    """Return the plain values inside mappings and lists by their path, such as rows/0/accuracy."""
    if isinstance(value, Mapping):
        pairs = [(str(key), item) for key, item in value.items()]
    elif isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        pairs = [(str(i), item) for i, item in enumerate(value)]
    else:
        return {at: value}
    found: dict[str, Any] = {}
    for key, item in pairs:
        if not VOLATILE.search(key):
            found |= leaves(item, f"{at}/{key}" if at else key)
    return found


def by_kind(values: Mapping[str, Any]) -> Values:
    """Split leaves into figures and names on one side and sentences on the other."""
    sentences = {k: v for k, v in values.items() if isinstance(v, str) and v.endswith(".")}
    return Values({k: v for k, v in values.items() if k not in sentences}, sentences)


def _is_volatile(path: str) -> bool:
    return any(VOLATILE.search(part) for part in path.split("/"))


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text
