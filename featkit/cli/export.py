"""`featkit export`: a published backbone or a training run to one ONNX file, proven equal to it."""

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from featkit.cli.console import print_json, print_table, stdout, step_reporter
from featkit.cli.extras import need_extra
from featkit.errors import InputError
from featkit.modelfile import EMBEDDING, OUTPUTS, Manifest, read_manifest
from featkit.whitening import Whitening
from featkit.wording import typed

# of a folder of Hugging Face's, or their indexes
TORCH_FILES = ("model.safetensors", "pytorch_model.bin")


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
    size: str | None = None,
    exit_: int | None = None,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    calibrate: Path | None = None,
    triton: Path | None = None,
    name: str | None = None,
    quiet: bool = False,
    json_: bool = False,
) -> None:
    """Write a published backbone, or that of a training run, as one ONNX file that takes uint8
    images and gives unit vectors.

    Batch, height and width stay dynamic. The file is compared with the original at several sizes
    and batches and is not written when they disagree.

    Example: featkit export dinov2_vits14 --out m.onnx

    Example: featkit export dino_vits16 --weights dino_deitsmall16_pretrain.pth --out m.onnx

    Example: featkit export run/ --out m.onnx

    Example: featkit export m.onnx --precision int8 --calibrate images/ --out m8.onnx

    Parameters
    ----------
    source
        A published model (see --list), timm:NAME, hub:OWNER/NAME or a local file for an ONNX file made elsewhere, a folder of
        Hugging Face's, a run folder of `featkit train`, or a model file of featkit's to be written in another precision.
    out
        The model file to write.
    list_
        Print the published models: size, license and where the weights come from.
    weights
        A local file or folder with the weights (.pth, .ckpt, .safetensors, a folder of Hugging Face, timm or .distcp files),
        instead of fetching them.
    branch
        Whose weights to take from a training's checkpoint; by default the first of these that it has.
    feature
        What a vector is made of: the class token (the default), the mean or the generalized mean (gem) of the patch tokens, or
        two of them side by side. pooler is the pooler_output of an ONNX file made elsewhere, the default without a class token.
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
    exit_
        Of a network that was trained with exits, the one that becomes the file, counted from 1, without what lies behind it; by
        default the deepest.
    precision
        fp16 for graphics cards; int8 for processors with VNNI or AMX, which needs --calibrate and is refused where it would
        cost quality or is not faster.
    calibrate
        Photographs like those to be embedded: whatever `featkit embed` takes; a few hundred are enough.
    triton
        Write the file into this model repository of Triton's as well.
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
        raise InputError(
            "featkit export needs a model and --out, such as `featkit export dinov2_vits14 --out"
            " m.onnx`."
        )
    if (precision == "int8") != (calibrate is not None):
        raise InputError(
            "--precision int8 and --calibrate IMAGES go together: the images set the scales and"
            " the gate."
        )
    wanted = Wanted(
        out=out,
        weights=weights,
        branch=branch,
        feature=feature,
        layers=parse_layers(layers),
        join=join,
        outputs=parse_outputs(outputs),
        whiten=whiten,
        size=parse_size(size),
        exit=exit_,
        name=name,
        quiet=quiet or json_,
    )
    with step_reporter(quiet=quiet or json_) as say:
        facts = write_in_precision(source, wanted, precision, calibrate, say)
        if triton is not None:
            need_extra("export", "onnx", engines=("onnxruntime",))
            from featkit_export.triton import write_triton

            facts["triton"] = str(write_triton(out, triton))
    if json_:
        print_json(facts)
    else:
        print_facts(facts, read_manifest(out), out)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the command line asks of a file in full precision."""

    out: Path
    weights: Path | None = None
    branch: str | None = None
    feature: Literal["cls", "mean", "gem", "cls+mean", "cls+gem", "pooler"] | None = None
    layers: tuple[int, ...] = ()
    join: Literal["concat", "mean"] = "concat"
    outputs: tuple[str, ...] = (EMBEDDING,)
    whiten: Path | None = None
    size: tuple[int, int] | None = None
    exit: int | None = None
    name: str | None = None
    quiet: bool = False


def write_in_precision(
    source: str,
    wanted: Wanted,
    precision: Literal["fp32", "fp16", "int8"],
    calibrate: Path | None,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write the file, and what there is to say of it. A lower precision is made of a file in full
    precision, new or at hand."""
    finished = is_model_file(source)
    if precision == "fp32":
        if finished:
            raise InputError(
                f"{source} is a model file already; name a --precision to write it in, or use it as"
                " it is."
            )
        return write_full(source, wanted, say)
    need_extra("export", "onnx", engines=("onnxruntime",))
    from featkit_export.precision import lower

    if finished:
        inside = (
            "weights",
            "branch",
            "feature",
            "layers",
            "join",
            "outputs",
            "whiten",
            "size",
            "exit",
        )
        _refuse(wanted, inside, f"{source} is a model file")
    with tempfile.TemporaryDirectory() as folder:
        full, facts = Path(source), dict[str, Any]()
        if not finished:
            full = Path(folder) / "full.onnx"
            facts = write_full(source, dataclasses.replace(wanted, out=full), say)
        report = lower(
            full, wanted.out, precision=precision, images=calibrate, name=wanted.name, on_step=say
        )
    return {
        **facts,
        "out": str(wanted.out),
        "fingerprint": report.fingerprint,
        "quantization": report.quantization,
    }


def write_full(source: str, wanted: Wanted, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the file in full precision from weights, or from an ONNX file made elsewhere."""
    if is_onnx(source):
        return adopt_onnx(source, wanted, say)
    need_extra("export", "torch", "onnx", "onnxscript", "safetensors", engines=("onnxruntime",))
    from featkit_export.export import export_model
    from featkit_export.graph import Recipe

    if wanted.feature == "pooler":
        raise InputError(
            f"--feature pooler is for ONNX files that have a pooler_output, which {source} is not;"
            " use cls or mean."
        )
    report = export_model(
        source,
        wanted.out,
        weights=wanted.weights,
        branch=wanted.branch,
        recipe=Recipe(
            feature=wanted.feature or "cls",
            layers=wanted.layers,
            join=wanted.join,
            outputs=wanted.outputs,
        ),
        whitening=Whitening.load(wanted.whiten) if wanted.whiten else None,
        size=wanted.size,
        exit_=wanted.exit,
        name=wanted.name,
        quiet=wanted.quiet,
        on_step=say,
    )
    return {
        "out": str(wanted.out),
        "fingerprint": report.manifest.fingerprint,
        "compared_with": "torch",
        "comparisons": [asdict(case) for case in report.comparisons],
        "fixed_speedup": report.fixed_speedup,
        "remarks": list(report.remarks),
    }


def adopt_onnx(source: str, wanted: Wanted, say: Callable[[str], None]) -> dict[str, Any]:
    """Write the file from an ONNX file made elsewhere, without torch."""
    need_extra("export", "onnx", engines=("onnxruntime",))
    from featkit_export.adopt import adopt_file
    from featkit_export.fetch import HUB, fetch_onnx, license_of

    _refuse(
        wanted,
        ("weights", "branch", "layers", "join", "whiten", "exit"),
        f"{source} is an ONNX file made elsewhere",
    )
    origin, name = {}, wanted.name
    path = Path(source)
    if source.startswith(HUB):
        need_extra("export", "huggingface_hub")
        say("fetching the file")
        repository = source.removeprefix(HUB)
        path, origin = fetch_onnx(repository, quiet=wanted.quiet), {"source": f"hf.co/{repository}"}
        # the folder in the cache is called as its commit
        name = name or repository.rsplit("/", 1)[-1]
    say("changing the graph and comparing it with the original")
    report = adopt_file(
        path,
        wanted.out,
        license=license_of(published_folder(path)),
        feature=wanted.feature,
        outputs=wanted.outputs,
        size=wanted.size,
        name=name,
        origin=origin,
    )
    return {
        "out": str(wanted.out),
        "fingerprint": report.manifest.fingerprint,
        "compared_with": "the original",
        "comparisons": [asdict(case) for case in report.comparisons],
        "remarks": list(report.notes),
    }


def published_folder(path: Path) -> Path:
    """Where a published ONNX file's configuration and card lie: its folder, or the one above
    `onnx/`."""
    if path.is_dir():
        return path
    return path.parent.parent if path.parent.name == "onnx" else path.parent


def _refuse(wanted: Wanted, options: Sequence[str], why: str) -> None:
    """InputError when one of the options was given, none of which can change what is in the file."""
    defaults = Wanted(out=wanted.out)
    given = [
        f"--{option}" for option in options if getattr(wanted, option) != getattr(defaults, option)
    ]
    if given:
        raise InputError(f"{why}, and its network stays as it is; leave out {', '.join(given)}.")


def is_onnx(source: str) -> bool:
    """Whether the source is an ONNX file, here or on the hub, or a folder with one and without
    weights for torch."""
    path = Path(source)
    folder = any((path / name).is_file() for name in ("onnx/model.onnx", "model.onnx"))
    for_torch = any(
        (path / f"{name}{index}").is_file() for name in TORCH_FILES for index in ("", ".index.json")
    )
    return source.startswith("hub:") or path.suffix == ".onnx" or (folder and not for_torch)


def is_model_file(source: str) -> bool:
    """Whether the source is a file of featkit's own."""
    path = Path(source)
    if path.suffix != ".onnx" or not path.is_file():
        return False
    try:
        read_manifest(path)
    except InputError:
        return False
    return True


def print_facts(facts: dict[str, Any], manifest: Manifest, out: Path) -> None:
    """What was compared, what was written, and what to do with it."""
    if facts.get("comparisons"):
        rows = [
            (
                f"{case['batch']} × {case['height']}×{case['width']}",
                case["output"],
                f"{case['min_cosine']:.7f}",
                f"{case['max_abs']:.1e}",
            )
            for case in facts["comparisons"]
        ]
        columns = ("images", "output", "least cosine", "largest difference")
        print_table(f"Compared with {facts['compared_with']}", columns, rows)
    for remark in facts.get("remarks", ()):
        stdout().print(remark)
    if facts.get("fixed_speedup") is not None:
        speedup = facts["fixed_speedup"]
        stdout().print(
            f"One size only is {speedup:.2f} times as fast as every size, one image a call."
        )
    if manifest.quantization:
        print_table(
            f"In {manifest.precision}",
            ("", ""),
            [(key, shown(value)) for key, value in manifest.quantization.items()],
        )
    num_bytes = out.stat().st_size + (manifest.external.num_bytes if manifest.external else 0)
    beside = f" (weights beside it in {manifest.external.file})" if manifest.external else ""
    stdout().print(
        f"{out}: {manifest.name}, {manifest.width} numbers an image, {num_bytes / 1e6:.1f}"
        f" MB{beside}, license {manifest.license}, fingerprint {manifest.fingerprint[:12]}."
    )
    if "triton" in facts:
        stdout().print(f"For Triton: {facts['triton']}")
    stdout().print(f"Next: featkit embed images/ --model {typed(out)} --out emb/")


def shown(value: object) -> str:
    """A figure, or several, of a manifest, for people."""
    if isinstance(value, float):
        return f"{value:.7g}"  # as many as tell a cosine from 1
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    return ", ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)


def print_list(*, as_json: bool) -> None:
    """The published models, without loading torch."""
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
        " folders and files."
    )


def parse_layers(text: str) -> tuple[int, ...]:
    """`9,12` as (9, 12). InputError for anything that is no list of whole numbers."""
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(
            f"--layers {text} is no list of block numbers; write it as 9,10,11,12."
        ) from error


def parse_outputs(text: str) -> tuple[str, ...]:
    """`embedding,patches` as a tuple; the embedding is always there. InputError for an output that
    does not exist."""
    asked = {part.strip() for part in text.split(",") if part.strip()} | {EMBEDDING}
    unknown = asked - set(OUTPUTS)
    if unknown:
        raise InputError(
            f"--outputs {', '.join(sorted(unknown))} do not exist; write one or more of"
            f" {','.join(OUTPUTS)}."
        )
    return tuple(output for output in OUTPUTS if output in asked)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`224` or `336x504` as (height, width). InputError for anything else."""
    if text is None:
        return None
    sides = text.lower().replace("×", "x").split("x")
    if not 1 <= len(sides) <= 2 or not all(side.isdigit() and int(side) > 0 for side in sides):
        raise InputError(
            f"--size {text} is no size in pixels; write 224, or 336x504 for height x width."
        )
    return int(sides[0]), int(sides[-1])
