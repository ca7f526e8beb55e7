"""A graph on its way to a model file, in memory or with its weights in a file beside it. No torch
here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx


@dataclass(frozen=True, kw_only=True)
class Traced:
    """A graph on its way to a model file. `path`: the file it lies in, with its weights beside it;
    None where it is whole."""

    model: onnx.ModelProto
    path: Path | None = None

    @property
    def session_input(self) -> str | bytes:
        """What an onnxruntime session opens."""
        return str(self.path) if self.path else self.model.SerializeToString()
