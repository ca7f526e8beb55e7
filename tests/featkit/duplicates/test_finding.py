"""All pairs that brute force finds are found, with their level."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from featkit.duplicates import Level, find_pairs, finding, lookers, nearest
from featkit.duplicates.calibration import calibrate, num_at_first, stored_calibration
from featkit.duplicates.decisions import distinct_pairs, mark_distinct
from featkit.duplicates.look import SAME, SURELY_SAME, agreement
from featkit.duplicates.views import Look
from featkit.errors import InputError
from featkit.images import thumbnail_jpeg
from featkit.index import Index, NoSuchItem
from featkit.index.meaning import CALIBRATION, Calibration
from featkit.index.records import KnownFile
from tests.featkit.duplicates.conftest import NUM_IMAGES, scene
from tests.featkit.index.conftest import WIDTH, unit_vectors
from tests.model_files import make_model_file


@pytest.fixture
def index(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes without a calibration."""
    path = Path(shutil.copytree(scenes, tmp_path / "photos.index"))
    with Index.open(path, writable=True) as opened:
        opened.writer().set_setting(CALIBRATION, "")
    return path


def test_copies_are_found_and_strangers_are_not(index: Path) -> None:
    with Index.open(index) as opened:
        calibration = calibrate(opened)
        pairs = find_pairs(opened, calibration)
        keys = {item.id: item.key for item in opened.items()}
    found = {frozenset((keys[pair.first], keys[pair.second])) for pair in pairs}
    copies = {frozenset((f"{seed}.jpg", f"copy-{seed}.jpg")) for seed in range(4)}
    assert len(found & copies) >= 3
    assert len(found - copies) <= 6  # of 557 pairs
    assert {pair.level for pair in pairs} == {Level.NEAR}


def test_pairs_equal_brute_force(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PANEL", 7), ("TILE", 3), ("SLICE", 2)):
        monkeypatch.setattr(nearest, name, value)
    monkeypatch.setattr(finding, "MAX_LOOKS", 100)
    for name, value in (("PAIRS_PER_RUN", 10), ("PAIRS_PER_TASK", 4), ("LOOKS_KEPT", 5)):
        monkeypatch.setattr(lookers, name, value)
    calibration = Calibration(
        candidate=0.5,
        copy=0.8,
        similar=0.3,
        copies_found=0.9,
        num_images=1,
        num_items=1,
        edits_version=1,
        made="",
    )
    with Index.open(index) as opened:
        pairs = {
            (p.first, p.second): p.level
            for p in find_pairs(opened, calibration, most=Level.SIMILAR)
        }
        vectors = np.stack([opened.vector(item.id) for item in opened.items()])
        looks = [Look.of(opened.thumbnail(item.id) or b"") for item in opened.items()]
    expected = {}
    for i, j in combinations(range(len(vectors)), 2):
        score = float(vectors[i].astype(np.float64) @ vectors[j])
        if score < 0.5:
            continue
        enough = SAME if score >= 0.8 else SURELY_SAME
        if agreement(looks[i], looks[j], enough=enough) >= enough:
            expected[i, j] = Level.NEAR
        elif score >= 0.8:
            expected[i, j] = Level.SIMILAR
    assert pairs == expected
    assert len(pairs) > 10


def test_the_same_bytes_are_the_first_level(tmp_path: Path) -> None:
    model = make_model_file(tmp_path / "m.onnx", width=WIDTH)
    vectors = np.repeat(unit_vectors(1), 3, axis=0)
    jpeg = thumbnail_jpeg(np.asarray(scene(0)))
    calibration = Calibration(
        candidate=0.9,
        copy=0.95,
        similar=0.5,
        copies_found=1,
        num_images=1,
        num_items=3,
        edits_version=1,
        made="",
    )
    with Index.create(tmp_path / "i", model=model) as made:
        made.add(["a", "b", "c"], vectors, thumbnails=[jpeg] * 3)
        files = {
            key: KnownFile(size=1, mtime_ns=1, digest=digest)
            for key, digest in (("a", b"1"), ("b", b"1"), ("c", b"2"))
        }
        made.writer().change(lambda catalogue: catalogue.record_files(files))
        levels = {(p.first, p.second): p.level for p in find_pairs(made, calibration)}
        assert levels == {(0, 1): Level.SAME, (0, 2): Level.NEAR}
        same = find_pairs(made, calibration, most=Level.SAME)
        assert [(p.first, p.second) for p in same] == [(0, 1)]
        filtered = find_pairs(made, calibration, where="key != 'a'")
        assert [(p.first, p.second) for p in filtered] == [(1, 2)]


def test_an_index_is_compared_with_another(index: Path, scenes: Path, tmp_path: Path) -> None:
    with Index.open(index, writable=True) as opened:
        opened.remove([f"{seed}.jpg" for seed in range(10, NUM_IMAGES)])
        with Index.open(scenes) as other:
            pairs = find_pairs(opened, calibrate(other), against=other)
            theirs = {item.id: item.key for item in other.items()}
        own = {item.id: item.key for item in opened.items()}
    same = {own[pair.first] for pair in pairs if own[pair.first] == theirs[pair.second]}
    assert same == {*own.values()}
    strange = make_model_file(tmp_path / "m.onnx")
    with (
        Index.open(scenes) as opened,
        Index.create(tmp_path / "i", model=strange) as other,
        pytest.raises(InputError, match="compare indexes of one model"),
    ):
        find_pairs(opened, calibrate(opened), against=other)


def test_a_calibration_is_kept_until_the_index_changes_much(index: Path) -> None:
    with Index.open(index) as opened:
        assert stored_calibration(opened) is None
        calibration = calibrate(opened)
        assert stored_calibration(opened) == calibration
        assert 0 < calibration.similar <= calibration.copy <= 1
        assert 0 < calibration.candidate < 1
        assert [calibration.meaning(score) for score in (1.0, calibration.similar, -1.0)] == [
            "copy",
            "similar" if calibration.similar < calibration.copy else "copy",
            "unrelated",
        ]
    with Index.open(index, writable=True) as opened:
        opened.remove([f"{seed}.jpg" for seed in range(20)])
        assert stored_calibration(opened) is None
        opened.writer().set_setting(CALIBRATION, "no JSON")
        assert stored_calibration(opened) is None
        with pytest.raises(InputError, match="14 images with thumbnails; calibration takes"):
            calibrate(opened)
    assert [num_at_first(count) for count in (10, 1000, 2000, 10**6)] == [40, 50, 100, 200]


def test_hits_say_what_their_scores_mean(index: Path) -> None:
    with Index.open(index) as opened:
        item = opened.item_by_key("0.jpg").id
        assert {hit.meaning for hit in opened.search(item=item)} == {None}
        calibration = calibrate(opened)
        hits = opened.search(item=item, k=len(opened))
    assert [hit.meaning for hit in hits] == [calibration.meaning(hit.score) for hit in hits]
    assert (hits[0].key, hits[0].meaning) == ("0.jpg", "copy")
    assert hits[-1].meaning == "unrelated"


def test_decisions_are_remembered(index: Path) -> None:
    with Index.open(index) as opened:
        assert mark_distinct(opened, ["0.jpg", "1.jpg", "2.jpg"]) == 3
        assert mark_distinct(opened, ["1.jpg", "0.jpg"]) == 0
        with pytest.raises(NoSuchItem):
            mark_distinct(opened, ["0.jpg", "x.jpg"])
        with pytest.raises(InputError, match="at least two"):
            mark_distinct(opened, ["0.jpg"])
    with Index.open(index) as opened:
        assert frozenset({"0.jpg", "2.jpg"}) in distinct_pairs(opened)
