"""Turn images into unit vectors from Python."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from featkit.backends import Cancel, Run, choose_run, images_per_call, open_backend
from featkit.errors import InputError
from featkit.images import (
    DEFAULT_LIMITS,
    THUMBNAIL_SIDE,
    Decoded,
    ImageLike,
    ImageLimits,
    is_single,
    load,
    name_of,
)
from featkit.modelfile import EMBEDDING, check_weights, read_manifest
from featkit.models import default_model_path
from featkit.resources import usable_cpus

DEFAULT_BATCH = 32


class Embedder:
    """A model file, loaded and ready to embed images. Thread-safe.

    model: a featkit model file; by default the model that ships with featkit.
    threads: threads of one call; by default all that this process may use.
    batch_size: maximum number of images per call of the model. A smaller batch is used if it is
    just as fast.
    backend: onnxruntime, openvino, tensorrt or auto. precision: fp32, bf16 or auto. auto picks the
    fastest installed combination whose vectors are equal within rounding; it measures for about a
    second when a model is first used on this machine and remembers the result. The environment
    variables FEATKIT_BACKEND and FEATKIT_PRECISION override auto.
    accepts: a filter for the runs that auto may choose.

    Raises InputError if the file is not a featkit model file, and EnvironmentProblem if no
    installed engine can run it.

    Example:
        featkit.Embedder("m.onnx").embed(["cat.jpg", "dog.jpg"])    # (2, d) float32
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        backend: str = "auto",
        precision: str = "auto",
        threads: int | None = None,
        batch_size: int = DEFAULT_BATCH,
        limits: ImageLimits = DEFAULT_LIMITS,
        accepts: Callable[[Run], bool] = lambda _run: True,
    ) -> None:
        self.model_path = default_model_path() if model is None else Path(model)
        self.manifest = read_manifest(self.model_path)
        self.geometry = self.manifest.geometry
        self.limits = limits
        if threads is not None and threads < 1:
            raise InputError(f"threads is {threads}; use 1 or more.")
        if batch_size < 1:
            raise InputError(f"batch_size is {batch_size}; use 1 or more.")
        check_weights(self.model_path, self.manifest)
        self.threads = threads or usable_cpus()
        self._choice = (backend, precision)
        self._most = batch_size
        self._open(
            choose_run(
                self.model_path,
                self.manifest,
                backend=backend,
                precision=precision,
                accepts=accepts,
                batch_size=batch_size,
            )
        )

    def _open(self, run: Run) -> None:
        self._asked = run  # the backend may fall back to another device; `self.run` is what runs
        self._backend = open_backend(self.model_path, run, threads=self.threads)
        self.batch_size = images_per_call(self._backend, self.manifest, self._most)

    def with_threads(self, threads: int) -> Embedder:
        """Return an Embedder of the same model and run that uses `threads` threads per call.

        That is this Embedder if it already does, else a new one with its own session.
        """
        if threads == self.threads:
            return self
        other = copy.copy(self)
        other.threads = threads
        other._open(self._asked)
        return other

    def with_run(self, run: Run) -> Embedder:
        """Return an Embedder of the same model for another run: this one if it matches, else a new
        one. Raises what the constructor raises."""
        if run == self.run:
            return self
        other = copy.copy(self)
        other._open(run)
        return other

    def leaves_open(self, run: Run) -> bool:
        """Return whether the backend and precision given to the constructor allow this run."""
        return self._choice[0] in ("auto", run.backend) and self._choice[1] in (
            "auto",
            run.precision,
        )

    @property
    def run(self) -> Run:
        """The engine and precision actually in use."""
        return self._backend.kind

    @property
    def fingerprint(self) -> str:
        """The model's fingerprint. Never compare vectors of different fingerprints."""
        return self.manifest.fingerprint

    @property
    def width(self) -> int:
        """Dimensions of a vector."""
        return self.manifest.width

    @property
    def backend_name(self) -> str:
        """Name of the engine and device actually in use, such as `onnxruntime CPU`."""
        return self._backend.name

    def decode(self, image: ImageLike, *, name: str | None = None) -> Decoded:
        """Decode an image at a size large enough for the model and for a thumbnail.

        Raises InputError, naming the image, if it cannot be read.
        """
        # The same size with or without a thumbnail, so that a vector never depends on it.
        side = max(self.geometry.shorter_side, THUMBNAIL_SIDE)
        return load(image, name=name, limits=self.limits, shorter_side=side)

    def prepare(self, image: ImageLike, *, name: str | None = None) -> np.ndarray:
        """Decode an image and resize it for the model: (H, W, 3) uint8. Raises as `decode` does."""
        return self.geometry.apply(self.decode(image, name=name).pixels)

    def infer(self, images: np.ndarray, *, cancel: Cancel | None = None) -> np.ndarray:
        """Return unit vectors (N, D) float32 of prepared images (N, H, W, 3) uint8.

        H and W must be multiples of the model's patch. Raises InputError for any other shape,
        naming the two nearest sizes that work, and Cancelled once `cancel` is set.
        """
        self._check_size(images)
        if len(images) == 0:
            return np.zeros((0, self.width), np.float32)
        starts = range(0, len(images), self.batch_size)
        blocks = [
            self._backend.run(images[at : at + self.batch_size], cancel=cancel)[EMBEDDING]
            for at in starts
        ]
        return blocks[0] if len(blocks) == 1 else np.concatenate(blocks)

    def outputs(self, images: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
        """Return the named outputs, float32, for prepared images (N, H, W, 3) uint8 with N ≥ 1.

        Every model has `embedding` (N, D). Some also have `patches` (N, h, w, D), one vector per
        patch, and `attention` (N, heads, h, w) from the class token to the patches. Raises
        InputError for an unknown output, listing the known ones, and as `infer` does.
        """
        known = ", ".join(self.manifest.outputs)
        if not names:
            raise InputError(f"No output of {self.model_path} was named; choose from {known}.")
        if unknown := sorted(set(names) - set(self.manifest.outputs)):
            raise InputError(
                f"{self.model_path} has no output {', '.join(unknown)}; choose from {known}."
            )
        self._check_size(images)
        if len(images) == 0:
            raise InputError("There are no images to compute outputs for; give one or more.")
        starts = range(0, len(images), self.batch_size)
        blocks = [
            self._backend.run(images[at : at + self.batch_size], outputs=names) for at in starts
        ]
        return {name: np.concatenate([block[name] for block in blocks]) for name in names}

    def embed(self, images: ImageLike | Iterable[ImageLike]) -> np.ndarray:
        """Return unit vectors (n, D) float32 of one image or of several.

        An image is a path, bytes, an open binary file, a Pillow image, an array (H, W, 3) uint8,
        or a row {bytes, path} of a Hugging Face data set; see `featkit.images.load`. An array
        (N, H, W, 3) holds N images. Memory use depends on the batch size, not on the number of
        images. For many images pass paths or a generator. A list of images from `Image.open`
        keeps every file open until it is decoded, and most systems allow about a thousand.

        Raises InputError, naming the first image that cannot be read.
        """
        singles: Any = [images] if is_single(images) else images
        blocks: list[np.ndarray] = []
        batch: list[np.ndarray] = []
        for index, image in enumerate(singles):
            own_name = name_of(image)
            if own_name is None:
                own_name = f"image {index}"
            batch.append(self.prepare(image, name=own_name))
            if len(batch) == self.batch_size:
                blocks.append(self.infer(np.stack(batch)))
                batch = []
        if batch:
            blocks.append(self.infer(np.stack(batch)))
        return np.concatenate(blocks) if blocks else np.zeros((0, self.width), np.float32)

    def _check_size(self, images: np.ndarray) -> None:
        if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8:
            raise InputError(
                f"The model expects uint8 (N, H, W, 3), not {images.dtype} {images.shape}; use"
                " `prepare`."
            )
        fixed = self.manifest.fixed_size
        if fixed is not None and images.shape[1:3] != fixed:
            height, width = fixed
            raise InputError(
                f"{self.model_path} only takes images of {height}×{width} (height × width), not"
                f" {images.shape[1]}×{images.shape[2]}; resize them with `prepare`, or export the"
                " model without a fixed size."
            )
        patch = self.manifest.patch
        for side, length in (("height", images.shape[1]), ("width", images.shape[2])):
            if length % patch or length == 0:
                below = length // patch * patch
                nearest = f"{below} or {below + patch}" if below else f"{patch}"
                raise InputError(
                    f"The {side} is {length}, not a multiple of the model's patch of {patch}; use"
                    f" {nearest}."
                )
