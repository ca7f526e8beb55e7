"""Turn an ONNX file made elsewhere into a model file by changing its graph, without torch.

Accepts what optimum and transformers.js publish for vision transformers: one input of pixels (N, 3,
H, W), and `last_hidden_state` (N, T, D) after the final layer norm, or `pooler_output` (N, D). The
new graph takes uint8 pixels, normalizes them unless the file does so itself (built_in.py), and ends
in the feature at unit length. A file that gives patch tokens only, such as SigLIP's, has no class
token: its pooler is the default feature, and `cls` is refused. Attention and joined layers are not
supported, because such files do not give them.

The file is compared with the original before it is written, at the sizes and batches that the
original runs on; others are not promised. Only a checkpoint could tell whether the original is
right at sizes it was not trained on.

Letters: N images, (H, W) pixels, (h, w) patches, T tokens (class, R registers, then patches), D
width.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from featkit.digests import sha256_of
from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.modelfile import EMBEDDING, MAX_INLINE_BYTES, Manifest
from featkit_export.adopt_proof import Findings, compare_with_original, remarks_on_half
from featkit_export.adopted_graph import adopt, fix_sizes
from featkit_export.built_in import Feed, feed_for, find_normalization
from featkit_export.original import (
    POOLED,
    POOLER,
    DoesNotTake,
    Interface,
    Original,
    load_onnx,
    load_session,
    read_interface,
)
from featkit_export.report import ExportReport
from featkit_export.request import ONNX_FILES, published_folder
from featkit_export.seal import drafting_folder, seal
from featkit_export.surgery import all_nodes
from featkit_export.verify import draw_images, require_parity
from featkit_train.published.preprocessor import (
    PREPROCESSOR,
    check_patch,
    find_preprocessor,
    in_words,
    read_config,
    read_preprocessor,
)

# Operators of int8 and fewer bits. The first group takes its scales from the whole batch.
DYNAMIC_OPERATORS = re.compile(r"DynamicQuantize|MatMulInteger|ConvInteger")
QUANTIZED_OPERATORS = re.compile(
    rf"{DYNAMIC_OPERATORS.pattern}|QuantizeLinear|DequantizeLinear|^QLinear|^QAttention"
    r"|MatMulNBits|^QGemm"
)


@dataclass(frozen=True, kw_only=True)
class AdoptOptions:
    """How to adopt an ONNX file; None takes the value from the files published with it.

    geometry, num_registers, family: default to the preprocessing files and config.json next to the
    file, or in the folder above its `onnx/`.
    feature: defaults to `cls`, or to `pooler` if the file has no class token.
    size: the only (height, width) in pixels that the model file accepts.
    origin: entries to add to the manifest's origin.
    """

    license: str
    geometry: Geometry | None = None
    feature: str | None = None
    num_registers: int | None = None
    outputs: tuple[str, ...] = (EMBEDDING,)
    size: tuple[int, int] | None = None
    family: str | None = None
    name: str | None = None
    origin: Mapping[str, str] = field(default_factory=dict)


def adopt_file(path: Path, out: Path, options: AdoptOptions) -> ExportReport:
    """Write the model file `out` from an ONNX file, or from the folder it was published in.

    Sizes stay dynamic if the original ran at every size tried; otherwise they are fixed at the
    geometry's size. If vectors depend on their batch, the file is marked and runs one image per
    call.

    Raises InputError as `adopt` does, or if the original does not run at the geometry's size;
    ParityError, with nothing written, if the two disagree.
    """
    source = _read_source(path, options)
    original, fixed = _open_original(source, options)
    adopted = adopt(
        source.model,
        geometry=original.geometry,
        feature=original.feature,
        num_registers=source.num_registers,
        outputs=options.outputs,
        has_class_token=original.has_class_token,
        feed=original.feed,
        name=str(source.file),
    )
    manifest = _manifest(source, original, options)
    oddities = _oddities(source.model)
    with drafting_folder(out) as folder:
        draft, is_apart = folder / "graph.onnx", _num_bytes(source.model) > MAX_INLINE_BYTES
        onnx.save(adopted, draft, save_as_external_data=is_apart, location="weights")
        findings = compare_with_original(
            original, load_session(draft), outputs=options.outputs, is_fixed=fixed is not None
        )
        parity = require_parity(findings.comparisons)
        source.remarks += remarks_on_half(adopted, original.geometry, folder, name=str(source.file))
        if fixed is None and not findings.holds_at_every_size:
            fixed = (original.geometry.height, original.geometry.width)
            fix_sizes(adopted, fixed, patch=original.geometry.patch)
        elif options.size is not None:
            fix_sizes(adopted, options.size, patch=original.geometry.patch)
        remarks = (*_sentences(source.file, findings, oddities), *source.remarks)
        manifest = dataclasses.replace(
            manifest,
            fixed_size=fixed,
            parity=parity,
            batch_invariant=findings.is_batch_invariant,
            notes="\n".join(remarks),
        )
        sealed = seal(adopted, manifest, out, folder=folder if is_apart else None)
    return ExportReport(
        out=out,
        manifest=sealed,
        compared_with="the original",
        comparisons=tuple(findings.comparisons),
        left_out=tuple(findings.left_out),
        remarks=remarks,
    )


# Reading the file and what was published with it --------------------------------------------------


@dataclass(kw_only=True)
class _Source:
    """An ONNX file with the metadata of its folder, and remarks for the report."""

    file: Path
    folder: Path
    model: onnx.ModelProto
    geometry: Geometry
    num_registers: int
    family: str
    remarks: list[str]


def _read_source(path: Path, options: AdoptOptions) -> _Source:
    file = _find(path)
    folder = published_folder(file)
    model = load_onnx(file)
    geometry, remarks = _geometry(options.geometry, folder, options.size)
    num_registers = options.num_registers
    if num_registers is None:
        _need(folder / "config.json", "num_registers")
        num_registers = read_config(folder).num_registers or 0
    family = options.family
    if family is None:
        family = read_config(folder).family if (folder / "config.json").is_file() else "vit"
    return _Source(
        file=file,
        folder=folder,
        model=model,
        geometry=geometry,
        num_registers=num_registers,
        family=family,
        remarks=remarks,
    )


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    file = next((path / name for name in ONNX_FILES if (path / name).is_file()), None)
    if file is None:
        raise InputError(f"{path} has no {' and no '.join(ONNX_FILES)}; name the ONNX file itself.")
    return file


def _need(file: Path, option: str) -> None:
    if not file.is_file():
        raise InputError(
            f"{file} does not exist, and the {option} of the ONNX file is read from it; download it"
            " from where the file was published."
        )


def _geometry(
    geometry: Geometry | None, folder: Path, size: tuple[int, int] | None
) -> tuple[Geometry, list[str]]:
    """Return the geometry at the requested size, and remarks on its origin."""
    source: object = "The geometry"
    remarks = []
    if geometry is None:
        file = find_preprocessor(folder)
        _need(file or folder / PREPROCESSOR, "geometry")
        assert file is not None
        source, geometry = file, read_preprocessor(file)
        remarks.append(f"Images are prepared as described in {file.name}: {in_words(geometry)}.")
    if size is not None and size != (geometry.height, geometry.width):
        if remarks:
            remarks.append(
                f"--size {size[0]}x{size[1]} overrides its {geometry.height}×{geometry.width}."
            )
        source, geometry = f"--size {size[0]}x{size[1]}", geometry.at_size(*size)
    check_patch(geometry, source=source)
    return geometry, remarks


# Opening the original -----------------------------------------------------------------------------


def _open_original(
    source: _Source, options: AdoptOptions
) -> tuple[Original, tuple[int, int] | None]:
    """Return the original, ready to run with the chosen feature, and its one size if it has one."""
    name = str(source.file)
    interface = read_interface(source.model, name=name, feature=options.feature)
    fixed = _fixed_size(interface, source.geometry, name=name) or options.size
    feed = _feed(source, interface)
    if feed.note:
        source.remarks.append(feed.note)
    original = Original(
        source.file,
        interface,
        geometry=feed.geometry,
        feed=feed,
        feature="cls",  # enough to count tokens
        num_registers=source.num_registers,
        is_dynamic=any(
            DYNAMIC_OPERATORS.search(node.op_type) for node in all_nodes(source.model.graph)
        ),
    )
    has_class_token = _has_class_token(original)
    feature = options.feature or _default_feature(
        interface, has_class_token=has_class_token, name=name
    )
    if feature == POOLER and interface.output != POOLED:
        interface = read_interface(source.model, name=name, feature=feature)
    if not has_class_token:
        source.remarks.append(
            f"{source.file.name} gives a token for each patch and no class token; the feature is"
            f" {feature}."
        )
    return original.with_feature(feature, interface, has_class_token=has_class_token), fixed


def _fixed_size(interface: Interface, geometry: Geometry, *, name: str) -> tuple[int, int] | None:
    """Return the size that the file declares, None if both sides are dynamic. Raises InputError if
    the geometry has a different size."""
    sides = (interface.height, interface.width)
    native = (geometry.height, geometry.width)
    if any(side not in (None, wanted) for side, wanted in zip(sides, native, strict=True)):
        declared = "×".join(str(side or "any") for side in sides)
        raise InputError(
            f"{name} only takes images of {declared}, but its geometry makes them"
            f" {native[0]}×{native[1]}; pass the file's size as --size, or export it again with"
            " dynamic sizes."
        )
    return native if any(sides) else None


def _feed(source: _Source, interface: Interface) -> Feed:
    """Return how to normalize pixels for the graph, which may already do part of it."""
    kind, sides = interface.input_kind, (source.geometry.height, source.geometry.width)
    shape = (1, *sides, 3) if interface.channels_last else (1, 3, *sides)
    built_in = find_normalization(source.model, interface.input, kind=kind, shape=shape)
    takes_bytes = kind == TensorProto.UINT8
    return feed_for(built_in, source.geometry, name=str(source.file), takes_bytes=takes_bytes)


def _has_class_token(original: Original) -> bool:
    """Return whether the file gives more tokens than patches. True if they cannot be counted; the
    comparison will show it."""
    if original.interface.output == POOLED and not original.gives_tokens:
        return True
    geometry = original.geometry
    try:
        count = original.num_tokens(draw_images(1, height=geometry.height, width=geometry.width))
    except DoesNotTake:
        return True
    return count != (geometry.height // geometry.patch) * (geometry.width // geometry.patch)


def _default_feature(interface: Interface, *, has_class_token: bool, name: str) -> str:
    """Return cls, or pooler if the file has no class token. Raises InputError if the file has
    neither."""
    if has_class_token:
        return "cls"
    if interface.has_pooled:
        return POOLER
    raise InputError(
        f"{name} gives one token for each patch, so it has no class token, and no {POOLED}; choose"
        " --feature mean or --feature gem."
    )


# Describing the model file ------------------------------------------------------------------------


def _manifest(source: _Source, original: Original, options: AdoptOptions) -> Manifest:
    """Return the manifest as far as it is known before the comparison."""
    return Manifest(
        family=source.family,
        name=options.name or source.folder.resolve().name,
        patch=original.geometry.patch,
        width=_vector_width(original),
        feature=original.feature,
        geometry=original.geometry,
        outputs=options.outputs,
        precision=_precision(source.model),
        license=options.license,
        origin={
            "by": "featkit_export.adopt",
            "file": source.file.name,
            "sha256": sha256_of(source.file),
            **options.origin,
        },
        opset=max(
            entry.version for entry in source.model.opset_import if entry.domain in ("", "ai.onnx")
        ),
    )


def _vector_width(original: Original) -> int:
    """Return the length of the original's vectors. Raises InputError if it does not run at its
    native size, or gives NaN or infinity."""
    geometry, file = original.geometry, original.path
    try:
        vectors = original.run(draw_images(1, height=geometry.height, width=geometry.width))[0]
    except DoesNotTake as error:
        raise InputError(
            f"{file} does not run on one image of {geometry.height}×{geometry.width} ({error});"
            " pass the size that it was exported with as --size, and check patch_size and"
            " num_register_tokens in its config.json."
        ) from error
    if not np.isfinite(vectors).all():
        raise InputError(
            f"{file} gives vectors with NaN or infinity for a test image; download it again, or in"
            " fp32."
        )
    return int(vectors.shape[1])


def _precision(model: onnx.ModelProto) -> str:
    """Return fp32, fp16 or quantized: the precision of most of the computation."""
    if any(QUANTIZED_OPERATORS.search(node.op_type) for node in all_nodes(model.graph)):
        return "quantized"
    num_bytes = {
        kind: sum(
            len(weight.raw_data) for weight in model.graph.initializer if weight.data_type == kind
        )
        for kind in (TensorProto.FLOAT16, TensorProto.FLOAT)
    }
    return "fp16" if num_bytes[TensorProto.FLOAT16] > num_bytes[TensorProto.FLOAT] else "fp32"


def _oddities(model: onnx.ModelProto) -> list[str]:
    """Return one sentence on operators outside ONNX's own domain and one on quantization."""
    nodes = list(all_nodes(model.graph))
    foreign = Counter(
        f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")
    )
    quantized = Counter(node.op_type for node in nodes if QUANTIZED_OPERATORS.search(node.op_type))
    sentences = []
    for title, counts in (
        ("Operators that only some runtimes have", foreign),
        ("Operators of quantization", quantized),
    ):
        if counts:
            listed = ", ".join(f"{count} {operator}" for operator, count in sorted(counts.items()))
            sentences.append(f"{title}: {listed}.")
    return sentences


def _sentences(file: Path, findings: Findings, oddities: list[str]) -> list[str]:
    """Return the manifest's notes on the comparison: the sizes, where the original failed, and
    unusual operators."""
    compared = dict.fromkeys(
        f"{case.batch} × {case.height}×{case.width}" for case in findings.comparisons
    )
    left_out = [
        f"{file.name} itself does not take {case.batch} × {case.height}×{case.width}:"
        f" {case.reason}."
        for case in findings.left_out
    ]
    return [
        f"Adopted from {file.name} and compared with it at {', '.join(compared)}.",
        *left_out,
        *oddities,
    ]


def _num_bytes(model: onnx.ModelProto) -> int:
    return sum(len(weight.raw_data) for weight in model.graph.initializer)
