"""Promises of a whitening that an export fits to images and folds into its graph.

Its vectors are joined stages of a convolutional network, in every engine, size and precision.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.modelfile import read_manifest
from featkit.pipeline import embed_source
from featkit.sources import open_source
from featkit.whitening import Whitening, fit_whitening
from featkit_export.half_proof import MIN_HALF_COSINE
from featkit_export.int8 import quantizable_nodes
from featkit_export.precision import lower
from featkit_export.report import ExportReport
from featkit_export.request import ExportRequest, export
from featkit_export.verify import Parity, ParityError, compare, draw_images
from tests.commands import run_featkit
from tests.export.backbones import make_run
from tests.export.test_stages import WIDTHS, defined, run, stages_of
from tests.images import draw_folder
from tests.sentences import refused

__all__ = ["run"]  # a fixture
NUM_IMAGES, DIM, LAYERS = 60, 12, (2, 3, 4)
SIZES = ((5, 32, 32), (2, 40, 24), (1, 8, 72))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images, one of them broken."""
    folder = tmp_path_factory.mktemp("whitening") / "photos"
    draw_folder(folder, NUM_IMAGES)
    (folder / "010-broken.jpg").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def whitened(run: Path, photos: Path) -> tuple[Path, ExportReport, list[str]]:
    """The file of one command, its report, and the steps that it reported."""
    out, steps = run.parent / "white.onnx", list[str]()
    request = ExportRequest(
        source=str(run), out=out, feature="gem", layers=LAYERS, whiten_on=photos, dim=DIM
    )
    return out, export(request, on_step=steps.append), steps


@pytest.fixture(scope="module")
def statistics(run: Path, photos: Path) -> Whitening:
    """Fit by the separate commands: export, embed, whiten."""
    plain, folder = run.parent / "plain.onnx", run.parent / "emb"
    export(ExportRequest(source=str(run), out=plain, feature="gem", layers=LAYERS))
    embed_source(
        open_source(photos),
        Embedder(plain, backend="onnxruntime", precision="fp32", threads=1),
        folder,
    )
    _, vectors = Embeddings.open(folder).read()
    return fit_whitening([vectors], dim=DIM, model=read_manifest(plain).made_of)


def expected(run: Path, images: np.ndarray, statistics: Whitening) -> np.ndarray:
    """The vectors by the definition of the feature and of the whitening."""
    return statistics.apply(defined(stages_of(run, images), "gem", LAYERS).astype(np.float32))


def test_one_command_gives_the_vectors_of_four(
    run: Path, whitened: tuple[Path, ExportReport, list[str]], statistics: Whitening
) -> None:
    out, report, _ = whitened
    assert all(case.holds for case in report.comparisons)
    embedder = Embedder(out, backend="onnxruntime")
    assert (embedder.width, embedder.manifest.fixed_size) == (DIM, None)
    for count, height, width in SIZES:
        images = draw_images(count, height=height, width=width)
        found = embedder.infer(images)
        np.testing.assert_allclose(found, expected(run, images, statistics), atol=1e-4)
        alone = np.concatenate([embedder.infer(image[None]) for image in images])
        np.testing.assert_allclose(found, alone, atol=2e-6)


def test_openvino_gives_the_whitened_vectors_too(
    run: Path, whitened: tuple[Path, ExportReport, list[str]], statistics: Whitening
) -> None:
    embedder = Embedder(whitened[0], backend="openvino", precision="fp32")
    for count, height, width in SIZES:
        images = draw_images(count, height=height, width=width)
        np.testing.assert_allclose(
            embedder.infer(images), expected(run, images, statistics), atol=1e-4
        )


def test_manifest_and_report_tell_what_was_fitted(
    whitened: tuple[Path, ExportReport, list[str]], statistics: Whitening, photos: Path
) -> None:
    out, report, steps = whitened
    assert read_manifest(out).whitened == statistics.about
    assert statistics.num_vectors == NUM_IMAGES
    (remark,) = report.remarks
    assert remark.startswith(
        f"The whitening was fitted to 60 of 61 images in {photos} and keeps"
        f" {statistics.explained:.1%} of their variance; 1 could not be read, the first of them"
        " 010-broken.jpg: "
    )
    assert steps == [
        "reading the weights",
        *("tracing the graph", "comparing it with torch", "writing"),
        "fitting the whitening to 61 images",
        *("tracing the graph", "comparing it with torch", "writing"),
    ]
    assert [path.name for path in out.parent.glob("white.onnx*")] == ["white.onnx"]


def test_progress_tells_images_rate_and_time_left(
    run: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("featkit_export.whitening_images.PROGRESS_INTERVAL_S", 0.0)
    steps: list[str] = []
    request = ExportRequest(
        source=str(run), out=tmp_path / "m.onnx", whiten_on=photos, dim=4, power=0.5
    )
    report = export(request, on_step=steps.append)
    shown = [step for step in steps if step.startswith("fitting the whitening: ")]
    assert [step.split(" images")[0].split(": ")[1] for step in shown] == ["32 of 61", "61 of 61"]
    assert "1 failed" in shown[-1]
    assert shown[-1].endswith("0 s left")
    assert report.manifest.whitened.endswith("of the variance kept, power 0.5")
    assert report.manifest.width == 4


def test_each_layer_is_whitened_on_its_own(run: Path, photos: Path, tmp_path: Path) -> None:
    out, layers = tmp_path / "each.onnx", (2, 3)
    request = ExportRequest(
        source=str(run),
        out=out,
        feature="cls+gem",
        layers=layers,
        whiten_on=photos,
        dim=40,
        power=0.75,
        each_layer=True,
    )
    report = export(request)
    assert report.manifest.width == 40
    assert report.manifest.whitened.endswith("2 layers each on its own")
    plain, folder = tmp_path / "plain.onnx", tmp_path / "emb"
    export(
        dataclasses.replace(
            request, out=plain, whiten_on=None, dim=None, power=None, each_layer=False
        )
    )
    embed_source(open_source(photos), Embedder(plain, backend="onnxruntime"), folder)
    _, learned = Embeddings.open(folder).read()
    parts = tuple(2 * WIDTHS[layer - 1] for layer in layers)
    found = fit_whitening([learned], dim=40, model="", power=0.75, parts=parts)
    images = draw_images(3, height=40, width=24)
    wanted = found.apply(defined(stages_of(run, images), "cls+gem", layers).astype(np.float32))
    np.testing.assert_allclose(Embedder(out).infer(images), wanted, atol=1e-4)


def test_whitened_stages_hold_in_half_precision(
    run: Path,
    whitened: tuple[Path, ExportReport, list[str]],
    statistics: Whitening,
    tmp_path: Path,
) -> None:
    manifest = lower(whitened[0], tmp_path / "half.onnx", precision="fp16")
    assert manifest.quantization["least_cosine"] > MIN_HALF_COSINE
    assert manifest.whitened == statistics.about
    images = draw_images(3, height=40, width=24)
    found = Embedder(tmp_path / "half.onnx").infer(images)
    cosines = (found * expected(run, images, statistics)).sum(axis=1)
    assert cosines.min() > MIN_HALF_COSINE


def test_the_product_of_a_whitening_stays_out_of_int8(
    whitened: tuple[Path, ExportReport, list[str]], photos: Path, tmp_path: Path
) -> None:
    with refused("has no matrix product that int8 would speed up; use it in fp32"):
        lower(whitened[0], tmp_path / "m8.onnx", precision="int8", images=photos)
    vit = make_run(tmp_path / "vit")
    for name, images in (("plain", None), ("white", photos)):
        export(
            ExportRequest(
                source=str(vit),
                out=tmp_path / f"{name}.onnx",
                whiten_on=images,
                dim=None if images is None else 8,
            )
        )
    plain, white = (onnx.load(tmp_path / f"{name}.onnx") for name in ("plain", "white"))
    products = [
        sum(node.op_type == "MatMul" for node in each.graph.node) for each in (plain, white)
    ]
    assert products[1] == products[0] + 1
    assert len(quantizable_nodes(plain)) == len(quantizable_nodes(white)) > 0


def test_images_that_cannot_fit_a_whitening_are_refused(
    run: Path, photos: Path, tmp_path: Path
) -> None:
    broken, few, out = tmp_path / "broken", tmp_path / "few", tmp_path / "out" / "m.onnx"
    for folder in (broken, few):
        folder.mkdir()
    for number in range(3):
        (broken / f"{number}.jpg").write_text("no image")
    draw_folder(few, 4)
    plain = ExportRequest(source=str(run), out=out)
    for images, dim, words in (
        (broken, 2, "None of the 3 images in"),
        (few, 4, "4 vectors cannot determine 4 directions; embed more images"),
        (photos, 25, "25 of 24 dimensions cannot be kept; use 1 to 24."),
        (photos, 0, "0 of 24 dimensions"),
    ):
        with refused(words):
            export(dataclasses.replace(plain, whiten_on=images, dim=dim))
    with refused("61 vectors cannot determine 128 directions"):
        export(dataclasses.replace(plain, whiten_on=photos))
    assert not out.parent.exists() or list(out.parent.iterdir()) == []


def test_a_failed_proof_of_a_whitened_file_says_what_to_do(
    run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def differ(*arguments: Any) -> list[Parity]:
        """Compare as always the first time, which is without whitening."""
        nonlocal calls
        calls += 1
        added = 1.0 if calls > 1 else 0.0
        return [
            dataclasses.replace(case, max_abs=case.max_abs + added) for case in compare(*arguments)
        ]

    monkeypatch.setattr("featkit_export.export.compare", differ)
    out = tmp_path / "m.onnx"
    with refused("Whitening amplifies rounding", "--dim", "--power", error=ParityError):
        export(ExportRequest(source=str(run), out=out, whiten_on=photos, dim=4))
    assert list(tmp_path.iterdir()) == []


def test_the_command_fits_and_folds_in_one_go(run: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    said = run_featkit(
        *("export", run, "--out", out, "--feature", "gem", "--layers", "2,3", "--dim", 6),
        *("--whiten-on", photos, "--power", "0.5", "--quiet"),
    )
    assert (said.code, said.error) == (0, "")
    manifest = read_manifest(out)
    assert f"The whitening was fitted to 60 of 61 images in {photos}" in said.out
    assert (manifest.width, manifest.layers) == (6, (2, 3))
    assert manifest.whitened.startswith("60 vectors, ")
    assert manifest.whitened.endswith(", power 0.5")
