"""A graph before it becomes a model file, in memory or with its weights in a file. No torch
here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A graph before it becomes a model file.

    path: the saved graph, with its weights next to it; None if `model` contains its weights.
    """

    model: onnx.ModelProto
    path: Path | None = None

    @property
    def session_input(self) -> str | bytes:
        """The argument for onnxruntime.InferenceSession."""
        return str(self.path) if self.path else self.model.SerializeToString()
