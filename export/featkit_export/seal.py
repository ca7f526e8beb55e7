"""Turn an ONNX graph into a model file: compute its fingerprint and add its manifest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from onnx import external_data_helper

from featkit.atomic import TEMPORARY_MARK, explain_os_errors, replace_file
from featkit.digests import sha256_of
from featkit.geometry import Geometry
from featkit.modelfile import FORMAT, METADATA_KEY, ExternalWeights, Manifest
from featkit_export.surgery import Guard, find_guard


def fingerprint(model: onnx.ModelProto, geometry: Geometry, *, folder: Path | None = None) -> str:
    """Return the sha256 (hex) of everything that determines a vector: operators, attributes,
    wiring, weights, opset and geometry.

    Names of nodes and values, documentation, producer, dates and notes are left out, so that
    exporting the same network again, or with a version that only renames things, gives the same
    fingerprint. The guard against sizes that the patch does not divide (surgery.py) is left out
    too, since it changes no vector. Values are numbered in order of appearance.

    folder: holds the weights that are not in the model itself; they are read one by one.
    """
    number_of: dict[str, str] = {}

    guard = find_guard(model.graph) or Guard(frozenset(), "", "")

    def renumbered(name: str) -> str:
        name = model.graph.input[0].name if name and name == guard.guarded else name
        return number_of.setdefault(name, f"v{len(number_of)}") if name else ""

    digest = hashlib.sha256()
    for opset in sorted((entry.domain, entry.version) for entry in model.opset_import):
        digest.update(repr(opset).encode())
    # Three messages whose concatenated bytes equal the whole graph's: protobuf writes fields in the
    # order of their numbers, first nodes, then weights, then inputs and outputs. This keeps weights
    # beyond protobuf's 2 GB out of a single message, and out of memory.
    nodes, ends = onnx.GraphProto(name=""), onnx.GraphProto(doc_string="")
    nodes.node.extend(
        node for index, node in enumerate(model.graph.node) if index not in guard.nodes
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
    """Write `model` with its manifest to `path` atomically, and return the manifest with its
    fingerprint and the current format.

    folder: the folder of the weights file, if weights are outside the model. It is moved next to
    `path` under a name made from the fingerprint, so that neither an older model file nor a crash
    between the two writes can pair a graph with the wrong weights.
    """
    sealed = dataclasses.replace(
        manifest,
        format=FORMAT,
        fingerprint=fingerprint(model, manifest.geometry, folder=folder),
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


@contextmanager
def drafting_folder(out: Path) -> Iterator[Path]:
    """Yield a temporary folder next to `out`, on the same disk, for drafts of a model file.

    Its name marks it as a leftover to remove after a crash. Raises EnvironmentProblem if the disk
    is full or the folder cannot be written.
    """
    with explain_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{out.name}{TEMPORARY_MARK}", dir=out.parent
        ) as folder:
            yield Path(folder)


def _whole_tensors(
    weights: Iterable[onnx.TensorProto], folder: Path | None
) -> Iterator[onnx.TensorProto]:
    """Yield a copy of each weight, with its values read in if they are stored in another file."""
    for tensor in weights:
        copy = onnx.TensorProto()
        copy.CopyFrom(tensor)
        if external_data_helper.uses_external_data(copy):
            external_data_helper.load_external_data_for_tensor(copy, str(folder))
            copy.ClearField("data_location")
            del copy.external_data[:]
        yield copy


def _move_weights(model: onnx.ModelProto, folder: Path, path: Path, name: str) -> ExternalWeights:
    """Move the graph's file of weights next to `path`, and write its new name into the model."""
    external = [
        tensor
        for tensor in model.graph.initializer
        if external_data_helper.uses_external_data(tensor)
    ]
    files = {external_data_helper.ExternalDataInfo(tensor).location for tensor in external}
    (old,) = files
    for tensor in external:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = name
    with replace_file(path.parent / name) as temporary:
        shutil.move(folder / old, temporary)
    moved = path.parent / name
    return ExternalWeights(file=name, num_bytes=moved.stat().st_size, sha256=sha256_of(moved))
