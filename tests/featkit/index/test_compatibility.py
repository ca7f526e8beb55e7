"""Vectors in bf16 and float32 mix in an index only if that was proven."""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

from featkit.backends import Run
from featkit.backends import choosing as choosing_module
from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.errors import EnvironmentProblem
from featkit.index import Index, Proof
from featkit.index.compatibility import read_proofs, runs_agree, write_proofs
from featkit.pipeline import embed_source
from featkit.sources import open_source
from tests.featkit.backends.engines import (
    ONNXRUNTIME_FP32,
    OPENVINO_BF16,
    OPENVINO_FP32,
    needs_bf16,
    needs_openvino,
)
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file
from tests.sentences import refused

PROOF = Proof(
    backend="openvino",
    precision="bf16",
    num_images=9,
    least_cosine=0.9996,
    mean_cosine=0.9999,
    recall_lost=0.001,
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file."""
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


def embedded(folder: Path, model: Path, run: Run, *, count: int = 4) -> Embeddings:
    """Return an embeddings folder of `count` images, made by a run."""
    embedder = Embedder(model, backend=run.backend, precision=run.precision, threads=1)
    embed_source(open_source(draw_folder(folder / "images", count)), embedder, folder / "emb")
    return Embeddings.open(folder / "emb")


@pytest.mark.parametrize(
    ("own", "other", "alone", "proven"),
    [
        (ONNXRUNTIME_FP32, ONNXRUNTIME_FP32, True, True),
        (ONNXRUNTIME_FP32, OPENVINO_FP32, True, True),
        (OPENVINO_BF16, OPENVINO_BF16, True, True),
        (ONNXRUNTIME_FP32, OPENVINO_BF16, False, True),
        (OPENVINO_BF16, ONNXRUNTIME_FP32, False, True),
        (OPENVINO_BF16, OPENVINO_FP32, False, True),
        (Run("onnxruntime", "int8"), ONNXRUNTIME_FP32, True, True),
    ],
    ids=str,
)
def test_bf16_agrees_with_others_only_by_proof(
    own: Run, other: Run, alone: bool, proven: bool
) -> None:
    assert runs_agree(own, other, []) is alone
    assert runs_agree(own, other, [PROOF]) is proven


def test_proofs_round_trip_and_other_text_proves_nothing() -> None:
    assert read_proofs(write_proofs([PROOF])) == [PROOF]
    for text in ("", "[]", "{", "[3]", '[{"backend": "openvino"}]', "7"):
        assert read_proofs(text) == []


def test_an_index_records_the_run_of_its_vectors(model: Path, tmp_path: Path) -> None:
    with Index.create(tmp_path / "plain", model=model) as index:
        assert index.run == ONNXRUNTIME_FP32
    with Index.create(tmp_path / "coarse", model=model, run=OPENVINO_BF16) as index:
        assert index.run == OPENVINO_BF16
    with Index.open(tmp_path / "coarse") as index:
        assert (index.run, index.proofs) == (OPENVINO_BF16, [])


def test_an_old_index_was_made_by_onnxruntime_in_fp32(model: Path, tmp_path: Path) -> None:
    Index.create(tmp_path / "i", model=model).close()
    with sqlite3.connect(tmp_path / "i" / "catalogue.sqlite") as connection:
        assert connection.execute("DELETE FROM settings WHERE name = 'run'").rowcount == 1
    connection.close()
    with Index.open(tmp_path / "i") as index:
        assert index.run == ONNXRUNTIME_FP32
        assert index.embedder.run == ONNXRUNTIME_FP32


def test_proofs_are_stored_replaced_and_dropped(model: Path, tmp_path: Path) -> None:
    with Index.create(tmp_path / "i", model=model) as index:
        assert not index.accepts(OPENVINO_BF16)
        index.keep_proof(PROOF)
        assert index.accepts(OPENVINO_BF16)
    newer = Proof(**{**vars(PROOF), "num_images": 600})
    with Index.open(tmp_path / "i", writable=True) as index:
        assert index.proofs == [PROOF]
        index.keep_proof(newer)
        assert index.proofs == [newer]
        index.drop_proof(ONNXRUNTIME_FP32)
        assert index.proofs == [newer]
    with Index.open(tmp_path / "i", writable=True) as index:
        assert index.proofs == [newer]
        index.drop_proof(OPENVINO_BF16)
    with Index.open(tmp_path / "i") as index:
        assert index.proofs == []
        with pytest.raises(ValueError, match="open for reading only"):
            index.keep_proof(PROOF)


@needs_bf16
def test_bf16_embeddings_are_refused_until_proven(model: Path, tmp_path: Path) -> None:
    coarse = embedded(tmp_path, model, OPENVINO_BF16)
    with Index.create(tmp_path / "i", model=model) as index:
        with refused(
            coarse.path,
            f"was embedded by openvino bf16, but {tmp_path / 'i'} by onnxruntime fp32; prove that"
            " both give the same vectors with",
            f"featkit verify {tmp_path / 'i'} photos/ --backend openvino --precision bf16",
        ):
            index.add_embeddings(coarse)
        assert len(index) == 0
        index.keep_proof(PROOF)
        assert index.add_embeddings(coarse).num_added == 4


@needs_openvino
def test_fp32_embeddings_of_any_engine_are_accepted(model: Path, tmp_path: Path) -> None:
    folder = embedded(tmp_path, model, OPENVINO_FP32)
    with Index.create(tmp_path / "i", model=model) as index:
        assert index.add_embeddings(folder).num_added == 4
        assert [hit.key for hit in index.search(draw_image(2), k=1)] == ["002.jpg"]


@needs_bf16
def test_queries_use_the_precision_of_the_index(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Index.create(tmp_path / "coarse", model=model, run=OPENVINO_BF16).close()
    Index.create(tmp_path / "plain", model=model).close()
    for backend, precision in (("onnxruntime", "fp32"), ("openvino", "bf16"), ("", "")):
        monkeypatch.setenv("FEATKIT_BACKEND", backend)
        monkeypatch.setenv("FEATKIT_PRECISION", precision)
        monkeypatch.setenv("FEATKIT_CACHE", str(tmp_path / "cache"))
        with Index.open(tmp_path / "coarse") as coarse, Index.open(tmp_path / "plain") as plain:
            assert coarse.embedder.run == OPENVINO_BF16
            assert plain.embedder.run.precision == "fp32"


@needs_bf16
def test_a_proof_lets_auto_choose_the_faster_run(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEATKIT_BACKEND", "auto")
    monkeypatch.setenv("FEATKIT_PRECISION", "auto")
    fast = {OPENVINO_BF16: 9.0, OPENVINO_FP32: 2.0, ONNXRUNTIME_FP32: 3.0}
    figures = {
        run: choosing_module.Measured(images_per_s=rate, least_cosine=1.0)
        for run, rate in fast.items()
    }
    monkeypatch.setattr(
        choosing_module, "_remembered_or_measured", lambda *_arguments, **_options: figures
    )
    with Index.create(tmp_path / "i", model=model) as index:
        assert index.open_embedder().run == ONNXRUNTIME_FP32
        index.keep_proof(PROOF)
        assert index.open_embedder().run == OPENVINO_BF16


def test_an_index_in_bf16_names_what_is_missing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with Index.create(tmp_path / "i", model=model, run=OPENVINO_BF16) as index:
        index.add(["a"], np.eye(1, 16, dtype=np.float32))
        with refused(
            f"{tmp_path / 'i'} was made by openvino bf16, which does not run here; install"
            " featkit[openvino]",
            error=EnvironmentProblem,
        ):
            index.search(draw_image(0))
        assert len(index.search(item=0)) == 1  # needs no model
        index.keep_proof(PROOF)
        assert index.embedder.run == ONNXRUNTIME_FP32
        assert len(index.search(draw_image(0))) == 1
