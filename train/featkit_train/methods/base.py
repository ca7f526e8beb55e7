"""What every method is to the engine: what it wants of images, one step in its parts, and what it
leaves.

A step: `look` (whoever teaches, at each part of the batch), `aim` (targets, over the whole batch of
all processes), `forward` (the student's loss of each part), `before_optimizer`, and
`after_optimizer`.

Letters: B images, G global and L local crops, (h, w) patches of a global crop, M masked patches
of all global crops together, D width.
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
from featkit_train.watching.probe import HeldOut
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, save_backbone

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Sections of the config that the engine and the loop read in every run.
READ_BY_EVERY_RUN = frozenset({"color", "crops", "engine", "optim", "run", "watch"})


class Views(NamedTuple):
    """The crops of a micro-batch as methods take them: normalized floats on the training device."""

    global_crops: Tensor  # (G, B, 3, S, S)
    local_crops: Tensor  # (L, B, 3, s, s)
    masks: Tensor  # (G, B, h, w) bool, True for patches hidden from the student
    masked: Tensor  # (M,) int64, the indices of True in masks.flatten()
    gram_crops: Tensor  # (G, B, 3, Z, Z), the global crops' boxes for a Gram teacher, or (0, ...)
    indices: Tensor  # (2, B) int64: the image's index in the source, and which view of it


class StepResult(NamedTuple):
    """What a part of a step gives: the loss, and detached from it scalars to watch and class tokens
    (B, D)."""

    loss: Tensor
    watched: dict[str, Tensor]
    class_tokens: Tensor


class Generators(NamedTuple):
    """Where a step's noise comes from: `own` is of this process and part, `common` the same in all."""

    own: np.random.Generator
    common: np.random.Generator


class Method(nn.Module, ABC):
    """What learns, and what it learns from."""

    # What `featkit train --list`, the defaults, the report and the documentation derive from.
    name: ClassVar[str]  # as in `featkit train dino`
    title: ClassVar[str]  # as in "trained by DINO"
    paper: ClassVar[str]
    needs: ClassVar[str]  # the data or model that it learns from
    when: ClassVar[str]  # when to choose it
    default_recipe: ClassVar[str] = "tiny"
    reads: ClassVar[frozenset[str]]  # sections of the config, besides READ_BY_EVERY_RUN

    # What the method needs of the engine.
    patch_loss: ClassVar[bool] = False  # whether patches are matched, which takes masks
    num_global: ClassVar[int] = 2  # global crops of an image
    local_crops: ClassVar[bool] = True  # whether it takes any
    mean, std = IMAGENET_MEAN, IMAGENET_STD  # of the pixels
    remarks: tuple[str, ...] = ()  # what to tell the user as a run begins

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
        """What a run is for."""

    @abstractmethod
    def branches(self) -> Sequence[nn.Module]:
        """Everything that is spread over processes where weights are."""

    @property
    def gram_size(self) -> int | None:
        """Pixels of the Gram teacher's crops; None where there is no such teacher."""
        return None

    @property
    def num_prototypes(self) -> int | None:
        """Outputs that a teacher can collapse on; None where labels hold them apart."""
        return None

    def start_run(self) -> None:
        """Called once, ahead of the first step, when all weights are where they start from."""

    def enter_phase(self, step: int) -> bool:
        """Freeze and thaw for this step; says whether anything changed."""
        del step
        return False

    def phase_start(self, step: int) -> int:
        """The step at which what learns now began to: its warm-up counts from there."""
        del step
        return 0

    @abstractmethod
    def teacher_forward(self, views: Views) -> Any:
        """What the teacher makes of a part of the batch."""

    @abstractmethod
    def make_targets(
        self, teacher_outputs: Sequence[Any], *, step: int
    ) -> tuple[Sequence[Any], dict[str, Tensor]]:
        """Targets for each part, from what the teacher made of all of them, and scalars of them
        that are worth watching."""

    @abstractmethod
    def forward(self, views: Views, targets: Any, generators: Generators) -> StepResult:
        """The student's loss for one part of a batch."""

    def before_optimizer(self, *, step: int) -> None:
        """Called when gradients are there and clipped, and weights have not moved."""
        del step

    def after_optimizer(self, *, step: int) -> None:
        """Called when the student has moved."""
        del step

    def schedule_values(self, step: int) -> Log:
        """The schedules of the method's own that belong into the log."""
        del step
        return {}

    def preflight_warning(self) -> str | None:
        """What to say of the settings before the first step; None where nothing."""
        return None

    def scores(self, held_out: HeldOut) -> Log:
        """What only this method can measure on held-out images; where there is any, its first is
        the score to watch."""
        del held_out
        return {}

    def save(self, folder: Path, result: Backbone, info: BackboneInfo) -> None:
        """Write what the run is for; `result` is it, whole."""
        save_backbone(folder / BACKBONE_FILE, result, info)


def check_multiples(sizes: Sequence[tuple[str, int]], *, patch: int, what: str) -> None:
    """InputError naming all settings of `sizes` (name, pixels) that are not multiples of the patch,
    with sizes that are."""
    wrong = [(name, size) for name, size in sizes if size < patch or size % patch]
    if wrong:
        named = " and ".join(f"{name} {size}" for name, size in wrong)
        near = " and ".join(f"{name}={max(patch, size // patch * patch)}" for name, size in wrong)
        are = "are not multiples" if len(wrong) > 1 else "is not a multiple"
        raise InputError(f"{named} {are} of {what}, {patch} pixels; set {near}, for example.")
