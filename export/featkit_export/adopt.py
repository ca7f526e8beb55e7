"""A model file out of an ONNX file that was made elsewhere, by surgery on its graph: no torch, no
checkpoint.

Taken is what optimum and transformers.js publish of a vision transformer: one input of pixels (N,
3, H, W), and `last_hidden_state` (N, T, D), after the final layer norm, or `pooler_output` (N, D).
Put before it are uint8 pixels and their normalization, except what the graph does of it itself
(built_in.py), and behind it the feature at unit length. A file that gives a token for each patch
and none besides, as SigLIP's does, has no class token: its pooler is taken, and `cls` is refused.
Left out: attention, which such files do not give, and joined layers.

The file is compared with the original before it is written, at those sizes and batches that the
original itself takes; no other is promised. Whether the original is right at a size that it was not
trained at, only its checkpoint could tell.

Letters: N images, (H, W) pixels, (h, w) patches, T tokens (class, R registers, then patches), D
width.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from featkit.atomic import TEMPORARY_MARK, explain_os_errors
from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.modelfile import ATTENTION, EMBEDDING, INPUT, MAX_INLINE_BYTES, PATCHES, Manifest
from featkit_export import verify
from featkit_export.built_in import Feed, feed_for, find_normalization
from featkit_export.half import LARGEST, placed
from featkit_export.half_proof import (
    MIN_HALF_COSINE,
    embed_each,
    emulate,
    first_overflow,
    proof_images,
)
from featkit_export.original import (
    HIDDEN,
    POOLED,
    POOLER,
    DoesNotTake,
    Interface,
    Original,
    load_onnx,
    one_line,
    open_session,
    read_interface,
)
from featkit_export.seal import seal
from featkit_export.surgery import (
    MIN_OPSET,
    Nodes,
    add_feature,
    add_guard,
    add_patches,
    add_pixels,
    all_nodes,
    make_room,
)
from featkit_export.verify import (
    MAX_ABS,
    Parity,
    ParityError,
    cases_for,
    compare,
    draw_images,
    require_parity,
)
from featkit_train.published.preprocessor import (
    PREPROCESSOR,
    check_patch,
    find_preprocessor,
    in_words,
    read_config,
    read_preprocessor,
)

FEATURES = ("cls", "mean", "gem", "cls+mean", "cls+gem")
PUBLISHED_NAMES = ("onnx/model.onnx", "model.onnx")  # in a folder as it was published
# Operators of int8 and fewer bits; the first two take their scale from the whole batch.
DYNAMIC_OPERATORS = re.compile(r"DynamicQuantize|MatMulInteger|ConvInteger")
QUANTIZED_OPERATORS = re.compile(
    rf"{DYNAMIC_OPERATORS.pattern}|QuantizeLinear|DequantizeLinear|^QLinear|^QAttention|MatMulNBits|^QGemm"
)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """Images that the original file itself does not take, and why: nothing is promised of them."""

    batch: int
    height: int
    width: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class AdoptReport:
    """The manifest that was written, every comparison made before, what the original does not take,
    and what is odd in it."""

    manifest: Manifest
    comparisons: list[Parity]
    left_out: list[LeftOut]
    notes: list[str]


def adopt_file(
    path: Path,
    out: Path,
    *,
    license: str,
    geometry: Geometry | None = None,
    feature: str | None = None,
    num_registers: int | None = None,
    outputs: tuple[str, ...] = (EMBEDDING,),
    size: tuple[int, int] | None = None,
    family: str | None = None,
    name: str | None = None,
    origin: Mapping[str, str] | None = None,
    notes: str = "",
) -> AdoptReport:
    """Write the model file `out` of an ONNX file, or of the folder that it was published in, and
    compare the two before.

    geometry, num_registers, family: by default those of the preprocessing files and config.json
    beside the file or in the folder above its `onnx/`. feature: by default `cls`, or `pooler` of a
    file without a class token. size: the one (height, width) in pixels that the file is for. Sizes
    stay dynamic where the original ran at all that were tried, and are fixed at the geometry's
    otherwise. A file whose vectors depend on their batch is marked, and is run one image a call.

    InputError as for `adopt`, or when the original does not run at the geometry's size;
    ParityError, with nothing written, when the two disagree.
    """
    file = _find(path)
    folder = file.parent.parent if file.parent.name == "onnx" else file.parent
    remarks: list[str] = []
    model = load_onnx(file)
    geometry, remarks = _geometry(geometry, folder, size)
    if num_registers is None:
        _need(folder / "config.json", "num_registers")
        num_registers = read_config(folder).num_registers or 0
    if family is None:
        family = read_config(folder).family if (folder / "config.json").is_file() else "vit"

    interface = read_interface(model, name=str(file), feature=feature)
    fixed = _fixed_size(interface, geometry, name=str(file)) or size
    feed = _feed(model, interface, geometry, name=str(file))
    geometry = feed.geometry
    remarks += [feed.note] if feed.note else []
    is_dynamic = any(DYNAMIC_OPERATORS.search(node.op_type) for node in all_nodes(model.graph))
    plain = Original(
        file, interface, geometry=geometry, feed=feed, feature="cls", num_registers=num_registers
    )
    has_class_token = _has_class_token(plain)
    feature = feature or _default_feature(
        interface, has_class_token=has_class_token, name=str(file)
    )
    if feature == POOLER and interface.output != POOLED:
        interface = read_interface(model, name=str(file), feature=feature)
    if not has_class_token:
        remarks.append(
            f"{file.name} gives a token for each patch and no class token; the feature is"
            f" {feature}."
        )
    adopted = adopt(
        model,
        geometry=geometry,
        feature=feature,
        num_registers=num_registers,
        outputs=outputs,
        has_class_token=has_class_token,
        feed=feed,
        name=str(file),
    )
    original = Original(
        file,
        interface,
        geometry=geometry,
        feed=feed,
        feature=feature,
        num_registers=num_registers,
        has_class_token=has_class_token,
        is_dynamic=is_dynamic,
    )
    try:
        vectors = original.run(draw_images(1, height=geometry.height, width=geometry.width))[0]
    except DoesNotTake as error:
        raise InputError(
            f"{file} does not run on one image of {geometry.height}×{geometry.width} ({error});"
            " choose the size that it was exported with by --size, and check patch_size and"
            " num_register_tokens in its config.json."
        ) from error
    if not np.isfinite(vectors).all():
        raise InputError(
            f"{file} gives vectors that are not finite numbers for a drawn image; fetch it again,"
            " or in fp32."
        )
    width = vectors.shape[1]
    manifest = Manifest(
        family=family,
        name=name or folder.resolve().name,
        patch=geometry.patch,
        width=width,
        feature=feature,
        geometry=geometry,
        outputs=outputs,
        precision=_precision(model),
        license=license,
        origin={
            "by": "featkit_export.adopt",
            "file": file.name,
            "sha256": _sha256(file),
            **(origin or {}),
        },
        opset=max(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
    )
    oddities = _oddities(model)
    with explain_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{out.name}{TEMPORARY_MARK}", dir=out.parent
        ) as place:
            draft, is_apart = Path(place) / "graph.onnx", _num_bytes(model) > MAX_INLINE_BYTES
            onnx.save(adopted, draft, save_as_external_data=is_apart, location="weights")
            findings = _compare(
                original, open_session(draft), outputs=outputs, is_fixed=fixed is not None
            )
            figures = require_parity(findings.comparisons)
            remarks += _proven_in_half(adopted, geometry, Path(place), name=str(file))
            if fixed is None and not findings.holds_at_every_size:
                fixed = (geometry.height, geometry.width)
                _fix_sizes(adopted, fixed, patch=geometry.patch)
            elif size is not None:
                _fix_sizes(adopted, size, patch=geometry.patch)
            notes_found = [*_sentences(file, findings, oddities), *remarks]
            manifest = dataclasses.replace(
                manifest,
                fixed_size=fixed,
                parity=figures,
                batch_invariant=findings.is_batch_invariant,
                notes="\n".join([*([notes] if notes else []), *notes_found]),
            )
            sealed = seal(adopted, manifest, out, folder=Path(place) if is_apart else None)
    return AdoptReport(
        manifest=sealed,
        comparisons=findings.comparisons,
        left_out=findings.left_out,
        notes=notes_found,
    )


def adopt(
    model: onnx.ModelProto,
    *,
    geometry: Geometry,
    feature: str,
    num_registers: int = 0,
    outputs: tuple[str, ...] = (EMBEDDING,),
    has_class_token: bool = True,
    feed: Feed | None = None,
    name: str = "the ONNX file",
) -> onnx.ModelProto:
    """The same network from uint8 `images` (N, H, W, 3) to unit vectors `embedding` (N, D) float32,
    and `patches` (N, h, w, D).

    feature: cls is token 0 of last_hidden_state, or pooler_output where that is all there is; mean
    and gem are over the tokens past the class token and the registers; cls+mean and cls+gem are
    both at unit length side by side; pooler is pooler_output.
    feed: what the graph is given of pixels, by default what `geometry` says. Patches are as
    last_hidden_state gives them, float32. Sides that the patch does not divide fail. Sizes that
    `model` fixes stay fixed, the others are called N, H and W. Its opset stays, and `model` is left
    as it is. `name` is what refusals call it.

    InputError, with what was found and what was wanted, for other inputs and outputs, and for a
    feature that they do not give.
    """
    opset = max(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        default=0,
    )
    if opset < MIN_OPSET:
        raise InputError(
            f"{name} has opset {opset}; wanted is {MIN_OPSET} or newer: export it again with that."
        )
    if num_registers < 0:
        raise InputError(
            f"{num_registers} registers cannot be; give the number that the network has, 0 for"
            " none."
        )
    interface = read_interface(model, name=name, feature=feature)
    _check_request(
        interface, feature=feature, outputs=outputs, has_class_token=has_class_token, name=name
    )
    feed = feed or feed_for(
        None, geometry, name=name, takes_bytes=interface.input_kind == TensorProto.UINT8
    )
    adopted = onnx.ModelProto()
    adopted.CopyFrom(model)
    # before 4 every weight had to be an input as well
    adopted.ir_version = max(4, model.ir_version)
    graph, skip = adopted.graph, has_class_token + num_registers
    renamed = make_room(graph)

    before, after = Nodes("in", opset), Nodes("out", opset, half=interface.output_is_half)
    add_pixels(
        before,
        feed.mean,
        feed.std,
        into=renamed.get(interface.input, interface.input),
        kind=interface.input_kind,
        channels_last=interface.channels_last,
    )
    add_feature(
        after, interface.output, feature=feature, is_pooled=interface.output == POOLED, skip=skip
    )
    if PATCHES in outputs:
        add_patches(after, interface.output, patch=geometry.patch, skip=skip)

    nodes = list(graph.node)
    del graph.node[:], graph.input[:], graph.output[:]
    # they may name sizes that are called otherwise now; onnxruntime infers them again
    del graph.value_info[:]
    graph.node.extend([*before.nodes, *nodes, *after.nodes])
    graph.initializer.extend([*before.constants, *after.constants])
    batch, height, width, depth = (
        interface.batch or "N",
        interface.height or "H",
        interface.width or "W",
        interface.depth,
    )
    vector = depth * len(feature.split("+")) if depth else "D"
    graph.input.append(
        helper.make_tensor_value_info(INPUT, TensorProto.UINT8, [batch, height, width, 3])
    )
    graph.output.append(
        helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, [batch, vector])
    )
    if PATCHES in outputs:
        grid = [
            side // geometry.patch if isinstance(side, int) else side.lower()
            for side in (height, width)
        ]
        graph.output.append(
            helper.make_tensor_value_info(
                PATCHES, TensorProto.FLOAT, [batch, *grid, depth or "patch_D"]
            )
        )
    if interface.height is None or interface.width is None:
        add_guard(graph, geometry.patch, opset=opset)
    return adopted


def _geometry(
    geometry: Geometry | None, folder: Path, size: tuple[int, int] | None
) -> tuple[Geometry, list[str]]:
    """The recipe for images, by default that of the folder, at the size that was asked for; and
    what to say of it."""
    source: object = "The geometry"
    remarks = []
    if geometry is None:
        file = find_preprocessor(folder)
        _need(file or folder / PREPROCESSOR, "geometry")
        assert file is not None
        source, geometry = file, read_preprocessor(file)
        remarks.append(f"Images are prepared as {file.name} says: {in_words(geometry)}.")
    if size is not None and size != (geometry.height, geometry.width):
        if remarks:
            remarks.append(
                f"--size {size[0]}x{size[1]} wins over its {geometry.height}×{geometry.width}."
            )
        source, geometry = f"--size {size[0]}x{size[1]}", geometry.at_size(*size)
    check_patch(geometry, source=source)
    return geometry, remarks


def _feed(model: onnx.ModelProto, interface: Interface, geometry: Geometry, *, name: str) -> Feed:
    """What to give to the graph, which may normalize images itself."""
    kind, sides = interface.input_kind, (geometry.height, geometry.width)
    shape = (1, *sides, 3) if interface.channels_last else (1, 3, *sides)
    built_in = find_normalization(model, interface.input, kind=kind, shape=shape)
    return feed_for(built_in, geometry, name=name, takes_bytes=kind == TensorProto.UINT8)


def _has_class_token(original: Original) -> bool:
    """Whether there is a token besides those of the patches; where it cannot be told, that is left
    to the comparison."""
    if original.interface.output == POOLED and not original.gives_tokens:
        return True
    geometry = original.geometry
    try:
        found = original.num_tokens(draw_images(1, height=geometry.height, width=geometry.width))
    except DoesNotTake:
        return True
    return found != (geometry.height // geometry.patch) * (geometry.width // geometry.patch)


def _default_feature(interface: Interface, *, has_class_token: bool, name: str) -> str:
    """cls, or the file's own pooled vector where there is no class token. InputError where there is
    neither."""
    if has_class_token:
        return "cls"
    if interface.has_pooled:
        return POOLER
    raise InputError(
        f"{name} gives one token for each patch, so it has no class token, and no {POOLED}; choose"
        " what a vector is made of by --feature mean or --feature gem."
    )


def _check_request(
    interface: Interface,
    *,
    feature: str,
    outputs: tuple[str, ...],
    has_class_token: bool,
    name: str,
) -> None:
    """InputError for a feature or an output that a file with this output does not give."""
    if feature not in (*FEATURES, POOLER):
        known = ", ".join((*FEATURES, POOLER))
        raise InputError(
            f"The feature {feature!r} is none that an ONNX file is adopted with; use one of"
            f" {known}."
        )
    if ATTENTION in outputs:
        raise InputError(
            f"{name} gives no attention, as ONNX files made elsewhere do not; ask for {EMBEDDING}"
            f" and {PATCHES} alone, or export the checkpoint itself."
        )
    if outputs not in ((EMBEDDING,), (EMBEDDING, PATCHES), (PATCHES, EMBEDDING)):
        asked = ", ".join(outputs) or "none"
        raise InputError(
            f"The outputs {asked} cannot be had; ask for {EMBEDDING}, or for {EMBEDDING} and"
            f" {PATCHES}."
        )
    if feature == POOLER and PATCHES in outputs:
        raise InputError(
            f"The feature {POOLER} comes without {PATCHES}; ask for {EMBEDDING} alone, or for"
            " --feature mean."
        )
    if (
        interface.output == POOLED
        and feature != POOLER
        and (feature != "cls" or PATCHES in outputs)
    ):
        raise InputError(
            f"{name} gives {POOLED} alone and no patch tokens, where {feature} with"
            f" {', '.join(outputs)} is wanted; ask for cls and {EMBEDDING}, or export it again with"
            f" {HIDDEN}."
        )
    if not has_class_token and "cls" in feature.split("+"):
        others = (
            "--feature pooler, mean or gem" if interface.has_pooled else "--feature mean or gem"
        )
        raise InputError(
            f"{name} gives one token for each patch, so it has no class token to make {feature} of;"
            f" use {others}."
        )


@dataclass(frozen=True, kw_only=True)
class _Findings:
    comparisons: list[Parity]
    left_out: list[LeftOut]
    holds_at_every_size: bool  # of those tried
    is_batch_invariant: bool  # as far as 3 and 8 images show it, and no operator says otherwise


def _compare(
    original: Original, session: ort.InferenceSession, *, outputs: tuple[str, ...], is_fixed: bool
) -> _Findings:
    """Compare one image at each size, then several at those that the original took; one size if
    it is fixed."""
    geometry = original.geometry
    native = {"height": geometry.height, "width": geometry.width, "patch": geometry.patch}
    several = [case for case in cases_for(**native, fixed=is_fixed) if case[0] > 1]
    comparisons: list[Parity] = []
    left_out: list[LeftOut] = []

    def compare_each(cases: Sequence[tuple[int, int, int]]) -> None:
        for batch, height, width in cases:
            try:
                comparisons.extend(
                    _compare_once(original, session, (batch, height, width), outputs=outputs)
                )
            except DoesNotTake as error:
                left_out.append(LeftOut(batch=batch, height=height, width=width, reason=str(error)))

    compare_each(
        [
            (1, height, width)
            for height, width in dict.fromkeys(
                case[1:] for case in cases_for(**native, fixed=is_fixed)
            )
        ]
    )
    holds_at_every_size = not is_fixed and not left_out
    if original.interface.batch != 1:
        if not is_fixed and not holds_at_every_size:
            several = [case for case in cases_for(**native, fixed=True) if case[0] > 1]
        compare_each(several)
    takes_several = any(case.batch > 1 for case in comparisons) and not any(
        case.batch > 1 for case in left_out
    )
    return _Findings(
        comparisons=comparisons,
        left_out=left_out,
        holds_at_every_size=holds_at_every_size,
        is_batch_invariant=takes_several
        and not original.is_dynamic
        and not _depends_on_batch(session, several[-1]),
    )


def _compare_once(
    original: Original,
    session: ort.InferenceSession,
    case: tuple[int, int, int],
    *,
    outputs: tuple[str, ...],
) -> list[Parity]:
    def reference(images: np.ndarray) -> dict[str, np.ndarray]:
        vectors, tokens = original.run(images)
        given = {EMBEDDING: vectors, PATCHES: tokens}
        return {name: value for name in outputs if (value := given[name]) is not None}

    try:
        return compare(reference, session, [case])
    except DoesNotTake:
        raise
    except Exception as error:  # onnxruntime's exception classes share no base but Exception
        raise ParityError(
            f"The adopted graph fails on {case[0]} × {case[1]}×{case[2]}, which the original takes"
            f" ({one_line(error)}); nothing was written, please report the file."
        ) from error


def _proven_in_half(
    adopted: onnx.ModelProto, geometry: Geometry, folder: Path, *, name: str
) -> list[str]:
    """What to say of a graph that computes in fp16, which this machine's processor does in fp32.
    Nothing of another.

    InputError when it overflows in true half arithmetic, or loses more than MIN_HALF_COSINE allows.
    """
    if not any(weight.data_type == TensorProto.FLOAT16 for weight in adopted.graph.initializer):
        return []
    images = proof_images(geometry.height, geometry.width)
    try:
        emulated = emulate(adopted, folder)
        session = verify.open_session(emulated.session_input)
        got = embed_each(session, images)
    # an operator that has no fp32 form; onnxruntime's exceptions share no base but Exception
    except Exception:
        return [
            f"{name} computes in fp16, and was compared on a processor, which computes that in"
            " fp32."
        ]
    draft = placed(adopted, folder, "half-draft.onnx")
    expected = embed_each(verify.open_session(draft.session_input), images)
    least = float(np.einsum("nd,nd->n", expected, got, dtype=np.float64).min())
    if not least >= MIN_HALF_COSINE:
        layer = first_overflow(emulated.model, images, folder)
        where = (
            f"; numbers past {LARGEST:,.0f}, which fp16 holds, first come at {layer}"
            if layer
            else ""
        )
        raise InputError(
            f"{name} is in fp16 and does not bear it: in true half arithmetic the least cosine of"
            f" its vectors is {least:.5f}, where {MIN_HALF_COSINE} is required{where}. Take the"
            " file in fp32, such as onnx/model.onnx."
        )
    return [f"In true half arithmetic the least cosine over {len(images)} images is {least:.6f}."]


def _depends_on_batch(session: ort.InferenceSession, case: tuple[int, int, int]) -> bool:
    """Whether the first image of a batch has another vector alone."""
    images = draw_images(case[0], height=case[1], width=case[2])
    together, alone = (
        session.run([EMBEDDING], {INPUT: part})[0][0] for part in (images, images[:1])
    )
    return not np.abs(together - alone).max() <= MAX_ABS  # NaN depends as well


def _find(path: Path) -> Path:
    if not path.is_dir():
        return path
    found = next((path / name for name in PUBLISHED_NAMES if (path / name).is_file()), None)
    if found is None:
        raise InputError(
            f"{path} has no {' and no '.join(PUBLISHED_NAMES)}; name the ONNX file itself."
        )
    return found


def _need(file: Path, option: str) -> None:
    if not file.is_file():
        raise InputError(
            f"{file} does not exist, which tells the {option} of the ONNX file; fetch it from where"
            " the file was published."
        )


def _fixed_size(interface: Interface, geometry: Geometry, *, name: str) -> tuple[int, int] | None:
    """The one size that the file declares, None where both sides are free. InputError when the
    geometry has another."""
    sides = (interface.height, interface.width)
    native = (geometry.height, geometry.width)
    if any(side not in (None, wanted) for side, wanted in zip(sides, native, strict=True)):
        declared = "×".join(str(side or "any") for side in sides)
        raise InputError(
            f"{name} takes images of {declared} alone, and the geometry makes them"
            f" {native[0]}×{native[1]}; choose the size of the file by --size, or export it again"
            " with dynamic sizes."
        )
    return native if any(sides) else None


def _fix_sizes(model: onnx.ModelProto, size: tuple[int, int], *, patch: int) -> None:
    """Declare the one size that was compared, so that onnxruntime refuses any other."""
    for place, side in enumerate(size, start=1):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = side
        for value in model.graph.output:
            if value.name == PATCHES:
                value.type.tensor_type.shape.dim[place].dim_value = side // patch


def _precision(model: onnx.ModelProto) -> str:
    """fp32, fp16, or quantized: what most of the computing is done in."""
    if any(QUANTIZED_OPERATORS.search(node.op_type) for node in all_nodes(model.graph)):
        return "quantized"
    halves = sum(
        len(weight.raw_data)
        for weight in model.graph.initializer
        if weight.data_type == TensorProto.FLOAT16
    )
    singles = sum(
        len(weight.raw_data)
        for weight in model.graph.initializer
        if weight.data_type == TensorProto.FLOAT
    )
    return "fp16" if halves > singles else "fp32"


def _oddities(model: onnx.ModelProto) -> list[str]:
    """Operators of other domains than ONNX's, and those of quantization, each as a sentence."""
    nodes = list(all_nodes(model.graph))
    foreign = Counter(
        f"{node.domain}.{node.op_type}" for node in nodes if node.domain not in ("", "ai.onnx")
    )
    quantized = Counter(node.op_type for node in nodes if QUANTIZED_OPERATORS.search(node.op_type))
    notes = []
    for what, counts in (
        ("Operators that only some runtimes have", foreign),
        ("Operators of quantization", quantized),
    ):
        if counts:
            notes.append(
                f"{what}:"
                f" {', '.join(f'{count} {operator}' for operator, count in sorted(counts.items()))}."
            )
    return notes


def _sentences(file: Path, findings: _Findings, oddities: list[str]) -> list[str]:
    """What a reader of the manifest has to know: with what it was compared, where the original
    failed, what is odd."""
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


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()
