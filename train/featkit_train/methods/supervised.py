"""The methods that learn from labels: one classifier, the supervision of each image, and scores.

Letters: B images, E exits (the deepest last), D width, K classes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from featkit.errors import InputError
from featkit_train.config import TrainConfig
from featkit_train.losses import cross_entropy
from featkit_train.methods.base import (
    Generators,
    Method,
    StepResult,
    Views,
    check_multiples,
)
from featkit_train.methods.labels import UNKNOWN, Labels, codes_of
from featkit_train.networks.base import Backbone
from featkit_train.networks.classifier import Classifier, Outputs, build_backbone
from featkit_train.networks.inference import over_images
from featkit_train.processes.distributed import ALONE, World
from featkit_train.watching.judging import accuracy, expected_calibration_error
from featkit_train.watching.probe import HeldOut, Scores
from featkit_train.weights import CLASSIFIER_FILE, BackboneInfo, save_classifier


class Supervision(NamedTuple):
    """The labels and teacher outputs of a micro-batch. Missing tensors are empty."""

    labels: Tensor  # (B,) int64, UNKNOWN for images without a label
    probs: Tensor  # (B, K) pseudo-labels, or (B, 0)
    teacher_logits: Tensor  # (B, K), or (B, 0)
    weights: Tensor  # (B,) of the images' losses, summing to 1 on average, or (0,)


class Supervised(Method):
    """A classifier and its supervision. A subclass defines the terms of the loss."""

    default_recipe: ClassVar[str] = "small_labeled"
    reads: ClassVar[frozenset[str]] = frozenset({"classifier", "labels"})
    reads_labels: ClassVar[bool] = True
    with_exits: ClassVar[bool] = False  # whether it trains exits besides the deepest
    num_global: ClassVar[int] = 1
    local_crops: ClassVar[bool] = False

    def __init__(self, config: TrainConfig, *, world: World = ALONE, labels: Labels) -> None:
        super().__init__(config, world=world)
        if config.engine.shard:
            raise InputError(f"{config.method} cannot shard its weights; leave engine.shard out.")
        if config.classifier.exits and not self.with_exits:
            raise InputError(
                f"{config.method} does not train exits; leave classifier.exits out, or run `featkit"
                " train internal`."
            )
        self.labels = labels
        self.student = Classifier(build_backbone(config.classifier), labels.num_classes)
        sizes = [("crops.global_size", config.crops.global_size)]
        if config.crops.test_size is not None:
            sizes.append(("crops.test_size", config.crops.test_size))
        check_multiples(
            sizes,
            patch=self.result.patch,
            what="a position of the network's last feature map",
        )

    @abstractmethod
    def terms(self, outputs: Outputs, supervision: Supervision) -> dict[str, Tensor]:
        """Return the summands of the loss by their names in the log."""

    @property
    def result(self) -> Backbone:
        """The student without its heads."""
        return self.student.backbone

    def branches(self) -> Sequence[nn.Module]:
        """Return the student."""
        return (self.student,)

    @torch.no_grad()
    def teacher_forward(self, views: Views) -> Supervision:
        """Return the supervision of a micro-batch; the teacher's logits are looked up or
        computed."""
        image_indices, view_indices = views.indices.cpu().numpy()
        device, labels = views.indices.device, self.labels
        empty = torch.empty(len(image_indices), 0, device=device)
        teacher_logits = empty
        if labels.teacher_logits is not None:
            teacher_logits = torch.from_numpy(
                np.ascontiguousarray(labels.teacher_logits[image_indices, view_indices])
            ).to(device)
        elif labels.teacher is not None:
            teacher_logits = (
                labels.teacher.to(device).eval()(views.global_crops[0]).logits[-1].float()
            )
        return Supervision(
            labels=torch.from_numpy(labels.class_ids[image_indices]).to(device),
            probs=(
                empty
                if labels.probs is None
                else torch.from_numpy(labels.probs[image_indices]).to(device)
            ),
            teacher_logits=teacher_logits,
            weights=torch.empty(0, device=device),
        )

    def make_targets(
        self, teacher_outputs: Sequence[Supervision], *, step: int
    ) -> tuple[Sequence[Supervision], dict[str, Tensor]]:
        """Return the supervision unchanged."""
        del step
        return teacher_outputs, {}

    def forward(self, views: Views, targets: Supervision, generators: Generators) -> StepResult:
        """Return the student's loss for a micro-batch."""
        # Dropout and stochastic depth of borrowed networks draw from torch's global generator.
        with torch.random.fork_rng(
            devices=[views.global_crops.device] if views.global_crops.is_cuda else []
        ):
            torch.manual_seed(int(generators.own.integers(2**31)))
            outputs = self.student(views.global_crops[0])
        outputs = outputs._replace(logits=outputs.logits.float(), vectors=outputs.vectors.float())
        terms = self.terms(outputs, targets)
        logged = {name: value.detach() for name, value in terms.items()}
        known = targets.labels != UNKNOWN
        correct = (outputs.logits[-1].argmax(dim=-1) == targets.labels) & known
        logged["batch_accuracy"] = correct.sum() / known.sum().clamp(min=1)
        return StepResult(
            torch.stack(list(terms.values())).sum(), logged, outputs.vectors[-1].detach()
        )

    def label_term(self, outputs: Outputs, supervision: Supervision) -> Tensor:
        """Return the cross-entropy of the deepest exit with the labels."""
        weights = supervision.weights if len(supervision.weights) else None
        return cross_entropy(
            outputs.logits[-1],
            supervision.labels,
            weights=weights,
            smoothing=self.config.labels.smoothing,
        )

    def scores(self, held_out: HeldOut) -> Scores | None:
        """Return the accuracy of every exit and the deepest one's calibration error; None if no
        held-out image has a label of the run's classes.
        """
        labels = codes_of(held_out.labels, self.labels.classes)
        if held_out.prepared is None or (labels == UNKNOWN).all():
            return None
        by_exit = classify(self.student, held_out.prepared, mean=self.mean, std=self.std)
        values = {
            "accuracy": accuracy(by_exit[-1], labels),
            "ece": expected_calibration_error(by_exit[-1], labels),
        }
        values |= {
            f"accuracy_exit_{n}": accuracy(probs, labels) for n, probs in enumerate(by_exit[:-1], 1)
        }
        return Scores(values, watched="accuracy")

    def save(self, folder: Path, result: Backbone, info: BackboneInfo) -> None:
        """Write the backbone, and the classifier with its heads for later generations and
        rounds."""
        super().save(folder, result, info)
        save_classifier(folder / CLASSIFIER_FILE, self.student, info, self.labels.classes)


def classify(
    classifier: Classifier, images: np.ndarray, *, mean: tuple[float, ...], std: tuple[float, ...]
) -> np.ndarray:
    """Return probabilities (E, N, K) float32 for prepared images (N, H, W, 3) uint8."""
    probs = over_images(
        classifier,
        images,
        lambda outputs: outputs.logits.float().softmax(-1).transpose(0, 1),
        mean=mean,
        std=std,
    )
    return probs.transpose(1, 0, 2)
