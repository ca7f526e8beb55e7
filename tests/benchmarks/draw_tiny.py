"""Write featkit-tiny's card and its page of figures from the results of its benchmarks.

Every figure comes from results/tiny.json, tiny_search.json, tiny_features.json and neighbors.json,
so that text and results cannot disagree.

Run: python -m tests.benchmarks.draw_tiny
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from featkit.atomic import write_text
from tests.benchmarks import draw_neighbors
from tests.benchmarks.bench_tiny import LICENSE, exporting, training
from tests.benchmarks.record import markdown_table, read_figures

ROOT = Path(__file__).parents[2]
PAGE, CARD = ROOT / "docs/figures/featkit-tiny.md", ROOT / "featkit/models/README.md"
WRITTEN = "<!-- Written by `python -m tests.benchmarks.draw_tiny`; edit that program instead. -->"
Figures = Mapping[str, Any]

LIMITS = """It was trained on 275 everyday classes at 64 to 84 pixels.

- **Things it was not taught.** Of kinds outside these classes it knows shapes, colors and textures
  more than names. It does not recognize faces or read text.
- **Detail.** It sees 96×96 pixels, stretched to a square. Small objects are lost. Larger sides that
  are multiples of 16 work; at 128 it finds the same product more often, but fewer copies and
  things.
- **Large collections.** The scores are among hundreds to thousands of images. Among a million, a
  heavily edited copy has many rivals.

Hoped for and missed: a mAP of 0.30 on caltech, 0.34 on clothes and 0.45 on groceries. `featkit
duplicates --against` found smaller versions of 10 of the 600 photographs among the training images,
2 of them among the last 200 that copies are measured on, and none of the retrieval sets."""


def introduction(figures: Figures) -> str:
    """Return what the model is: its network, size, training and license."""
    return (
        "The model that ships, so that search works before anything is downloaded or trained: a"
        f" residual CNN of {figures['weights'] / 1e6:.1f} million weights for images of"
        f" {figures['side']}×{figures['side']} pixels. It has {figures['width']} dimensions and"
        f" {figures['bytes'] / 1e6:.1f} MB. featkit trained it from random weights on"
        f" {figures['images']:,} images of {figures['classes']} classes, by their labels and DINO's"
        f" loss together, in {figures['minutes of training'] / 60:.1f} hours on two CPU cores (an"
        " EPYC with AVX-512 bf16). Its weights are for research and evaluation only, as are the"
        " images."
    )


def commands(things: Path = Path("things")) -> str:
    """Return the commands that make the file."""
    run, out = Path("run"), Path("featkit-tiny.onnx")
    lines = [training(things, run, steps=None), exporting(things, run, out)]
    return "```sh\n" + "\n".join(f"featkit {shlex.join(words)}" for words in lines) + "\n```"


def card(figures: Figures) -> str:
    """Return the card that ships with the file."""
    return f"""# featkit-tiny

{WRITTEN}

{introduction(figures)}

## Scores

On images that it was not trained on, next to the model that shipped before and to pixels:

{figures["table"]}

## What it is not good at

{LIMITS}

For these, [use a published backbone](../../docs/howto/export.md) or [train on your own
photos](../../docs/howto/train.md).

## How it was made

{commands()}

License of the weights: {LICENSE}. How the recipe was chosen is among [its
figures](../../docs/figures/featkit-tiny.md).
"""


def page(tiny: Figures, search: Figures, features: Figures, neighbors: Figures) -> str:
    """Return the page of figures."""
    speed = tiny["images/s of featkit embed, relative to before"]
    return f"""# featkit-tiny

{WRITTEN}

{introduction(tiny)}

## What it finds

`featkit evaluate all` on images that it was not trained on, next to the model that shipped before
and to pixels. `featkit embed` does {speed:g} times the images per second of the one before.

{tiny["table"]}

## What it is not good at

{LIMITS}

## Neighbors

{draw_neighbors.section(neighbors)}

## How its recipe was chosen

Short trainings that each change one thing. kNN is that of `things`, copies are of 400 photographs,
8 of which are training images in another size; the retrieval sets and the photographs of the scores
above took no part.

{markdown_table([without(row, "settings") for row in search.values()])}

Stages, pooling and whitening of the finished network, by the same images, with whitenings fitted to
4,000 of the training images. What ships has the smallest product of both errors, and is fitted to
all 19,062 images of one file. Whitening each stage on its own was added when the stages whitened
together had turned out to find too few groceries (mAP 0.314), so that set is not quite unseen:

{markdown_table(features["features"])}

## How it was made

{commands()}

Scripts: `bench_tiny.py`, `bench_tiny_search.py`, `bench_tiny_features.py`, `draw_neighbors.py`;
raw: `results/tiny*.json`, `results/neighbors.json`.
"""


def without(row: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return a row without some of its columns."""
    return {name: value for name, value in row.items() if name not in names}


def main() -> None:
    """Write both, if all results are there."""
    names = ("tiny", "tiny_search", "tiny_features", "neighbors")
    tiny, search, features, neighbors = (read_figures(name) for name in names)
    write_text(PAGE, page(tiny, search, features, neighbors))
    write_text(CARD, card(tiny))


if __name__ == "__main__":
    main()
