"""PCA whitening: it equals PCA by SVD, for any blocks, and bad files are refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from featkit.whitening import FLOOR, FORMAT, Whitening, fit_whitening
from featkit.wording import counted
from tests.sentences import refused


def drawn_vectors(count: int = 400, width: int = 12, *, seed: int = 0) -> np.ndarray:
    """Return unit vectors (count, width) float32 with a different variance in each direction."""
    rng = np.random.default_rng(seed)
    values = (
        rng.standard_normal((count, width))
        * np.linspace(2, 0.2, width)
        @ rng.standard_normal((width, width))
        + 0.7
    )
    unit: np.ndarray = (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)
    return unit


def by_svd(vectors: np.ndarray, dim: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Return mean, components and share of the variance from an SVD instead of a covariance."""
    values = vectors.astype(np.float64)
    mean = values.mean(axis=0)
    _, singular, directions = np.linalg.svd(values - mean, full_matrices=False)
    deviations = singular / np.sqrt(len(values))
    kept = directions[:dim]
    kept = kept * np.sign(kept[np.arange(dim), np.abs(kept).argmax(axis=1)])[:, None]
    return (
        mean,
        kept / deviations[:dim, None],
        float((deviations[:dim] ** 2).sum() / (deviations**2).sum()),
    )


@pytest.mark.parametrize("dim", [1, 5, 12])
def test_fit_equals_pca_by_svd(dim: int) -> None:
    vectors = drawn_vectors()
    found = fit_whitening([vectors], dim=dim, model="m")
    mean, components, explained = by_svd(vectors, dim)
    np.testing.assert_allclose(found.mean, mean, atol=1e-7)
    np.testing.assert_allclose(found.components, components, rtol=1e-4, atol=1e-4)
    assert found.explained == pytest.approx(explained, rel=1e-9)
    assert (found.num_vectors, found.model) == (400, "m")
    assert found.mean.dtype == found.components.dtype == np.dtype(np.float32)


def test_full_power_equals_whitening_of_scikit_learn() -> None:
    vectors = drawn_vectors()
    found = fit_whitening([vectors], dim=7, model="m").apply(vectors)
    oracle = PCA(n_components=7, whiten=True, svd_solver="full").fit(vectors.astype(np.float64))
    expected = oracle.transform(vectors.astype(np.float64))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    signs = np.sign((found * expected).sum(axis=0))  # a direction has no definite sign
    np.testing.assert_allclose(found, expected * signs, atol=2e-5)


@pytest.mark.parametrize("power", [0, 0.25, 0.5, 1.0])
def test_power_scales_each_direction_by_its_variance(power: float) -> None:
    vectors = drawn_vectors()
    found = fit_whitening([vectors], dim=7, model="m", power=power)
    oracle = PCA(n_components=7, svd_solver="full").fit(vectors.astype(np.float64))
    variances = oracle.explained_variance_ * 399 / 400  # of n vectors, not n - 1
    for row, direction, variance in zip(
        found.components, oracle.components_, variances, strict=True
    ):
        expected = direction / np.sqrt(variance) ** power
        sign = np.sign(row @ expected)
        np.testing.assert_allclose(row, sign * expected, rtol=2e-4, atol=2e-5)
    assert found.power == power


def test_power_of_zero_keeps_all_distances_of_centered_vectors() -> None:
    vectors = drawn_vectors()
    found = fit_whitening([vectors], dim=12, model="m", power=0)
    centered = vectors - found.mean
    centered /= np.linalg.norm(centered, axis=1, keepdims=True)
    turned = found.apply(vectors)
    np.testing.assert_allclose(turned @ turned.T, centered @ centered.T, atol=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_parts_are_each_whitened_to_the_same_variance(power: float) -> None:
    narrow, wide = drawn_vectors(width=5, seed=1), 3 * drawn_vectors(width=9, seed=2)
    vectors = np.concatenate([narrow, wide], axis=1)
    found = fit_whitening([vectors], dim=14, model="m", power=power, parts=(5, 9))
    parts = []
    for part in (narrow, wide):
        oracle = PCA(svd_solver="full").fit(part.astype(np.float64))
        whitened = oracle.transform(part) / oracle.explained_variance_ ** (power / 2)
        parts.append(whitened / np.sqrt((whitened**2).sum(axis=1).mean()))
    expected = np.concatenate(parts, axis=1)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    gram = found.apply(vectors) @ found.apply(vectors).T
    np.testing.assert_allclose(gram, expected @ expected.T, atol=1e-4)
    assert found.explained == pytest.approx(1)


def test_fewer_dimensions_of_parts_are_the_first() -> None:
    vectors = np.concatenate([drawn_vectors(width=6, seed=seed) for seed in (1, 2)], axis=1)
    whole, short = (
        fit_whitening([vectors], dim=dim, model="m", power=0.75, parts=(6, 6)) for dim in (12, 4)
    )
    np.testing.assert_allclose(short.components, whole.components[:4], rtol=1e-4, atol=1e-5)
    assert 0.3 < short.explained < 1
    projected = (vectors - whole.mean) @ whole.components.T
    variances = projected.var(axis=0)
    assert (np.diff(variances) <= 1e-6).all()
    assert short.explained == pytest.approx(variances[:4].sum() / variances.sum(), rel=1e-4)


def test_parts_of_another_width_are_refused() -> None:
    with refused("Parts of 5, 8 dimensions are not the 12 of a vector"):
        fit_whitening([drawn_vectors()], dim=5, model="m", parts=(5, 8))


def test_equal_vectors_are_refused() -> None:
    vectors = drawn_vectors()
    vectors[:, :4] = 0.25
    fit_whitening([vectors], dim=5, model="m")
    with refused("The vectors are all equal, in one layer at least"):
        fit_whitening([vectors], dim=5, model="m", parts=(4, 8))
    with refused("The vectors are all equal"):
        fit_whitening([vectors[:, :4]], dim=2, model="m")


def test_a_file_keeps_the_parts(tmp_path: Path) -> None:
    path = tmp_path / "parts.npz"
    fit_whitening([drawn_vectors()], dim=5, model="m", parts=(4, 8)).save(path)
    assert Whitening.load(path).parts == (4, 8)
    assert Whitening.load(path).about.endswith("of the variance kept, 2 layers each on its own")


@pytest.mark.parametrize("power", [-0.01, 1.01, float("nan"), float("inf")])
def test_power_outside_zero_to_one_is_refused(power: float) -> None:
    with refused(f"A power of {power:g} is not between 0 and 1"):
        fit_whitening([drawn_vectors()], dim=5, model="m", power=power)


def test_file_of_an_earlier_version_has_full_power(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    fit_whitening([drawn_vectors()], dim=5, model="m", power=0.5).save(path)
    assert Whitening.load(path).power == 0.5
    assert Whitening.load(path).about.endswith("% of the variance kept, power 0.5")
    with np.load(path) as arrays:
        values = {name: arrays[name] for name in arrays.files if name not in ("power", "parts")}
    np.savez(path, **values)
    assert Whitening.load(path).power == 1
    assert Whitening.load(path).about.endswith("% of the variance kept")


def test_whitened_dimensions_are_uncorrelated_with_variance_one() -> None:
    vectors = drawn_vectors()
    found = fit_whitening([vectors], dim=8, model="m")
    turned = (vectors.astype(np.float64) - found.mean) @ found.components.T.astype(np.float64)
    np.testing.assert_allclose(turned.T @ turned / len(turned), np.eye(8), atol=1e-4)
    applied = found.apply(vectors)
    np.testing.assert_allclose(
        applied, turned / np.linalg.norm(turned, axis=1, keepdims=True), atol=1e-5
    )
    assert applied.dtype == np.dtype(np.float32)
    assert applied.shape == (400, 8)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(cuts=st.lists(st.integers(0, 400), max_size=6))
def test_size_of_blocks_does_not_matter(cuts: list[int]) -> None:
    vectors = drawn_vectors()
    whole = fit_whitening([vectors], dim=6, model="m")
    parts = fit_whitening(iter(np.split(vectors, sorted(cuts))), dim=6, model="m")
    np.testing.assert_allclose(parts.components, whole.components, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(parts.mean, whole.mean, atol=1e-7)
    assert parts.num_vectors == 400


def test_equal_vectors_give_equal_bytes(
    tmp_path: Path,
) -> None:
    vectors = drawn_vectors()
    for name in ("a.npz", "b.npz"):
        fit_whitening([vectors], dim=6, model="m").save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    components = fit_whitening([vectors], dim=6, model="m").components
    assert (components[np.arange(6), np.abs(components).argmax(axis=1)] > 0).all()


def test_direction_without_variance_is_not_amplified() -> None:
    vectors = drawn_vectors()
    vectors[:, 3] = vectors[:, 2]  # one direction fewer
    found = fit_whitening([vectors], dim=12, model="m")
    assert np.isfinite(found.components).all()
    lengths = np.linalg.norm(found.components.astype(np.float64), axis=1)
    assert lengths[-1] == pytest.approx(lengths[0] / np.sqrt(FLOOR), rel=1e-3)


def test_too_many_dimensions_are_refused() -> None:
    for dim in (0, -1, 13):
        with refused(f"{dim} of 12 dimensions cannot be kept; use 1 to 12."):
            fit_whitening([drawn_vectors()], dim=dim, model="m")


@pytest.mark.parametrize("count", [1, 5, 8])
def test_too_few_vectors_are_refused(count: int) -> None:
    with refused(f"{counted(count, 'vector')} cannot determine 8 directions"):
        fit_whitening([drawn_vectors()[:count]], dim=8, model="m")
    fit_whitening([drawn_vectors()[:9]], dim=8, model="m")


def test_no_vectors_are_refused() -> None:
    for blocks in ([], [np.zeros((0, 12), np.float32)]):
        with refused("There are no vectors to fit a whitening to; embed images first."):
            fit_whitening(blocks, dim=8, model="m")


def test_whitening_is_read_back_as_saved(tmp_path: Path) -> None:
    whitening = fit_whitening([drawn_vectors()], dim=5, model="dinov2 abc cls")
    path = tmp_path / "new" / "w.npz"
    whitening.save(path)
    found = Whitening.load(path)
    for field in dataclasses.fields(Whitening):
        np.testing.assert_array_equal(getattr(found, field.name), getattr(whitening, field.name))
    assert list(path.parent.iterdir()) == [path]


def changed(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda arrays: {**arrays, **values}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            changed(format=np.int64(FORMAT + 1)),
            f"has format {FORMAT + 1}, newer than the {FORMAT} read here; update featkit.",
        ),
        (
            lambda arrays: {name: value for name, value in arrays.items() if name != "mean"},
            "is not a whitening",
        ),
        (changed(mean=np.zeros(12)), "do not fit together"),
        (changed(mean=np.zeros(11, np.float32)), "do not fit together"),
        (changed(mean=np.zeros((12, 1), np.float32)), "do not fit together"),
        (changed(components=np.zeros(12, np.float32)), "do not fit together"),
        (changed(components=np.zeros((5, 11), np.float32)), "do not fit together"),
        (changed(num_vectors=np.array([1, 2])), "is not a whitening"),
        (changed(explained=np.array("much")), "is not a whitening"),
        (changed(model=np.array(["m"], object)), "is not a whitening"),
    ],
)
def test_other_kind_of_npz_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]], words: str
) -> None:
    path = tmp_path / "w.npz"
    fit_whitening([drawn_vectors()], dim=5, model="m").save(path)
    with np.load(path) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    np.savez(path, **change(values))
    with refused(path, words):
        Whitening.load(path)


@pytest.mark.parametrize(
    "content", [b"", b"text", b"PK\x03\x04" + bytes(40), b"\x93NUMPY\x01\x00", b"\x80\x04K\x01."]
)
def test_other_kind_of_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.npz").write_bytes(content)
    with refused(f"{tmp_path}/w.npz is not a whitening written by `featkit whiten` ("):
        Whitening.load(tmp_path / "w.npz")


def test_single_array_is_refused(tmp_path: Path) -> None:
    with (tmp_path / "w.npz").open("wb") as file:
        np.save(file, np.zeros(3, np.float32))
    with refused("is not a whitening"):
        Whitening.load(tmp_path / "w.npz")


def test_damaged_file_is_refused_or_read_correctly(tmp_path: Path) -> None:
    path = tmp_path / "w.npz"
    fit_whitening([drawn_vectors()], dim=5, model="m").save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 1, 97):
        path.write_bytes(whole[:length])
        with refused("is not a whitening"):
            Whitening.load(path)


def test_missing_file_or_a_folder_is_refused(tmp_path: Path) -> None:
    with refused(f"{tmp_path}/w.npz does not exist; make it with `featkit whiten`."):
        Whitening.load(tmp_path / "w.npz")
    with refused(tmp_path, "is not a whitening"):
        Whitening.load(tmp_path)
