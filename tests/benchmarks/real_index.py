"""An index of real vectors: all images of shared/data and edited copies of them, by one model.

    N vectors, D width

Copies are edited as for `featkit evaluate copies`: mirrored, cropped, recolored, compressed. First
come the images themselves, then one copy of each, then another, and so on. Some images are left out
with all their copies; their vectors are the queries.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from featkit.backends import Run
from featkit.cli.console import ProgressReporter
from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.evaluate.edits import apply_edits, draw_single, working_image
from featkit.images import decode
from featkit.index import Index
from featkit.models import default_model_path
from featkit.pipeline import embed_source
from featkit.sources import Source, open_source, subset
from featkit.sources.base import Metadata
from tests.benchmarks.photos import data_folder

TINY, VIT = "featkit-tiny", "vits14"
MODELS = (TINY, VIT)
VIT_ROW, VIT_SIDE = "dinov2_vits14", 98  # pixels: a multiple of the patch that two cores can afford
# The edits of the first, the second, ... copy, and of those after in turn.
EDITS = (("flip", "color"), ("crop", "jpeg"), ("crop", "flip", "color"), ("color", "jpeg"))
QUALITY = 95  # of the edited image as a file
SEED = 0


class Copies:
    """The images of a source and edited copies of them, `count` in all."""

    def __init__(self, source: Source, count: int) -> None:
        self._source, self._count = source, count
        self.name = f"{source.name} and edited copies"

    @property
    def skipped(self) -> Mapping[str, int]:
        """The number of files that the source skipped, by reason."""
        return self._source.skipped

    def __len__(self) -> int:
        return self._count

    def key(self, item: int, /) -> str:
        """Return the number of the copy, 0 for the image itself, and the image's key."""
        copy, image = divmod(item, len(self._source))
        return f"{copy}/{self._source.key(image)}"

    def read(self, item: int, /) -> bytes:
        """Return the image's own bytes, or a JPEG of its edited copy."""
        copy, image = divmod(item, len(self._source))
        data = self._source.read(image)
        if copy == 0:
            return data
        key = self._source.key(image)
        edits = [draw_single(name, seed=copy, key=key) for name in EDITS[(copy - 1) % len(EDITS)]]
        buffer = io.BytesIO()
        edited = apply_edits(working_image(decode(data).pixels), edits)
        edited.save(buffer, "JPEG", quality=QUALITY)
        return buffer.getvalue()

    def metadata(self, item: int, /) -> Metadata:  # noqa: ARG002
        """Return nothing: labels are not needed."""
        return {}

    def file(self, item: int, /) -> Path:
        """Return the file of the image."""
        return self._source.file(item % len(self._source))


class RealIndex(NamedTuple):
    """An index, queries (Q, D) float32 of images that it lacks, and how both were made."""

    path: Path
    queries: np.ndarray
    about: dict[str, object]


def make_real_index(room: Path, model: str, count: int, *, num_queries: int) -> RealIndex:
    """Embed and index `count` images and copies, except for what is in `room` already.

    model: one of MODELS. A call that was stopped is continued by the next one.
    """
    images = open_source(data_folder())
    is_query = np.zeros(len(images), bool)
    rng = np.random.default_rng(SEED)
    is_query[rng.choice(len(images), num_queries, replace=False)] = True
    kept = subset(images, np.flatnonzero(~is_query).tolist())
    embedder = Embedder(model_file(room, model))
    name = f"{model}-{count}"
    folder = _embedded(embedder, Copies(kept, count), room / f"{name}.embeddings")
    asked = subset(images, np.flatnonzero(is_query).tolist())
    queries = _embedded(embedder, asked, room / f"{model}-{num_queries}.queries").read()[1]
    path = room / f"{name}.index"
    if not path.exists():
        begun = room / f"{name}.begun"
        run = Run.parse(folder.plan.run)
        made = (
            Index.open(begun, writable=True)
            if begun.exists()
            else Index.create(begun, model=folder.model_path, run=run)
        )
        with made as index, ProgressReporter("indexing", total=len(folder)) as progress:
            index.add_embeddings(folder, on_progress=progress)
        begun.rename(path)
    size = embedder.geometry
    about: dict[str, object] = {
        "model": model + (" with random weights" if model == VIT else ""),
        "pixels": f"{size.height} x {size.width}",
        "run": folder.plan.run,
        "images": len(kept),
        "images and edited copies": len(folder),
        "queries": f"{len(queries)} other images",
    }
    return RealIndex(path, queries, about)


def model_file(room: Path, model: str) -> Path:
    """Return the file of one of MODELS, which is made if it is not there."""
    if model == TINY:
        return default_model_path()
    path = room / f"{VIT}-{VIT_SIDE}.onnx"
    if not path.is_file():
        from featkit_export.request import ExportRequest, export
        from featkit_train.published.zoo import PUBLISHED
        from tests.export.backbones import drawn_published
        from tests.export.zoo_files import write_published
        from tests.torchvision_without_cuda import allow_torchvision

        allow_torchvision()
        row = PUBLISHED[VIT_ROW]
        with tempfile.TemporaryDirectory() as folder:
            weights = write_published(row, drawn_published(row).state_dict(), Path(folder) / "w")
            size = (VIT_SIDE, VIT_SIDE)
            export(ExportRequest(source=row.name, weights=weights, out=path, size=size))
    return path


def _embedded(embedder: Embedder, source: Source, out: Path) -> Embeddings:
    with ProgressReporter("embedding", total=len(source)) as progress:
        report = embed_source(source, embedder, out, on_progress=progress)
    if report.num_embedded_now:
        rate = report.num_embedded_now / report.seconds
        print(f"{out.name}: {rate:.1f} images/s by {report.backend}, {report.num_failed} failed")
    return Embeddings.open(out)
