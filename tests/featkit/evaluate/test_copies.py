"""Promises of the copies yardstick: its figures equal a plain loop over images, edits and
methods."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.evaluate import CopiesReport, CopyProbe, MethodScore, embedding, evaluate_copies
from featkit.evaluate.baselines import perceptual_hash, pixels_of
from featkit.evaluate.edits import (
    EDITS_VERSION,
    SINGLE_EDITS,
    apply_edits,
    draw_compound,
    draw_single,
    working_image,
)
from featkit.evaluate.retrieval import bootstrap_interval
from featkit.sources import open_source
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file

COUNT, SEED = 12, 3
METHODS = ("test-0", "centered pixels", "plain pixels", "perceptual hash")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`images` and a model file `m.onnx`."""
    folder = tmp_path_factory.mktemp("copies")
    draw_folder(folder / "images", COUNT, height=90, width=120)
    # so few numbers that some images are taken for others
    make_model_file(folder / "m.onnx", width=3)
    return folder


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Embedder:
    return Embedder(folder / "m.onnx", threads=1)


@pytest.fixture(scope="module")
def report(folder: Path, embedder: Embedder) -> CopiesReport:
    return evaluate_copies(open_source(folder / "images"), embedder, seed=SEED)


def original(folder: Path, number: int) -> Image.Image:
    """An image as edits find it."""
    with Image.open(folder / "images" / f"{number:03d}.jpg") as image:
        return working_image(np.asarray(image.convert("RGB")))


def unit(row: np.ndarray) -> np.ndarray:
    """At length 1."""
    return np.asarray(row / np.linalg.norm(row))


def vectors_of(
    image: Image.Image, embedder: Embedder, gallery_mean: np.ndarray
) -> dict[str, np.ndarray]:
    """One image by each method, alone, in float64."""
    raw = pixels_of(image).astype(np.float64)
    prepared = embedder.geometry.apply(np.asarray(image))
    return {
        "test-0": embedder.infer(prepared[None])[0].astype(np.float64),
        "centered pixels": unit(raw - gallery_mean),
        "plain pixels": unit(raw),
        "perceptual hash": unit(np.where(np.unpackbits(perceptual_hash(image)), 1.0, -1.0)),
    }


def ranks_of(scores: np.ndarray, right: int) -> list[int]:
    """All ranks that the right item may have, its ties in any order."""
    better = int((scores > scores[right] + 1e-6).sum())
    tied = int((np.abs(scores - scores[right]) <= 1e-6).sum())
    return [better + 1 + place for place in range(tied)]


def loop_of_the_yardstick(folder: Path, embedder: Embedder) -> dict[str, MethodScore]:
    """Each image, each edit, each method: rank the originals, look where the right one is."""
    originals = [original(folder, number) for number in range(COUNT)]
    mean = np.mean([pixels_of(image).astype(np.float64) for image in originals], axis=0)
    gallery = [vectors_of(image, embedder, mean) for image in originals]

    def ranks(number: int, edited: Image.Image, method: str) -> list[int]:
        query = vectors_of(edited, embedder, mean)[method]
        return ranks_of(np.array([item[method] @ query for item in gallery]), number)

    def at(k: int, possible: list[int]) -> float:
        return sum(rank <= k for rank in possible) / len(possible)

    scores = {}
    for method in METHODS:
        compounds = [
            [
                ranks(
                    n,
                    apply_edits(image, draw_compound(seed=SEED, key=f"{n:03d}.jpg", number=e)),
                    method,
                )
                for e in range(4)
            ]
            for n, image in enumerate(originals)
        ]
        at_1 = np.array([[at(1, possible) for possible in row] for row in compounds])
        flat = [possible for row in compounds for possible in row]
        singles = {
            name: float(
                np.mean(
                    [
                        at(
                            1,
                            ranks(
                                n, draw_single(name, seed=SEED, key=f"{n:03d}.jpg")(image), method
                            ),
                        )
                        for n, image in enumerate(originals)
                    ]
                )
            )
            for name in SINGLE_EDITS
        }
        scores[method] = MethodScore(
            name=method,
            recall_at_1=float(at_1.mean()),
            interval=bootstrap_interval(at_1),
            recall_at_10=float(np.mean([at(10, possible) for possible in flat])),
            mean_average_precision=float(
                np.mean([np.mean([1 / rank for rank in possible]) for possible in flat])
            ),
            single=singles,
        )
    return scores


def test_the_report_equals_the_loop_in_every_figure(
    folder: Path, embedder: Embedder, report: CopiesReport
) -> None:
    expected = loop_of_the_yardstick(folder, embedder)
    assert [score.name for score in report.methods] == list(METHODS)
    assert (report.num_images, report.seed, report.edits_version, report.failures) == (
        COUNT,
        SEED,
        EDITS_VERSION,
        [],
    )
    for score in report.methods:
        wanted = expected[score.name]
        assert score.recall_at_1 == pytest.approx(wanted.recall_at_1), score.name
        assert score.interval == pytest.approx(wanted.interval), score.name
        assert score.recall_at_10 == pytest.approx(wanted.recall_at_10), score.name
        assert score.mean_average_precision == pytest.approx(wanted.mean_average_precision), (
            score.name
        )
        assert score.single == pytest.approx(wanted.single), score.name
    recalls = {score.recall_at_1 for score in report.methods}
    assert len(recalls) > 1  # or methods could be mixed up unseen
    assert all(0 < recall < 1 for recall in recalls)


def test_the_model_comes_first_and_every_method_is_there_by_name(report: CopiesReport) -> None:
    assert report.model is report.methods[0]
    assert report.method("plain pixels").name == "plain pixels"
    with pytest.raises(KeyError):
        report.method("another")


def test_the_figures_do_not_depend_on_the_blocks(
    folder: Path, embedder: Embedder, report: CopiesReport, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedding, "IMAGES_A_BLOCK", 4)
    assert evaluate_copies(open_source(folder / "images"), embedder, seed=SEED) == report


def test_another_seed_edits_otherwise(
    folder: Path, embedder: Embedder, report: CopiesReport
) -> None:
    other = evaluate_copies(open_source(folder / "images"), embedder, seed=SEED + 1)
    assert [score.recall_at_1 for score in other.methods] != [
        score.recall_at_1 for score in report.methods
    ]


def test_a_image_that_cannot_be_read_is_left_out_and_named(
    folder: Path, embedder: Embedder, report: CopiesReport, tmp_path: Path
) -> None:
    drawn = shutil.copytree(folder / "images", tmp_path / "images")
    (drawn / "0045.jpg").write_bytes(b"no image")
    seen: list[tuple[int, int]] = []
    with_bad = evaluate_copies(
        open_source(drawn), embedder, seed=SEED, on_progress=lambda *counts: seen.append(counts)
    )
    assert with_bad.methods == report.methods
    assert with_bad.num_images == COUNT
    ((key, reason),) = with_bad.failures
    assert key == "0045.jpg"
    assert "0045.jpg is not an image" in reason
    assert seen[-1] == (COUNT + 1, 1)


@pytest.mark.parametrize("num_readable", [0, 1])
def test_fewer_than_two_images_are_refused(
    embedder: Embedder, tmp_path: Path, num_readable: int
) -> None:
    draw_folder(tmp_path, num_readable)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(
        InputError, match=f"{num_readable} readable images; finding copies takes at least 2"
    ):
        evaluate_copies(open_source(tmp_path), embedder)


def test_the_probe_is_the_same_headline_by_a_plain_loop(embedder: Embedder) -> None:
    drawn = [np.asarray(draw_image(seed, height=90, width=120)) for seed in range(8)]
    probe = CopyProbe(drawn, embedder.geometry, seed=1, num_edits=2)

    def vector(image: Image.Image) -> np.ndarray:
        return np.asarray(embedder.infer(embedder.geometry.apply(np.asarray(image))[None])[0])

    originals = [working_image(drawn_image) for drawn_image in drawn]
    gallery = np.stack([vector(image) for image in originals])
    found = [
        int(
            (
                gallery @ vector(apply_edits(image, draw_compound(seed=1, key=str(n), number=edit)))
            ).argmax()
        )
        == n
        for n, image in enumerate(originals)
        for edit in range(2)
    ]
    assert 0 < np.mean(found) < 1
    assert probe.recall_at_1(embedder.infer) == pytest.approx(np.mean(found))
    assert probe.recall_at_1(embedder.infer) == probe.recall_at_1(embedder.infer)


def test_the_probe_of_a_blind_model_is_chance(embedder: Embedder) -> None:
    drawn = [np.asarray(draw_image(seed)) for seed in range(5)]
    probe = CopyProbe(drawn, embedder.geometry)
    assert probe.recall_at_1(lambda images: np.ones((len(images), 1), np.float32)) == pytest.approx(
        1 / 5
    )
