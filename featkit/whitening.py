"""PCA-whitening fitted to embeddings: fewer numbers a vector, and no direction that outweighs the
others.

Jégou and Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of PCA and
whitening" (ECCV 2012).
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from featkit.atomic import replace_file
from featkit.errors import InputError
from featkit.wording import counted, first_line

FORMAT = 1
# of the largest eigenvalue: a direction without variance is left as it is rather than blown up
FLOOR = 1e-6


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """mean (D,) and components (d, D), both float32: v becomes components @ (v - mean), then unit
    length.

    model: what made the vectors it was fitted to, as `Manifest.made_of` says it; it suits no other.
    """

    mean: np.ndarray
    components: np.ndarray
    num_vectors: int
    explained: float  # share of the variance that the kept directions have
    model: str

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """(N, D) to unit vectors (N, d) float32."""
        turned = (vectors - self.mean) @ self.components.T
        unit: np.ndarray = (turned / np.linalg.norm(turned, axis=1, keepdims=True)).astype(
            np.float32
        )
        return unit

    def save(self, path: Path) -> None:
        """Write it as one .npz, whole or not at all."""
        with replace_file(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                format=np.int64(FORMAT),
                mean=self.mean,
                components=self.components,
                num_vectors=np.int64(self.num_vectors),
                explained=np.float64(self.explained),
                model=np.str_(self.model),
            )

    @classmethod
    def load(cls, path: Path) -> Whitening:
        """Read `save` back. InputError when the file is missing or is none of featkit's."""
        try:
            # Opened here, since np.load leaves a file open that it cannot read.
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                if int(file["format"]) > FORMAT:
                    raise InputError(
                        f"{path} has format {int(file['format'])}, newer than the {FORMAT} read"
                        " here; update featkit."
                    )
                found = cls(
                    mean=file["mean"],
                    components=file["components"],
                    num_vectors=int(file["num_vectors"]),
                    explained=float(file["explained"]),
                    model=str(file["model"]),
                )
        except FileNotFoundError as error:
            raise InputError(f"{path} does not exist; make it with `featkit whiten`.") from error
        except (
            OSError,
            EOFError,
            ValueError,
            KeyError,
            TypeError,
            zipfile.BadZipFile,
            zlib.error,
        ) as error:
            raise InputError(
                f"{path} is not a whitening written by `featkit whiten` ({first_line(error)})."
            ) from error
        floats = found.mean.dtype == found.components.dtype == np.float32
        if not floats or found.mean.ndim != 1 or found.components.shape[1:] != found.mean.shape:
            raise InputError(
                f"{path} is not a whitening written by `featkit whiten`: its arrays do not fit"
                " together."
            )
        return found


def fit_whitening(blocks: Iterable[np.ndarray], *, dim: int, model: str) -> Whitening:
    """Fit to vectors (N, D) that come block by block; `dim` of D directions are kept, those with
    most variance.

    The covariance is summed in float64, so memory is D * D numbers whatever N is. InputError for
    fewer vectors than dimensions wanted, or more dimensions than the vectors have.
    """
    count, total, products = 0, np.zeros(0), np.zeros((0, 0))
    for block in blocks:
        values = block.astype(np.float64)
        if count == 0:
            total, products = (
                np.zeros(values.shape[1]),
                np.zeros((values.shape[1], values.shape[1])),
            )
        count += len(values)
        total += values.sum(axis=0)
        products += values.T @ values
    if count == 0:
        raise InputError("There are no vectors to fit a whitening to; embed images first.")
    if not 1 <= dim <= len(total):
        raise InputError(
            f"{dim} dimensions cannot be kept of vectors of {len(total)}; use 1 to {len(total)}."
        )
    if count <= dim:
        raise InputError(
            f"{counted(dim, 'direction')} cannot be found in {counted(count, 'vector')}; "
            "embed more images, or use a smaller --dim."
        )
    mean = total / count
    values, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    values, directions = values[::-1], directions[:, ::-1]
    scale = 1 / np.sqrt(np.maximum(values[:dim], FLOOR * values[0]))
    # An eigenvector is one up to its sign; the largest number of each is made positive, so that
    # equal data gives equal bytes.
    kept = directions[:, :dim].T
    signs = np.sign(kept[np.arange(dim), np.abs(kept).argmax(axis=1)])
    return Whitening(
        mean=mean.astype(np.float32),
        components=(signs[:, None] * kept * scale[:, None]).astype(np.float32),
        num_vectors=count,
        explained=float(values[:dim].sum() / values.sum()),
        model=model,
    )
