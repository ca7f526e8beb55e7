"""What classifiers and ensembles of them make of the held-out images, as rows of the table.

Letters: N held-out images with labels, P of them with E edits for the copies, K classes, D width,
M members.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.sources import Source
from featkit_train.methods.labels import UNKNOWN
from featkit_train.methods.supervised import classify, codes_of
from featkit_train.networks.classifier import Classifier
from featkit_train.networks.inference import evaluating, over_images
from featkit_train.watching.probe import HeldOut
from featkit_train.watching.standing import Kind, Row

TIMED_ROUNDS, TIMED_IMAGES = 7, 64


@dataclass(frozen=True)
class Seen:
    """probs (N, K), vectors (N, D) and those of the copies' images and edits (P * (1 + E), D),
    all float32."""

    probs: np.ndarray
    vectors: np.ndarray
    copy_vectors: np.ndarray


class Judge:
    """The held-out images, prepared once. InputError where none of them has a label of `classes`."""

    def __init__(
        self, source: Source, geometry: Geometry, classes: Sequence[str], *, label: str
    ) -> None:
        self.geometry = geometry
        self._held_out = HeldOut(source, np.arange(len(source)), geometry, label=label)
        codes = codes_of(self._held_out.labels, classes)
        self._known = np.flatnonzero(codes != UNKNOWN)
        self.labels = codes[self._known]
        if self._held_out.prepared is None or not len(self.labels):
            raise InputError(
                f"None of the held-out images of {source.name} has a label that is learned; name"
                " others."
            )
        self._images = self._held_out.prepared[self._known]

    def see(self, classifier: Classifier) -> list[Seen]:
        """By exit, the deepest last."""
        statistics_ = {"mean": self.geometry.mean, "std": self.geometry.std}
        probs = classify(classifier, self._images, **statistics_)

        def by_exit(images: np.ndarray) -> np.ndarray:
            return over_images(classifier, images, _unit_vectors, **statistics_).transpose(1, 0, 2)

        vectors = by_exit(self._images)
        copies = by_exit(self._held_out.copy_images)
        return [Seen(*parts) for parts in zip(probs, vectors, copies, strict=True)]

    def row(
        self, name: str, kind: Kind, seen: Seen, *, teacher: Seen | None = None, **known: Any
    ) -> Row:
        """The row of one, beside its teacher where it has one; known: fields that are not measured
        here."""
        return Row.of(
            name,
            kind,
            seen.probs,
            self.labels,
            vectors=seen.vectors,
            teacher_probs=None if teacher is None else teacher.probs,
            copies=self._held_out.copy_recall(seen.copy_vectors),
            **known,
        )

    @torch.no_grad()
    def images_per_s(self, networks: Sequence[nn.Module]) -> list[float]:
        """Images a second of each, in turn, TIMED_IMAGES a call; of the median call."""
        images = torch.from_numpy(self._images[:TIMED_IMAGES]).permute(0, 3, 1, 2).float() / 255
        seconds: list[list[float]] = [[] for _ in networks]
        for _ in range(TIMED_ROUNDS + 1):
            for times, network in zip(seconds, networks, strict=True):
                device = next(network.parameters()).device
                with evaluating(network):
                    pixels = images.to(device)
                    started = time.perf_counter()
                    network(pixels)
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    times.append(time.perf_counter() - started)
        return [len(images) / statistics.median(times[1:]) for times in seconds]


def together(members: Sequence[Seen]) -> Seen:
    """An ensemble: the mean of the probabilities (Born-Again Networks, arXiv 1805.04770, section
    3.1).

    Its vectors are the members' laid side by side, so that an inner product is the mean of theirs.
    """
    scale = len(members) ** -0.5
    return Seen(
        np.stack([member.probs for member in members]).mean(axis=0),
        np.concatenate([member.vectors for member in members], axis=1) * np.float32(scale),
        np.concatenate([member.copy_vectors for member in members], axis=1) * np.float32(scale),
    )


def _unit_vectors(outputs: Any) -> Tensor:
    """(n, exits, D), images first."""
    return F.normalize(outputs.vectors.float(), dim=-1).transpose(0, 1)
