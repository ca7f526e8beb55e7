"""The interface that every engine implements."""

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
    """A call was ended early through its Cancel."""


class Cancel:
    """End running calls from another thread; a large model can spend seconds on one image."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: dict[int, Callable[[], None]] = {}
        self.is_set = False

    def set(self) -> None:
        """Make running calls and all later ones raise Cancelled."""
        with self._lock:
            self.is_set = True
            for end in self._running.values():
                end()

    @contextmanager
    def ends_by(self, end: Callable[[], None]) -> Iterator[None]:
        """Register `end`, which makes the enclosed call return early.

        Raises Cancelled immediately if the Cancel is already set.
        """
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
    """An engine and the precision it computes in; together with the file they fix the vectors.

    `bf16` is chosen by the run, for a file with float32 weights. All other precisions come from the
    file.
    """

    backend: str
    precision: str

    def __str__(self) -> str:
        return f"{self.backend} {self.precision}"

    @classmethod
    def parse(cls, text: str) -> Run:
        """Parse the result of `str()`. Raises ValueError for anything else."""
        backend, _, precision = text.partition(" ")
        if backend not in BACKENDS or not precision.isalnum():
            raise ValueError(
                f"{text!r} is not an engine and a precision, such as {ONNXRUNTIME} {FP32}"
            )
        return cls(backend, precision)


class Backend(Protocol):
    """A loaded model file. Safe to call from several threads."""

    @property
    def name(self) -> str:
        """The engine and device actually in use, such as `onnxruntime CPU`."""
        ...

    @property
    def kind(self) -> Run:
        """The engine and precision, as stored with the vectors they compute."""
        ...

    @property
    def tokens_per_call(self) -> int:
        """Number of patches per call above which a larger batch is no faster."""
        ...

    def run(
        self,
        images: np.ndarray,
        *,
        outputs: Sequence[str] = (EMBEDDING,),
        cancel: Cancel | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the named outputs, float32, for images (N, H, W, 3) uint8.

        Raises Cancelled if `cancel` is set before the call ends.
        """
        ...
