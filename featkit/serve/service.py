"""What the routes talk to: one embedder and perhaps one index, with the limits of a request.

Routes ask `Service` anew at each request and keep nothing of it, so that exchanging the model or the index later is one
assignment here; `embed` is the one place where pictures of several requests can later share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from featkit.embedder import Embedder
from featkit.errors import InputError
from featkit.images import ImageLimits
from featkit.index import Index


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """What one request may cost before it is refused."""

    images: ImageLimits = field(default_factory=lambda: ImageLimits(max_bytes=32 * 2**20, max_pixels=60_000_000))
    max_pictures: int = 64
    max_request_bytes: int = 256 * 2**20
    max_k: int = 1000


@dataclass(frozen=True)
class Upload:
    """One picture as sent: the name its sender gave it (never a path here), and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True)
class BadPicture:
    """A picture that was refused, and why in one sentence."""

    name: str
    reason: str


class BadPictures(InputError):
    """At least one picture of a request cannot be used; none of the request was done."""

    def __init__(self, pictures: Sequence[BadPicture]) -> None:
        self.pictures = tuple(pictures)
        super().__init__(" ".join(picture.reason for picture in self.pictures))


@dataclass(frozen=True)
class Embedded:
    """A picture's upright size in pixels and its unit vector (D,) float32."""

    name: str
    height: int
    width: int
    vector: np.ndarray


class Service:
    """An embedder, an index to search or None, and limits. Its methods may run in several threads at once."""

    def __init__(self, index: Index | None, embedder: Embedder, limits: ServiceLimits) -> None:
        if index is not None and not index.accepts_model(embedder.manifest):
            raise InputError(
                f"{index.path} was built by model {index.fingerprint[:12]}, not by {embedder.model_path} "
                f"({embedder.fingerprint[:12]}); leave --model out to use the index's own."
            )
        if index is not None and not index.accepts(embedder.run):
            raise InputError(
                f"{index.path} was made by {index.run} and {embedder.model_path} is run by {embedder.run}; open the embedder "
                "with `index.open_embedder()`, or prove with `featkit verify` that they meet."
            )
        self.index, self.embedder, self.limits = index, embedder, limits

    def embed(self, uploads: Sequence[Upload]) -> list[Embedded]:
        """Vectors of all pictures, or BadPictures naming each that cannot be used."""
        prepared: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        bad: list[BadPicture] = []
        for upload in uploads:
            try:
                decoded = self.embedder.decode(upload.data, name=upload.name)
            except InputError as error:
                bad.append(BadPicture(upload.name, str(error)))
                continue
            prepared.append(self.embedder.geometry.apply(decoded.pixels))
            sizes.append((decoded.height, decoded.width))
        if bad:
            raise BadPictures(bad)
        vectors = self.embedder.infer(np.stack(prepared))
        rows = zip(uploads, sizes, vectors, strict=True)
        return [Embedded(upload.name, height, width, vector) for upload, (height, width), vector in rows]
