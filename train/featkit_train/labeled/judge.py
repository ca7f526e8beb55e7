"""Measure classifiers and their ensembles on the held-out images, as rows of the table.

Letters: N held-out images with labels, P of them with E edits for copy recall, K classes, D width.
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
from featkit_train.methods.labels import UNKNOWN, codes_of
from featkit_train.methods.supervised import classify
from featkit_train.networks.classifier import Classifier
from featkit_train.networks.inference import evaluating, over_images
from featkit_train.watching.probe import HeldOut
from featkit_train.watching.standing import Kind, Row

TIMED_ROUNDS, TIMED_IMAGES = 7, 64


@dataclass(frozen=True)
class Predictions:
    """One classifier's outputs for the held-out images, all float32: probs (N, K), vectors (N, D),
    and vectors of the copies and their originals (P * (1 + E), D)."""

    probs: np.ndarray
    vectors: np.ndarray
    copy_vectors: np.ndarray


class Judge:
    """The held-out images, prepared once. InputError if none of them has a label of `classes`."""

    def __init__(
        self, source: Source, geometry: Geometry, classes: Sequence[str], *, label: str
    ) -> None:
        self.geometry = geometry
        self._held_out = HeldOut(source, np.arange(len(source)), geometry, label=label)
        codes = codes_of(self._held_out.labels, classes)
        labeled = np.flatnonzero(codes != UNKNOWN)
        self.labels = codes[labeled]
        if self._held_out.prepared is None or not len(self.labels):
            raise InputError(
                f"No held-out image of {source.name} has a label that the network learns. Name"
                " others with"
                " --held-out."
            )
        self._images = self._held_out.prepared[labeled]

    def predict(self, classifier: Classifier) -> list[Predictions]:
        """Return the predictions of each exit, the deepest last."""
        normalization = {"mean": self.geometry.mean, "std": self.geometry.std}
        probs = classify(classifier, self._images, **normalization)

        def vectors_by_exit(images: np.ndarray) -> np.ndarray:
            vectors = over_images(classifier, images, _unit_vectors, **normalization)
            return vectors.transpose(1, 0, 2)

        vectors = vectors_by_exit(self._images)
        copies = vectors_by_exit(self._held_out.copy_images)
        return [Predictions(*of_exit) for of_exit in zip(probs, vectors, copies, strict=True)]

    def row(
        self,
        name: str,
        kind: Kind,
        predictions: Predictions,
        *,
        teacher: Predictions | None = None,
        **known: Any,
    ) -> Row:
        """Return the table's row of `predictions`, compared with its teacher's. known: fields that
        are not measured here."""
        return Row.of(
            name,
            kind,
            predictions.probs,
            self.labels,
            vectors=predictions.vectors,
            teacher_probs=None if teacher is None else teacher.probs,
            copies=self._held_out.copy_recall(predictions.copy_vectors),
            **known,
        )

    @torch.no_grad()
    def images_per_s(self, networks: Sequence[nn.Module]) -> list[float]:
        """Return each network's images per second in its median call on TIMED_IMAGES images.

        The networks take turns, so that a slow moment of the machine hits all of them.
        """
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
        # The first call of each is a warm-up.
        return [len(images) / statistics.median(times[1:]) for times in seconds]


def ensemble_of(members: Sequence[Predictions]) -> Predictions:
    """Average the members' probabilities (Born-Again Networks, arXiv 1805.04770, section 3.1).

    The ensemble's vectors are the members' concatenated, so that an inner product is the mean of
    theirs.
    """
    scale = len(members) ** -0.5
    return Predictions(
        np.stack([member.probs for member in members]).mean(axis=0),
        np.concatenate([member.vectors for member in members], axis=1) * np.float32(scale),
        np.concatenate([member.copy_vectors for member in members], axis=1) * np.float32(scale),
    )


def _unit_vectors(outputs: Any) -> Tensor:
    """Return unit vectors (n, exits, D), images first."""
    return F.normalize(outputs.vectors.float(), dim=-1).transpose(0, 1)
