"""`featkit export`: write a backbone as one ONNX file that is proven equal to its source."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from featkit.cli.console import print_json, print_table, stdout, step_reporter
from featkit.cli.options import AsJson, Quiet
from featkit.errors import InputError
from featkit.modelfile import EMBEDDING, OUTPUTS
from featkit.wording import typed

if TYPE_CHECKING:
    from featkit_export.report import ExportReport


def export(
    source: str | None = None,
    /,
    *,
    out: Path | None = None,
    list_: bool = False,
    weights: Path | None = None,
    branch: Literal["teacher", "ema", "student"] | None = None,
    feature: Literal["cls", "mean", "gem", "cls+mean", "cls+gem", "pooler"] | None = None,
    layers: str = "",
    join: Literal["concat", "mean"] = "concat",
    outputs: str = "embedding",
    whiten: Path | None = None,
    whiten_on: Path | None = None,
    dim: int | None = None,
    power: float | None = None,
    each_layer: Annotated[bool, Parameter(negative=())] = False,
    size: str | None = None,
    exit_: int | None = None,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    half_weights: Annotated[bool, Parameter(negative=())] = False,
    calibrate: Path | None = None,
    triton: Path | None = None,
    name: str | None = None,
    quiet: Quiet = False,
    json_: AsJson = False,
) -> None:
    """Write a backbone as one ONNX file that maps uint8 images to unit vectors.

    The batch size, height and width stay dynamic. Before the file is written, it is compared with
    its source at several sizes and batch sizes; if they disagree, nothing is written.

    Example: featkit export dinov2_vits14 --out m.onnx

    Example: featkit export dino_vits16 --weights dino_deitsmall16_pretrain.pth --out m.onnx

    Example: featkit export run/ --out m.onnx

    Example: featkit export run/ --feature gem --whiten-on images/ --dim 32 --out m.onnx

    Example: featkit export run/ --layers 2,3 --whiten-on images/ --each-layer --out m.onnx

    Example: featkit export m.onnx --half-weights --out small.onnx

    Example: featkit export m.onnx --precision int8 --calibrate images/ --out m8.onnx

    Parameters
    ----------
    source
        A published model (see --list), timm:NAME, a Hugging Face folder, a run folder of `featkit
        train`, an ONNX file made elsewhere (a local file or hub:OWNER/NAME), or a featkit model
        file to convert to a lower --precision or with --half-weights.
    out
        The model file to write.
    list_
        List the published models with their size, license and source, and exit.
    weights
        Read the weights from this file or folder instead of downloading them: .pth, .ckpt,
        .safetensors, .distcp, or a Hugging Face or timm folder.
    branch
        The weights to take from a training checkpoint. The default is the first of these three that
        it contains.
    feature
        What a vector is made of: the class token (cls, the default), the mean or generalized mean
        (gem) of the patch tokens, or two of these concatenated. pooler is the pooler_output of an
        ONNX file made elsewhere, the default for files without a class token.
    layers
        Blocks of a transformer, or stages of a convolutional network, to take the feature from,
        counted from 1, such as 9,10,11,12 or 2,3,4. The default is the last.
    join
        How to combine several --layers into one vector: concatenate them, or average them if their
        widths are equal.
    outputs
        Outputs of the file, separated by commas: embedding, and optionally patches (one vector per
        patch) and attention (of the class token).
    whiten
        Fold the whitening statistics of `featkit whiten` into the graph.
    whiten_on
        Fit a whitening to these images and fold it into the graph: a few thousand images like those
        you will search, as anything that `featkit embed` takes.
    dim
        The number of dimensions that --whiten-on keeps. The default is 128.
    power
        How far --whiten-on makes variances equal, from 0 to 1, as in `featkit whiten`. The default
        is 1, whitening.
    each_layer
        Let --whiten-on whiten each of several --layers on its own before they are joined, so that
        every layer counts the same. Early layers then help to find the same object, and late ones
        the same kind.
    size
        Fix the image size in pixels, such as 224 or 336x504 (height x width). The file becomes
        faster and accepts no other size.
    exit_
        Cut a network with early exits after this one, counted from 1. The default is the deepest
        exit.
    precision
        fp16 is for GPUs. int8 is for CPUs with VNNI or AMX; it needs --calibrate, and is refused if
        it is not faster or loses quality.
    half_weights
        Store the weights in fp16 and compute in fp32: half the file, at the same speed. Refused if
        rounding the weights changes the vectors too much.
    calibrate
        Images like those you will embed, to calibrate int8: anything that `featkit embed` takes. A
        few hundred are enough.
    triton
        Also add the file to this Triton model repository.
    name
        The model's name. The default is the published name, or that of the run.
    """
    if list_:
        print_list(as_json=json_)
        return
    if source is None or out is None:
        raise InputError(
            "featkit export needs a model and --out, such as `featkit export dinov2_vits14 --out"
            " m.onnx`."
        )
    from featkit_export.request import ExportRequest
    from featkit_export.request import export as export_file

    request = ExportRequest(
        source=source,
        out=out,
        weights=weights,
        branch=branch,
        feature=feature,
        layers=parse_layers(layers),
        join=join,
        outputs=parse_outputs(outputs),
        whiten=whiten,
        whiten_on=whiten_on,
        each_layer=each_layer,
        dim=dim,
        power=power,
        size=parse_size(size),
        exit=exit_,
        name=name,
        precision=precision,
        half_weights=half_weights,
        calibration=calibrate,
        triton=triton,
    )
    with step_reporter(quiet=quiet or json_) as on_step:
        report = export_file(request, on_step=on_step)
    if json_:
        print_json(report.to_dict())
    else:
        print_report(report)


def print_report(report: "ExportReport") -> None:
    """Print what was compared, what was written, and the next command."""
    manifest, out = report.manifest, report.out
    if report.comparisons:
        rows = [
            (
                f"{case.batch} × {case.height}×{case.width}",
                case.output,
                f"{case.min_cosine:.7f}",
                f"{case.max_abs:.1e}",
            )
            for case in report.comparisons
        ]
        columns = ("images", "output", "least cosine", "largest difference")
        print_table(f"Compared with {report.compared_with}", columns, rows)
    for remark in report.remarks:
        stdout().print(remark)
    if report.fixed_speedup is not None:
        stdout().print(
            f"With its size fixed, the graph is {report.fixed_speedup:.2f} times as fast as with"
            " dynamic sizes, one image a call."
        )
    if manifest.quantization:
        measured = [(key, shown(value)) for key, value in manifest.quantization.items()]
        lowered = (
            f"with weights in {manifest.weight_precision}"
            if manifest.weight_precision
            else f"in {manifest.precision}"
        )
        print_table(f"Measured {lowered}", ("", ""), measured)
    num_bytes = out.stat().st_size + (manifest.external.num_bytes if manifest.external else 0)
    weights = f" with its weights in {manifest.external.file}" if manifest.external else ""
    stdout().print(
        f"Wrote {out}{weights}: {manifest.name}, {manifest.width} dimensions,"
        f" {num_bytes / 1e6:.1f} MB, license {manifest.license}, fingerprint"
        f" {manifest.fingerprint[:12]}."
    )
    if report.triton is not None:
        stdout().print(f"Added to the Triton model repository: {report.triton}")
    stdout().print(f"Next: featkit embed images/ --model {typed(out)} --out emb/")


def shown(value: object) -> str:
    """Return a value of a manifest as text for people; "none" for an empty list."""
    if isinstance(value, float):
        return f"{value:.7g}"  # enough digits to distinguish a cosine from 1
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def print_list(*, as_json: bool) -> None:
    """Print the published models, without importing torch."""
    from featkit_train.published.zoo import PUBLISHED

    columns = ("name", "parameters", "width", "patch", "native size", "license", "weights from")
    rows = [
        (
            row.name,
            f"{row.num_parameters / 1e6:,.1f} M",
            str(row.width),
            str(row.patch),
            f"{row.geometry.height}×{row.geometry.width}",
            row.license + (" (gated)" if row.gated else ""),
            row.source,
        )
        for row in PUBLISHED.values()
    ]
    if as_json:
        keys = [column.replace(" ", "_") for column in columns]
        print_json([dict(zip(keys, row, strict=True)) for row in rows])
        return
    print_table("Published self-distilled backbones", columns, rows, whole_lines=True)
    stdout().print(
        "Also: timm:NAME for any timm model, hub:OWNER/NAME for an ONNX file made elsewhere, and"
        " local folders and files."
    )


def parse_layers(text: str) -> tuple[int, ...]:
    """Return "9,12" as (9, 12). Raises InputError if it is not a list of integers."""
    try:
        return tuple(int(number) for number in text.split(",") if number.strip())
    except ValueError as error:
        raise InputError(
            f"--layers {text} is not a list of block numbers; write it like 9,10,11,12."
        ) from error


def parse_outputs(text: str) -> tuple[str, ...]:
    """Return "embedding,patches" as a tuple in the order of OUTPUTS. The embedding is always in
    it."""
    asked = {name.strip() for name in text.split(",") if name.strip()} | {EMBEDDING}
    known = [output for output in OUTPUTS if output in asked]
    return (*known, *sorted(asked - set(OUTPUTS)))  # the request refuses unknown outputs


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Return "224" or "336x504" as (height, width). Raises InputError for anything else."""
    if text is None:
        return None
    sides = text.lower().replace("×", "x").split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise InputError(
            f"--size {text} is not a size in pixels; write 224, or 336x504 for height x width."
        )
    return int(sides[0]), int(sides[-1])
