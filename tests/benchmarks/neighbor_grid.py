"""Draw queries with their nearest neighbors by several models as one image, with Pillow only.

Each query has a panel: the query at the left, and a row of neighbors for each model. A neighbor of
the query's kind has a frame and a check mark, so that nobody has to see colors. The panels are
opaque, so the image reads on light and dark pages. Letters are large: on a phone the image is shown
at a third of its size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# in pixels
THUMB_WIDTH, THUMB_HEIGHT = 136, 102
GAP, MARGIN, PADDING = 10, 12, 16
LABEL_HEIGHT, SCORE_HEIGHT = 42, 48
FRAME, MAT = 5, 2  # of a neighbor of the query's kind: a frame, and white between it and the image
LETTERS, SMALL_LETTERS = 28, 26
# those of the search page
GROUND, PANEL, INK, QUIET, LINE = "#f7f4ef", "#ffffff", "#201c2b", "#6d6678", "#e4ddd3"
RIGHT = "#17766f"


@dataclass(frozen=True)
class Neighbor:
    """An image near a query. right: whether it shows the query's kind."""

    image: Path
    cosine: float
    right: bool


@dataclass(frozen=True)
class Panel:
    """A query, its kind, and its neighbors, nearest first, by the name of each model."""

    query: Path
    kind: str
    rows: Mapping[str, Sequence[Neighbor]]


def draw_grid(panels: Sequence[Panel]) -> Image.Image:
    """Return the panels as one RGB image, one below the other.

    All panels have the same models and the same number of neighbors; ValueError otherwise.
    """
    shapes = {tuple((name, len(row)) for name, row in panel.rows.items()) for panel in panels}
    if len(shapes) != 1 or len({count for _, count in next(iter(shapes))}) != 1:
        raise ValueError("the panels differ in their models or in their numbers of neighbors")
    ((_, num_neighbors), *_) = next(iter(shapes))
    width = 2 * PADDING + (num_neighbors + 1) * (THUMB_WIDTH + GAP) - GAP
    height = PADDING + len(panels[0].rows) * _row_height()
    grid = Image.new(
        "RGB", (width + 2 * MARGIN, len(panels) * (height + MARGIN) + MARGIN), color=GROUND
    )
    for i, panel in enumerate(panels):
        _draw_panel(grid, panel, MARGIN, MARGIN + i * (height + MARGIN), (width, height))
    return grid


def _row_height() -> int:
    return LABEL_HEIGHT + THUMB_HEIGHT + SCORE_HEIGHT


def _draw_panel(
    grid: Image.Image, panel: Panel, left: int, top: int, size: tuple[int, int]
) -> None:
    draw = ImageDraw.Draw(grid)
    width, height = size
    draw.rounded_rectangle(
        (left, top, left + width - 1, top + height - 1), 18, fill=PANEL, outline=LINE
    )
    x, y = left + PADDING, top + PADDING
    middle = top + (height - THUMB_HEIGHT - LABEL_HEIGHT) // 2
    grid.paste(_thumb(panel.query), (x, middle))
    _write(draw, panel.kind, (x + THUMB_WIDTH // 2, middle + THUMB_HEIGHT + 8), INK, anchor="ma")
    for name, row in panel.rows.items():
        num_right = sum(neighbor.right for neighbor in row)
        first = x + THUMB_WIDTH + GAP
        _write(draw, name, (first, y), INK, anchor="la")
        _write(draw, f"{num_right} of {len(row)}", (left + width - PADDING, y), QUIET, anchor="ra")
        for j, neighbor in enumerate(row):
            at = (first + j * (THUMB_WIDTH + GAP), y + LABEL_HEIGHT)
            _draw_neighbor(grid, draw, neighbor, at)
        y += _row_height()


def _draw_neighbor(
    grid: Image.Image, draw: ImageDraw.ImageDraw, neighbor: Neighbor, at: tuple[int, int]
) -> None:
    x, y = at
    grid.paste(_thumb(neighbor.image), at)
    score = f"{neighbor.cosine:.2f}"
    middle, below = x + THUMB_WIDTH // 2, y + THUMB_HEIGHT + 7
    if not neighbor.right:
        _write(draw, score, (middle, below), QUIET, anchor="ma", size=SMALL_LETTERS)
        return
    box = (x, y, x + THUMB_WIDTH - 1, y + THUMB_HEIGHT - 1)
    draw.rectangle(box, outline=PANEL, width=FRAME + MAT)
    draw.rectangle(box, outline=RIGHT, width=FRAME)
    _write(draw, score, (middle + 18, below), RIGHT, anchor="ma", size=SMALL_LETTERS)
    _check_mark(draw, middle - 32, below + 16)


def _check_mark(draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
    """Draw a check mark in a disk around (x, y), where the font has no such letter."""
    draw.ellipse((x - 13, y - 13, x + 13, y + 13), fill=RIGHT)
    draw.line([(x - 6, y), (x - 2, y + 5), (x + 6, y - 5)], fill=PANEL, width=4, joint="curve")


def _thumb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB").resize((THUMB_WIDTH, THUMB_HEIGHT), Image.Resampling.LANCZOS)


def _write(
    draw: ImageDraw.ImageDraw,
    text: str,
    at: tuple[int, int],
    color: str,
    *,
    anchor: str,
    size: int = LETTERS,
) -> None:
    draw.text(at, text, fill=color, anchor=anchor, font=ImageFont.load_default(size))
