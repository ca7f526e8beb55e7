"""DINO (arXiv 2104.14294): a student matches its own momentum teacher across views of a picture.

Two ways to keep the teacher's outputs from collapsing: the paper's running centre, and Sinkhorn-Knopp, which DINOv2
took from SwAV and which learns best from a few hundred pictures. KoLeo is optional and off, as in the paper.

Letters: B pictures, G global and L local crops, D width, K prototypes.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from featkit_train.config import TrainConfig
from featkit_train.heads import ProjectionHead
from featkit_train.losses import Center, dino_loss, koleo_loss, sinkhorn_knopp
from featkit_train.schedules import cosine_schedule, linear_schedule
from featkit_train.vit import VisionTransformer


class Views(NamedTuple):
    """Normalised crops: global (G, B, 3, S, S) and local (L, B, 3, s, s), float."""

    global_crops: Tensor
    local_crops: Tensor


class StepResult(NamedTuple):
    """What a step gives: the loss to differentiate, and scalars to watch, all detached but the loss."""

    loss: Tensor
    watched: dict[str, Tensor]


class Branch(nn.Module):
    """A backbone and its projection head: the student, or the teacher."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.backbone = VisionTransformer(config.model)
        self.head = ProjectionHead(config.model.width, config.dino.head)

    def forward(self, crops: Tensor) -> tuple[Tensor, Tensor]:
        """Crops (C, B, 3, S, S) to logits (C, B, K) and class tokens (C, B, D)."""
        num_crops, batch = crops.shape[:2]
        class_token = self.backbone(crops.flatten(0, 1)).class_token
        logits = self.head(class_token)
        return torch.unflatten(logits, 0, (num_crops, batch)), torch.unflatten(class_token, 0, (num_crops, batch))


class Dino(nn.Module):
    """Student, teacher and centre. `forward` gives the loss of a step, `update_teacher` ends it."""

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config.dino
        self.num_steps = config.run.steps
        self.student = Branch(config)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.center = Center(config.dino.head.num_prototypes, momentum=config.dino.center_momentum)

    @property
    def teacher_backbone(self) -> VisionTransformer:
        """What a run is for."""
        return self.teacher.backbone

    def teacher_temp(self, step: int) -> float:
        """Linear warm-up from teacher_temp to teacher_temp_end."""
        config = self.config
        return linear_schedule(
            step, start=config.teacher_temp, end=config.teacher_temp_end, num_steps=config.teacher_temp_steps
        )

    def momentum(self, step: int) -> float:
        """Share of the teacher that a step keeps: a cosine from `momentum` to `momentum_end`."""
        return cosine_schedule(step, start=self.config.momentum, end=self.config.momentum_end, num_steps=self.num_steps)

    def forward(self, views: Views, *, step: int) -> StepResult:
        """Loss of one step (DINO, algorithm 1): every student crop against every teacher crop of another view."""
        with torch.no_grad():
            teacher_logits, _ = self.teacher(views.global_crops)
            teacher_probs = self.teacher_probs(teacher_logits, step=step)
        student_logits, class_tokens = self.student(views.global_crops)
        if views.local_crops.shape[0]:
            student_logits = torch.cat([student_logits, self.student(views.local_crops)[0]])
        loss = dino_loss(student_logits, teacher_probs, student_temp=self.config.student_temp)
        watched = {"dino_loss": loss.detach(), **entropies(teacher_probs, teacher_logits / self.teacher_temp(step))}
        if self.config.koleo_weight > 0:
            koleo = torch.stack([koleo_loss(view) for view in class_tokens]).mean()
            watched["koleo_loss"] = koleo.detach()
            loss = loss + self.config.koleo_weight * koleo
        return StepResult(loss, watched)

    def teacher_probs(self, teacher_logits: Tensor, *, step: int) -> Tensor:
        """Probabilities (G, B, K) by the configured way of centring; the running centre moves after it was used."""
        temp = self.teacher_temp(step)
        if self.config.centering == "sinkhorn":
            return sinkhorn_knopp(teacher_logits.flatten(0, 1), teacher_temp=temp).view(teacher_logits.shape)
        probs: Tensor = self.center(teacher_logits, teacher_temp=temp)
        self.center.update(teacher_logits)
        return probs

    def before_optimizer(self, *, step: int) -> None:
        """Hold the prototypes still over the first steps (DINO, appendix: freezing the last layer)."""
        if step < self.config.freeze_last_layer_steps:
            self.student.head.prototypes.grad = None

    @torch.no_grad()
    def update_teacher(self, *, step: int) -> None:
        """teacher = momentum * teacher + (1 - momentum) * student, for every parameter (DINO, section 3.1)."""
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - self.momentum(step))


def entropies(teacher_probs: Tensor, scaled_logits: Tensor) -> dict[str, Tensor]:
    """Two entropies as shares of ln K, of the targets (G, B, K) and of the teacher's logits over its temperature (G, B, K).

    teacher_entropy: mean of the targets' rows; 1 when every picture lies on all prototypes alike (uniform collapse).
    batch_entropy: of the mean of softmax(scaled_logits); 0 when all pictures lie on one prototype (one-hot collapse), which
    targets would hide, since centring and Sinkhorn-Knopp spread them over all prototypes whatever the teacher says.
    """
    largest = math.log(teacher_probs.shape[-1])
    mean = scaled_logits.float().softmax(dim=-1).flatten(0, -2).mean(dim=0)
    return {
        "teacher_entropy": torch.special.entr(teacher_probs).sum(dim=-1).mean() / largest,
        "batch_entropy": torch.special.entr(mean).sum() / largest,
    }
