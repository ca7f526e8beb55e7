"""Turn an ONNX graph into a model file: its fingerprint, and its manifest in the metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import onnx
from onnx import external_data_helper

from featkit.atomic import replace_file
from featkit.geometry import Geometry
from featkit.modelfile import METADATA_KEY, ExternalWeights, Manifest
from featkit_export.surgery import Guard, find_guard


def fingerprint(model: onnx.ModelProto, geometry: Geometry, *, folder: Path | None = None) -> str:
    """sha256 (hex) over what decides a vector: operators, attributes, wiring, weights, opset and
    geometry.

    Node and value names, documentation, producer, dates and notes are left out, so that the same
    network exported twice, or by another version that only names things otherwise, keeps its
    fingerprint. So is the guard against sizes that the patch does not divide (surgery.py), which
    changes no vector. Values count by their order of appearance.
    folder: where weights lie that are not in the model itself; they are read one by one.
    """
    number_of: dict[str, str] = {}

    guard = find_guard(model.graph) or Guard(frozenset(), "", "")

    def renumbered(name: str) -> str:
        name = model.graph.input[0].name if name and name == guard.guarded else name
        return number_of.setdefault(name, f"v{len(number_of)}") if name else ""

    digest = hashlib.sha256()
    for opset in sorted((entry.domain, entry.version) for entry in model.opset_import):
        digest.update(repr(opset).encode())
    # Three messages, whose bytes one after the other are those of the whole graph: protobuf writes
    # fields by their number, nodes first, then weights, then inputs and outputs. So weights past 2
    # GB are never in one message, nor in memory at once.
    nodes, ends = onnx.GraphProto(name=""), onnx.GraphProto(doc_string="")
    nodes.node.extend(
        node for place, node in enumerate(model.graph.node) if place not in guard.nodes
    )
    weights = [tensor for tensor in model.graph.initializer if tensor.name != guard.constant]
    ends.input.extend(model.graph.input)
    names = [renumbered(tensor.name) for tensor in [*model.graph.input, *weights]]
    ends.output.extend(model.graph.output)
    for node in nodes.node:
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [renumbered(name) for name in node.input]
        node.output[:] = [renumbered(name) for name in node.output]
    for value, name in zip(ends.input, names, strict=False):
        value.name, value.doc_string = name, ""
    for value in ends.output:
        value.name = renumbered(value.name)
    digest.update(nodes.SerializeToString(deterministic=True))
    for tensor, name in zip(_whole_tensors(weights, folder), names[len(ends.input) :], strict=True):
        tensor.name, tensor.doc_string = name, ""
        digest.update(onnx.GraphProto(initializer=[tensor]).SerializeToString(deterministic=True))
    digest.update(ends.SerializeToString(deterministic=True))
    digest.update(json.dumps(geometry.to_dict(), sort_keys=True).encode())
    return digest.hexdigest()


def seal(
    model: onnx.ModelProto, manifest: Manifest, path: Path, *, folder: Path | None = None
) -> Manifest:
    """Write `model` with its manifest to `path`, whole or not at all, and return the manifest with
    its fingerprint.

    folder: where the one file of weights lies that is not in the model itself; it is moved beside
    `path`, under a name made of the fingerprint, so that neither an older model file nor a crash
    between the two writes can pair with the wrong one.
    """
    sealed = dataclasses.replace(
        manifest, fingerprint=fingerprint(model, manifest.geometry, folder=folder)
    )
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if folder is not None:
        sealed = dataclasses.replace(
            sealed, external=_move_weights(copy, folder, path, f"{sealed.fingerprint[:16]}.weights")
        )
    del copy.metadata_props[:]
    onnx.helper.set_model_props(copy, {METADATA_KEY: sealed.to_json()})
    data = copy.SerializeToString(deterministic=True)
    with replace_file(path) as temporary:
        temporary.write_bytes(data)
    return sealed


def _whole_tensors(
    weights: Iterable[onnx.TensorProto], folder: Path | None
) -> Iterator[onnx.TensorProto]:
    """Copies of the graph's weights, one at a time, with the numbers that lie in another file read
    in."""
    for tensor in weights:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        if external_data_helper.uses_external_data(copy):
            external_data_helper.load_external_data_for_tensor(copy, str(folder))
            copy.ClearField("data_location")
            del copy.external_data[:]
        yield copy


def _move_weights(model: onnx.ModelProto, folder: Path, path: Path, name: str) -> ExternalWeights:
    """Move the graph's one file of weights beside `path` and write its new name into the model."""
    outside = [
        tensor
        for tensor in model.graph.initializer
        if external_data_helper.uses_external_data(tensor)
    ]
    files = {external_data_helper.ExternalDataInfo(tensor).location for tensor in outside}
    (old,) = files
    for tensor in outside:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    with replace_file(path.parent / name) as temporary:
        shutil.move(folder / old, temporary)
    with (path.parent / name).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return ExternalWeights(file=name, num_bytes=(path.parent / name).stat().st_size, sha256=sha256)
