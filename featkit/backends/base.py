"""What every engine offers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from featkit.modelfile import EMBEDDING

ONNXRUNTIME, OPENVINO, TENSORRT = BACKENDS = ("onnxruntime", "openvino", "tensorrt")
FP32, BF16, FP16, INT8 = "fp32", "bf16", "fp16", "int8"
AUTO = "auto"


class Cancelled(Exception):
    """A call was ended early, by whoever holds its Cancel."""


class Cancel:
    """Ends running calls early, from another thread: a large model can be busy with one image for
    seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, Callable[[], None]] = {}
        self.is_set = False

    def set(self) -> None:
        """Make running calls, and all that begin later, raise Cancelled."""
        with self._lock:
            self.is_set = True
            for end in self._running.values():
                end()

    @contextmanager
    def ends_by(self, end: Callable[[], None]) -> Iterator[None]:
        """Around one call, which `end()` makes return early. Raises Cancelled at once when it is
        set already."""
        with self._lock:
            if self.is_set:
                raise Cancelled
            self._running[id(end)] = end
        try:
            yield
        finally:
            with self._lock:
                del self._running[id(end)]


@dataclass(frozen=True, order=True)
class Run:
    """What decides a model's vectors beside its file: the engine, and the precision that it
    computes in.

    `bf16` is the run's own choice over a file of float32 weights; every other precision is the
    file's.
    """

    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"

    @classmethod
    def parse(cls, text: str) -> Run:
        """Read `str()` back. ValueError for anything else."""
        backend, _, precision = text.partition(" ")
        if backend not in BACKENDS or not precision.isalnum():
            raise ValueError(
                f"{text!r} is no engine with a precision, such as {ONNXRUNTIME} {FP32}"
            )
        return cls(backend, precision)


class Backend(Protocol):
    """A model file ready to run; safe to call from several threads."""

    @property
    def name(self) -> str:
        """What really runs, such as `onnxruntime CPU`."""
        ...

    @property
    def kind(self) -> Run:
        """The same as what a folder of vectors keeps of it."""
        ...

    @property
    def tokens_per_call(self) -> int:
        """Patches of all images of a call together from which on a larger batch is no faster."""
        ...

    def run(
        self,
        images: np.ndarray,
        *,
        outputs: Sequence[str] = (EMBEDDING,),
        cancel: Cancel | None = None,
    ) -> dict[str, np.ndarray]:
        """(N, H, W, 3) uint8 to the file's outputs of these names, float32. Cancelled when `cancel`
        was set meanwhile."""
        ...
