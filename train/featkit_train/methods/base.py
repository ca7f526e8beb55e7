"""The interface between a training method and the engine.

One step calls, in this order: `enter_phase`; `teacher_forward` for each micro-batch; `make_targets`
once, over all micro-batches (and all processes); `forward` for each micro-batch, which returns the
student's loss; `before_optimizer`; the optimizer's step; `after_optimizer`.

Letters: B images, G global and L local crops of each, (S, S), (s, s) and (Z, Z) pixels, (h, w)
patches of a global crop, M masked patches of all global crops together, D width.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import Tensor, nn

from featkit.errors import InputError
from featkit_train.config import TrainConfig
from featkit_train.log import Log
from featkit_train.networks.base import Backbone
from featkit_train.processes.distributed import ALONE, World
from featkit_train.watching.probe import HeldOut, Scores
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, save_backbone

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Sections of the config that the engine and the loop read in every run.
READ_BY_EVERY_RUN = frozenset({"color", "crops", "engine", "optim", "run", "watch"})


class Views(NamedTuple):
    """The crops of a micro-batch: normalized floats on the training device."""

    global_crops: Tensor  # (G, B, 3, S, S)
    local_crops: Tensor  # (L, B, 3, s, s)
    masks: Tensor  # (G, B, h, w) bool, True for patches hidden from the student
    masked: Tensor  # (M,) int64, the indices of True in masks.flatten()
    gram_crops: Tensor  # (G, B, 3, Z, Z), the global crops' boxes for a Gram teacher, or (0, ...)
    indices: Tensor  # (2, B) int64: the image's index in the source, and which view of it


class StepResult(NamedTuple):
    """The student's result for one micro-batch."""

    loss: Tensor
    logged: dict[str, Tensor]  # scalars for the log, detached
    class_tokens: Tensor  # (B, D) of the first global crops, detached


class Generators(NamedTuple):
    """Random generators of one micro-batch in one step."""

    own: np.random.Generator  # different in each process
    common: np.random.Generator  # the same in all processes


class Method(nn.Module, ABC):
    """The networks of a training method and its loss.

    A file in this folder whose class has a `name` is a method. `name`, `title`, `paper`, `needs`
    and `when` must be literals: `method_list` reads them without importing the file.
    """

    # What `featkit train --list`, the defaults, the report and the documentation derive from.
    name: ClassVar[str]  # as in `featkit train dino`
    title: ClassVar[str]  # as in "trained by DINO"
    paper: ClassVar[str]
    needs: ClassVar[str]  # the data or model that it learns from
    when: ClassVar[str]  # when to choose it
    default_recipe: ClassVar[str] = "tiny"
    reads: ClassVar[frozenset[str]]  # sections of the config, besides READ_BY_EVERY_RUN

    # What the method needs from the engine.
    reads_labels: ClassVar[bool] = False  # whether it is built with the labels of the images
    some_unlabeled: ClassVar[bool] = False  # whether images without a label take part as well
    patch_loss: ClassVar[bool] = False  # whether patch tokens are matched, which needs masks
    num_global: ClassVar[int] = 2  # global crops of each image
    local_crops: ClassVar[bool] = True  # whether the method uses local crops
    # Prefixes of state names that the checkpoint of an earlier stage of training may lack.
    new_state: ClassVar[tuple[str, ...]] = ()
    prototype_loss: ClassVar[str | None] = None  # log name of the class tokens' loss, in nats
    mean, std = IMAGENET_MEAN, IMAGENET_STD  # mean and std of the pixels
    remarks: tuple[str, ...] = ()  # printed when a run begins

    def __init__(self, config: TrainConfig, *, world: World = ALONE) -> None:
        super().__init__()
        self.config, self.world = config, world

    @classmethod
    def unread(cls) -> frozenset[str]:
        """Return the sections of the config that a run by this method does not read."""
        sections = {
            field.name
            for field in dataclasses.fields(TrainConfig)
            if dataclasses.is_dataclass(field.default_factory)
        }
        return frozenset(sections - READ_BY_EVERY_RUN - cls.reads)

    @property
    @abstractmethod
    def result(self) -> Backbone:
        """The backbone that the run trains and exports."""

    @abstractmethod
    def branches(self) -> Sequence[nn.Module]:
        """Return the modules to shard over processes (`engine.shard`)."""

    @property
    def gram_size(self) -> int | None:
        """Pixels of the Gram teacher's crops; None without a Gram teacher."""
        return None

    @property
    def num_prototypes(self) -> int | None:
        """Outputs that the teacher can collapse on; None if labels prevent collapse."""
        return None

    def start_run(self) -> None:
        """Called once before the first step, after initial weights have been loaded."""

    def enter_phase(self, step: int) -> bool:
        """Freeze and unfreeze parameters for this step; return whether any changed."""
        del step
        return False

    def phase_start(self, step: int) -> int:
        """Return the first step of the current phase; learning-rate warmup restarts there."""
        del step
        return 0

    @abstractmethod
    def teacher_forward(self, views: Views) -> Any:
        """Return what the teacher computes for a micro-batch."""

    @abstractmethod
    def make_targets(
        self, teacher_outputs: Sequence[Any], *, step: int
    ) -> tuple[Sequence[Any], dict[str, Tensor]]:
        """Return the targets of each micro-batch, and scalars of them for the log.

        Called once per step, since centering and Sinkhorn-Knopp need the whole batch.
        """

    @abstractmethod
    def forward(self, views: Views, targets: Any, generators: Generators) -> StepResult:
        """Return the student's loss for a micro-batch."""

    def before_optimizer(self, *, step: int) -> None:
        """Called after gradients have been clipped, before the optimizer's step."""
        del step

    def after_optimizer(self, *, step: int) -> None:
        """Called after the optimizer's step."""
        del step

    def schedule_values(self, step: int) -> Log:
        """Return the current values of the method's own schedules, for the log."""
        del step
        return {}

    def preflight_warning(self) -> str | None:
        """Return a warning about the settings to print before the first step, or None."""
        return None

    def scores(self, held_out: HeldOut) -> Scores | None:
        """Return scores that only this method can measure on held-out images, or None."""
        del held_out
        return None

    def save(self, folder: Path, result: Backbone, info: BackboneInfo) -> None:
        """Write the run's result. result: the whole backbone, even if weights are sharded."""
        save_backbone(folder / BACKBONE_FILE, result, info)


def check_multiples(sizes: Sequence[tuple[str, int]], *, patch: int, what: str) -> None:
    """Raise InputError, suggesting valid sizes, if any of `sizes` (name, pixels) is not a multiple
    of the patch."""
    wrong = [(name, size) for name, size in sizes if size < patch or size % patch]
    if wrong:
        named = " and ".join(f"{name} {size}" for name, size in wrong)
        near = " and ".join(f"{name}={max(patch, size // patch * patch)}" for name, size in wrong)
        are = "are not multiples" if len(wrong) > 1 else "is not a multiple"
        raise InputError(f"{named} {are} of {what}, {patch} pixels; set {near}, for example.")
