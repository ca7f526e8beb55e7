"""The service behind the routes: one embedder, perhaps one index, and the limits of a request.

Routes get the `Service` with each request and do not store it, so replacing the model or the
index would be one assignment here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import anyio
import numpy as np

from featkit.backends import Cancelled
from featkit.embedder import Embedder
from featkit.errors import FeatkitError, InputError
from featkit.images import ImageLimits, without_options
from featkit.index import FilterError, Hit, Index, IndexState, NoSuchItem, Refinement
from featkit.serve.admission import Accepted, Admission, Bounds
from featkit.serve.refusals import BadImages, ClientLeft, Unavailable, log
from featkit.serve.schemas import RefusedImage
from featkit.workers import memory_for_images, workers_for

Result = TypeVar("Result")

FAILURES_UNTIL_UNHEALTHY = 3  # consecutive failures of the model


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """Limits past which a request is refused."""

    images: ImageLimits = field(
        default_factory=lambda: ImageLimits(max_bytes=32 * 2**20, max_pixels=60_000_000)
    )
    max_images: int = 64
    max_request_bytes: int = 256 * 2**20
    max_k: int = 1000
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True)
class Upload:
    """One image as it was sent: its bytes, and the sender's name for it, which is never opened.

    num_bytes: the size of the upload. `data` is cut one byte after the limit. None if `data` is
    complete.
    """

    name: str
    data: bytes
    num_bytes: int | None = None


@dataclass(frozen=True)
class EmbeddedUpload:
    """An upload's upright size in pixels and its unit vector, (D,) float32."""

    name: str
    height: int
    width: int
    vector: np.ndarray


class Service:
    """An embedder, an index to search or None, and limits. Its methods are thread-safe."""

    def __init__(self, index: Index | None, embedder: Embedder, limits: ServiceLimits) -> None:
        if index is not None and not index.accepts_model(embedder.manifest):
            raise InputError(
                f"{index.path} was built by model {index.fingerprint[:12]}, not by"
                f" {embedder.model_path} ({embedder.fingerprint[:12]}); leave out --model to use"
                " the index's own."
            )
        if index is not None and not index.accepts(embedder.run):
            raise InputError(
                f"{index.path} was made by {index.run}, but {embedder.model_path} is run by"
                f" {embedder.run}; open the embedder with `index.open_embedder()`, or prove with"
                " `featkit verify` that both give the same vectors."
            )
        self.index, self.embedder, self.limits = index, embedder, limits
        self.admission = Admission(limits.bounds)
        self.max_request_bytes = min(limits.max_request_bytes, limits.bounds.body_bytes)
        num_threads = workers_for(embedder)
        self.workers = anyio.CapacityLimiter(num_threads)  # threads that work on images
        self._within_memory = memory_for_images(embedder.limits, side_by_side=num_threads)
        self._num_failures = 0
        self._lock = threading.Lock()

    @property
    def is_failing(self) -> bool:
        """Return whether the model failed at each of the last few requests."""
        return self._num_failures >= FAILURES_UNTIL_UNHEALTHY

    def ask(self, work: Callable[[IndexState], Result]) -> Result:
        """Return work(state) for one committed state of the index.

        NoSuchItem and FilterError if `work` raises them. Unavailable if the index is damaged,
        missing or replaced by one of another model, which is not the client's fault.
        """
        assert self.index is not None  # or the app has no route that calls this
        try:
            return self.index.read(work)
        except (NoSuchItem, FilterError):
            raise
        except FeatkitError as error:
            log.error("featkit: %s", error)
            raise Unavailable(
                "The index cannot be read now; the server's log has the reason."
            ) from error

    def embed(
        self, uploads: Sequence[Upload], *, accepted: Accepted | None = None
    ) -> list[EmbeddedUpload]:
        """Embed images. BadImages, naming each bad one, if any of them cannot be used.

        accepted: the request, whose work ends between two images with ClientLeft or TooLate.
        """
        prepared: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        bad: list[RefusedImage] = []
        for upload in uploads:
            if accepted is not None:
                accepted.check()
            num_bytes = len(upload.data) if upload.num_bytes is None else upload.num_bytes
            max_bytes = self.limits.images.max_bytes
            if num_bytes > max_bytes:
                reason = (
                    f"{upload.name} has {num_bytes:,} bytes, more than the limit of {max_bytes:,}"
                    " for one image."
                )
                bad.append(RefusedImage(name=upload.name, reason=reason))
                continue
            try:
                image, size = self._prepared(upload)
            except InputError as error:
                # not the image's fault
                if isinstance(error.__cause__, MemoryError):
                    raise error.__cause__ from None
                reason = without_options(str(error))
                bad.append(RefusedImage(name=upload.name, reason=reason))
                continue
            prepared.append(image)
            sizes.append(size)
        if bad:
            raise BadImages(bad)
        vectors = self._infer(np.stack(prepared), accepted)
        rows = zip(uploads, sizes, vectors, strict=True)
        return [
            EmbeddedUpload(upload.name, height, width, vector)
            for upload, (height, width), vector in rows
        ]

    def _prepared(self, upload: Upload) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the image at the model's size, and its original (height, width)."""
        with self._within_memory():
            decoded = self.embedder.decode(upload.data, name=upload.name)
            return self.embedder.geometry.apply(decoded.pixels), (decoded.height, decoded.width)

    def search(
        self,
        embedded: Sequence[EmbeddedUpload],
        *,
        k: int,
        where: str | None,
        refine: Refinement,
    ) -> list[list[Hit]]:
        """Return the k nearest items, of those that match a filter, for each image, refined.

        Raises what `ask` raises.
        """
        index = self.index
        assert index is not None
        queries = np.stack([image.vector for image in embedded])

        def work(state: IndexState) -> list[list[Hit]]:
            # False if the index was replaced by one whose proofs do not include this run
            if not index.accepts(self.embedder.run):
                raise InputError(
                    f"{index.path} was made by {index.run}, and the service runs"
                    f" {self.embedder.run}; restart it."
                )
            return state.search(vectors=queries, k=k, where=where, refine=refine)

        return self.ask(work)

    def _infer(self, images: np.ndarray, accepted: Accepted | None) -> np.ndarray:
        """Return the vectors of prepared images.

        Unavailable if featkit's backend refuses; other errors of the engine pass unchanged.
        """
        try:
            vectors = self.embedder.infer(images, cancel=accepted.cancel if accepted else None)
        except Cancelled:
            raise ClientLeft from None
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
