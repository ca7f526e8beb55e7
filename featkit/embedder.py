"""Images to unit vectors, for programs."""

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
    """A model file ready to embed images. Thread-safe.

    model: a featkit model file; None is the one that ships. threads: for one call, by default all
    this process may use.
    batch_size: the most images at once; a smaller batch is taken where that is as fast.
    backend: onnxruntime, openvino or tensorrt; precision: fp32 or bf16. auto is the fastest that is
    installed and gives the same vectors within rounding, measured for about a second at a model's
    first use here and remembered; the environment variables FEATKIT_BACKEND and FEATKIT_PRECISION
    stand in for it. accepts: says of a Run whether auto may choose it. InputError when the file is
    no featkit model file; EnvironmentProblem when nothing is installed that runs it.

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
            raise InputError(f"{threads} threads cannot work; use 1 or more.")
        if batch_size < 1:
            raise InputError(f"A batch of {batch_size} images is none; use 1 or more.")
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
        self._asked = run  # what then really runs says `run`
        self._backend = open_backend(self.model_path, run, threads=self.threads)
        self.batch_size = images_per_call(self._backend, self.manifest, self._most)

    def with_threads(self, threads: int) -> Embedder:
        """The same model, run alike, with so many threads a call: this one, or another session
        beside it."""
        if threads == self.threads:
            return self
        other = copy.copy(self)
        other.threads = threads
        other._open(self._asked)
        return other

    def with_run(self, run: Run) -> Embedder:
        """The same model run so: this one, or another session beside it. Errors as at the opening."""
        if run == self.run:
            return self
        other = copy.copy(self)
        other._open(run)
        return other

    def leaves_open(self, run: Run) -> bool:
        """Whether what was asked for at the opening allows this run: it was auto, or this very one."""
        return self._choice[0] in ("auto", run.backend) and self._choice[1] in (
            "auto",
            run.precision,
        )

    @property
    def run(self) -> Run:
        """The engine and the precision that really run."""
        return self._backend.kind

    @property
    def fingerprint(self) -> str:
        """Of the model: vectors of different fingerprints must not meet."""
        return self.manifest.fingerprint

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.manifest.width

    @property
    def backend_name(self) -> str:
        """What really runs, such as `onnxruntime CPU`."""
        return self._backend.name

    def decode(self, image: ImageLike, *, name: str | None = None) -> Decoded:
        """Decode at a size that serves the model and a thumbnail. InputError, naming it, for a
        image that cannot be read.

        The size never depends on whether a thumbnail is wanted, so that a vector does not either.
        """
        side = max(self.geometry.shorter_side, THUMBNAIL_SIDE)
        return load(image, name=name, limits=self.limits, shorter_side=side)

    def prepare(self, image: ImageLike, *, name: str | None = None) -> np.ndarray:
        """Decode and bring to the model's size: (H, W, 3) uint8. InputError as for `decode`."""
        return self.geometry.apply(self.decode(image, name=name).pixels)

    def infer(self, images: np.ndarray, *, cancel: Cancel | None = None) -> np.ndarray:
        """Prepared images (N, H, W, 3) uint8 to unit vectors (N, D) float32; H and W multiples of
        the model's patch.

        InputError for any other shape, naming the two nearest sizes that work. Cancelled when
        `cancel` is set meanwhile.
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
        """Outputs of the model by name, float32, for prepared images (N, H, W, 3) uint8, of which
        there is at least one.

        `embedding` (N, D); where the model has them, `patches` (N, h, w, D), a vector for each
        patch, and `attention` (N, heads, h, w), of the class token over the patches. InputError for
        others, naming those that the model has, and as for `infer`.
        """
        if not names or not set(names) <= set(self.manifest.outputs):
            unknown = ", ".join(sorted(set(names) - set(self.manifest.outputs))) or "nothing"
            known = ", ".join(self.manifest.outputs)
            raise InputError(
                f"{self.model_path} gives {known}, not {unknown}; ask for what it gives."
            )
        self._check_size(images)
        if len(images) == 0:
            raise InputError("No images have no outputs; give one or more.")
        starts = range(0, len(images), self.batch_size)
        blocks = [
            self._backend.run(images[at : at + self.batch_size], outputs=names) for at in starts
        ]
        return {name: np.concatenate([block[name] for block in blocks]) for name in names}

    def embed(self, images: ImageLike | Iterable[ImageLike]) -> np.ndarray:
        """Return unit vectors (n, D) float32 of images, or of one of them.

        An image is a path, bytes, an open binary file, a Pillow image, an array (H, W, 3) uint8,
        or a row {bytes, path} of a Hugging Face data set; `featkit.images.load` says more. An array
        (N, H, W, 3) is N images. Memory is bounded by the batch, not by the number of images.
        Give paths, or a generator, rather than a list of images opened by `Image.open`: each of
        those holds its file open until it is decoded, and a process may have about a thousand.

        InputError, naming the first that cannot be read or is no image.
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
                f"The model takes uint8 (N, H, W, 3), not {images.dtype} {images.shape}."
            )
        fixed = self.manifest.fixed_size
        if fixed is not None and images.shape[1:3] != fixed:
            (height, width), found = fixed, images.shape
            raise InputError(
                f"{self.model_path} takes images of {height}×{width} only (height × width), not"
                f" {found[1]}×{found[2]}; bring them to that size with `prepare`, or export the"
                " model without a fixed size."
            )
        patch = self.manifest.patch
        for side, length in (("height", images.shape[1]), ("width", images.shape[2])):
            if length % patch or length == 0:
                below = length // patch * patch
                nearest = f"{below} or {below + patch}" if below else f"{patch}"
                raise InputError(
                    f"The {side} of {length} is no multiple of the model's patch of {patch}; use"
                    f" {nearest}."
                )
