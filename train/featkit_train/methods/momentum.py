"""The methods with a momentum teacher: their branches, targets and terms of the loss.

A method is a subclass of MomentumTeacher whose `terms` returns the summands of its loss.

Letters: B images, G global and L local crops of each, C = G + L, (h, w) patches of a global crop,
M masked patches of all global crops together, D width, K prototypes.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from featkit.errors import InputError
from featkit.wording import counted
from featkit_train.config import TrainConfig
from featkit_train.log import Log
from featkit_train.losses import Center, dino_loss, ibot_loss, koleo_loss, sinkhorn_knopp
from featkit_train.losses.sinkhorn import identity
from featkit_train.methods.base import Generators, Method, StepResult, Views, check_multiples
from featkit_train.networks.base import Backbone, Masked
from featkit_train.networks.classifier import build_backbone
from featkit_train.networks.ema import update_ema
from featkit_train.networks.heads import ProjectionHead
from featkit_train.networks.noise import NO_NOISE, Noise, NoiseConfig, draw_noise
from featkit_train.networks.vit import VisionTransformer
from featkit_train.processes.distributed import ALONE, World
from featkit_train.schedules import cosine_schedule, linear_schedule, momentum_end_for, momentum_for
from featkit_train.watching.diagnostics import slow_teacher


class BranchOutputs(NamedTuple):
    """Outputs of a branch: logits for class tokens and masked patches, and tokens of global
    crops."""

    class_logits: Tensor  # (C, B, K)
    class_tokens: Tensor  # (G, B, D)
    patch_tokens: Tensor  # (G, B, h, w, D)
    patch_logits: Tensor  # (M, K)


class Targets(NamedTuple):
    """The student's targets: probabilities whose rows sum to 1, and the outputs they came
    from."""

    class_probs: Tensor  # (G, B, K)
    patch_probs: Tensor  # (M, K)
    teacher: BranchOutputs


class Term(NamedTuple):
    """One summand of a loss: weight * value."""

    weight: float
    value: Tensor


class Branch(nn.Module):
    """A student or a teacher: a backbone with projection heads.

    With a patch loss it has a mask token. local_norm: whether class tokens of local crops have
    their own last norm (DINOv3).
    """

    def __init__(
        self, backbone: Backbone, config: TrainConfig, *, patch_loss: bool, local_norm: bool = False
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.class_only = not patch_loss  # lets the last block skip patch tokens
        self.head = ProjectionHead(backbone.width, config.dino.head)
        self.patch_head = (
            ProjectionHead(backbone.width, config.ibot.head)
            if patch_loss and config.ibot.head is not None
            else None
        )
        self.mask_token = nn.Parameter(torch.zeros(1, 1, backbone.width)) if patch_loss else None
        self.local_norm = (
            nn.LayerNorm(backbone.width, eps=config.model.norm_eps) if local_norm else None
        )

    def forward(
        self,
        global_crops: Tensor,
        local_crops: Tensor | None = None,
        *,
        patch_indices: Tensor,
        masks: Tensor | None = None,
        noise: tuple[Noise, Noise] = (NO_NOISE, NO_NOISE),
    ) -> BranchOutputs:
        """Run the backbone and the heads on global crops (G, B, 3, S, S) and local ones (L, B, 3,
        s, s).

        patch_indices (M,): patches to return logits for. masks (G, B, h, w): patches to hide.
        noise: for the global and for the local crops.
        """
        size = global_crops.shape[:2]
        masked = None
        if masks is not None and self.mask_token is not None:
            masked = Masked(masks.flatten(0, 1), self.mask_token)
        pixels = global_crops.flatten(0, 1)  # (G*B, 3, S, S)
        features = self.backbone.student_forward(
            pixels, masked=masked, noise=noise[0], class_only=self.class_only
        )
        class_tokens = torch.unflatten(features.class_token, 0, size)  # (G, B, D)
        all_class_tokens = [class_tokens]
        if local_crops is not None and local_crops.shape[0]:
            pixels = local_crops.flatten(0, 1)
            local = self.backbone.student_forward(
                pixels, noise=noise[1], norm=self.local_norm, class_only=True
            )
            all_class_tokens.append(torch.unflatten(local.class_token, 0, local_crops.shape[:2]))
        patches = features.patch_tokens.flatten(0, 2).index_select(0, patch_indices)  # (M, D)
        return BranchOutputs(
            class_logits=project(self.head, torch.cat(all_class_tokens)),
            class_tokens=class_tokens,
            patch_tokens=torch.unflatten(features.patch_tokens, 0, size),
            patch_logits=project(self.head_of_patches, patches),
        )

    @property
    def head_of_patches(self) -> ProjectionHead:
        """The patches' own head, or the one shared with the class token."""
        return self.head if self.patch_head is None else self.patch_head

    def heads(self) -> nn.ModuleDict:
        """Return the heads by name."""
        named = {"head": self.head, "patch_head": self.patch_head}
        return nn.ModuleDict({name: head for name, head in named.items() if head is not None})


class MomentumTeacher(Method):
    """Student, teacher and centers, and a training step with them."""

    # Whether class tokens of local crops have their own last norm.
    local_norm: ClassVar[bool] = False
    prototype_loss: ClassVar[str | None] = "dino_loss"

    def __init__(self, config: TrainConfig, *, world: World = ALONE) -> None:
        super().__init__(config, world=world)
        self.build()
        self.center = Center(config.dino.head.num_prototypes, momentum=config.dino.center_momentum)
        if self.patch_loss:
            head = config.ibot.head or config.dino.head
            self.patch_center = Center(head.num_prototypes, momentum=config.dino.center_momentum)
        check_crops(config, patch=self.result.patch)
        check_koleo(config, world=world)

    def build(self) -> None:
        """Create student and teacher."""
        self.student = self.build_branch(build_network(self.config))
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def build_branch(self, backbone: Backbone) -> Branch:
        """Return a student with that backbone."""
        return Branch(backbone, self.config, patch_loss=self.patch_loss, local_norm=self.local_norm)

    # -- what a subclass defines -------------------------------------------------------------------

    @abstractmethod
    def terms(self, outputs: BranchOutputs, views: Views, targets: Targets) -> dict[str, Term]:
        """Return the summands of the loss by their names in the log."""

    @property
    def num_prototypes(self) -> int | None:
        """Outputs of the class token's head."""
        return self.config.dino.head.num_prototypes

    @property
    def result(self) -> Backbone:
        """The teacher's backbone."""
        return self.teacher.backbone

    def branches(self) -> Sequence[nn.Module]:
        """Return student and teacher."""
        return (self.student, self.teacher)

    def learning_heads(self) -> Sequence[ProjectionHead]:
        """Return the heads that train in this phase."""
        return [head for head in (self.student.head, self.student.patch_head) if head is not None]

    # -- schedules ---------------------------------------------------------------------------------

    def momentum(self, step: int) -> float:
        """Return the teacher momentum of a step: a cosine from `momentum` to `momentum_end`."""
        steps, config = self.config.run.steps, self.config.teacher
        start = momentum_for(steps) if config.momentum is None else config.momentum
        end = momentum_end_for(start) if config.momentum_end is None else config.momentum_end
        return cosine_schedule(step, start=start, end=end, num_steps=steps)

    def teacher_temp(self, step: int) -> float:
        """Return the class tokens' temperature: linear from teacher_temp to teacher_temp_end."""
        config = self.config.dino
        return linear_schedule(
            step,
            start=config.teacher_temp,
            end=config.teacher_temp_end,
            num_steps=config.teacher_temp_steps,
        )

    def patch_temp(self, step: int) -> float:
        """Return the patch tokens' temperature, which changes over the same steps."""
        config = self.config.ibot
        return linear_schedule(
            step,
            start=config.teacher_temp,
            end=config.teacher_temp_end,
            num_steps=self.config.dino.teacher_temp_steps,
        )

    def schedule_values(self, step: int) -> Log:
        """Return the momentum and the class tokens' temperature."""
        return {"momentum": self.momentum(step), "teacher_temp": self.teacher_temp(step)}

    def preflight_warning(self) -> str | None:
        """Warn if the momentum is too high for the number of steps."""
        return slow_teacher(self.momentum, num_steps=self.config.run.steps)

    # -- a step ------------------------------------------------------------------------------------

    @torch.no_grad()
    def teacher_forward(self, views: Views) -> BranchOutputs:
        """Run the teacher on the global crops, with no patch hidden."""
        outputs: BranchOutputs = self.teacher(views.global_crops, patch_indices=views.masked)
        return outputs

    @torch.no_grad()
    def make_targets(
        self, teacher_outputs: Sequence[BranchOutputs], *, step: int
    ) -> tuple[list[Targets], dict[str, Tensor]]:
        """Return the targets of each micro-batch, centered over the whole batch, and their
        entropies.

        The running centers are updated after use (DINO, algorithm 1).
        """
        class_logits = torch.cat(
            [part.class_logits for part in teacher_outputs], dim=1
        )  # (G, B, K)
        temp = self.teacher_temp(step)
        class_probs = self._centered(class_logits.flatten(0, 1), self.center, temp=temp).view(
            class_logits.shape
        )
        logged = entropies(class_probs, class_logits / temp, gather=self.world.gather)
        sizes = [part.class_logits.shape[1] for part in teacher_outputs]
        patch_probs = (
            self.patch_targets(teacher_outputs, step=step)
            if self.patch_loss
            else [part.patch_logits for part in teacher_outputs]  # without rows
        )
        fields = zip(class_probs.split(sizes, dim=1), patch_probs, teacher_outputs, strict=True)
        return [Targets(*field) for field in fields], logged

    def patch_targets(self, teacher_outputs: Sequence[BranchOutputs], *, step: int) -> list[Tensor]:
        """Return (M, K) probabilities for the masked patches of each micro-batch.

        The center is that of the masked patches, as in DINOv2.
        """
        logits = torch.cat([part.patch_logits for part in teacher_outputs])
        probs = self._centered(logits, self.patch_center, temp=self.patch_temp(step))
        return list(probs.split([len(part.patch_logits) for part in teacher_outputs]))

    def _centered(self, logits: Tensor, center: Center, *, temp: float) -> Tensor:
        if self.config.dino.centering == "sinkhorn":
            return sinkhorn_knopp(logits, teacher_temp=temp, gather=self.world.gather)
        probs: Tensor = center(logits, teacher_temp=temp)
        center.update(logits, gather=self.world.gather)
        return probs

    def forward(self, views: Views, targets: Targets, generators: Generators) -> StepResult:
        """Return the student's loss for a micro-batch."""
        outputs = self.student_outputs(views, targets, generators)
        return result_of(self.terms(outputs, views, targets), outputs)

    def student_outputs(
        self, views: Views, targets: Targets, generators: Generators
    ) -> BranchOutputs:
        """Run the student on all crops, with masks and noise."""
        del targets
        outputs: BranchOutputs = self.student(
            views.global_crops,
            views.local_crops,
            patch_indices=views.masked,
            masks=views.masks if self.patch_loss else None,
            noise=(
                self._noise(views.global_crops, generators),
                self._noise(views.local_crops, generators),
            ),
        )
        return outputs

    def _noise(self, crops: Tensor, generators: Generators) -> Noise:
        config: NoiseConfig = self.config.noise
        if crops.shape[0] == 0:
            return NO_NOISE
        depth, num_crops = self.student.backbone.depth, crops.shape[0] * crops.shape[1]
        return draw_noise(
            config, generators.own, depth=depth, num_crops=num_crops, rotary_rng=generators.common
        ).to(crops.device)

    def before_optimizer(self, *, step: int) -> None:
        """Freeze the prototypes in the first steps of a phase (DINO, appendix: freezing the last
        layer)."""
        if step - self.phase_start(step) < self.config.dino.freeze_last_layer_steps:
            for head in self.learning_heads():
                for parameter in head.last_layer():
                    parameter.grad = None

    def after_optimizer(self, *, step: int) -> None:
        """Update the teacher as the student's moving average."""
        update_ema(self.teacher, self.student, momentum=self.momentum(step))

    # -- terms that several methods share ----------------------------------------------------------

    def class_term(self, outputs: BranchOutputs, targets: Targets) -> Term:
        """Return DINO's loss of the class tokens, over all pairs of different views."""
        return Term(
            1.0,
            dino_loss(
                outputs.class_logits,
                targets.class_probs,
                student_temp=self.config.dino.student_temp,
            ),
        )

    def patch_term(self, outputs: BranchOutputs, views: Views, targets: Targets) -> Term:
        """Return iBOT's loss: the student predicts the teacher's output for masked patches."""
        loss = ibot_loss(
            outputs.patch_logits,
            targets.patch_probs,
            views.masks.flatten(0, 1).flatten(1),
            student_temp=self.config.dino.student_temp,
        )
        return Term(self.config.ibot.weight, loss)

    def koleo_terms(self, outputs: BranchOutputs) -> dict[str, Term]:
        """Return the KoLeo term over the class tokens of all processes; none if its weight is 0.

        Computed for each global crop separately, since two crops of one image should be similar,
        and summed over crops as in DINOv2's released code.
        """
        config = self.config.dino
        if config.koleo_weight == 0:
            return {}
        num_global = outputs.class_tokens.shape[0]
        if config.koleo_group:
            groups = [
                group for view in outputs.class_tokens for group in view.split(config.koleo_group)
            ]
            value = torch.stack([koleo_loss(group) for group in groups]).mean()
        else:
            value = torch.stack([self._koleo(view) for view in outputs.class_tokens]).mean()
        return {"koleo_loss": Term(num_global * config.koleo_weight, value)}

    def _koleo(self, view: Tensor) -> Tensor:
        if self.world.size == 1:
            return koleo_loss(view)
        return koleo_loss(
            view, among=self.world.gather_with_grad(view), first=self.world.rank * len(view)
        )


def build_network(config: TrainConfig) -> Backbone:
    """Build the config's network: the vision transformer of `model`, or that of `network`."""
    if config.network.arch == "vit":
        return VisionTransformer(config.model)
    return build_backbone(config.network.classifier())


def result_of(terms: Mapping[str, Term], outputs: BranchOutputs) -> StepResult:
    """Return the sum of the terms, with each term's value for the log."""
    loss = torch.stack([term.weight * term.value for term in terms.values()]).sum()
    logged = {name: term.value.detach() for name, term in terms.items()}
    return StepResult(loss, logged, outputs.class_tokens[0].detach())


def project(head: ProjectionHead, features: Tensor) -> Tensor:
    """Apply a head in float32 even under autocast."""
    # Cosines in bfloat16 distinguish too few prototypes.
    with torch.autocast(features.device.type, enabled=False):
        logits: Tensor = head(features.float())
    return logits


def check_crops(config: TrainConfig, *, patch: int) -> None:
    """Raise InputError for crop sizes that are not multiples of the patch."""
    crops = config.crops
    kinds = ["global_size"] + ["local_size"] * (crops.num_local > 0)
    sizes = [(f"crops.{kind}", getattr(crops, kind)) for kind in kinds]
    if crops.test_size is not None:
        sizes.append(("crops.test_size", crops.test_size))
    if config.gram.weight > 0:
        kinds.append("gram_size")
        sizes.append(("gram.size", config.gram.size))
    sizes += [
        (f"{kind} of crops.resolutions", getattr(resolution, kind))
        for resolution in crops.resolutions
        for kind in kinds
    ]
    check_multiples(sizes, patch=patch, what="the model's patch")


def check_koleo(config: TrainConfig, *, world: World) -> None:
    """Raise InputError if KoLeo would have a group of one image, or groups of unequal size."""
    num_images = config.run.batch_size // world.size // config.engine.accumulate
    group = config.dino.koleo_group or num_images * world.size
    if config.dino.koleo_weight and (group < 2 or (config.dino.koleo_group and num_images % group)):
        raise InputError(
            f"dino.koleo_group is {config.dino.koleo_group}, which does not divide the"
            f" {counted(num_images, 'image')} per process and pass into equal groups of two or"
            " more; change it, or run.batch_size."
        )


def entropies(
    teacher_probs: Tensor, scaled_logits: Tensor, *, gather: Callable[[Tensor], Tensor] = identity
) -> dict[str, Tensor]:
    """Return two entropies as shares of ln K, which reveal the two ways to collapse.

    teacher_probs (G, B, K) are the targets, scaled_logits (G, B, K) the teacher's logits divided by
    its temperature.

    teacher_entropy: mean entropy of the targets' rows. It is 1 if every image is spread evenly over
    all prototypes (uniform collapse).
    batch_entropy: entropy of the mean of softmax(scaled_logits). It is 0 if all images are assigned
    to one prototype (one-hot collapse). Targets would hide that: centering and Sinkhorn-Knopp
    spread them over all prototypes.
    gather: maps (1, K) of this process to (W, K) of all W processes, each with as many images.
    """
    largest = math.log(teacher_probs.shape[-1])
    mean = gather(
        scaled_logits.float().softmax(dim=-1).flatten(0, -2).mean(dim=0, keepdim=True)
    ).mean(dim=0)
    return {
        "teacher_entropy": torch.special.entr(teacher_probs).sum(dim=-1).mean() / largest,
        "batch_entropy": torch.special.entr(mean).sum() / largest,
    }
