"""The graph surgery of an adoption: normalize pixels before someone else's network, and pool the
feature after it.

Letters: N images, (H, W) pixels, (h, w) patches, D width.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, helper

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.modelfile import ATTENTION, EMBEDDING, INPUT, PATCHES
from featkit_export.built_in import Feed, feed_for
from featkit_export.original import HIDDEN, POOLED, POOLER, Interface, read_interface
from featkit_export.recipe import FILE_FEATURES
from featkit_export.surgery import (
    MIN_OPSET,
    Nodes,
    add_feature,
    add_guard,
    add_patches,
    add_pixels,
    make_room,
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
    """Return a copy of `model` that maps uint8 `images` (N, H, W, 3) to `embedding` (N, D), unit
    vectors in float32, and to `patches` (N, h, w, D) if asked for.

    feature: cls is token 0 of last_hidden_state, or pooler_output if that is the only output. mean
    and gem pool the patch tokens. cls+mean and cls+gem concatenate two features of unit length.
    pooler is pooler_output.
    feed: how pixels are normalized before the graph; by default from `geometry`.
    name: how error messages refer to the file.

    Patches are the tokens of last_hidden_state in float32. The graph fails if an image side is not
    a multiple of the patch size. Fixed sizes stay fixed; the others are named N, H and W. The opset
    stays.

    Raises InputError, naming the actual and the required interface, if inputs or outputs differ
    from it or lack the feature.
    """
    opset = max(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")),
        default=0,
    )
    if opset < MIN_OPSET:
        raise InputError(
            f"{name} has opset {opset}; export it again with opset {MIN_OPSET} or newer."
        )
    if num_registers < 0:
        raise InputError(f"A network cannot have {num_registers} registers; pass 0 if it has none.")
    interface = read_interface(model, name=name, feature=feature)
    _check_request(
        interface, feature=feature, outputs=outputs, has_class_token=has_class_token, name=name
    )
    feed = feed or feed_for(
        None, geometry, name=name, takes_bytes=interface.input_kind == TensorProto.UINT8
    )
    adopted = onnx.ModelProto()
    adopted.CopyFrom(model)
    # Before IR version 4, every weight had to be listed as an input too.
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
    # They may use the old names of sizes; onnxruntime infers the shapes again.
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


def fix_sizes(model: onnx.ModelProto, size: tuple[int, int], *, patch: int) -> None:
    """Declare the one (height, width) that was compared, so that onnxruntime refuses any other."""
    for axis, side in enumerate(size, start=1):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = side
        for value in model.graph.output:
            if value.name == PATCHES:
                value.type.tensor_type.shape.dim[axis].dim_value = side // patch


def _check_request(
    interface: Interface,
    *,
    feature: str,
    outputs: tuple[str, ...],
    has_class_token: bool,
    name: str,
) -> None:
    """Raise InputError if a file with this output cannot give the feature or the outputs."""
    if feature not in FILE_FEATURES:
        raise InputError(
            f"The feature {feature!r} does not exist; choose from {', '.join(FILE_FEATURES)}."
        )
    if ATTENTION in outputs:
        raise InputError(
            f"{name} gives no attention, like all ONNX files made elsewhere; ask for {EMBEDDING}"
            f" and {PATCHES} only, or export the checkpoint itself."
        )
    if outputs not in ((EMBEDDING,), (EMBEDDING, PATCHES), (PATCHES, EMBEDDING)):
        asked = ", ".join(outputs) or "none"
        raise InputError(
            f"The outputs {asked} are not possible; ask for {EMBEDDING}, or for {EMBEDDING} and"
            f" {PATCHES}."
        )
    if feature == POOLER and PATCHES in outputs:
        raise InputError(
            f"The feature {POOLER} comes without {PATCHES}; ask for {EMBEDDING} only, or use"
            " --feature mean."
        )
    if (
        interface.output == POOLED
        and feature != POOLER
        and (feature != "cls" or PATCHES in outputs)
    ):
        raise InputError(
            f"{name} gives only {POOLED}, but {feature} with"
            f" {', '.join(outputs)} needs patch tokens; ask for cls and {EMBEDDING}, or export it"
            " again with"
            f" {HIDDEN}."
        )
    if not has_class_token and "cls" in feature.split("+"):
        others = (
            "--feature pooler, mean or gem" if interface.has_pooled else "--feature mean or gem"
        )
        raise InputError(
            f"{name} gives one token for each patch and no class token, which {feature} needs; use"
            f" {others}."
        )
