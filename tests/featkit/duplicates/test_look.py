"""Edited copies agree in their pixels, and other images do not."""

from __future__ import annotations

import io
from itertools import combinations
from math import comb

import numpy as np
import pytest
from PIL import Image, ImageDraw

from featkit.duplicates.look import SAME, SURELY_SAME, agreement, agreements
from featkit.duplicates.views import Look
from featkit.evaluate.edits import SINGLE_EDITS, apply_edits, draw_single
from tests.featkit.duplicates.conftest import copy_of, scene


def look(image: Image.Image) -> Look:
    buffer = io.BytesIO()
    image.convert("RGB").save(buffer, "JPEG", quality=90)
    return Look.of(buffer.getvalue())


@pytest.mark.parametrize("edit", SINGLE_EDITS)
def test_each_edit_is_seen_through(edit: str) -> None:
    for seed in range(5):
        copy = apply_edits(scene(seed), (draw_single(edit, seed=0, key=str(seed)),))
        assert agreement(look(scene(seed)), look(copy)) >= SAME, (edit, seed)


def test_copies_agree_more_than_strangers() -> None:
    copies = [agreement(look(scene(seed)), look(copy_of(seed))) for seed in range(20)]
    strangers = [agreement(look(scene(seed)), look(scene(seed + 1))) for seed in range(20)]
    assert np.mean(np.array(copies) >= SAME) >= 0.8
    assert np.mean(np.array(strangers) >= SAME) <= 0.05


def test_the_order_of_two_images_does_not_matter() -> None:
    first, second = look(scene(1)), look(copy_of(1))
    assert agreement(first, second) == pytest.approx(agreement(second, first))


def test_the_search_ends_when_enough_is_reached() -> None:
    whole = agreement(look(scene(2)), look(scene(2)))
    early = agreement(look(scene(2)), look(scene(2)), enough=0.5)
    assert 0.5 <= early <= whole
    assert whole == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("gray", "gray", 1.0), ("black", "white", 0.0)],
)
def test_plain_images_are_equal_if_their_gray_is(first: str, second: str, expected: float) -> None:
    images = [Image.new("RGB", (64, 48), color) for color in (first, second)]
    assert agreement(look(images[0]), look(images[1])) == expected
    assert agreement(look(images[0]), look(scene(0))) == 0.0


@pytest.mark.parametrize("size", [(1, 1), (300, 2), (2, 300), (5000, 40)])
def test_extreme_shapes_are_compared(size: tuple[int, int]) -> None:
    image = scene(3).resize(size)
    assert 0 <= agreement(look(image), look(scene(3))) <= 1.01
    assert 0 <= agreement(look(image), look(image)) <= 1.01


def test_a_plain_region_next_to_detail_does_not_exceed_1() -> None:
    image = Image.new("RGB", (256, 192), "white")
    image.paste(scene(4).resize((60, 60)), (10, 10))
    for seed in range(10):
        assert agreement(look(image), look(scene(seed))) <= 1.001


def test_many_pairs_agree_as_one_after_the_other() -> None:
    looks = [look(scene(seed)) for seed in range(4)] + [look(copy_of(seed)) for seed in range(4)]
    looks += [look(scene(9).resize((200, 300))), look(Image.new("RGB", (64, 48), "gray"))]
    pairs = [*combinations(looks, 2)]
    together = agreements([(first, second, SAME) for first, second in pairs])
    alone = [agreement(first, second, enough=SAME) for first, second in pairs]
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert agreements([]) == []


def shape_on_plain_ground(seed: int) -> Image.Image:
    """Draw one thick curve (Bezier's, of degree 4), different for each seed, on a plain ground."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (256, 192), tuple(int(v) for v in rng.integers(120, 230, 3)))
    points = rng.uniform((20, 20), (236, 172), (5, 2))
    t = np.linspace(0, 1, 40)[:, None]
    curve = sum(comb(4, i) * t**i * (1 - t) ** (4 - i) * points[i] for i in range(5))
    line = [(float(x), float(y)) for x, y in np.asarray(curve)]
    ImageDraw.Draw(image).line(line, fill=(40, 60, 30), width=14, joint="curve")
    return image


def test_other_shapes_on_plain_ground_are_strangers() -> None:
    looks = [look(shape_on_plain_ground(seed)) for seed in range(8)]
    agreed = [agreement(first, second) for first, second in combinations(looks, 2)]
    assert max(agreed) < SURELY_SAME
    assert np.mean(np.array(agreed) < SAME) >= 0.85
    for seed in range(8):
        smaller = shape_on_plain_ground(seed).resize((160, 120))
        assert agreement(look(smaller), looks[seed]) >= SURELY_SAME, seed
