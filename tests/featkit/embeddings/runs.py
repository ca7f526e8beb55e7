"""A folder of images and its embedding, for tests of embeddings folders and the batch job."""

from __future__ import annotations

from pathlib import Path

from featkit.embedder import Embedder
from featkit.pipeline import EmbedOptions, EmbedReport, embed_source
from featkit.sources import Source, open_source
from tests.images import draw_folder

COUNT = 23
BROKEN = ("007.jpg", "015.jpg")


def draw_source(root: Path) -> Path:
    """Write COUNT files into `root` and a folder in it; the BROKEN ones are not images."""
    draw_folder(root, COUNT, height=300, width=400)
    (root / "cats").mkdir()
    for index in range(5):
        (root / f"{index:03d}.jpg").rename(root / "cats" / f"{index:03d}.jpg")
    for name in BROKEN:
        (root / name).write_text("no image", encoding="utf-8")
    return root


def embed(
    images: Path | Source, embedder: Embedder, out: Path, *, workers: int = 2, shard_size: int = 5
) -> EmbedReport:
    """Embed a folder or a source."""
    source = open_source(images) if isinstance(images, Path) else images
    return embed_source(source, embedder, out, EmbedOptions(shard_size=shard_size, workers=workers))
