"""The figure of ten queries and their neighbors: what it shows, measures and claims on its page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from featkit.evaluate.retrieval import unit_rows
from featkit.modelfile import read_manifest
from featkit.models import default_model_path
from featkit_demo.gallery import draw_gallery
from tests.benchmarks import draw_neighbors, record
from tests.benchmarks.draw_neighbors import AFTER, BEFORE, PICTURE, PIXELS, Gallery, Ranking
from tests.benchmarks.neighbor_grid import RIGHT, Neighbor, Panel, draw_grid
from tests.commands import REPOSITORY
from tests.model_files import make_model_file

PAGE = REPOSITORY / "docs" / "figures" / "featkit-tiny.md"
RECORD = record.RESULTS / "neighbors.json"
MAX_BYTES = 300_000
KEYS = ["a/x/x-1-front.jpg", "a/x/x-1-side.jpg", "a/x/x-2-front.jpg", "a/y/y-1-front.jpg"]


def color_share(image: Image.Image, color: str) -> float:
    """Return the share of pixels that have exactly this color."""
    wanted = np.asarray(Image.new("RGB", (1, 1), color))[0, 0]
    return float((np.asarray(image) == wanted).all(axis=2).mean())


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A black image."""
    Image.new("RGB", (480, 360)).save(tmp_path / "black.png")
    return tmp_path / "black.png"


def test_queries_are_spread_over_kinds_and_their_images() -> None:
    kinds = [f"kind-{i:02}" for i in range(32) for _ in range(6)]
    chosen = draw_neighbors.choose_queries(kinds)
    assert [kinds[row] for row in chosen] == [
        f"kind-{i:02}" for i in (0, 3, 6, 9, 12, 16, 19, 22, 25, 28)
    ]
    assert [row % 6 for row in chosen] == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3]


def test_ranking_leaves_out_the_query_and_agrees_with_sklearn() -> None:
    vectors = unit_rows(np.random.default_rng(0).standard_normal((40, 8)))
    ranking = draw_neighbors.rank(vectors)
    distances, rows = (
        NearestNeighbors(metric="cosine", algorithm="brute").fit(vectors).kneighbors(n_neighbors=39)
    )
    assert (ranking.rows == rows).all()
    assert ranking.cosines == pytest.approx(1 - distances, abs=1e-6)


def test_a_copy_of_the_query_stays_among_its_neighbors() -> None:
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    assert draw_neighbors.rank(vectors).rows.tolist() == [[1, 2], [0, 2], [0, 1]]


def test_shares_equal_those_counted_by_hand() -> None:
    # rows 0 and 1 are views of x-1, row 2 is x-2, row 3 is y-1
    rows = np.array([[1, 3, 2], [0, 2, 3], [3, 0, 1], [0, 1, 2]])
    ranking = Ranking(np.zeros(rows.shape, np.float32), rows)
    gallery = Gallery(Path(), KEYS)
    assert draw_neighbors.precision_at(2, ranking, gallery.kinds) == (1 + 2 + 1 + 0) / 8
    # the first of another instance: y for row 0, x for row 1, y for row 2, x for row 3
    assert draw_neighbors.right_instances(ranking, gallery) == 1 / 4


def test_only_neighbors_of_the_same_kind_are_marked(photo: Path) -> None:
    def grid(*right: bool) -> Image.Image:
        row = [Neighbor(photo, 0.5, each) for each in right]
        return draw_grid([Panel(photo, "mug", {"old": row, "new": row})])

    shares = [
        color_share(grid(*marks), RIGHT) for marks in ((False, False), (True, False), (True, True))
    ]
    assert shares[0] == 0
    assert shares[2] == pytest.approx(2 * shares[1])


def test_panels_of_different_shapes_are_refused(photo: Path) -> None:
    one, two = ([Neighbor(photo, 0.5, True)] * count for count in (1, 2))
    panels = [Panel(photo, "mug", {"old": row}) for row in (one, two)]
    with pytest.raises(ValueError, match="differ"):
        draw_grid(panels)


def test_script_records_what_it_draws_and_prints_the_page(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(record, "RESULTS", tmp_path)
    monkeypatch.setattr(
        draw_neighbors, "draw_gallery", lambda out: draw_gallery(out, kinds=("mug", "tiles"))
    )
    before, picture = make_model_file(tmp_path / "old.onnx"), tmp_path / "images" / "grid.webp"
    figures = draw_neighbors.main(["--before", str(before), "--picture", str(picture)])
    assert json.loads((tmp_path / "neighbors.json").read_text())["figures"] == figures
    assert figures["fingerprints"] == {
        name: read_manifest(path).fingerprint
        for name, path in ((BEFORE, before), (AFTER, default_model_path()))
    }
    assert figures["images"] == 12
    assert figures["same kind"]["chance"] == round(5 / 11, 3)
    assert set(figures["same kind"]) == {BEFORE, AFTER, PIXELS, "chance"}
    for query, rows in figures["drawn"].items():
        for neighbors in rows.values():
            cosines = [cosine for _, cosine in neighbors]
            assert len(neighbors) == 5
            assert query not in [key for key, _ in neighbors]
            assert cosines == sorted(cosines, reverse=True)
    with Image.open(picture) as image:
        assert (image.format, image.mode) == ("WEBP", "RGB")
    assert draw_neighbors.section(figures) in capsys.readouterr().out


def test_page_shows_the_figure_with_its_measured_caption() -> None:
    page = PAGE.read_text(encoding="utf-8")
    if not RECORD.is_file():
        assert PICTURE.name not in page
        return
    figures = json.loads(RECORD.read_text(encoding="utf-8"))["figures"]
    assert draw_neighbors.section(figures) in page
    assert figures["fingerprints"][AFTER] == read_manifest(default_model_path()).fingerprint
    assert PICTURE.stat().st_size < MAX_BYTES
