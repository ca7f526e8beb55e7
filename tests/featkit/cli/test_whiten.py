"""The command `featkit whiten`: statistics of embeddings, and the model that gives whitened vectors
itself."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.modelfile import read_manifest
from featkit.whitening import Whitening, fit_whitening
from tests.commands import is_one_sentence, run_featkit
from tests.export.backbones import CONFIGS, make_run
from tests.images import draw_folder, draw_image

NUM_IMAGES, DIM = 40, 8
CONFIG = dataclasses.replace(CONFIGS["dino"], depth=1)  # a graph that is soon traced


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, its model file `m.onnx`, `emb` of 40 images and one broken file, and `w.npz` fitted
    to it by the command."""
    folder = tmp_path_factory.mktemp("whiten")
    draw_folder(folder / "p", NUM_IMAGES)
    (folder / "p" / "010-broken.jpg").write_text("no image")
    make_run(folder / "run", config=CONFIG)
    for command in (
        ("export", folder / "run", "--out", folder / "m.onnx", "--quiet"),
        ("embed", folder / "p", "--model", folder / "m.onnx", "--out", folder / "emb", "--quiet"),
    ):
        said = run_featkit(*command)
        assert said.code == 0, said
    said = run_featkit("whiten", folder / "emb", "--dim", DIM, "--out", folder / "w.npz")
    assert (said.code, said.error) == (0, "")
    (folder / "said.txt").write_text(said.out)
    return folder


@pytest.fixture(scope="module")
def whitened(folder: Path) -> Path:
    """The same run exported with the statistics."""
    said = run_featkit(
        "export",
        folder / "run",
        "--whiten",
        folder / "w.npz",
        "--out",
        folder / "white.onnx",
        "--quiet",
    )
    assert (said.code, said.error) == (0, "")
    return folder / "white.onnx"


def test_the_statistics_are_those_of_the_vectors_that_are_there(folder: Path) -> None:
    keys, vectors = Embeddings.open(folder / "emb").read()
    assert vectors.shape == (NUM_IMAGES, 48)
    assert "010-broken.jpg" not in keys
    manifest = read_manifest(folder / "m.onnx")
    expected, found = (
        fit_whitening([vectors], dim=DIM, model=manifest.made_of),
        Whitening.load(folder / "w.npz"),
    )
    np.testing.assert_allclose(found.mean, expected.mean, atol=1e-7)
    np.testing.assert_allclose(found.components, expected.components, rtol=1e-4, atol=1e-4)
    assert (found.num_vectors, found.model) == (NUM_IMAGES, expected.model)


def test_the_command_says_what_it_fitted_and_what_comes_next(folder: Path) -> None:
    explained = Whitening.load(folder / "w.npz").explained
    out = folder / "w.npz"
    assert 0 < explained < 1
    assert (folder / "said.txt").read_text().splitlines() == [
        (
            f"Wrote {out}: from 48 to 8 dimensions, fitted to 40 vectors of drawn, keeping"
            f" {explained:.1%} of their variance."
        ),
        f"Next: export drawn again with --whiten {out}, and embed with the new file.",
    ]


def test_json_holds_the_figures_and_the_file_is_the_same(folder: Path, tmp_path: Path) -> None:
    said = run_featkit(
        "whiten", folder / "emb", "--dim", DIM, "--out", tmp_path / "w.npz", "--json"
    )
    assert (said.code, said.error) == (0, "")
    explained = Whitening.load(folder / "w.npz").explained
    assert json.loads(said.out) == {
        "out": str(tmp_path / "w.npz"),
        "dim": DIM,
        "power": 1.0,
        "num_vectors": NUM_IMAGES,
        "explained": explained,
    }
    assert (tmp_path / "w.npz").read_bytes() == (folder / "w.npz").read_bytes()


def test_a_power_scales_the_directions_less(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "w.npz"
    said = run_featkit("whiten", folder / "emb", "--dim", DIM, "--power", "0.5", "--out", out)
    assert (said.code, said.error) == (0, "")
    half, full = Whitening.load(out), Whitening.load(folder / "w.npz")
    scales = np.linalg.norm(full.components, axis=1, keepdims=True)
    np.testing.assert_allclose(half.components * np.sqrt(scales), full.components, rtol=1e-4)
    assert (half.power, full.power) == (0.5, 1.0)
    said = run_featkit("whiten", folder / "emb", "--power", "1.5", "--out", tmp_path / "no.npz")
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert "A power of 1.5 is not between 0 and 1" in said.error


def test_the_exported_graph_whitens_as_the_statistics_do(folder: Path, whitened: Path) -> None:
    images = [draw_image(seed) for seed in (3, 500, 501)]
    plain, white = (Embedder(path).embed(images) for path in (folder / "m.onnx", whitened))
    expected = Whitening.load(folder / "w.npz").apply(plain)
    assert white.shape == (3, DIM)
    np.testing.assert_allclose(white, expected, atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, atol=1e-6)
    assert abs(float(white[0] @ white[1])) < 0.999


def test_the_whitened_file_says_so_and_is_another_model(folder: Path, whitened: Path) -> None:
    plain, white = read_manifest(folder / "m.onnx"), read_manifest(whitened)
    explained = Whitening.load(folder / "w.npz").explained
    assert (white.width, white.whitened) == (
        DIM,
        f"40 vectors, {explained:.1%} of the variance kept",
    )
    assert (plain.width, plain.whitened) == (48, "")
    assert white.fingerprint != plain.fingerprint


def test_statistics_of_another_model_or_feature_are_refused(folder: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", seed=1)
    out = tmp_path / "out" / "m.onnx"
    for arguments in ((other,), (folder / "run", "--feature", "mean")):
        said = run_featkit(
            "export", *arguments, "--whiten", folder / "w.npz", "--out", out, "--quiet"
        )
        assert (said.code, is_one_sentence(said)) == (2, True)
        assert "fitted to vectors of another model or feature" in said.error
        assert not out.exists()


def test_embeddings_that_are_whitened_already_are_refused(
    folder: Path, whitened: Path, tmp_path: Path
) -> None:
    """Their statistics would be taken for those of the plain vectors."""
    assert (
        run_featkit(
            "embed", folder / "p", "--model", whitened, "--out", tmp_path / "emb", "--quiet"
        ).code
        == 0
    )
    said = run_featkit("whiten", tmp_path / "emb", "--dim", 4, "--out", tmp_path / "w.npz")
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert "already whitens; embed with drawn exported without --whiten" in said.error
    assert not (tmp_path / "w.npz").exists()


@pytest.mark.parametrize(
    ("dim", "words"),
    [
        (40, "40 vectors cannot determine 40 directions"),
        (49, "49 of 48 dimensions cannot be kept; use 1 to 48."),
        (0, "0 of 48 dimensions cannot be kept"),
    ],
)
def test_impossible_dimensions_end_with_2_and_one_sentence(
    folder: Path, tmp_path: Path, dim: int, words: str
) -> None:
    said = run_featkit("whiten", folder / "emb", "--dim", dim, "--out", tmp_path / "w.npz")
    assert (said.code, is_one_sentence(said)) == (2, True)
    assert words in said.error
    assert list(tmp_path.iterdir()) == []


def test_other_folders_end_with_2_and_one_sentence(folder: Path, tmp_path: Path) -> None:
    for place in (folder / "p", folder / "missing"):
        said = run_featkit("whiten", place, "--out", tmp_path / "w.npz")
        assert (said.code, is_one_sentence(said)) == (2, True)
        assert str(place) in said.error
