"""Engines compared on images: figures as a plain loop gives them, for runs that agree and for one
that does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featkit.embedder import Embedder
from featkit.evaluate.agreement import NUM_EDITS, compare_runs
from featkit.evaluate.edits import apply_edits, draw_compound, working_image
from featkit.evaluate.embedding import IMAGES_A_BLOCK
from featkit.images import decode
from featkit.sources import open_source, subset
from tests.featkit.backends.engines import OPENVINO_BF16, needs_bf16, needs_openvino
from tests.images import draw_folder
from tests.model_files import make_model_file
from tests.sentences import refused

COUNT = IMAGES_A_BLOCK + 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images`, COUNT of them and one that cannot be read, and a model file `m.onnx`."""
    folder = tmp_path_factory.mktemp("agreement")
    (draw_folder(folder / "images", COUNT) / "bad.jpg").write_bytes(b"no image")
    make_model_file(folder / "m.onnx")
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Embedder:
    """The model as ONNX Runtime runs it."""
    return Embedder(folder / "m.onnx", backend="onnxruntime", threads=1)


def test_a_run_agrees_with_itself(folder: Path, reference: Embedder) -> None:
    seen: list[tuple[int, int]] = []
    (found,), failures = compare_runs(
        open_source(folder / "images"),
        reference,
        [reference],
        on_progress=lambda done, failed: seen.append((done, failed)),
    )
    assert (found.run, found.num_images, found.holds) == (reference.run, COUNT, True)
    assert found.least_cosine == pytest.approx(1, abs=1e-6)
    assert (found.neighbors_changed, found.recall_lost) == (0, 0)
    assert failures == [("bad.jpg", "bad.jpg is not an image in a format that can be read.")]
    assert seen[0] == (IMAGES_A_BLOCK, 0)
    assert seen[-1] == (COUNT + 1, 1)


def test_figures_are_those_of_plain_loops(
    folder: Path, reference: Embedder, tmp_path: Path
) -> None:
    # far from the reference, so all figures move
    other = Embedder(make_model_file(tmp_path / "other.onnx", seed=1), threads=1)
    source = subset(open_source(folder / "images"), range(COUNT))
    (found,), _ = compare_runs(source, reference, [other], seed=3)
    gallery, changed = reference.embed([source.read(number) for number in range(COUNT)]), 0
    vectors = other.embed([source.read(number) for number in range(COUNT)])
    cosines = [float(a @ b) for a, b in zip(gallery, vectors, strict=True)]
    hits, hits_before = 0, 0
    for number in range(COUNT):
        nearest = [
            max((rows[number] @ rows[i], i) for i in range(COUNT) if i != number)[1]
            for rows in (gallery, vectors)
        ]
        changed += nearest[0] != nearest[1]
        original = working_image(decode(source.read(number), shorter_side=256).pixels)
        for edit in range(NUM_EDITS):
            edited = apply_edits(
                original, draw_compound(seed=3, key=source.key(number), number=edit)
            )
            image = reference.geometry.apply(np.asarray(edited))[None]
            hits += int((gallery @ other.infer(image)[0]).argmax()) == number
            hits_before += int((gallery @ reference.infer(image)[0]).argmax()) == number
    assert found.least_cosine == pytest.approx(min(cosines), abs=1e-6)
    assert found.mean_cosine == pytest.approx(np.mean(cosines), abs=1e-6)
    assert found.neighbors_changed == pytest.approx(changed / COUNT)
    assert found.recall_at_1 == pytest.approx(hits / COUNT / NUM_EDITS)
    assert found.recall_lost == pytest.approx((hits_before - hits) / COUNT / NUM_EDITS)
    assert found.recall_lost > 0.3
    assert not found.holds


@needs_openvino
def test_openvino_in_fp32_agrees(folder: Path, reference: Embedder) -> None:
    other = Embedder(folder / "m.onnx", backend="openvino", precision="fp32", threads=1)
    (found,), _ = compare_runs(open_source(folder / "images"), reference, [other])
    assert found.holds
    assert found.least_cosine > 1 - 1e-6
    assert found.recall_lost == 0


@needs_bf16
def test_several_runs_are_compared_in_one_pass(folder: Path, reference: Embedder) -> None:
    other = Embedder(folder / "m.onnx", precision="bf16", threads=1)
    source = open_source(folder / "images")
    both, _ = compare_runs(source, reference, [reference, other])
    assert [each.run for each in both] == [reference.run, OPENVINO_BF16]
    assert both[1] == compare_runs(source, reference, [other])[0][0]
    assert 0.99 < both[1].least_cosine < 1 - 1e-7


def test_one_image_is_not_enough(folder: Path, reference: Embedder) -> None:
    with refused("has 1 readable images; comparing runs takes at least 2."):
        compare_runs(subset(open_source(folder / "images"), [0, COUNT]), reference, [reference])
