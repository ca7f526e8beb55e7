"""What the routes talk to: one embedder and perhaps one index, with the limits of a request.

Routes ask `Service` anew at each request and keep nothing of it, so that exchanging the model or
the index later is one assignment here; `embed` is the one place where images of several requests
can later share a batch.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from featkit.embedder import Embedder
from featkit.errors import FeatkitError, InputError
from featkit.images import ImageLimits, without_options
from featkit.index import Hit, Index, NoSuchItem
from featkit.workers import memory_for_images, workers_for

Result = TypeVar("Result")

FAILURES_UNTIL_UNHEALTHY = 3  # of the model, one after the other

log = logging.getLogger("featkit.serve")


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """What one request may cost before it is refused."""

    images: ImageLimits = field(
        default_factory=lambda: ImageLimits(max_bytes=32 * 2**20, max_pixels=60_000_000)
    )
    max_images: int = 64
    max_request_bytes: int = 256 * 2**20
    max_k: int = 1000


@dataclass(frozen=True)
class Upload:
    """One image as sent: the name its sender gave it (never a path here), and its bytes.

    num_bytes: of all that was sent; `data` has only one more than the limit. None where `data` is
    all.
    """

    name: str
    data: bytes
    num_bytes: int | None = None


@dataclass(frozen=True)
class BadImage:
    """An image that was refused, and why in one sentence."""

    name: str
    reason: str


class Unavailable(FeatkitError):
    """The service itself cannot answer now: its index or its model fails. The reason is in its log,
    not in the answer."""


class BadImages(InputError):
    """At least one image of a request cannot be used; none of the request was done."""

    def __init__(self, images: Sequence[BadImage]) -> None:
        self.images = tuple(images)
        super().__init__(" ".join(image.reason for image in self.images))


@dataclass(frozen=True)
class Embedded:
    """An image's upright size in pixels and its unit vector (D,) float32."""

    name: str
    height: int
    width: int
    vector: np.ndarray


class Service:
    """An embedder, an index to search or None, and limits. Its methods may run in several threads
    at once."""

    def __init__(self, index: Index | None, embedder: Embedder, limits: ServiceLimits) -> None:
        if index is not None and not index.accepts_model(embedder.manifest):
            raise InputError(
                f"{index.path} was built by model {index.fingerprint[:12]}, not by"
                f" {embedder.model_path} ({embedder.fingerprint[:12]}); leave --model out to use"
                " the index's own."
            )
        if index is not None and not index.accepts(embedder.run):
            raise InputError(
                f"{index.path} was made by {index.run} and {embedder.model_path} is run by"
                f" {embedder.run}; open the embedder with `index.open_embedder()`, or prove with"
                " `featkit verify` that they meet."
            )
        self.index, self.embedder, self.limits = index, embedder, limits
        self.num_threads = workers_for(embedder)  # that may call its methods at once
        self._within_memory = memory_for_images(embedder.limits, side_by_side=self.num_threads)
        self._num_failures = 0
        self._lock = threading.Lock()

    @property
    def is_failing(self) -> bool:
        """Whether the model failed at each of the last few requests."""
        return self._num_failures >= FAILURES_UNTIL_UNHEALTHY

    def ask(self, work: Callable[[Index], Result]) -> Result:
        """Return work(index), all of one state of the index.

        NoSuchItem as `work` raises it. Unavailable for what else the index raises: it is damaged,
        replaced by one of another model or gone, which is nothing that a client did or may read the
        details of.
        """
        index = self.index
        assert index is not None
        try:
            return index.read(lambda _state: work(index))
        except NoSuchItem:
            raise
        except FeatkitError as error:
            log.error("featkit: %s", error)
            raise Unavailable(
                "The index cannot be read now; the server's log has the reason."
            ) from error

    def embed(self, uploads: Sequence[Upload]) -> list[Embedded]:
        """Vectors of all images, or BadImages naming each that cannot be used."""
        prepared: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        bad: list[BadImage] = []
        for upload in uploads:
            num_bytes = len(upload.data) if upload.num_bytes is None else upload.num_bytes
            max_bytes = self.limits.images.max_bytes
            if num_bytes > max_bytes:
                reason = (
                    f"{upload.name} has {num_bytes:,} bytes, more than the limit of {max_bytes:,}"
                    " for one image."
                )
                bad.append(BadImage(upload.name, reason))
                continue
            try:
                image, size = self._prepared(upload)
            except InputError as error:
                # nothing that the image is to blame for
                if isinstance(error.__cause__, MemoryError):
                    raise error.__cause__ from None
                bad.append(BadImage(upload.name, without_options(str(error))))
                continue
            prepared.append(image)
            sizes.append(size)
        if bad:
            raise BadImages(bad)
        vectors = self._infer(np.stack(prepared))
        rows = zip(uploads, sizes, vectors, strict=True)
        return [
            Embedded(upload.name, height, width, vector) for upload, (height, width), vector in rows
        ]

    def _prepared(self, upload: Upload) -> tuple[np.ndarray, tuple[int, int]]:
        """The image at the model's size, and its own (height, width)."""
        with self._within_memory():
            decoded = self.embedder.decode(upload.data, name=upload.name)
            return self.embedder.geometry.apply(decoded.pixels), (decoded.height, decoded.width)

    def search(self, embedded: Sequence[Embedded], *, k: int) -> list[list[Hit]]:
        """The k nearest items for each image, in order. Unavailable as for `ask`."""

        def work(index: Index) -> list[list[Hit]]:
            # an index that took the place of the first one
            if not index.accepts(self.embedder.run):
                raise InputError(
                    f"{index.path} was made by {index.run}, and the service runs"
                    f" {self.embedder.run}; restart it."
                )
            return index.search(vectors=np.stack([one.vector for one in embedded]), k=k)

        return self.ask(work)

    def _infer(self, images: np.ndarray) -> np.ndarray:
        """Vectors of prepared images. Unavailable when the model cannot run; errors of the
        engine's own as they are."""
        try:
            vectors = self.embedder.infer(images)
        except Exception as error:
            with self._lock:
                self._num_failures += 1
            if not isinstance(error, FeatkitError):
                raise
            log.error("featkit: %s", error)
            raise Unavailable(
                "The model cannot run now; the server's log has the reason."
            ) from error
        self._num_failures = 0
        return vectors
