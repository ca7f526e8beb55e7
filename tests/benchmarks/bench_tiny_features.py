"""Which feature of featkit-tiny's network to ship: stages, pooling and whitening.

Measured on what choosing.py holds out for it.

Stages of the convnet are joined, each at unit length. A whitening is fitted to 4,000 training
images and keeps at most 256 dimensions; its power is that of `featkit whiten`.

Run: python tests/benchmarks/bench_tiny_features.py RUN [--quick]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from featkit_export.recipe import Recipe
from featkit_export.torch_embedder import TorchEmbedder
from tests.benchmarks.choosing import (
    embed_photographs,
    open_photographs,
    scores_of,
    whitening_of,
)
from tests.benchmarks.record import arguments, is_quick, markdown_table, write_result

RECIPES = (
    Recipe(feature="mean"),
    Recipe(feature="gem"),
    Recipe(feature="cls+mean"),
    Recipe(feature="mean", layers=(2, 3)),
    Recipe(feature="gem", layers=(2, 3)),
    Recipe(feature="gem", layers=(1, 2, 3)),
)
POWERS = (None, 0.5, 0.75, 1.0)


def main() -> None:
    """Measure and record."""
    (run,) = arguments()
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        photographs = open_photographs(Path(folder), quick=is_quick())
        for recipe in RECIPES:
            model = TorchEmbedder.open(Path(run), recipe=recipe)
            embedded = embed_photographs(photographs, model)
            for power in POWERS:
                whitening = None if power is None else whitening_of(embedded, power=power)
                row = {
                    "pooling": recipe.feature,
                    "stages": ", ".join(map(str, recipe.layers)) or "last",
                    "whitening": "none" if power is None else f"power {power:g}",
                    **scores_of(embedded, whitening),
                }
                print(row, flush=True)
                rows.append(row)
    print(markdown_table(rows))
    write_result("tiny_features", {"features": rows})


if __name__ == "__main__":
    main()
