"""Proofs in an index's settings: that another engine or precision gives a model's vectors as the
index has them.

`featkit verify` measures them on photographs. Without one an index is only asked in the precision
that its vectors have.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from featkit.backends import BF16, Run


@dataclass(frozen=True, kw_only=True)
class Proof:
    """That a run gives the vectors of ONNX Runtime in float32, on so many photographs; recall is
    that of copies at 1."""

    backend: str
    precision: str
    num_images: int
    least_cosine: float
    mean_cosine: float
    recall_lost: float

    @property
    def run(self) -> Run:
        """The run that was proven."""
        return Run(self.backend, self.precision)


def write_proofs(proofs: Sequence[Proof]) -> str:
    """Proofs as the text of a setting."""
    return json.dumps([asdict(proof) for proof in proofs])


def read_proofs(text: str) -> list[Proof]:
    """Read `write_proofs` back. None where the text is not such: what cannot be read proves
    nothing."""
    try:
        # `num_pictures` is what earlier versions called it
        return [
            Proof(
                **{
                    "num_images" if name == "num_pictures" else name: values[name]
                    for name in values
                }
            )
            for values in json.loads(text)
        ]
    except (ValueError, TypeError):
        return []


def meet(own: Run, other: Run, proofs: Sequence[Proof]) -> bool:
    """Whether vectors of the run `other` may meet those of the run `own`.

    Runs in float32, or in whatever precision the file has, differ by rounding in the last places
    and meet. bf16 is coarser: it meets itself, and the others where there is a proof of that very
    run.
    """
    coarse = [run for run in (own, other) if run.precision == BF16]
    return len(coarse) != 1 or any(proof.run == coarse[0] for proof in proofs)
