"""Every published backbone, whole: drawn weights written in its publisher's format, loaded,
exported and compared with torch.

A child process writes the weights and another exports them, so that memory is measured for the
export alone and given back. The network of 6.7 thousand million numbers is compared at a depth of
two blocks, and says so: whole, it takes more than 24 GB. After the table: how far transformers' and
timm's own stretching of position tables is from the rule that DINOv2's code has.

Run: python tests/export/verify_zoo.py [--out FILE] [names...]        (timm:NAME and adopt: are
names as well) Ends with 1 if any model failed. Nothing is left but the table.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from featkit_train.published.zoo import PUBLISHED, Published, find_published

TIMM_EXAMPLES = ("timm:vit_tiny_patch16_224", "timm:resnet18", "timm:vit_small_patch16_dinov3")
ADOPTED = "adopt:dinov2-with-registers"
GAPS = ("dinov2_vits14", "dinov2_vits14_reg")
# blocks; 40 of them are 27 GB before anything is computed
SHORTENED = {"dinov3_vit7b16": 2, "dinov3_vit7b16_sat": 2}
TIMEOUT_S = 3600
COLUMNS = (
    "name",
    "parameters",
    "file MB",
    "load s",
    "trace s",
    "compare s",
    "peak GB",
    "cosine",
    "max abs",
    "largest",
    "note",
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    name: str
    figures: dict[str, Any]

    def cells(self) -> list[str]:
        """Return the row as text."""
        if "error" in self.figures:
            return [self.name, f"FAILED: {self.figures['error']}"]
        return [self.name, *(str(self.figures[column]) for column in COLUMNS[1:])]


def main() -> int:
    """Run every model in processes of its own and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    names = arguments.names or [*PUBLISHED, *TIMM_EXAMPLES, ADOPTED]
    rows = []
    for number, name in enumerate(names, start=1):
        started = time.perf_counter()
        rows.append(Row(name=name, figures=verified(name)))
        print(
            f"{number}/{len(names)} {time.perf_counter() - started:.0f} s:"
            f" {'  '.join(rows[-1].cells())}",
            file=sys.stderr,
            flush=True,
        )
    text = table([list(COLUMNS), *(row.cells() for row in rows)])
    wanted = [name for name in GAPS if name in names]
    if wanted:
        with tempfile.TemporaryDirectory(prefix="featkit-zoo-") as folder:
            text += "\n" + "\n".join(gap_line(name, folder) for name in wanted)
    print(text)
    if arguments.out:
        arguments.out.write_text(text + "\n", encoding="utf-8")
    return int(any("error" in row.figures for row in rows))


def verified(name: str) -> dict[str, Any]:
    """The figures of one model, or its error; its files are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="featkit-zoo-") as folder:
        if name != ADOPTED:
            written = child("write", name, folder)
            if "error" in written:
                return written
        return child("adopt" if name == ADOPTED else "export", name, folder)


def gap_line(name: str, folder: str) -> str:
    """Return the result of `gap` as text."""
    found = child("gap", name, folder)
    return str(
        found.get(
            "line",
            f"{name}: the distance of the position rules was not measured: {found.get('error')}",
        )
    )


def child(work: str, name: str, folder: str) -> dict[str, Any]:
    """Run work in a subprocess and return the last line that it printed, as JSON, or an error as
    text."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", work, name, folder]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"{work} took more than {TIMEOUT_S} s"}
    if done.returncode:
        words = done.stderr.strip().splitlines()
        killed = (
            f"ended by signal {-done.returncode} (9: out of memory)" if done.returncode < 0 else ""
        )
        return {"error": killed or (words[-1] if words else f"ended with {done.returncode}")}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def table(rows: list[list[str]]) -> str:
    """Columns as wide as their widest cell."""
    whole = [row for row in rows if len(row) == len(COLUMNS)]
    widths = [max(len(row[place]) for row in whole) for place in range(len(COLUMNS))]
    widths[0] = max(len(row[0]) for row in rows)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    )


# In a child process; torch is imported here and not before.


def run_child(work: str, name: str, folder: Path) -> dict[str, Any]:
    """Do one piece of work and say what was found."""
    from tests.torchvision_without_cuda import allow_torchvision

    allow_torchvision()
    return {"write": write, "export": export, "adopt": adopt, "gap": gap}[work](name, folder)


def row_of(name: str) -> tuple[Published, str]:
    """The row that is tried for a name, and a note where it is not the whole of it."""
    from tests.export.backbones import with_depth

    published = find_published(name)
    if published is None:
        raise SystemExit(f"{name} is not a published backbone")
    depth = SHORTENED.get(published.name)
    if depth is None:
        return published, ""
    return (
        with_depth(published, depth),
        f"{depth} of {published.arch['depth']} blocks: whole it needs more than 24 GB",
    )


def write(name: str, folder: Path) -> dict[str, Any]:
    """Draw the weights and write them as they are published."""
    from featkit_train.networks.borrowed import TimmModel
    from featkit_train.weights import write_tensors
    from tests.export.backbones import draw_weights, drawn_published
    from tests.export.zoo_files import write_published

    if name.startswith("timm:"):
        body = TimmModel(name.removeprefix("timm:")).body
        draw_weights(body)
        write_tensors(folder / "model.safetensors", body.state_dict())
    else:
        published, _ = row_of(name)
        write_published(published, drawn_published(published).state_dict(), folder / "weights")
    return {}


def export(name: str, folder: Path) -> dict[str, Any]:
    """Load, export with every output, and measure."""
    from featkit.modelfile import OUTPUTS
    from featkit_export.export import export_backbone
    from featkit_export.recipe import Recipe
    from featkit_train.published.pretrained import load_pretrained, load_published

    times = {"start": time.perf_counter()}

    def begins(step: str) -> None:
        times.setdefault(step, time.perf_counter())

    note = ""
    if name.startswith("timm:"):
        backbone, info = load_pretrained(name, weights=folder / "model.safetensors")
    else:
        published, note = row_of(name)
        (weights,) = (
            [folder / "weights"]
            if (folder / "weights" / "config.json").is_file()
            else (folder / "weights").iterdir()
        )
        backbone, info = load_published(published, weights=weights)
    outputs = OUTPUTS if backbone.has_attention else OUTPUTS[:2]
    out = folder / "m.onnx"
    report = export_backbone(
        backbone,
        info,
        out,
        recipe=Recipe(outputs=outputs),
        on_step=begins,
    )
    external = report.manifest.external
    largest = max(report.comparisons, key=lambda case: case.height * case.width)
    bytes_of_file = out.stat().st_size + (external.num_bytes if external else 0)
    notes = [note, "external weights" if external else "", *report.remarks]
    return {
        "parameters": (
            f"{sum(parameter.numel() for parameter in backbone.parameters()) / 1e6:.1f} M"
        ),
        "file MB": f"{bytes_of_file / 1e6:.1f}",
        "load s": f"{times['tracing the graph'] - times['start']:.1f}",
        "trace s": f"{times['comparing it with torch'] - times['tracing the graph']:.1f}",
        "compare s": f"{times['writing'] - times['comparing it with torch']:.1f}",
        **_worst(report.manifest.parity, largest.height, largest.width),
        "note": "; ".join(filter(None, notes)),
    }


def adopt(name: str, folder: Path) -> dict[str, Any]:
    """A file of transformers' on its way into one of ours, without torch's part in it."""
    from featkit_export.adopt import AdoptOptions, adopt_file
    from tests.export.published import publish

    published = publish(folder / name.removeprefix("adopt:"), num_registers=4)
    started = time.perf_counter()
    report = adopt_file(published.folder, folder / "m.onnx", AdoptOptions(license="drawn"))
    largest = max(report.comparisons, key=lambda case: case.height * case.width)
    return {
        "parameters": (
            f"{sum(parameter.numel() for parameter in published.model.parameters()) / 1e6:.1f} M"
        ),
        "file MB": f"{(folder / 'm.onnx').stat().st_size / 1e6:.1f}",
        "load s": "-",
        "trace s": "-",
        "compare s": f"{time.perf_counter() - started:.1f}",
        **_worst(report.manifest.parity, largest.height, largest.width),
        "note": "an ONNX file made elsewhere",
    }


def _worst(parity: dict[str, float], height: int, width: int) -> dict[str, str]:
    return {
        "peak GB": f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f}",
        "cosine": f"{parity['min_cosine']:.7f}",
        "max abs": f"{parity['max_abs']:.1e}",
        "largest": f"{height}×{width}",
    }


def gap(name: str, _folder: Path) -> dict[str, Any]:
    """How far transformers and timm are from the official rule at 16 × 16 patches of a table of 37
    × 37."""
    from featkit_export.verify import draw_images
    from tests.export.backbones import drawn_published
    from tests.export.oracles import (
        class_token,
        cosines,
        normalized,
        timm_model,
        transformers_model,
    )

    published, _ = row_of(name)
    ours = drawn_published(published).state_dict()
    pixels = normalized(draw_images(4, height=224, width=224), published.geometry)
    official = class_token(transformers_model(published, ours, official=True), pixels)
    theirs = class_token(transformers_model(published, ours, official=False), pixels)
    timms = timm_model(published, ours)(pixels).detach().numpy()
    least = [
        f"{library} {cosines(found, official).min():.6f}"
        for library, found in (("transformers", theirs), ("timm", timms))
    ]
    return {
        "line": (
            f"{name} at 224×224, least cosine with the official position rule: {', '.join(least)}"
        )
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(run_child(sys.argv[2], sys.argv[3], Path(sys.argv[4]))))
    else:
        sys.exit(main())
