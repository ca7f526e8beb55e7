"""Turn an ONNX graph into a model file: its fingerprint, and its manifest in the metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import onnx

from featkit.atomic import replace_file
from featkit.geometry import Geometry
from featkit.modelfile import METADATA_KEY, Manifest


def fingerprint(model: onnx.ModelProto, geometry: Geometry) -> str:
    """sha256 (hex) over what decides a vector: operators, attributes, wiring, weights, opset and geometry.

    Node and value names, documentation, producer, dates and notes are left out, so that the same network exported twice,
    or by another version that only names things otherwise, keeps its fingerprint. Values count by their order of appearance.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    graph = bare.graph
    number_of: dict[str, str] = {}

    def renumbered(name: str) -> str:
        return number_of.setdefault(name, f"v{len(number_of)}") if name else ""

    for value in [*graph.input, *graph.initializer]:
        value.name = renumbered(value.name)
        value.doc_string = ""
    for node in graph.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [renumbered(name) for name in node.input]
        node.output[:] = [renumbered(name) for name in node.output]
    for value in graph.output:
        value.name = renumbered(value.name)
    del graph.value_info[:]
    del graph.metadata_props[:]
    graph.name = graph.doc_string = ""
    digest = hashlib.sha256()
    for opset in sorted((entry.domain, entry.version) for entry in model.opset_import):
        digest.update(repr(opset).encode())
    digest.update(graph.SerializeToString(deterministic=True))
    digest.update(json.dumps(geometry.to_dict(), sort_keys=True).encode())
    return digest.hexdigest()


def seal(model: onnx.ModelProto, manifest: Manifest, path: Path) -> Manifest:
    """Write `model` with its manifest to `path`, whole or not at all, and return the manifest with its fingerprint.

    Weights are kept inside the one file. ValueError beyond protobuf's 2 GB.
    """
    sealed = dataclasses.replace(manifest, fingerprint=fingerprint(model, manifest.geometry))
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.metadata_props[:]
    onnx.helper.set_model_props(copy, {METADATA_KEY: sealed.to_json()})
    data = copy.SerializeToString(deterministic=True)
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
    return sealed
