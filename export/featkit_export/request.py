"""One export, from any source to one model file: what `featkit export` does.

    source                                   written by
    published name, timm:NAME, run folder    export.py, from weights in torch
    .onnx made elsewhere, hub:OWNER/NAME     adopt.py, by changing its graph
    model file, with a lower precision       precision.py, from the file in full precision
    model file, with weights in fp16         half_weights_proof.py, from the same

A lower precision of weights is made from a full-precision file in a temporary folder. torch and
onnx are imported only by the writer that needs them.
"""

from __future__ import annotations

import dataclasses
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from featkit.errors import InputError
from featkit.extras import need_extra
from featkit.modelfile import EMBEDDING, OUTPUTS, read_manifest
from featkit.whitening import check_power
from featkit_export.recipe import FILE_FEATURES, FileFeature, Join, Recipe
from featkit_export.report import ExportReport, OnStep, no_step

HUB = "hub:"
WHITENING = ("whiten", "whiten_on", "dim", "power", "each_layer")
FP32: Literal["fp32"] = "fp32"
# Weights for torch in a Hugging Face folder; each may also come as an index of several files.
TORCH_FILES = ("model.safetensors", "pytorch_model.bin")
ONNX_FILES = ("onnx/model.onnx", "model.onnx")

Branch: TypeAlias = Literal["teacher", "ema", "student"]
Precision: TypeAlias = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True, kw_only=True)
class ExportRequest:
    """A source, the model file to write, and the options of `featkit export`.

    source: a published name, timm:NAME, hub:OWNER/NAME, a folder or a file.
    weights, branch: as in `featkit_train.published.pretrained.load_pretrained`.
    feature: None means cls, or pooler if an adopted ONNX file has no class token.
    layers: blocks of a transformer or stages of a CNN, counted from 1; an empty tuple means the
    last.
    whiten: a file of `featkit whiten` to fold into the graph. whiten_on: images to fit a whitening
    to instead: anything that `featkit embed` takes. dim, power: of that whitening, as in
    `featkit.whitening.fit_whitening`; None means 128 and 1. each_layer: whiten each of the layers
    on its own.
    size: the only (height, width) in pixels that the file accepts; None keeps sizes dynamic.
    exit: of a network with early exits, the one to cut at, counted from 1; None means the deepest.
    half_weights: store the large weights in fp16 and compute in fp32; for fp32 only.
    calibration: images for int8; required for it, and refused for other precisions.
    triton: a Triton model repository to add the file to.
    """

    source: str
    out: Path
    weights: Path | None = None
    branch: Branch | None = None
    feature: FileFeature | None = None
    layers: tuple[int, ...] = ()
    join: Join = "concat"
    outputs: tuple[str, ...] = (EMBEDDING,)
    whiten: Path | None = None
    whiten_on: Path | None = None
    dim: int | None = None
    power: float | None = None
    each_layer: bool = False
    size: tuple[int, int] | None = None
    exit: int | None = None
    name: str | None = None
    precision: Precision = FP32
    half_weights: bool = False
    calibration: Path | None = None
    triton: Path | None = None

    def __post_init__(self) -> None:
        if (self.precision == "int8") != (self.calibration is not None):
            raise InputError(
                "--precision int8 and --calibrate IMAGES go together: int8 takes its scales from"
                " these images and is checked on them."
            )
        if self.half_weights and self.precision != FP32:
            raise InputError(
                f"--half-weights is for files that compute in {FP32}, and one in {self.precision}"
                " has small weights already; leave out --half-weights or --precision."
            )
        if self.whiten is not None and self.whiten_on is not None:
            raise InputError(
                "--whiten folds in an existing file and --whiten-on fits a new one to images; pass"
                " only one of them."
            )
        if self.whiten_on is None and (self.dim is not None or self.power is not None):
            raise InputError(
                "--dim and --power are of the whitening that --whiten-on IMAGES fits; add it, or"
                " pass them to `featkit whiten`."
            )
        if self.each_layer and not (
            self.whiten_on is not None and len(self.layers) > 1 and self.join == "concat"
        ):
            raise InputError(
                "--each-layer is for several --layers that are concatenated and whitened; pass"
                " also --layers, such as 2,3, and --whiten-on IMAGES."
            )
        if self.power is not None:
            check_power(self.power)
        if self.feature is not None and self.feature not in FILE_FEATURES:
            raise InputError(
                f"The feature {self.feature} does not exist; choose from"
                f" {', '.join(FILE_FEATURES)}."
            )
        unknown = sorted(set(self.outputs) - set(OUTPUTS))
        if unknown:
            raise InputError(
                f"--outputs {', '.join(unknown)} do not exist; choose from {','.join(OUTPUTS)}."
            )
        if EMBEDDING not in self.outputs:
            raise InputError(f"Every model file has the output {EMBEDDING}; add it.")

    @property
    def recipe(self) -> Recipe:
        """The request's feature, layers and outputs, for a backbone in torch."""
        if self.feature == "pooler":
            raise InputError(
                "--feature pooler needs an ONNX file with a pooler_output, and"
                f" {self.source} is not one; use cls or mean."
            )
        return Recipe(
            feature=self.feature or "cls",
            layers=self.layers,
            join=self.join,
            outputs=self.outputs,
        )

    def refuse(self, *options: str, because: str) -> None:
        """Raise InputError if any of these options differs from its default."""
        defaults = ExportRequest(source=self.source, out=self.out)
        given = [name for name in options if getattr(self, name) != getattr(defaults, name)]
        if given:
            flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise InputError(f"{because}, so its network cannot change; leave out {flags}.")


def export(request: ExportRequest, *, on_step: OnStep | None = None) -> ExportReport:
    """Write the model file that `request` describes, and return what was written and measured.

    on_step is called with the name of each step when it begins. Without it nothing is printed, not
    even the progress of a download.

    Raises InputError for a source or options that cannot be used, EnvironmentProblem for a missing
    package or a failed download, and ExportError, with nothing written, if the file does not match
    its source or costs too much quality.
    """
    if is_model_file(request.source):
        report = _lower_model_file(request, on_step or no_step)
    elif request.precision == FP32 and not request.half_weights:
        report = _write_full(request, on_step)
    else:
        need_extra("export", "onnx", engines=("onnxruntime",))
        with tempfile.TemporaryDirectory() as folder:
            full = dataclasses.replace(
                request,
                out=Path(folder) / "full.onnx",
                precision=FP32,
                half_weights=False,
                calibration=None,
            )
            in_full = _write_full(full, on_step)
            lowered = _lower(full.out, request, on_step or no_step)
            report = dataclasses.replace(in_full, out=lowered.out, manifest=lowered.manifest)
    if request.triton is None:
        return report
    need_extra("export", "onnx", engines=("onnxruntime",))
    from featkit_export.triton import write_triton

    return dataclasses.replace(report, triton=write_triton(request.out, request.triton))


def _lower_model_file(request: ExportRequest, on_step: OnStep) -> ExportReport:
    if request.precision == FP32 and not request.half_weights:
        raise InputError(
            f"{request.source} is already a model file; use it as it is, or choose a lower"
            " --precision or --half-weights for a copy."
        )
    need_extra("export", "onnx", engines=("onnxruntime",))
    request.refuse(
        *("weights", "branch", "feature", "layers", "join", "outputs", *WHITENING, "size", "exit"),
        because=f"{request.source} is a model file",
    )
    return _lower(Path(request.source), request, on_step)


def _lower(full: Path, request: ExportRequest, on_step: OnStep) -> ExportReport:
    if request.precision == FP32:
        from featkit_export.half_weights_proof import halve_weights

        manifest = halve_weights(full, request.out, name=request.name, on_step=on_step)
        return ExportReport(out=request.out, manifest=manifest)
    from featkit_export.precision import lower

    manifest = lower(
        full,
        request.out,
        precision=request.precision,
        images=request.calibration,
        name=request.name,
        on_step=on_step,
    )
    return ExportReport(out=request.out, manifest=manifest)


def _write_full(request: ExportRequest, on_step: OnStep | None) -> ExportReport:
    """Write the file in full precision, from weights or from an ONNX file made elsewhere."""
    if is_onnx(request.source):
        return _adopt(request, on_step)
    need_extra("export", "torch", "onnx", "onnxscript", "safetensors", engines=("onnxruntime",))
    from featkit_export.export import export_pretrained

    return export_pretrained(request, on_step=on_step)


def _adopt(request: ExportRequest, on_step: OnStep | None) -> ExportReport:
    """Write the file from an ONNX file made elsewhere, without torch."""
    need_extra("export", "onnx", engines=("onnxruntime",))
    from featkit_export.adopt import AdoptOptions, adopt_file
    from featkit_export.fetch import fetch_onnx, license_of

    request.refuse(
        *("weights", "branch", "layers", "join", *WHITENING, "exit"),
        because=f"{request.source} is an ONNX file made elsewhere",
    )
    begin = on_step or no_step
    path, name, origin = Path(request.source), request.name, {}
    if request.source.startswith(HUB):
        need_extra("export", "huggingface_hub")
        begin("fetching the file")
        repository = request.source.removeprefix(HUB)
        path = fetch_onnx(repository, quiet=on_step is None)
        origin = {"source": f"hf.co/{repository}"}
        # The folder in the hub's cache is named after the commit.
        name = name or repository.rsplit("/", 1)[-1]
    begin("changing the graph and comparing it with the original")
    options = AdoptOptions(
        license=license_of(published_folder(path)),
        feature=request.feature,
        outputs=request.outputs,
        size=request.size,
        name=name,
        origin=origin,
    )
    return adopt_file(path, request.out, options)


def published_folder(path: Path) -> Path:
    """Return the folder with the config and card of a published ONNX file, which may lie in its
    `onnx/`."""
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "onnx" else path.parent


def is_onnx(source: str) -> bool:
    """Return whether the source is an ONNX file, on this machine or the hub.

    A folder with an ONNX file counts only if it has no weights for torch.
    """
    path = Path(source)
    has_onnx = any((path / name).is_file() for name in ONNX_FILES)
    has_weights = any(
        (path / f"{name}{index}").is_file() for name in TORCH_FILES for index in ("", ".index.json")
    )
    return source.startswith(HUB) or path.suffix == ".onnx" or (has_onnx and not has_weights)


def is_model_file(source: str) -> bool:
    """Return whether the source is a file that featkit exported."""
    path = Path(source)
    if path.suffix != ".onnx" or not path.is_file():
        return False
    try:
        read_manifest(path)
    except InputError:
        return False
    return True
