"""Export a backbone in torch as one model file, and prove that the two agree."""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from pathlib import Path

import onnxruntime as ort

from featkit.digests import sha256_of
from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.modelfile import EMBEDDING, INPUT, Manifest
from featkit.sources import open_source
from featkit.whitening import DEFAULT_DIM, FULL_POWER, Whitening, check_count
from featkit_export.graph import (
    OPSET,
    EmbeddingGraph,
    TraceError,
    check_recipe,
    trace,
    width_of,
)
from featkit_export.recipe import Recipe
from featkit_export.report import ExportError, ExportReport, OnStep, no_step
from featkit_export.request import ExportRequest
from featkit_export.seal import drafting_folder, seal
from featkit_export.traced import Traced
from featkit_export.verify import (
    Parity,
    ParityError,
    cases_for,
    compare,
    draw_images,
    open_proven,
    require_parity,
)
from featkit_export.whitening_images import fit_to_images
from featkit_train.networks.base import Backbone
from featkit_train.networks.exits import ExitedBackbone
from featkit_train.networks.vit import VisionTransformer
from featkit_train.published.loading import PREPROCESSING
from featkit_train.published.preprocessor import check_patch, in_words
from featkit_train.published.pretrained import load_pretrained
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, not_finite

TIMED_ROUNDS = 5


def export_pretrained(request: ExportRequest, *, on_step: OnStep | None = None) -> ExportReport:
    """Write the model file of a published backbone or a run folder; see `request.export`."""
    begin = on_step or no_step
    recipe = request.recipe
    whitening = Whitening.load(request.whiten) if request.whiten else None
    images = open_source(request.whiten_on) if request.whiten_on else None
    dim = DEFAULT_DIM if request.dim is None else request.dim
    if images is not None:
        check_count(len(images), dim=dim)
    begin("reading the weights")
    backbone, info = load_pretrained(
        request.source, weights=request.weights, branch=request.branch, quiet=on_step is None
    )
    info = dataclasses.replace(info, origin=_with_digest(info, Path(request.source)))
    backbone, info = cut_at(backbone, info, request.exit)
    fitted = None
    if images is not None:
        check_recipe(recipe, backbone, info.name)
        with drafting_folder(request.out) as folder:
            plain = folder / "plain.onnx"
            vectors_only = dataclasses.replace(recipe, outputs=(EMBEDDING,))
            export_backbone(
                backbone, info, plain, recipe=vectors_only, size=request.size, on_step=begin
            )
            fitted = fit_to_images(
                images,
                plain,
                dim=dim,
                power=FULL_POWER if request.power is None else request.power,
                parts=recipe.widths(backbone.widths) if request.each_layer else (),
                on_step=begin,
            )
        whitening = fitted.whitening
    report = export_backbone(
        backbone,
        info,
        request.out,
        recipe=recipe,
        whitening=whitening,
        size=request.size,
        name=request.name,
        on_step=begin,
    )
    if images is None or fitted is None:
        return report
    return dataclasses.replace(report, remarks=(*report.remarks, fitted.remark(images)))


def export_backbone(
    backbone: Backbone,
    info: BackboneInfo,
    out: Path,
    *,
    recipe: Recipe | None = None,
    whitening: Whitening | None = None,
    size: tuple[int, int] | None = None,
    name: str | None = None,
    on_step: OnStep = no_step,
) -> ExportReport:
    """Write the model file of a backbone in memory.

    size: the only (height, width) in pixels that the graph takes; None keeps sizes dynamic.
    Raises InputError for options that do not fit the backbone; ParityError or TraceError, with
    nothing written, if the graph disagrees with torch or cannot be made.
    """
    recipe = recipe or Recipe()
    if isinstance(backbone, ExitedBackbone):
        backbone, info = cut_at(backbone, info, None)
    check_recipe(recipe, backbone, info.name)
    _check_weights(backbone, info)
    geometry = info.geometry if size is None else sized(info.geometry, *size)
    check_patch(geometry, source=info.origin.get(PREPROCESSING, info.name))
    module = EmbeddingGraph(backbone, geometry, recipe, whitening=whitening).eval()
    manifest = _manifest(module, info, geometry, size=size, name=name, whitening=whitening)
    remarks = (
        *info.remarks,
        *preparation_remarks(geometry, info.geometry, info.origin.get(PREPROCESSING)),
    )
    speedup = None
    with drafting_folder(out) as folder:
        try:
            traced, comparisons = _proven(module, folder, geometry, size, on_step)
        except (TraceError, ParityError) as error:
            if size is not None or isinstance(backbone, VisionTransformer):
                _blame_whitening(error, whitening)
                raise
            # Tracing fixes a size in some architectures; they still work at their native size.
            size = (geometry.height, geometry.width)
            remarks = (
                *remarks,
                f"This architecture does not accept every size ({error.reason}), so the file"
                " accepts"
                f" only {size[0]}×{size[1]}.",
            )
            try:
                traced, comparisons = _proven(module, folder, geometry, size, on_step)
            except ParityError as again:
                _blame_whitening(again, whitening)
                raise
        else:
            if size is not None:
                on_step("timing it against a graph of every size")
                speedup = _speedup(module, traced, folder, geometry)
        on_step("writing")
        manifest = dataclasses.replace(
            manifest,
            width=width_of(traced),
            fixed_size=size,
            parity=require_parity(comparisons),
        )
        sealed = seal(traced.model, manifest, out, folder=folder if traced.path else None)
    return ExportReport(
        out=out,
        manifest=sealed,
        compared_with="torch",
        comparisons=tuple(comparisons),
        fixed_speedup=speedup,
        remarks=remarks,
    )


def preparation_remarks(
    geometry: Geometry, published: Geometry, file: str | None
) -> tuple[str, ...]:
    """Return remarks on a geometry that was read from `file`, and on a size that overrides it."""
    if file is None:
        return ()
    remarks = [f"Images are prepared as described in {file}: {in_words(geometry)}."]
    if geometry != published:
        remarks.append(
            f"--size {geometry.height}x{geometry.width} overrides its"
            f" {published.height}×{published.width}."
        )
    return tuple(remarks)


def cut_at(
    backbone: Backbone, info: BackboneInfo, exit_: int | None
) -> tuple[Backbone, BackboneInfo]:
    """Return the backbone cut after an early exit (None: the deepest), with the exit in its origin.

    A backbone without exits is returned as it is. Raises InputError for an exit it does not have.
    """
    if not isinstance(backbone, ExitedBackbone):
        if exit_ is not None:
            raise InputError(
                f"{info.name} has no early exits; leave out --exit, or train a network with"
                " classifier.exits."
            )
        return backbone, info
    chosen = backbone.depth if exit_ is None else exit_
    if not 1 <= chosen <= backbone.depth:
        raise InputError(
            f"{info.name} has exits 1 to {backbone.depth} (the deepest), not {chosen}; pass one of"
            " them as --exit."
        )
    origin = {**info.origin, "exit": f"{chosen} of {backbone.depth}"}
    return backbone.cut(chosen).eval(), dataclasses.replace(info, origin=origin)


def sized(geometry: Geometry, height: int, width: int) -> Geometry:
    """Return the geometry at another size.

    A square keeps the fraction that the crop removes; for a rectangle, the image is resized to
    cover it.
    """
    if height % geometry.patch or width % geometry.patch:
        near = " by ".join(_nearest(side, geometry.patch) for side in (height, width))
        raise InputError(
            f"A size of {height}×{width} is not a multiple of the patch size {geometry.patch}; use"
            f" {near}."
        )
    return geometry.at_size(height, width)


def _nearest(side: int, patch: int) -> str:
    below = side // patch * patch
    if below == side or not below:
        return str(max(side, patch))
    return f"{below} or {below + patch}"


def _manifest(
    module: EmbeddingGraph,
    info: BackboneInfo,
    geometry: Geometry,
    *,
    size: tuple[int, int] | None,
    name: str | None,
    whitening: Whitening | None,
) -> Manifest:
    """Return the manifest as far as it is known before the comparison. Raises InputError if the
    whitening was fitted to another model's vectors."""
    recipe = module.recipe
    manifest = Manifest(
        family=info.family,
        name=name or info.name,
        patch=module.backbone.patch,
        width=module.width,
        feature=recipe.feature,
        layers=recipe.layers,
        join=recipe.join if recipe.layers else "",
        geometry=geometry,
        fixed_size=size,
        outputs=recipe.outputs,
        license=info.license,
        origin=info.origin,
        opset=OPSET,
    )
    return manifest if whitening is None else _whitened(manifest, whitening)


def _proven(
    module: EmbeddingGraph,
    folder: Path,
    geometry: Geometry,
    size: tuple[int, int] | None,
    on_step: OnStep,
) -> tuple[Traced, list[Parity]]:
    """Return the traced graph and its comparisons with torch. Raises ParityError if one is out of
    bounds."""
    on_step("tracing the graph")
    traced = trace(module, folder, size=size)
    on_step("comparing it with torch")
    backbone = module.backbone
    larger = None
    if isinstance(backbone, VisionTransformer) and backbone.config.position == "learned":
        # The position table's own size is compared too, since nothing is interpolated there.
        table_side = backbone.config.position_grid * backbone.patch
        if table_side > max(geometry.height, geometry.width):
            larger = table_side
    cases = cases_for(
        height=geometry.height,
        width=geometry.width,
        patch=backbone.patch,
        larger=larger,
        fixed=size is not None,
    )
    comparisons = compare(module.run, open_proven(traced.session_input), cases)
    require_parity(comparisons)
    return traced, comparisons


def _blame_whitening(error: ExportError, whitening: Whitening | None) -> None:
    """Raise the error with what to do, if a whitening is its likely cause."""
    if whitening is not None and isinstance(error, ParityError):
        raise ParityError(
            error.reason,
            "nothing was written. Whitening amplifies rounding in directions of little variance;"
            " fit it to more images, keep fewer dimensions with --dim, or use a lower --power",
        ) from error


def _check_weights(backbone: Backbone, info: BackboneInfo) -> None:
    problem = not_finite(backbone.state_dict())
    if problem is not None:
        raise InputError(
            f"{info.name} has weights with NaN or infinity: {problem}; export an earlier"
            " checkpoint."
        )


def _with_digest(info: BackboneInfo, source: Path) -> dict[str, str]:
    """Return the origin of the weights, with the file's sha256 if featkit trained it."""
    if "sha256" in info.origin:
        return info.origin
    file = source / BACKBONE_FILE if source.is_dir() else source
    return {**info.origin, "sha256": sha256_of(file)}


def _whitened(manifest: Manifest, whitening: Whitening) -> Manifest:
    if whitening.model != manifest.made_of:
        raise InputError(
            f"The whitening was fitted to vectors of another model or feature ({whitening.model}),"
            f" not to this one's ({manifest.made_of}); fit it to embeddings by this model, exported"
            " without --whiten."
        )
    return dataclasses.replace(manifest, whitened=whitening.about)


def _speedup(module: EmbeddingGraph, fixed: Traced, folder: Path, geometry: Geometry) -> float:
    """Return how many times as fast the fixed-size graph is, one image per call.

    The graphs take turns and their medians are compared, so that changes in machine load affect
    both.
    """
    with tempfile.TemporaryDirectory(dir=folder) as dynamic_folder:
        dynamic = trace(module, Path(dynamic_folder))
        sessions = [open_proven(dynamic.session_input), open_proven(fixed.session_input)]
        images = draw_images(1, height=geometry.height, width=geometry.width)
        seconds: list[list[float]] = [[], []]
        for _ in range(TIMED_ROUNDS + 1):  # the first round warms up
            for times, session in zip(seconds, sessions, strict=True):
                times.append(_timed(session, images))
    slow, fast = (statistics.median(times[1:]) for times in seconds)
    return slow / fast


def _timed(session: ort.InferenceSession, images: object) -> float:
    started = time.perf_counter()
    session.run(None, {INPUT: images})
    return time.perf_counter() - started
