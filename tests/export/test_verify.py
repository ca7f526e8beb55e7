"""Promises of the proof: every output is compared at every size, bounds are kept exactly, and what
fails is named."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from featkit.modelfile import EMBEDDING, INPUT, PATCHES
from featkit_export.verify import (
    MAX_ABS,
    MIN_COSINE,
    Parity,
    ParityError,
    cases_for,
    compare,
    draw_images,
    open_session,
    require_parity,
)
from tests.sentences import refused


def parity(min_cosine: float, max_abs: float) -> Parity:
    """A comparison with these figures."""
    return Parity(batch=3, height=16, width=24, min_cosine=min_cosine, max_abs=max_abs)


def made_session(scale: float = 1.0) -> onnx.ModelProto:
    """embedding: the mean color, (N, 3); patches: the images themselves as floats times `scale`,
    (N, H, W, 3)."""
    weights = {"axes": np.array([1, 2], np.int64), "scale": np.float32(scale)}
    graph = helper.make_graph(
        [
            helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["floats", "axes"], [EMBEDDING], keepdims=0),
            helper.make_node("Mul", ["floats", "scale"], [PATCHES]),
        ],
        "test",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", "H", "W", 3])],
        [
            helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["N", 3]),
            helper.make_tensor_value_info(PATCHES, TensorProto.FLOAT, ["N", "H", "W", 3]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def reference(images: np.ndarray) -> dict[str, np.ndarray]:
    """Compute what that graph gives at scale 1."""
    floats = images.astype(np.float32)
    return {EMBEDDING: floats.mean(axis=(1, 2)), PATCHES: floats}


@pytest.mark.parametrize(
    ("min_cosine", "max_abs"),
    [(1.0, 0.0), (MIN_COSINE, 0.0), (1.0, MAX_ABS), (MIN_COSINE, MAX_ABS)],
)
def test_parity_holds_at_its_bounds_and_keeps_the_worst(min_cosine: float, max_abs: float) -> None:
    case = parity(min_cosine, max_abs)
    assert case.holds
    assert require_parity([parity(1.0, 0.0), case]) == {
        "min_cosine": min_cosine,
        "max_abs": max_abs,
    }


@pytest.mark.parametrize(
    ("min_cosine", "max_abs"),
    [
        (math.nextafter(MIN_COSINE, 0), 0.0),
        (1.0, math.nextafter(MAX_ABS, 1)),
        (-1.0, 0.0),
        (1.0, math.inf),
        (math.nan, 0.0),
        (1.0, math.nan),
    ],
)
def test_parity_fails_just_beyond_a_bound_and_for_nan(min_cosine: float, max_abs: float) -> None:
    case = parity(min_cosine, max_abs)
    assert not case.holds
    for cases in ([case], [parity(1.0, 0.0), case]):
        with refused("batch 3, 16×24", "embedding", "nothing was written", error=ParityError):
            require_parity(cases)


def test_cases_cover_four_sizes_in_three_batches() -> None:
    assert cases_for(height=224, width=224, patch=14) == [
        (1, 224, 224),
        (3, 112, 112),
        (3, 336, 336),
        (3, 252, 294),
        (8, 112, 112),
    ]
    assert cases_for(height=224, width=224, patch=14, larger=518)[2] == (3, 518, 518)
    assert cases_for(height=224, width=336, patch=32) == [
        (1, 224, 336),
        (3, 96, 96),
        (3, 480, 480),
        (3, 288, 496),
        (8, 96, 96),
    ]
    assert cases_for(height=8, width=8, patch=8)[1] == (3, 8, 8)
    assert cases_for(height=336, width=504, patch=14, fixed=True) == [
        (1, 336, 504),
        (3, 336, 504),
        (8, 336, 504),
    ]


@pytest.mark.parametrize("patch", [8, 14, 16, 32])
def test_cases_have_whole_patches_and_distinct_sizes(patch: int) -> None:
    for height, width in (
        (patch, patch),
        (7 * patch, 7 * patch),
        (4 * patch, 9 * patch),
        (37 * patch, 37 * patch),
    ):
        cases = cases_for(height=height, width=width, patch=patch)
        assert all(
            height % patch == width % patch == 0 < min(height, width) for _, height, width in cases
        )
        assert len({case[1:] for case in cases}) >= (4 if height > patch else 2)


def test_every_output_is_compared_in_every_case() -> None:
    session = open_session(made_session().SerializeToString())
    cases = [(1, 16, 16), (3, 8, 24)]
    found = compare(reference, session, cases)
    assert [(case.batch, case.height, case.width, case.output) for case in found] == [
        (*case, output) for case in cases for output in (EMBEDDING, PATCHES)
    ]
    assert all(case.holds for case in found)


def test_an_output_that_differs_alone_is_named_with_its_size() -> None:
    session = open_session(made_session(scale=1.001).SerializeToString())
    found = compare(reference, session, [(1, 16, 16), (3, 8, 24)])
    assert [case.holds for case in found] == [True, False, True, False]
    with refused("in patches, batch 1, 16×16", error=ParityError):
        require_parity(found)


def test_a_difference_is_in_units_of_the_outputs_own_size() -> None:
    session = open_session(made_session(scale=1 + 5e-5).SerializeToString())
    embedding, patches = compare(reference, session, [(3, 16, 16)])
    values = reference(draw_images(3, height=16, width=16))[PATCHES].astype(np.float64)
    assert patches.max_abs == pytest.approx(
        5e-5 * values.max() / np.sqrt((values**2).mean()), rel=0.05
    )
    assert embedding.max_abs < 1e-6
    assert patches.min_cosine == pytest.approx(1.0, abs=1e-12)


def test_one_image_of_a_batch_that_differs_is_found() -> None:
    session = open_session(made_session().SerializeToString())

    def odd(images: np.ndarray) -> dict[str, np.ndarray]:
        found = reference(images)
        found[EMBEDDING][-1] = found[EMBEDDING][-1][::-1] + np.array([40, 0, 0], np.float32)
        return found

    assert [case.holds for case in compare(odd, session, [(8, 16, 16)])] == [False, True]


def test_nan_and_different_shapes_do_not_hold() -> None:
    session = open_session(made_session().SerializeToString())

    def without_a_number(images: np.ndarray) -> dict[str, np.ndarray]:
        found = reference(images)
        found[EMBEDDING][0, 0] = np.nan
        return found

    def shorter(images: np.ndarray) -> dict[str, np.ndarray]:
        return {EMBEDDING: reference(images)[EMBEDDING][:, :2]}

    for spoilt in (without_a_number, shorter):
        assert not compare(spoilt, session, [(1, 16, 16)])[0].holds


def test_a_graph_that_fails_where_its_model_does_not_is_no_equal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = made_session()
    table = numpy_helper.from_array(np.ones((1, 16, 16, 3), np.float32), "scale")
    model.graph.initializer[1].CopyFrom(table)
    session = open_session(model.SerializeToString())
    assert all(case.holds for case in compare(reference, session, [(3, 16, 16)]))
    with refused(
        "fails on batch 3, 8×24, which its model takes", "nothing was written", error=ParityError
    ):
        compare(reference, session, [(3, 16, 16), (3, 8, 24)])
    assert capfd.readouterr().err == ""


def test_drawn_images_are_seeded_and_each_another() -> None:
    images = draw_images(4, height=24, width=40)
    assert images.shape == (4, 24, 40, 3)
    assert images.dtype == np.dtype(np.uint8)
    np.testing.assert_array_equal(images, draw_images(4, height=24, width=40))
    assert not np.array_equal(images, draw_images(4, height=24, width=40, seed=1))
    flat = images.reshape(4, -1).astype(np.float64)
    correlation = np.corrcoef(flat)
    assert np.abs(correlation - np.eye(4)).max() < 0.95
    assert flat.std(axis=1).min() > 10
