"""Promises of a lower precision: what is written was measured, what costs quality or gains no speed
is not written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from featkit.backends import Run, offered_runs, reference_run
from featkit.embedder import Embedder
from featkit.evaluate.agreement import Agreement, compare_runs
from featkit.modelfile import Manifest, read_manifest
from featkit.sources import open_source
from featkit_export import precision
from featkit_export.int8 import quantizable_nodes, quantize_static
from featkit_export.original import load_onnx
from featkit_export.precision import MAX_RECALL_LOST, PROVEN_COSINE, GateError, lower
from featkit_export.seal import seal
from tests.export.backbones import file_of
from tests.images import draw_folder
from tests.model_files import make_model_file
from tests.sentences import refused

NUM_IMAGES = 10
ORT_INT8, ORT_FP32 = Run("onnxruntime", "int8"), Run("onnxruntime", "fp32")
FULL = "dinov2"


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn images, and a file that is not an image."""
    folder = draw_folder(
        tmp_path_factory.mktemp("photographs") / "p", NUM_IMAGES, height=120, width=160
    )
    (folder / "005-broken.jpg").write_text("no image")
    return folder


@pytest.fixture
def full() -> Path:
    return file_of(FULL)[0]


def run_in_onnxruntime_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offer only ONNX Runtime, which makes an attempt quick."""
    monkeypatch.setattr(precision, "offered_runs", lambda manifest: [reference_run(manifest)])
    monkeypatch.setattr(precision, "GATE_QUERIES", 20)


@pytest.fixture
def is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """int8 is measured to be twice as fast."""
    run_in_onnxruntime_alone(monkeypatch)
    pretend_rates(monkeypatch, lambda run: 40.0 if run.precision == "int8" else 20.0)


def pretend_rates(monkeypatch: pytest.MonkeyPatch, rate: Callable[[Run], float]) -> None:
    def measured(
        embedders: Mapping[Run, Embedder], _images: np.ndarray, **_options: Any
    ) -> dict[Run, float]:
        return {run: rate(run) for run in embedders}

    monkeypatch.setattr(precision, "images_per_second", measured)


def pretend_losses(monkeypatch: pytest.MonkeyPatch, *found: Mapping[str, float]) -> None:
    """Replace the measured agreements by these in turn; the last one repeats."""
    left = list(found)

    def compared(
        _source: object, _reference: Embedder, others: Sequence[Embedder], **_options: Any
    ) -> tuple[list[Agreement], list[Any]]:
        figures = left.pop(0) if len(left) > 1 else left[0]
        defaults = {
            "least_cosine": 0.9997,
            "mean_cosine": 0.9999,
            "neighbors_changed": 0.0,
            "recall_at_1": 0.9,
        }
        defaults |= {"recall_lost": 0.0, "recall_lost_at_most": 0.0}
        return [
            Agreement(run=others[0].run, num_images=10, num_queries=20, **{**defaults, **figures})
        ], []

    monkeypatch.setattr(precision, "compare_runs", compared)


LOST = {"recall_lost": 0.0213, "recall_lost_at_most": 0.0347}
HELD = {"recall_lost": 0.001, "recall_lost_at_most": MAX_RECALL_LOST}


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], onnx.ModelProto]]:
    """Every graph that is made: what was left in float, and the graph."""
    made: list[tuple[list[str], onnx.ModelProto]] = []

    def noted(
        model: onnx.ModelProto, ranges: Any, *, keep_float: Sequence[str] = ()
    ) -> onnx.ModelProto:
        lowered = quantize_static(model, ranges, keep_float=keep_float)
        made.append((list(keep_float), lowered))
        return lowered

    monkeypatch.setattr(precision, "quantize_static", noted)
    return made


# int8 that holds ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("is_fast")
def test_int8_file_holds_the_figures_of_its_gate(
    full: Path, photographs: Path, tmp_path: Path
) -> None:
    steps: list[str] = []
    out = tmp_path / "new" / "m8.onnx"
    manifest = lower(
        full, out, precision="int8", images=photographs, name="small", on_step=steps.append
    )
    before = read_manifest(full)
    assert read_manifest(out) == manifest
    assert list(out.parent.iterdir()) == [out]
    assert (manifest.precision, manifest.name) == ("int8", "small")
    assert manifest.fingerprint != before.fingerprint
    assert (manifest.origin, manifest.license, manifest.geometry) == (
        before.origin,
        before.license,
        before.geometry,
    )
    figures = manifest.quantization
    assert figures["images_per_s"] == {"onnxruntime fp32": 20.0, "onnxruntime int8": 40.0}
    assert (figures["speedup"], figures["kept_in_float"]) == (2.0, [])
    assert (figures["calibrated_on"], figures["num_queries"]) == (f"{NUM_IMAGES} images", 20)
    assert figures["recall_lost_at_most"] <= MAX_RECALL_LOST
    reference, ours = Embedder(full, backend="onnxruntime"), Embedder(out, backend="onnxruntime")
    (agreement,), failures = compare_runs(open_source(photographs), reference, [ours], num_edits=2)
    assert len(failures) == 1
    for name in ("least_cosine", "mean_cosine", "recall_lost"):
        assert figures[name] == pytest.approx(getattr(agreement, name), abs=1e-6)
    assert 0.99 < figures["least_cosine"] < 1
    assert manifest.proven_equal_to == (
        (before.fingerprint,) if figures["least_cosine"] >= PROVEN_COSINE else ()
    )
    assert steps == [
        "calibrating on 11 images",
        "timing it against fp32 and bf16",
        "searching edited copies with it",
    ]
    assert sum(node.op_type == "QuantizeLinear" for node in onnx.load(out).graph.node) == 8


@pytest.mark.usefixtures("is_fast")
def test_the_same_images_give_the_same_file(full: Path, photographs: Path, tmp_path: Path) -> None:
    first, second = (
        lower(full, tmp_path / name, precision="int8", images=photographs)
        for name in ("a.onnx", "b.onnx")
    )
    assert first == second
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("least", "is_proven"), [(PROVEN_COSINE, True), (PROVEN_COSINE - 1e-6, False)]
)
@pytest.mark.usefixtures("is_fast")
def test_files_are_equal_from_the_bound_on(
    full: Path,
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    least: float,
    is_proven: bool,
) -> None:
    pretend_losses(monkeypatch, {"least_cosine": least})
    manifest = lower(full, tmp_path / "m8.onnx", precision="int8", images=photographs)
    assert manifest.proven_equal_to == ((read_manifest(full).fingerprint,) if is_proven else ())


@pytest.mark.usefixtures("is_fast")
def test_what_the_full_file_was_equal_to_is_not_passed_on(tmp_path: Path) -> None:
    """Two steps of a cosine each could add up to more than the bound."""
    path, _ = file_of(FULL)
    seal(
        load_onnx(path),
        dataclasses.replace(read_manifest(path), proven_equal_to=("f" * 64,)),
        tmp_path / "m.onnx",
    )
    manifest = lower(tmp_path / "m.onnx", tmp_path / "h.onnx", precision="fp16")
    assert manifest.proven_equal_to == (read_manifest(path).fingerprint,)


@pytest.mark.usefixtures("is_fast")
def test_a_file_whose_nodes_have_no_names_can_be_lowered(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model_file(tmp_path / "m.onnx")
    assert all(not node.name for node in onnx.load(model).graph.node)
    pretend_losses(monkeypatch, HELD)
    manifest = lower(model, tmp_path / "m8.onnx", precision="int8", images=photographs)
    assert manifest.precision == "int8"
    vectors = Embedder(tmp_path / "m8.onnx", backend="onnxruntime").embed(
        sorted(photographs.glob("00[0-3].jpg"))
    )
    expected = Embedder(model, backend="onnxruntime").embed(sorted(photographs.glob("00[0-3].jpg")))
    assert np.einsum("nd,nd->n", vectors, expected).min() > 0.99


def test_every_session_of_both_files_is_timed(
    full: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed: list[list[Run]] = []

    def measured(
        embedders: Mapping[Run, Embedder], images: np.ndarray, **options: Any
    ) -> dict[Run, float]:
        assert images.shape == (NUM_IMAGES, 56, 56, 3)
        assert {embedder.threads for embedder in embedders.values()} == {1}
        assert {run: embedder.run for run, embedder in embedders.items()} == {
            run: run for run in embedders
        }
        assert all(
            (run.precision == "int8") == (embedder.manifest.precision == "int8")
            for run, embedder in embedders.items()
        )
        assert options["rounds"] == precision.TIMED_ROUNDS
        timed.append(list(embedders))
        return {run: 1.0 + (run.precision == "int8") for run in embedders}

    monkeypatch.setattr(precision, "images_per_second", measured)
    pretend_losses(monkeypatch, HELD)
    manifest = lower(full, tmp_path / "m8.onnx", precision="int8", images=photographs)
    (runs,) = timed
    assert runs == [*offered_runs(read_manifest(full)), *offered_runs(manifest)]
    assert {ORT_FP32, ORT_INT8} <= set(runs)


# int8 that does not -------------------------------------------------------------------------------


@pytest.mark.usefixtures("is_fast")
def test_lost_quality_returns_products_to_float_then_refuses(
    full: Path,
    photographs: Path,
    tmp_path: Path,
    tries: list[tuple[list[str], onnx.ModelProto]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_losses(monkeypatch, LOST)
    out = tmp_path / "out" / "m8.onnx"
    words = (
        "int8 loses 2.13% of copy recall@1",
        "up to 3.47% at 95 % confidence",
        "0.5% is allowed",
        "2.00 times the speed",
    )
    with refused(*words, "with 7 products left in float; nothing was written", error=GateError):
        lower(full, out, precision="int8", images=photographs)
    assert list(out.parent.iterdir()) == []

    names = quantizable_nodes(load_onnx(full))
    assert tries[0][0] == []
    alone, later = tries[1:9], [kept for kept, _ in tries[9:]]
    assert [sorted(kept) for kept, _ in alone] == [sorted({*names} - {name}) for name in names]
    turned = {
        name: mean_cosine(full, model, photographs, tmp_path)
        for name, (_, model) in zip(names, alone, strict=True)
    }
    order = sorted(names, key=lambda name: turned[name])
    assert len({round(value, 7) for value in turned.values()}) > 4  # so that there is an order
    assert later == [order[:count] for count in range(1, 8)]


def mean_cosine(full: Path, model: onnx.ModelProto, photographs: Path, folder: Path) -> float:
    """Return the mean cosine of the photos' vectors by the graph and by the full file."""
    manifest = dataclasses.replace(read_manifest(full), precision="int8")
    seal(model, manifest, folder / "measured" / "m.onnx")
    pictures = [path for path in sorted(photographs.iterdir()) if "broken" not in path.name]
    theirs, ours = (
        Embedder(path, backend="onnxruntime").embed(pictures)
        for path in (full, folder / "measured" / "m.onnx")
    )
    return float(np.einsum("nd,nd->n", theirs, ours, dtype=np.float64).mean())


@pytest.mark.usefixtures("is_fast")
def test_impossible_bound_refuses_by_the_real_comparison(
    full: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "MAX_RECALL_LOST", -1.01)
    with refused("of copy recall@1", "nothing was written", error=GateError):
        lower(full, tmp_path / "m8.onnx", precision="int8", images=photographs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("is_fast")
def test_products_back_in_float_are_listed_in_the_manifest(
    full: Path,
    photographs: Path,
    tmp_path: Path,
    tries: list[tuple[list[str], onnx.ModelProto]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pretend_losses(monkeypatch, LOST, LOST, HELD)
    steps: list[str] = []
    manifest = lower(
        full, tmp_path / "m8.onnx", precision="int8", images=photographs, on_step=steps.append
    )
    kept = manifest.quantization["kept_in_float"]
    assert len(kept) == 2
    assert [found for found, _ in tries][-2:] == [kept[:1], kept]
    assert manifest.quantization["recall_lost_at_most"] == MAX_RECALL_LOST
    graph = onnx.load(tmp_path / "m8.onnx").graph
    floats = {
        tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT
    }
    assert {
        node.name for node in graph.node if node.name in kept and node.input[1] in floats
    } == set(kept)
    assert sum(node.op_type == "QuantizeLinear" for node in graph.node) == 6
    assert steps[3:] == [
        "measuring which products lose most",
        "timing it against fp32 and bf16 with 1 product left in float",
        "searching edited copies with it",
        "timing it against fp32 and bf16 with 2 products left in float",
        "searching edited copies with it",
    ]


@pytest.mark.parametrize("rate", [20.0, 12.5])
def test_int8_that_is_not_faster_is_refused_with_both_rates(
    full: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    run_in_onnxruntime_alone(monkeypatch)
    pretend_rates(monkeypatch, lambda run: rate if run.precision == "int8" else 20.0)
    words = (
        f"int8 is not faster on this machine: {rate} images/s by onnxruntime int8",
        "20.0 by onnxruntime fp32",
        "nothing was written",
    )
    with refused(*words, error=GateError):
        lower(full, tmp_path / "out" / "m8.onnx", precision="int8", images=photographs)
    assert list((tmp_path / "out").iterdir()) == []


def test_speed_is_compared_with_the_fastest_full_run(
    full: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates = {ORT_FP32: 10.0, Run("openvino", "bf16"): 31.0, ORT_INT8: 30.0}
    monkeypatch.setattr(precision, "images_per_second", lambda *_, **__: rates)
    with refused("30.0 images/s by onnxruntime int8", "31.0 by openvino bf16", error=GateError):
        lower(full, tmp_path / "m8.onnx", precision="int8", images=photographs)


def test_speed_lost_on_the_way_to_float_is_refused(
    full: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_in_onnxruntime_alone(monkeypatch)
    gains = iter([40.0, 25.0, 19.0])
    pretend_rates(monkeypatch, lambda run: next(gains) if run.precision == "int8" else 20.0)
    pretend_losses(monkeypatch, LOST)
    with refused(
        "int8 is not faster on this machine: 19.0 images/s",
        "with 2 products left in float; nothing was",
        error=GateError,
    ):
        lower(full, tmp_path / "m8.onnx", precision="int8", images=photographs)
    assert list(tmp_path.iterdir()) == []


# What cannot be lowered ---------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["fp16", "int8"])
def test_a_file_in_a_lower_precision_is_refused(
    full: Path, photographs: Path, tmp_path: Path, wanted: Any
) -> None:
    lower(full, tmp_path / "half.onnx", precision="fp16")
    with refused(f"{tmp_path}/half.onnx is already in fp16; convert the fp32 file"):
        lower(tmp_path / "half.onnx", tmp_path / "m.onnx", precision=wanted, images=photographs)
    assert [path.name for path in tmp_path.iterdir()] == ["half.onnx"]


def test_images_of_which_none_can_be_read_are_refused(full: Path, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    for name in ("a.jpg", "b.png"):
        (tmp_path / "p" / name).write_text("no image")
    with refused(tmp_path / "p", "has no image that can be read"):
        lower(full, tmp_path / "out" / "m8.onnx", precision="int8", images=tmp_path / "p")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_without_images_is_refused(full: Path, tmp_path: Path) -> None:
    (tmp_path / "p").mkdir()
    with refused(tmp_path / "p"):
        lower(full, tmp_path / "m8.onnx", precision="int8", images=tmp_path / "p")
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_a_file_without_products_by_weights_is_refused(
    full: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "quantizable_nodes", lambda _model: [])
    with refused(f"{full} has no matrix product that int8 would speed up; use it in fp32."):
        lower(full, tmp_path / "m8.onnx", precision="int8", images=photographs)


def test_more_weights_than_a_graph_holds_are_refused_in_int8(
    full: Path, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "MAX_INLINE_BYTES", 10_000)
    with refused(full, "more than 2 GB of weights", "use --precision fp16"):
        lower(full, tmp_path / "m8.onnx", precision="int8", images=photographs)


@pytest.mark.usefixtures("is_fast")
def test_the_manifest_can_be_read_back_whole(full: Path, photographs: Path, tmp_path: Path) -> None:
    manifest = lower(full, tmp_path / "m8.onnx", precision="int8", images=photographs)
    assert Manifest.from_json(manifest.to_json()) == manifest
