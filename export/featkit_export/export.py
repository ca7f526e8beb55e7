"""From weights to one model file, proven equal to them."""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnxruntime as ort

from featkit.atomic import TEMPORARY_MARK, explain_os_errors
from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.modelfile import ATTENTION, INPUT, Manifest
from featkit.whitening import Whitening
from featkit.wording import counted
from featkit_export.graph import OPSET, EmbeddingGraph, Recipe, TraceError, trace
from featkit_export.seal import seal
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
from featkit_train.networks.base import Backbone
from featkit_train.networks.exits import ExitedBackbone
from featkit_train.networks.vit import VisionTransformer
from featkit_train.published.preprocessor import check_patch, in_words
from featkit_train.published.pretrained import PREPROCESSING, load_pretrained
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, not_finite

TIMED_ROUNDS = 5


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """The manifest that was written, every comparison made before, and what else there is to say.

    fixed_speedup: how much faster a graph of one size is than one of every size, where one size was
    asked for.
    """

    manifest: Manifest
    comparisons: list[Parity]
    fixed_speedup: float | None = None
    remarks: tuple[str, ...] = ()


def export_model(
    source: str | Path,
    out: Path,
    *,
    weights: Path | None = None,
    branch: str | None = None,
    recipe: Recipe | None = None,
    whitening: Whitening | None = None,
    size: tuple[int, int] | None = None,
    exit_: int | None = None,
    name: str | None = None,
    notes: str = "",
    quiet: bool = False,
    on_step: Callable[[str], None] = lambda _step: None,
) -> ExportReport:
    """Write a published backbone, or that of a run folder, as a model file `out`.

    source, weights, branch: as in `featkit_train.published.pretrained.load_pretrained`. size: the
    one (height, width) in pixels that the graph takes. exit_: of a network with exits, which
    becomes the file, without what lies behind it; by default the deepest. quiet: no progress bar of
    what is fetched. on_step is called with what begins now. InputError for what cannot be read or
    does not go together; ParityError or TraceError, with nothing written, when the graph disagrees
    with torch or cannot be made.
    """
    on_step("reading the weights")
    backbone, info = load_pretrained(str(source), weights=weights, branch=branch, quiet=quiet)
    info = dataclasses.replace(info, origin=_with_digest(info, source))
    return export_backbone(
        backbone,
        info,
        out,
        recipe=recipe,
        whitening=whitening,
        size=size,
        exit_=exit_,
        name=name,
        notes=notes,
        on_step=on_step,
    )


def export_backbone(
    backbone: Backbone,
    info: BackboneInfo,
    out: Path,
    *,
    recipe: Recipe | None = None,
    whitening: Whitening | None = None,
    size: tuple[int, int] | None = None,
    exit_: int | None = None,
    name: str | None = None,
    notes: str = "",
    on_step: Callable[[str], None] = lambda _step: None,
) -> ExportReport:
    """The same for a backbone in memory; see export_model."""
    recipe = recipe or Recipe()
    backbone, info = cut_at(backbone, info, exit_)
    _check_recipe(recipe, backbone, info)
    geometry = info.geometry if size is None else sized(info.geometry, *size)
    check_patch(geometry, source=info.origin.get(PREPROCESSING, info.name))
    problem = not_finite(backbone.state_dict())
    if problem is not None:
        raise InputError(
            f"{info.name} has weights that are not finite numbers: {problem}; export an earlier"
            " checkpoint."
        )
    module = EmbeddingGraph(backbone, geometry, recipe, whitening=whitening).eval()
    manifest = _manifest(
        module, info, geometry, size=size, name=name, notes=notes, whitening=whitening
    )
    remarks = (
        *info.remarks,
        *preparation_remarks(geometry, info.geometry, info.origin.get(PREPROCESSING)),
    )
    with explain_os_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f"{out.name}{TEMPORARY_MARK}", dir=out.parent
        ) as folder:
            is_fallback = False
            try:
                traced, comparisons = _proven(module, Path(folder), geometry, size, on_step)
            except (TraceError, ParityError) as error:
                if size is not None or isinstance(backbone, VisionTransformer):
                    raise
                size = (geometry.height, geometry.width)
                # the rest tells what follows from it, which here it does not
                why = str(error).split(";")[0].rstrip(".")
                is_fallback = True
                alone = (
                    f"This architecture cannot take every size ({why}), so the file takes"
                    f" {size[0]}×{size[1]} alone."
                )
                remarks = (*remarks, alone)
                traced, comparisons = _proven(module, Path(folder), geometry, size, on_step)
            parity = require_parity(comparisons)
            speedup = None
            if size is not None and not is_fallback:
                on_step("timing it beside a graph of every size")
                speedup = _speedup(module, traced, Path(folder), geometry)
            on_step("writing")
            manifest = dataclasses.replace(manifest, fixed_size=size, parity=parity)
            sealed = seal(traced.model, manifest, out, folder=Path(folder) if traced.path else None)
    return ExportReport(
        manifest=sealed, comparisons=comparisons, fixed_speedup=speedup, remarks=remarks
    )


def preparation_remarks(
    geometry: Geometry, published: Geometry, file: str | None
) -> tuple[str, ...]:
    """What to say of a recipe that was read from `file`, and of a size that was asked for instead
    of its own."""
    if file is None:
        return ()
    remarks = [f"Images are prepared as {file} says: {in_words(geometry)}."]
    if geometry != published:
        remarks.append(
            f"--size {geometry.height}x{geometry.width} wins over its"
            f" {published.height}×{published.width}."
        )
    return tuple(remarks)


def cut_at(
    backbone: Backbone, info: BackboneInfo, exit_: int | None
) -> tuple[Backbone, BackboneInfo]:
    """The backbone up to that exit, or to the deepest, which its origin then names; one without
    exits as it is.

    InputError for an exit that is not there.
    """
    if not isinstance(backbone, ExitedBackbone):
        if exit_ is not None:
            raise InputError(
                f"{info.name} has no exits but its last layer; leave out --exit, or train one with"
                " classifier.exits."
            )
        return backbone, info
    wanted = backbone.depth if exit_ is None else exit_
    if not 1 <= wanted <= backbone.depth:
        raise InputError(
            f"{info.name} has exits 1 to {backbone.depth}, the deepest last, not {wanted}; name one"
            " of them."
        )
    origin = {**info.origin, "exit": f"{wanted} of {backbone.depth}"}
    return backbone.cut(wanted).eval(), dataclasses.replace(info, origin=origin)


def sized(geometry: Geometry, height: int, width: int) -> Geometry:
    """The same recipe for another size: a square keeps the share that the crop leaves out, a
    rectangle is covered."""
    if height % geometry.patch or width % geometry.patch:
        near = " by ".join(_nearest(side, geometry.patch) for side in (height, width))
        raise InputError(
            f"A size of {height}×{width} is not a multiple of the patch of {geometry.patch}; use"
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
    notes: str,
    whitening: Whitening | None,
) -> Manifest:
    """All that can be said of the file before it is proven. InputError for a whitening of another
    model's vectors."""
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
        notes=notes,
    )
    return manifest if whitening is None else _whitened(manifest, whitening)


def _proven(
    module: EmbeddingGraph,
    folder: Path,
    geometry: Geometry,
    size: tuple[int, int] | None,
    on_step: Callable[[str], None],
) -> tuple[Traced, list[Parity]]:
    """The graph and its comparisons with torch, all within bounds."""
    on_step("tracing the graph")
    traced = trace(module, folder, size=size)
    on_step("comparing it with torch")
    backbone = module.backbone
    table = None
    if isinstance(backbone, VisionTransformer) and backbone.config.position == "learned":
        table = backbone.config.position_grid * backbone.patch
    larger = table if table and table > max(geometry.height, geometry.width) else None
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


def _check_recipe(recipe: Recipe, backbone: Backbone, info: BackboneInfo) -> None:
    if ATTENTION in recipe.outputs and not backbone.has_attention:
        raise InputError(
            f"{info.name} gives no attention: only featkit's own transformers do; leave it out of"
            " --outputs."
        )
    wrong = [layer for layer in recipe.layers if not 1 <= layer <= backbone.depth]
    if wrong or len(set(recipe.layers)) != len(recipe.layers):
        raise InputError(
            f"{info.name} has layers 1 to {backbone.depth}, each to be named once, not"
            f" {list(recipe.layers)}."
        )
    if recipe.layers and not isinstance(backbone, VisionTransformer):
        raise InputError(f"{info.name} gives its last layer alone; leave out --layers.")


def _with_digest(info: BackboneInfo, source: str | Path) -> dict[str, str]:
    """Where the weights come from; for a run of featkit's with the sum over its backbone's file."""
    if "sha256" in info.origin:
        return info.origin
    path = Path(source)
    with (path / BACKBONE_FILE if path.is_dir() else path).open("rb") as file:
        return {**info.origin, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _whitened(manifest: Manifest, whitening: Whitening) -> Manifest:
    if whitening.model != manifest.made_of:
        raise InputError(
            f"The whitening was fitted to vectors of another model or feature ({whitening.model}),"
            f" not of this one ({manifest.made_of}); fit it to embeddings of this model exported"
            " without --whiten."
        )
    about = (
        f"{counted(whitening.num_vectors, 'vector')}, {whitening.explained:.1%} of the variance"
        " kept"
    )
    return dataclasses.replace(manifest, whitened=about)


def _speedup(module: EmbeddingGraph, fixed: Traced, folder: Path, geometry: Geometry) -> float:
    """Time of a graph of every size over that of one size, one image a call, alternating;
    medians."""
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        free = trace(module, Path(beside))
        sessions = [open_proven(free.session_input), open_proven(fixed.session_input)]
        images = draw_images(1, height=geometry.height, width=geometry.width)
        seconds: list[list[float]] = [[], []]
        for _ in range(TIMED_ROUNDS + 1):
            for times, session in zip(seconds, sessions, strict=True):
                times.append(_timed(session, images))
    slow, fast = (statistics.median(times[1:]) for times in seconds)
    return slow / fast


def _timed(session: ort.InferenceSession, images: object) -> float:
    started = time.perf_counter()
    session.run(None, {INPUT: images})
    return time.perf_counter() - started
