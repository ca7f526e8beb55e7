"""`featkit export`: a published backbone or a training run to one ONNX file, proven equal to it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featkit.cli.console import print_table, stdout, step_reporter
from featkit.cli.extras import need_extra
from featkit.errors import InputError
from featkit.whitening import Whitening

if TYPE_CHECKING:
    from featkit_export.export import ExportReport


def export(
    source: str | None = None,
    /,
    *,
    out: Path | None = None,
    list_: bool = False,
    weights: Path | None = None,
    branch: Literal["teacher", "student"] = "teacher",
    feature: Literal["cls", "mean", "gem", "cls+mean", "cls+gem"] = "cls",
    layers: str = "",
    join: Literal["concat", "mean"] = "concat",
    outputs: str = "embedding",
    whiten: Path | None = None,
    size: str | None = None,
    name: str | None = None,
    quiet: bool = False,
    json_: bool = False,
) -> None:
    """Write a published backbone, or that of a training run, as one ONNX file that takes uint8 pictures and gives unit vectors.

    Batch, height and width stay dynamic. The file is compared with the original at several sizes and batches and is not written
    when they disagree.

    Example: featkit export dinov2_vits14 --out m.onnx

    Example: featkit export dino_vits16 --weights dino_deitsmall16_pretrain.pth --out m.onnx

    Example: featkit export run/ --out m.onnx

    Parameters
    ----------
    source
        A published model (see --list), timm:NAME, hub:OWNER/NAME or a local file for an ONNX file made elsewhere, a folder of
        Hugging Face's, or a run folder of `featkit train`.
    out
        The model file to write.
    list_
        Print the published models: size, licence and where the weights come from.
    weights
        A local file or folder with the weights (.pth, .safetensors, a Hugging Face folder), instead of fetching them.
    branch
        Whose weights to take where a training checkpoint has both.
    feature
        What a vector is made of: the class token, the mean or the generalised mean (gem) of the patch tokens, or two of them
        side by side.
    layers
        Blocks to take the feature from, counted from 1, such as 9,10,11,12; by default the last alone.
    join
        How the layers become one vector: laid side by side, or averaged.
    outputs
        What the file gives: embedding, and with it patches (a vector for each patch) and attention (of the class token).
    whiten
        Statistics of `featkit whiten`, to be folded into the graph.
    size
        The one size the file is for, in pixels, such as 224 or 336x504 (height x width): faster, and nothing else is taken.
    name
        The model's name; by default the published one, or the run's.
    quiet
        Do not say what is under way.
    json_
        Print the figures as JSON.
    """
    if list_:
        print_list(as_json=json_)
        return
    if source is None or out is None:
        raise InputError("featkit export needs a model and --out, such as: featkit export dinov2_vits14 --out m.onnx")
    need_extra("export", "torch", "onnx", "onnxscript", "safetensors", engines=("onnxruntime",))
    from featkit_export.export import export_model
    from featkit_export.graph import Recipe

    with step_reporter(quiet=quiet or json_) as say:
        report = export_model(
            source,
            out,
            weights=weights,
            branch=branch,
            recipe=Recipe(feature=feature, layers=parse_layers(layers), join=join, outputs=parse_outputs(outputs)),
            whitening=Whitening.load(whiten) if whiten else None,
            size=parse_size(size),
            name=name,
            on_step=say,
        )
    if json_:
        cases = [asdict(case) for case in report.comparisons]
        facts = {"out": str(out), "fingerprint": report.manifest.fingerprint, "comparisons": cases}
        print(json.dumps({**facts, "fixed_speedup": report.fixed_speedup, "remarks": report.remarks}))
        return
    print_report(report, out)


def print_report(report: "ExportReport", out: Path) -> None:
    """What was compared, what was written, and what to do with it."""
    manifest = report.manifest
    rows = [
        (f"{case.batch} × {case.height}×{case.width}", case.output, f"{case.min_cosine:.7f}", f"{case.max_abs:.1e}")
        for case in report.comparisons
    ]
    print_table("Compared with torch", ("pictures", "output", "least cosine", "largest difference"), rows)
    for remark in report.remarks:
        stdout().print(remark)
    if report.fixed_speedup is not None:
        stdout().print(f"One size only is {report.fixed_speedup:.2f} times as fast as every size, one picture a call.")
    num_bytes = out.stat().st_size + (manifest.external.num_bytes if manifest.external else 0)
    beside = f" (weights beside it in {manifest.external.file})" if manifest.external else ""
    stdout().print(
        f"{out}: {manifest.name}, {manifest.width} numbers a picture, {num_bytes / 1e6:.1f} MB{beside}, "
        f"licence {manifest.licence}, fingerprint {manifest.fingerprint[:12]}."
    )
    stdout().print(f"Next: featkit embed pictures/ --model {out} --out emb/")


def print_list(*, as_json: bool) -> None:
    """The published models, without loading torch."""
    from featkit_train.zoo import PUBLISHED

    columns = ("name", "parameters", "width", "patch", "native size", "licence", "weights from")
    rows = [
        (
            row.name,
            f"{row.num_parameters / 1e6:,.1f} M",
            str(row.width),
            str(row.patch),
            f"{row.geometry.height}×{row.geometry.width}",
            row.licence + (" (gated)" if row.gated else ""),
            row.source,
        )
        for row in PUBLISHED.values()
    ]
    if as_json:
        keys = [column.replace(" ", "_") for column in columns]
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in rows], ensure_ascii=False))
        return
    print_table("Published self-distilled backbones", columns, rows, whole_lines=True)
    stdout().print("Also: timm:NAME for any timm model, hub:OWNER/NAME for an ONNX file made elsewhere, and folders and files.")


def parse_layers(text: str) -> tuple[int, ...]:
    """`9,12` as (9, 12). InputError for anything that is no list of whole numbers."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"--layers {text} is no list of block numbers; write it as 9,10,11,12.") from error


def parse_outputs(text: str) -> tuple[str, ...]:
    """`embedding,patches` as a tuple; the embedding is always there. InputError for an output that does not exist."""
    from featkit.modelfile import EMBEDDING, OUTPUTS

    asked = {part.strip() for part in text.split(",") if part.strip()} | {EMBEDDING}
    unknown = asked - set(OUTPUTS)
    if unknown:
        raise InputError(f"--outputs {', '.join(sorted(unknown))} do not exist; write one or more of {','.join(OUTPUTS)}.")
    return tuple(output for output in OUTPUTS if output in asked)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`224` or `336x504` as (height, width). InputError for anything else."""
    if text is None:
        return None
    sides = text.lower().replace("×", "x").split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise InputError(f"--size {text} is no size in pixels; write 224, or 336x504 for height x width.")
    return int(sides[0]), int(sides[-1])
