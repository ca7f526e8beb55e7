"""`featkit bench`: a row for every engine that works here, and the limit of the machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from featkit.backends import offered_runs
from featkit.modelfile import read_manifest
from tests.commands import is_one_sentence, run_featkit
from tests.featkit.backends.engines import needs_openvino

QUICK = ("--seconds", "0.1", "--quiet")


def figures_of(*arguments: object) -> dict[str, Any]:
    """Return the JSON that the command prints."""
    said = run_featkit("bench", *arguments, *QUICK, "--json")
    assert (said.code, said.error) == (0, "")
    found: dict[str, Any] = json.loads(said.out)
    return found


def test_bench_has_a_row_for_every_run_that_works_here(model: Path, images: Path) -> None:
    found = figures_of(model, images)
    runs = {row["run"]: row for row in found["runs"]}
    assert {*map(str, offered_runs(read_manifest(model)))} <= set(runs)
    assert next(iter(runs)) == "onnxruntime fp32"
    for row in runs.values():
        assert row["images_per_s"] > 0
        assert 0.99 < row["least_cosine"] <= row["mean_cosine"] < 1.00001
        assert row["memory_bytes"] > 1e5
        assert -0.5 < row["recall_lost"] < 0.5
    assert runs["onnxruntime fp32"]["recall_lost"] == 0
    assert found["machine"]["matrix_flops"] > 1e8


@needs_openvino
def test_bench_says_how_far_the_limit_is(model: Path) -> None:
    found = figures_of(model)
    needed = 2 * (16 * 3 * 8 * 8 * 64 + 128 * 16)
    assert found["machine"]["operations_a_image"] == needed
    for row in found["runs"]:
        assert row["flops"] == pytest.approx(needed * row["images_per_s"])
        assert row["recall_lost"] is None
    said = run_featkit("bench", model, *QUICK)
    assert (said.code, said.error) == (0, "")
    assert "compared on drawn images" in said.out
    assert "An image needs 0.000 GFLOP: at the limit that is" in said.out
    assert "onnxruntime fp32" in said.out


def test_bench_without_openvino_says_what_would_count(
    model: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    said = run_featkit("bench", model, images, "--limit", "3", *QUICK)
    assert (said.code, said.error) == (0, "")
    assert "compared on up to 3 photos" in said.out
    row = next(
        line for line in said.out.splitlines() if line.startswith("onnxruntime fp32")
    ).split()
    assert row[3] == "–"
    assert said.out.endswith("pip install 'featkit[openvino]'.\n")


@needs_openvino
def test_a_run_that_does_not_load_is_left_out_with_the_reason(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from featkit.backends import openvino

    def reject(_model: Path) -> None:
        raise RuntimeError("Unsupported operator.")

    monkeypatch.setattr(openvino, "_read", reject)
    said = run_featkit("bench", model, *QUICK, "--json")
    assert said.code == 0
    assert [row["run"] for row in json.loads(said.out)["runs"]] == ["onnxruntime fp32"]
    assert (
        f"featkit: openvino fp32 is left out: {model} cannot be loaded by OpenVINO: Unsupported"
        " operator.\n" in said.error
    )


def test_what_cannot_be_timed_is_one_sentence(model: Path, images: Path, tmp_path: Path) -> None:
    for arguments, words in (
        ((model, "--seconds", "0"), "--seconds is 0; it has to be more than 0."),
        ((model, images, "--limit", "1"), "--limit is 1; it has to be 2 or more."),
        ((tmp_path / "none.onnx",), "none.onnx does not exist"),
        ((model, tmp_path / "none"), "none does not exist"),
    ):
        said = run_featkit("bench", *arguments)
        assert said.code == 2
        assert is_one_sentence(said)
        assert words in said.error
