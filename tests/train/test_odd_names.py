"""A run whose folder and images have names that are not UTF-8 is trained, resumed, begun from,
reported and loaded."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

from featkit.modelfile import Manifest, read_manifest
from featkit.sources import open_source
from featkit_train.loop import train
from featkit_train.weights import load_backbone
from tests.images import draw_folder
from tests.model_files import make_model_file
from tests.train.small import small_config

ODD = os.fsdecode(b"d\xe9\n")


def test_a_run_of_an_odd_name_is_like_any_other(tmp_path: Path) -> None:
    images = draw_folder(tmp_path / ODD / os.fsdecode(b"p\xe9"), 24)
    (images / "000.jpg").rename(images / os.fsdecode(b"\xff.jpg"))
    source, run = open_source(images), tmp_path / ODD / os.fsdecode(b"r\xe9")
    train(small_config("run.steps=2"), [source], run)
    assert any(path.name.startswith("events") for path in run.iterdir())
    train(small_config("run.steps=2"), [source], run, resume=True)
    train(
        small_config("run.steps=1", f"init={json.dumps(str(run))}"),
        [source],
        tmp_path / ODD / "next",
    )
    _, info = load_backbone(run)
    assert info.origin["data"].endswith("d\\xe9\n/p\\xe9")
    assert (run / "report.html").read_text(encoding="utf-8")


def test_a_manifest_spells_out_names_that_are_no_text(tmp_path: Path) -> None:
    manifest = dataclasses.replace(
        read_manifest(make_model_file(tmp_path / "m.onnx")), origin={"file": ODD}
    )
    text = manifest.to_json()
    text.encode("utf-8")
    assert Manifest.from_json(text).origin == {"file": "d\\xe9\\n"}
