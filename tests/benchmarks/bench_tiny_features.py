"""Which feature of featkit-tiny's network to ship: stages, pooling and whitening.

Measured on what choosing.py holds out for it.

Stages of the convnet are joined, each at unit length. A whitening is fitted to 4,000 training
images, to all stages together or to each on its own, and keeps at most 256 dimensions; its power is
that of `featkit whiten`.

Run: python tests/benchmarks/bench_tiny_features.py RUN [--quick]
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from featkit.whitening import Whitening
from featkit_export.recipe import Feature, Recipe
from featkit_export.torch_embedder import TorchEmbedder
from featkit_train.weights import load_backbone
from tests.benchmarks.choosing import (
    EmbeddedPhotographs,
    embed_photographs,
    open_photographs,
    scores_of,
    whitening_of,
)
from tests.benchmarks.record import arguments, is_quick, markdown_table, write_result

STAGES = (1, 2, 3)
# Pooling, and the stages that are joined. The network's class token is its generalized mean.
FEATURES: tuple[tuple[Feature, tuple[tuple[int, ...], ...]], ...] = (
    ("gem", ((3,), (2, 3), (1, 2, 3))),
    ("mean", ((3,), (2, 3))),
    ("cls+mean", ((3,),)),
)
POWERS = (0.5, 0.75, 1.0)


def whitenings(
    embedded: EmbeddedPhotographs, parts: tuple[int, ...]
) -> Iterator[tuple[str, Whitening | None]]:
    """Yield what is tried, with its name. parts: the widths of the stages."""
    yield "none", None
    for power in POWERS:
        yield f"power {power:g}", whitening_of(embedded, power=power)
        if len(parts) > 1:
            each = whitening_of(embedded, power=power, parts=parts)
            yield f"power {power:g}, each stage", each


def of_stages(
    embedded: EmbeddedPhotographs, widths: Sequence[int], stages: tuple[int, ...]
) -> EmbeddedPhotographs:
    """Return the vectors of the last stages from those of all, whose parts are equally long."""
    first = sum(widths[: STAGES.index(stages[0])])
    gallery, test, views = embedded.gallery, embedded.test, embedded.views
    return EmbeddedPhotographs(
        dataclasses.replace(gallery, vectors=gallery.vectors[:, first:]),
        dataclasses.replace(test, vectors=test.vectors[:, first:]),
        dataclasses.replace(views, vectors=views.vectors[..., first:]),
    )


def main() -> None:
    """Measure and record."""
    (run,) = arguments()
    backbone, _ = load_backbone(Path(run))
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        photographs = open_photographs(Path(folder), quick=is_quick())
        for pooling, joins in FEATURES:
            recipe = Recipe(feature=pooling, layers=STAGES)
            widths = recipe.widths(backbone.widths)
            all_stages = embed_photographs(
                photographs, TorchEmbedder.open(Path(run), recipe=recipe)
            )
            for stages in joins:
                embedded = of_stages(all_stages, widths, stages)
                parts = widths[STAGES.index(stages[0]) :]
                for name, whitening in whitenings(embedded, parts):
                    row = {
                        "pooling": pooling,
                        "stages": ", ".join(map(str, stages)),
                        "whitening": name,
                        **scores_of(embedded, whitening),
                    }
                    print(row, flush=True)
                    rows.append(row)
    print(markdown_table(rows))
    write_result("tiny_features", {"features": rows})


if __name__ == "__main__":
    main()
