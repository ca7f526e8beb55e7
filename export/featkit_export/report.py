"""The report of an export: the file, every comparison that proves it, and remarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from featkit.errors import FeatkitError
from featkit.modelfile import Manifest

if TYPE_CHECKING:
    from featkit_export.verify import Parity

# Called with the name of each step when it begins, such as "tracing the graph".
OnStep: TypeAlias = Callable[[str], None]


def no_step(_step: str) -> None:
    """Ignore a step: the listener of callers that show no progress."""


class ExportError(FeatkitError):
    """A failed export. `reason` is the cause by itself; the message adds the consequence."""

    def __init__(self, reason: str, consequence: str = "") -> None:
        super().__init__(f"{reason}; {consequence}." if consequence else f"{reason}.")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A batch that the original ONNX file does not run on, so nothing is promised for it."""

    batch: int
    height: int
    width: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class ExportReport:
    """A written model file and the measurements behind it.

    compared_with: the reference of `comparisons`; "" if the source was already a model file.
    fixed_speedup: speed of the fixed-size graph relative to the dynamic one, if a size was asked
    for.
    triton: the folder in a Triton model repository, if one was asked for.
    """

    out: Path
    manifest: Manifest
    compared_with: str = ""
    comparisons: tuple[Parity, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    remarks: tuple[str, ...] = ()
    fixed_speedup: float | None = None
    triton: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON-compatible values, as `featkit export --json` prints it."""
        return {
            "out": str(self.out),
            "fingerprint": self.manifest.fingerprint,
            "compared_with": self.compared_with,
            "comparisons": [asdict(case) for case in self.comparisons],
            "left_out": [asdict(case) for case in self.left_out],
            "fixed_speedup": self.fixed_speedup,
            "remarks": list(self.remarks),
            "quantization": self.manifest.quantization,
            "triton": None if self.triton is None else str(self.triton),
        }
