"""PCA whitening fitted to embeddings: fewer dimensions, each with the same variance.

Jégou and Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of PCA and
whitening" (ECCV 2012). Two additions are ours: a power below 1, which amplifies directions of
little variance less, and parts of a vector that are each whitened on their own.
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
# Below this, the variance of unit vectors is rounding.
LEAST_VARIANCE = 1e-12
DEFAULT_DIM = 128
FULL_POWER = 1.0


@dataclass(frozen=True, kw_only=True)
class Whitening:
    """A linear map of vectors: v becomes components @ (v - mean), scaled to unit length.

    mean: (D,) float32. components: (d, D) float32. explained: share of the variance in the
    dimensions that are kept. model: the `Manifest.made_of` of the model whose vectors it was fitted
    to; it fits no other. power, parts: see `fit_whitening`.
    """

    mean: np.ndarray
    components: np.ndarray
    num_vectors: int
    explained: float
    model: str
    power: float = FULL_POWER
    parts: tuple[int, ...] = ()

    @property
    def about(self) -> str:
        """The fit in words, for the manifest of a model file."""
        power = "" if self.power == FULL_POWER else f", power {self.power:g}"
        parts = f", {len(self.parts)} layers each on its own" if self.parts else ""
        return (
            f"{counted(self.num_vectors, 'vector')}, {self.explained:.1%} of the variance kept"
            f"{power}{parts}"
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
                parts=np.array(self.parts, dtype=np.int64),
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
                    # files of earlier versions have neither
                    power=float(file["power"]) if "power" in file else FULL_POWER,
                    parts=tuple(file["parts"].tolist()) if "parts" in file else (),
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
    blocks: Iterable[np.ndarray],
    *,
    dim: int,
    model: str,
    power: float = FULL_POWER,
    parts: tuple[int, ...] = (),
) -> Whitening:
    """Fit to vectors (N, D) given block by block; keep the `dim` of D directions with the largest
    variance.

    power: a direction of variance v is multiplied by v ** (-power / 2). 1 whitens, 0 only rotates
    the centered vectors.

    parts: the widths of parts that the D dimensions consist of, such as those of joined layers.
    Each is whitened on its own and then scaled, so that all have the same variance in total, and
    `dim` directions of the joined result are kept. Empty means one part.

    The covariance is accumulated in float64, so memory is D * D numbers for any N. InputError if
    there are not more vectors than `dim`, if `dim` exceeds D, if the power is not in 0 .. 1, or if
    the parts are not D wide together.
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
    check_parts(parts, width=len(total))
    mean = total / count
    covariance = products / count - np.outer(mean, mean)
    if parts:
        apart = _whiten_apart(covariance, parts, power)
        components, explained = _directions(apart @ covariance @ apart.T, dim, power=0)
        components = components @ apart
    else:
        components, explained = _directions(covariance, dim, power=power)
    return Whitening(
        mean=mean.astype(np.float32),
        components=components.astype(np.float32),
        num_vectors=count,
        explained=explained,
        model=model,
        power=float(power),
        parts=parts,
    )


def _directions(covariance: np.ndarray, dim: int, *, power: float) -> tuple[np.ndarray, float]:
    """Return the scaled directions (dim, D) of the largest variance, and their share of it."""
    values, directions = np.linalg.eigh(covariance)
    values, directions = values[::-1], directions[:, ::-1]
    if not values[0] > LEAST_VARIANCE:
        raise InputError(
            "The vectors are all equal, in one layer at least, so no whitening can be fitted; embed"
            " images that differ."
        )
    scale = np.maximum(values[:dim], FLOOR * values[0]) ** (-power / 2)
    # An eigenvector has no definite sign. Its largest component is made positive, so that equal
    # data gives equal bytes.
    kept = directions[:, :dim].T
    signs = np.sign(kept[np.arange(dim), np.abs(kept).argmax(axis=1)])
    return signs[:, None] * kept * scale[:, None], float(values[:dim].sum() / values.sum())


def _whiten_apart(covariance: np.ndarray, parts: tuple[int, ...], power: float) -> np.ndarray:
    """Return a map (D, D) that whitens each part on its own, to a variance of 1 in total."""
    apart, start = np.zeros_like(covariance), 0
    for width in parts:
        rows = slice(start, start + width)
        of_part = covariance[rows, rows]
        directions, _ = _directions(of_part, width, power=power)
        variance = np.trace(directions @ of_part @ directions.T)
        apart[rows, rows] = directions / np.sqrt(variance)
        start += width
    return apart


def check_parts(parts: tuple[int, ...], *, width: int) -> None:
    """Raise InputError if there are parts that are not `width` wide together."""
    if parts and sum(parts) != width:
        raise InputError(
            f"Parts of {', '.join(map(str, parts))} dimensions are not the {width} of a vector."
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
