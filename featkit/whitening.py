"""PCA whitening fitted to embeddings: fewer dimensions, each with the same variance.

Jégou and Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of PCA and
whitening" (ECCV 2012). A power below 1, our addition, amplifies directions of little variance less.
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
# Relative to the largest eigenvalue: a direction without variance is not amplified.
FLOOR = 1e-6
DEFAULT_DIM = 128
FULL_POWER = 1.0


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """A linear map of vectors: v becomes components @ (v - mean), scaled to unit length.

    mean: (D,) float32. components: (d, D) float32. explained: share of the variance in the
    dimensions that are kept. model: the `Manifest.made_of` of the model whose vectors it was fitted
    to; it fits no other. power: see `fit_whitening`.
    """

    mean: np.ndarray
    components: np.ndarray
    num_vectors: int
    explained: float
    model: str
    power: float = FULL_POWER

    @property
    def about(self) -> str:
        """The fit in words, for the manifest of a model file."""
        power = "" if self.power == FULL_POWER else f", power {self.power:g}"
        return (
            f"{counted(self.num_vectors, 'vector')}, {self.explained:.1%} of the variance kept"
            f"{power}"
        )

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        """Return the unit vectors (N, d) float32 of vectors (N, D)."""
        whitened = (vectors - self.mean) @ self.components.T
        norms = np.linalg.norm(whitened, axis=1, keepdims=True)
        unit: np.ndarray = (whitened / norms).astype(np.float32)
        return unit

    def save(self, path: Path) -> None:
        """Write one .npz file, whole or not at all."""
        with replace_file(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                format=np.int64(FORMAT),
                mean=self.mean,
                components=self.components,
                num_vectors=np.int64(self.num_vectors),
                explained=np.float64(self.explained),
                model=np.str_(self.model),
                power=np.float64(self.power),
            )

    @classmethod
    def load(cls, path: Path) -> Whitening:
        """Read a file that `save` wrote. InputError if it is missing or is another file."""
        try:
            # Opened here, since np.load does not close a file that it cannot read.
            with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
                if int(file["format"]) > FORMAT:
                    raise InputError(
                        f"{path} has format {int(file['format'])}, newer than the {FORMAT} read"
                        " here; update featkit."
                    )
                whitening = cls(
                    mean=file["mean"],
                    components=file["components"],
                    num_vectors=int(file["num_vectors"]),
                    explained=float(file["explained"]),
                    model=str(file["model"]),
                    # files of earlier versions have none
                    power=float(file["power"]) if "power" in file else FULL_POWER,
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
        mean, components = whitening.mean, whitening.components
        is_float = mean.dtype == components.dtype == np.float32
        if not is_float or mean.ndim != 1 or components.shape[1:] != mean.shape:
            raise InputError(
                f"{path} is not a whitening written by `featkit whiten`: its arrays do not fit"
                " together."
            )
        return whitening


def fit_whitening(
    blocks: Iterable[np.ndarray], *, dim: int, model: str, power: float = FULL_POWER
) -> Whitening:
    """Fit to vectors (N, D) given block by block; keep the `dim` of D directions with the largest
    variance.

    power: a direction of variance v is multiplied by v ** (-power / 2). 1 whitens, 0 only rotates
    the centered vectors.

    The covariance is accumulated in float64, so memory is D * D numbers for any N. InputError if
    there are not more vectors than `dim`, if `dim` exceeds D, or if the power is not in 0 .. 1.
    """
    check_power(power)
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
    check_dim(dim, width=len(total))
    check_count(count, dim=dim)
    mean = total / count
    values, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    values, directions = values[::-1], directions[:, ::-1]
    scale = np.maximum(values[:dim], FLOOR * values[0]) ** (-power / 2)
    # An eigenvector has no definite sign. Its largest component is made positive, so that equal
    # data gives equal bytes.
    kept = directions[:, :dim].T
    signs = np.sign(kept[np.arange(dim), np.abs(kept).argmax(axis=1)])
    return Whitening(
        mean=mean.astype(np.float32),
        components=(signs[:, None] * kept * scale[:, None]).astype(np.float32),
        num_vectors=count,
        explained=float(values[:dim].sum() / values.sum()),
        model=model,
        power=float(power),
    )


def check_power(power: float) -> None:
    """Raise InputError for a power outside 0 .. 1."""
    if not 0 <= power <= 1:
        raise InputError(
            f"A power of {power:g} is not between 0 and 1; 1 whitens, 0 only rotates, and 0.5 is"
            " half way."
        )


def check_dim(dim: int, *, width: int) -> None:
    """Raise InputError if vectors of `width` dimensions cannot be shortened to `dim`."""
    if not 1 <= dim <= width:
        raise InputError(f"{dim} of {width} dimensions cannot be kept; use 1 to {width}.")


def check_count(count: int, *, dim: int) -> None:
    """Raise InputError if there are too few vectors to fit `dim` directions to."""
    if count <= dim:
        raise InputError(
            f"{counted(count, 'vector')} cannot determine {counted(dim, 'direction')}; embed more"
            " images, or use a smaller --dim."
        )
