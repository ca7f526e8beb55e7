"""`featkit verify`: figures and a verdict, as an exit code too, and a proof in the index that it
was asked about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from featkit.backends import Run
from featkit.evaluate import agreement
from featkit.index import Index
from tests.commands import is_one_sentence, run_featkit
from tests.featkit.backends.engines import OPENVINO_BF16, OPENVINO_FP32, needs_bf16, needs_openvino

BF16 = ("--backend", "openvino", "--precision", "bf16", "--quiet")
FP32 = ("--backend", "openvino", "--precision", "fp32", "--quiet")


@pytest.fixture
def index(model: Path, tmp_path: Path) -> Path:
    """An empty index of the model, whose vectors are ONNX Runtime's."""
    Index.create(tmp_path / "photos.index", model=model).close()
    return tmp_path / "photos.index"


@needs_openvino
def test_verify_prints_figures_and_that_they_agree(model: Path, images: Path) -> None:
    said = run_featkit("verify", model, images, *FP32)
    assert (said.code, said.error) == (0, "")
    lines = [line.rstrip() for line in said.out.splitlines()]
    assert lines[0] == "openvino fp32 compared with onnxruntime fp32 on 6 images"
    assert lines[-1].startswith("They agree: the least cosine is 1.000000, and 0.9995 is required.")
    figures = json.loads(run_featkit("verify", model, images, *FP32, "--json").out)
    assert (figures["run"], figures["reference"], figures["num_images"]) == (
        "openvino fp32",
        "onnxruntime fp32",
        6,
    )
    assert (figures["holds"], figures["kept"], figures["needed_cosine"]) == (
        True,
        False,
        agreement.LEAST_COSINE,
    )
    shown = {" ".join(line.split()[:-1]): line.split()[-1] for line in lines[1:-1] if line.split()}
    assert shown["copies found, openvino fp32"] == f"{figures['recall_at_1']:.4f}"
    assert shown["mean cosine"] == f"{figures['mean_cosine']:.6f}"
    assert shown["nearest neighbor changed"] == "0.00%"


@needs_bf16
def test_verify_of_an_index_keeps_the_proof_in_it(
    index: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "LEAST_COSINE", 0.9)
    said = run_featkit("verify", index, images, *BF16, "--json")
    assert (said.code, said.error) == (0, "")
    figures = json.loads(said.out)
    assert figures["kept"] is True
    with Index.open(index) as opened:
        (proof,) = opened.proofs
        assert opened.accepts(OPENVINO_BF16)
    assert proof.run == OPENVINO_BF16
    for name in ("num_images", "least_cosine", "mean_cosine", "recall_lost"):
        assert getattr(proof, name) == figures[name]
    text = run_featkit("verify", index, images, *BF16).out
    assert text.endswith(
        f"{index} may now be searched and extended by openvino bf16 as well as by onnxruntime"
        " fp32.\n"
    )


@needs_bf16
def test_disagreement_ends_with_1_and_drops_an_older_proof(
    index: Path, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreement, "LEAST_COSINE", 0.9)
    assert run_featkit("verify", index, images, *BF16).code == 0
    monkeypatch.setattr(agreement, "LEAST_COSINE", 1.1)
    said = run_featkit("verify", index, images, *BF16)
    assert (said.code, said.error) == (1, "")
    assert "They do not agree: the least cosine is 0.99" in said.out
    with Index.open(index) as opened:
        assert opened.proofs == []
    figures = json.loads(run_featkit("verify", index, images, *BF16, "--json").out)
    assert (figures["holds"], figures["kept"]) == (False, False)


@needs_openvino
def test_verify_respects_limit_and_lists_unreadable_images(
    model: Path, images: Path, tmp_path: Path
) -> None:
    for number, file in enumerate(sorted(images.iterdir())):
        (tmp_path / f"{number}.jpg").write_bytes(file.read_bytes() if number != 3 else b"no image")
    figures = json.loads(
        run_featkit("verify", model, tmp_path, *FP32, "--limit", "3", "--json").out
    )
    assert (figures["num_images"], figures["failures"]) == (3, [])
    said = run_featkit("verify", model, tmp_path, *FP32)
    assert "on 5 images" in said.out
    assert "3.jpg is not an image in a format that can be read." in said.out


def test_what_cannot_be_compared_is_one_sentence(model: Path, images: Path, tmp_path: Path) -> None:
    for arguments, code, words in (
        ((model, images, "--limit", "1"), 2, "--limit is 1; it has to be 2 or more."),
        ((model, tmp_path / "none"), 2, "none does not exist"),
        ((tmp_path / "none.onnx", images), 2, "none.onnx does not exist"),
        (
            (model, images, "--backend", "onnxruntime"),
            2,
            "onnxruntime computes test-0 in fp32, not in bf16",
        ),
        (
            (model, images, "--backend", "tensorrt", "--precision", "fp32"),
            3,
            "TensorRT does not work here",
        ),
    ):
        said = run_featkit("verify", *arguments, "--quiet")
        assert said.code == code, said
        assert is_one_sentence(said)
        assert words in said.error


@needs_openvino
def test_fp32_needs_no_proof_but_may_have_one(index: Path, images: Path) -> None:
    assert run_featkit("verify", index, images, *FP32).code == 0
    with Index.open(index) as opened:
        assert [proof.run for proof in opened.proofs] == [OPENVINO_FP32]
        assert not opened.accepts(OPENVINO_BF16)
        assert opened.accepts(Run("onnxruntime", "fp32"))
