"""Draw ten images of the sample gallery with their nearest neighbors, by an old model and a new.

The gallery is drawn by code, so the result may be published. The script also measures, with each
image as the query, how many of its five nearest show the same kind. It writes
results/neighbors.json and docs/images/featkit-tiny-neighbors.webp, and prints the Markdown for
docs/figures/featkit-tiny.md. A test compares that page with the record.
Run: python tests/benchmarks/draw_neighbors.py --before OLD.onnx [--after NEW.onnx]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
from PIL import Image

from featkit.embedder import Embedder
from featkit.evaluate.baselines import pixel_vectors, pixels_of
from featkit.evaluate.knn import nearest
from featkit.models import default_model_path
from featkit_demo.gallery import draw_gallery
from tests.benchmarks.neighbor_grid import Neighbor, Panel, draw_grid
from tests.benchmarks.record import write_result

NUM_QUERIES, NUM_NEIGHBORS = 10, 5
BEFORE, AFTER, PIXELS = "old model", "new model", "centered pixels"
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "featkit-tiny-neighbors.webp"
QUALITY = 60  # about 250 kB; the grain of the drawn images is what costs most


class Gallery(NamedTuple):
    """The drawn images in the order of their keys, such as objects/mug/mug-1-front.jpg."""

    folder: Path
    keys: list[str]

    @property
    def kinds(self) -> list[str]:
        """Return the kind that each image shows: objects/mug."""
        return [key.rpartition("/")[0] for key in self.keys]

    @property
    def instances(self) -> list[str]:
        """Return the instance that each image is a view of: objects/mug/mug-1."""
        return [key.rpartition("-")[0] for key in self.keys]


class Ranking(NamedTuple):
    """All other images for each of N queries, nearest first: float32 and int64, (N, N - 1)."""

    cosines: np.ndarray
    rows: np.ndarray


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, draw and record; return the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="model file to compare with")
    parser.add_argument(
        "--after", type=Path, default=default_model_path(), help="default: featkit-tiny"
    )
    parser.add_argument("--picture", type=Path, default=PICTURE, help="file to draw")
    asked = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as name:
        gallery = draw(Path(name))
        embedders = {
            BEFORE: Embedder(asked.before, backend="onnxruntime"),
            AFTER: Embedder(asked.after, backend="onnxruntime"),
        }
        files = [gallery.folder / key for key in gallery.keys]
        rankings = {name: rank(embedder.embed(files)) for name, embedder in embedders.items()}
        rankings[PIXELS] = rank(centered_pixels(files))
        figures = measure(gallery, rankings, embedders)
        panels = [panel(gallery, query, rankings) for query in choose_queries(gallery.kinds)]
        asked.picture.parent.mkdir(parents=True, exist_ok=True)
        draw_grid(panels).save(asked.picture, quality=QUALITY, method=6)
    write_result("neighbors", figures)
    print(f"\n{asked.picture}, {asked.picture.stat().st_size / 1000:.0f} kB\n\n{section(figures)}")
    return figures


def draw(folder: Path) -> Gallery:
    """Draw the sample gallery into a folder."""
    return Gallery(folder, [file.relative_to(folder).as_posix() for file in draw_gallery(folder)])


def choose_queries(kinds: Sequence[str], count: int = NUM_QUERIES) -> list[int]:
    """Return the rows of `count` queries by a fixed rule, in which nobody's taste has a part.

    Query i is of the kind at position i * (number of kinds) // count, in name order. It is image
    i % (images of that kind) of it, which walks through things and their views.
    """
    names = sorted(set(kinds))
    chosen = []
    for i in range(count):
        kind = names[i * len(names) // count]
        members = [row for row, other in enumerate(kinds) if other == kind]
        chosen.append(members[i % len(members)])
    return chosen


def rank(vectors: np.ndarray) -> Ranking:
    """Rank, for each of the unit vectors (N, D), all the others; equal ones in order of rows."""
    cosines, rows = nearest(vectors, vectors, len(vectors))
    others = rows != np.arange(len(vectors))[:, None]
    shape = (len(vectors), len(vectors) - 1)
    return Ranking(cosines[others].reshape(shape), rows[others].reshape(shape))


def centered_pixels(files: Sequence[Path]) -> np.ndarray:
    """Return the images' pixels less their mean, as unit vectors (N, 3072) float32."""
    rows = []
    for file in files:
        with Image.open(file) as image:
            rows.append(pixels_of(image))
    pixels = np.stack(rows)
    return pixel_vectors(pixels, pixels.mean(axis=0, dtype=np.float64))


def precision_at(k: int, ranking: Ranking, kinds: Sequence[str]) -> float:
    """Return the share of the k nearest others, over all queries, that show the query's kind."""
    labels = np.asarray(kinds)
    return float((labels[ranking.rows[:, :k]] == labels[:, None]).mean())


def right_instances(ranking: Ranking, gallery: Gallery) -> float:
    """Return the share of queries whose nearest image of another instance shows the query's kind.

    That leaves out the other views of the query's own instance, which share its colors and shape.
    """
    kinds, instances = np.asarray(gallery.kinds), np.asarray(gallery.instances)
    others = instances[ranking.rows] != instances[:, None]  # (N, N - 1)
    first = ranking.rows[np.arange(len(kinds)), others.argmax(axis=1)]  # (N,)
    return float((kinds[first] == kinds).mean())


def measure(
    gallery: Gallery, rankings: Mapping[str, Ranking], embedders: Mapping[str, Embedder]
) -> dict[str, Any]:
    """Return what is recorded: the models, their scores, and the neighbors that are drawn."""
    kinds = np.asarray(gallery.kinds)
    num_others = (kinds[:, None] == kinds[None, :]).sum(axis=1) - 1  # of each image's kind
    precision = {
        name: precision_at(NUM_NEIGHBORS, ranking, gallery.kinds)
        for name, ranking in rankings.items()
    }
    precision["chance"] = float(num_others.mean()) / (len(kinds) - 1)
    return {
        "images": len(kinds),
        "kinds": len(set(gallery.kinds)),
        "neighbors": NUM_NEIGHBORS,
        "fingerprints": {name: embedder.fingerprint for name, embedder in embedders.items()},
        "same kind": {name: round(share, 3) for name, share in precision.items()},
        "same kind, nearest of another instance": {
            name: round(right_instances(ranking, gallery), 3) for name, ranking in rankings.items()
        },
        "drawn": {
            gallery.keys[query]: {
                name: [
                    [gallery.keys[row], round(cosine, 3)]
                    for row, cosine in nearest_rows(rankings[name], query)
                ]
                for name in embedders
            }
            for query in choose_queries(gallery.kinds)
        },
    }


def nearest_rows(ranking: Ranking, query: int) -> list[tuple[int, float]]:
    """Return the rows and cosines of the nearest images of one query."""
    pairs = zip(ranking.rows[query], ranking.cosines[query], strict=True)
    return [(int(row), float(cosine)) for row, cosine in pairs][:NUM_NEIGHBORS]


def panel(gallery: Gallery, query: int, rankings: Mapping[str, Ranking]) -> Panel:
    """Return what is drawn of one query: its neighbors by the old model and by the new one."""
    kinds = gallery.kinds
    return Panel(
        gallery.folder / gallery.keys[query],
        kinds[query].rpartition("/")[2],
        {
            name: [
                Neighbor(gallery.folder / gallery.keys[row], cosine, kinds[row] == kinds[query])
                for row, cosine in nearest_rows(rankings[name], query)
            ]
            for name in (BEFORE, AFTER)
        },
    )


def section(figures: Mapping[str, Any]) -> str:
    """Return the image and its caption as Markdown for a page in docs/figures."""
    share, other = figures["same kind"], figures["same kind, nearest of another instance"]
    images, k = figures["images"], figures["neighbors"]
    alt = f"Ten drawn images, each with its {k} nearest by the old model and by the new"
    paragraphs = (
        f"Ten of the {images} images of the [sample gallery](../start.md), each with its {k}"
        " nearest others by the model that shipped before and by the one that ships now, and their"
        " cosines. A frame and a check mark: the neighbor shows the query's kind. The gallery is"
        " drawn by code, and neither model was trained on it. The queries are taken by a fixed"
        f" rule, at even steps through its {figures['kinds']} kinds.",
        f"With each of the {images} images as the query, {share[AFTER]:.3f} of the {k} nearest show"
        f" its kind by the new model, {share[BEFORE]:.3f} by the old one, {share[PIXELS]:.3f} by"
        f" centered pixels and {share['chance']:.3f} by chance. Some of those are other views of"
        " the same instance, with its colors and its shape. If they are left out, the nearest image"
        f" shows the query's kind in {other[AFTER]:.3f} of cases by the new model,"
        f" {other[BEFORE]:.3f} by the old one and {other[PIXELS]:.3f} by centered pixels.",
        "Script: `tests/benchmarks/draw_neighbors.py`; raw: `results/neighbors.json`.",
    )
    wrapped = (
        textwrap.fill(text, width=100, break_long_words=False, break_on_hyphens=False)
        for text in paragraphs
    )
    return "\n\n".join([f"![{alt}](../images/{PICTURE.name})", *wrapped])


if __name__ == "__main__":
    main()
