"""Query expansion, re-ranking and diversity on and off: copies, and three labeled sets of photos.

Each set becomes an index by featkit-tiny, and each query a search of it. In sets without images of
their own for queries, each image is a query and is left out of its own hits by a filter.

Run: python tests/benchmarks/bench_answers.py [--room FOLDER] [--quick]        (minutes)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from featkit.embedder import Embedder
from featkit.evaluate.copies import NUM_EDITS, embed_views
from featkit.evaluate.embedding import embed_images
from featkit.evaluate.labels import labels_of
from featkit.index import Index, Refinement
from featkit.models import default_model_path
from featkit.sources import evenly, open_source, subset
from tests.benchmarks.photos import data_folder, open_photos
from tests.benchmarks.record import write_result

LABELED = ("caltech", "clothes", "groceries")
NUM_HITS, FIRST = 100, 10
QUERY = "query"  # the role of an image that is a query only
SETTINGS = {
    "plain": Refinement(),
    **{f"expand {count}": Refinement(expand=count) for count in (1, 3, 5, 10)},
    **{f"rerank {count}": Refinement(rerank=count) for count in (50, 100, 200)},
    "expand 5, rerank 100": Refinement(expand=5, rerank=100),
    **{f"diversity {share}": Refinement(diversity=share) for share in (0.1, 0.3, 0.5, 0.7)},
}


@dataclass(frozen=True)
class Asked:
    """A gallery (G, D) and queries (Q, D) with their labels; own: the query i is the item i."""

    gallery: np.ndarray
    labels: Sequence[str]
    queries: np.ndarray
    wanted: Sequence[str]
    own: bool = False


def copies(room: Path, embedder: Embedder) -> Asked:
    """Return photographs and their compound edits."""
    views = embed_views(open_photos(room).held_out, embedder, [])
    names = [str(i) for i in range(len(views))]
    edits = views.vectors[:, 1 : 1 + NUM_EDITS]
    wanted = [name for name in names for _ in range(NUM_EDITS)]
    return Asked(views.vectors[:, 0], names, edits.reshape(-1, edits.shape[-1]), wanted)


def labeled(name: str, embedder: Embedder, *, most: int | None) -> Asked:
    """Return one of the labeled sets, or at most `most` of its images."""
    source = open_source(data_folder() / "retrieval" / f"{name}.parquet")
    if most is not None:
        source = subset(source, evenly(len(source), most=most))
    found = embed_images(source, embedder, labels_of(source, "label"), [])
    roles = labels_of(source, "role")
    asks = np.array([roles(i) == QUERY for i in range(len(source))])
    labels = np.array(found.known)
    if not asks.any():
        return Asked(found.vectors, found.known, found.vectors, found.known, own=True)
    return Asked(found.vectors[~asks], labels[~asks], found.vectors[asks], labels[asks])


def measure(index: Index, asked: Asked, refine: Refinement) -> dict[str, float]:
    """Return the means over all queries that have a match.

    mAP counts the first 100 hits. labels: how many different ones are among the first ten hits.
    """
    figures = []
    label_of = {str(i): label for i, label in enumerate(asked.labels)}
    started = time.perf_counter()
    for i, (query, wanted) in enumerate(zip(asked.queries, asked.wanted, strict=True)):
        num_right = sum(label == wanted for label in asked.labels) - asked.own
        if num_right == 0:
            continue
        where = f"key != '{i}'" if asked.own else None
        (hits,) = index.search(vectors=query[None], k=NUM_HITS, where=where, refine=refine)
        found = [label_of[hit.key] for hit in hits]
        right = np.array([label == wanted for label in found])
        ranks = np.flatnonzero(right) + 1
        precision = (np.arange(len(ranks)) + 1) / ranks
        figures.append(
            {
                "recall@1": float(right[0]),
                "mAP": float(precision.sum() / min(num_right, NUM_HITS)),
                "precision@10": float(right[:FIRST].mean()),
                "labels": float(len({*found[:FIRST]})),
            }
        )
    means = {name: round(float(np.mean([f[name] for f in figures])), 4) for name in figures[0]}
    return {**means, "ms a query": round(1000 * (time.perf_counter() - started) / len(figures), 2)}


def main(words: Sequence[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--room", type=Path, help="where indexes are kept and found again")
    parser.add_argument("--quick", action="store_true", help="try the code; figures mean nothing")
    options = parser.parse_args(words)
    model = default_model_path()
    figures: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        room = options.room or Path(temporary)
        for name in ("copies", *LABELED):
            kept, path = room / f"{name}.npz", room / f"{name}.index"
            if kept.exists():
                with np.load(kept) as stored:
                    asked = Asked(**{key: stored[key] for key in stored.files})
            else:
                embedder = Embedder(model)
                asked = (
                    copies(room, embedder)
                    if name == "copies"
                    else labeled(name, embedder, most=200 if options.quick else None)
                )
                with Index.create(path, model=model, run=embedder.run) as index:
                    index.add([str(i) for i in range(len(asked.gallery))], asked.gallery)
                np.savez(kept, **vars(asked))
            with Index.open(path) as index:
                figures[name] = {
                    title: measure(index, asked, refine) for title, refine in SETTINGS.items()
                }
            for title, values in figures[name].items():
                print(f"{name:>10} {title:>22}  {values}", flush=True)
    write_result("answers", figures, keep=not options.quick)


if __name__ == "__main__":
    main()
