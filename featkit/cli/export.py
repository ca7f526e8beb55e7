"""`featkit export`: a training run to one ONNX file, proven equal to it."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from featkit.cli.console import print_table, stdout
from featkit.cli.extras import need_extra


def export(
    run: Path,
    /,
    *,
    out: Path,
    feature: Literal["cls", "mean", "cls+mean"] = "cls",
    name: str | None = None,
    json_: bool = False,
) -> None:
    """Write the backbone of RUN as one ONNX file that takes uint8 pictures and gives unit vectors.

    Batch, height and width stay dynamic. The file is compared with torch at several sizes and batches and is not written
    when they disagree.

    Example: featkit export run/ --out m.onnx

    Parameters
    ----------
    run
        A run folder of `featkit train`, or a backbone.safetensors.
    out
        The model file to write.
    feature
        What a vector is made of: the class token, the mean of the patch tokens, or both side by side.
    name
        The model's name; by default the run's.
    json_
        Print the figures as JSON.
    """
    need_extra("export", "torch", "onnx", "onnxscript", "safetensors", engines=("onnxruntime",))
    from featkit_export.export import export_model

    report = export_model(run, out, feature=feature, name=name)
    manifest = report.manifest
    if json_:
        cases = [asdict(case) for case in report.comparisons]
        print(json.dumps({"out": str(out), "fingerprint": manifest.fingerprint, "comparisons": cases}))
        return
    rows = [
        (f"{case.batch} × {case.height}×{case.width}", f"{case.min_cosine:.7f}", f"{case.max_abs:.1e}")
        for case in report.comparisons
    ]
    print_table("Compared with torch", ("pictures", "least cosine", "largest difference"), rows)
    stdout().print(
        f"{out}: {manifest.name}, {manifest.width} numbers a picture, {out.stat().st_size / 1e6:.1f} MB, "
        f"fingerprint {manifest.fingerprint[:12]}."
    )
    stdout().print(f"Next: featkit embed pictures/ --model {out} --out emb/")
