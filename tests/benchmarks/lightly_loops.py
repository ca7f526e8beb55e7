"""Plain loops of lightly's parts, written as its own examples for DINO and DINOv2 are, about
featkit's backbone.

https://github.com/lightly-ai/lightly, examples/pytorch/dino.py and dinov2.py. Different from them:
the backbone is featkit's, sizes and crops are those of a featkit config, AdamW is the fused one,
which is faster. Blocks leave nothing out at random; the stochastic depth of timm, from which the
DINOv2 example takes its backbone, computes what it leaves out.
"""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from featkit.sources import Source
from featkit_train.config import TrainConfig
from featkit_train.networks.base import Features, Masked
from featkit_train.networks.heads import HeadConfig
from featkit_train.networks.vit import VisionTransformer
from tests.benchmarks.loops import Loop
from tests.torchvision_without_cuda import import_lightly_loss, import_quietly

MOMENTUM = 0.99
NUM_GLOBAL = 2


class LightlyImages(Dataset[list[Tensor]]):
    """Decode with Pillow, then lightly's transform: what its own examples do."""

    def __init__(self, source: Source, transform: Any) -> None:
        self.source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, number: int) -> list[Tensor]:
        views: list[Tensor] = self.transform(
            Image.open(io.BytesIO(self.source.read(number))).convert("RGB")
        )
        return views


def dino_transform(config: TrainConfig) -> Any:
    """Return lightly's DINOTransform with all crops and colors of the config that it supports."""
    crops, color = config.crops, config.color
    return import_quietly("lightly.transforms.dino_transform").DINOTransform(
        global_crop_size=crops.global_size,
        local_crop_size=crops.local_size,
        n_local_views=crops.num_local,
        global_crop_scale=crops.global_scale,
        local_crop_scale=crops.local_scale,
        hf_prob=crops.flip_probability,
        rr_prob=crops.rotation_probability if crops.rotation_degrees else 0.0,
        rr_degrees=crops.rotation_degrees or None,
        cj_prob=color.jitter_probability,
        cj_strength=1.0,
        cj_bright=color.brightness,
        cj_contrast=color.contrast,
        cj_sat=color.saturation,
        cj_hue=color.hue,
        random_gray_scale=color.gray_probability,
        gaussian_blur=color.blur_probability,
        sigmas=color.blur_sigma,
        solarization_prob=color.solarize_probability[1],
    )


class LightlyLoop(Loop[list[Tensor]]):
    """Student and teacher, lightly's data, and a step but for its loss."""

    def __init__(
        self,
        config: TrainConfig,
        source: Source,
        *,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        lr: float = 1e-3,
        momentum: Callable[[int], float] = lambda _step: MOMENTUM,
    ) -> None:
        self.config, self.device, self.images = config, device, config.run.batch_size
        self.momentum, self.number = momentum, 0
        self.autocast_dtype = autocast_dtype
        self.student = VisionTransformer(config.model)
        with warnings.catch_warnings():  # torch has a newer word for weight_norm
            warnings.simplefilter("ignore", FutureWarning)
            self.build()
        self.update_momentum = import_quietly("lightly.models.utils").update_momentum
        student, teacher = self.branches()
        for module in (*student, *teacher):
            module.to(device)
        for module in teacher:
            module.requires_grad_(False)
        self.parameters = [
            parameter
            for module in student
            for parameter in module.parameters()
            if parameter.requires_grad
        ]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, fused=True)
        loader = DataLoader(
            LightlyImages(source, dino_transform(config)),
            batch_size=config.run.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=config.run.workers,
            persistent_workers=config.run.workers > 0,
        )
        self._batches = self._endless(loader)

    @abstractmethod
    def build(self) -> None:
        """Heads, teacher and losses."""

    @abstractmethod
    def branches(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Modules of the student, and in the same order those of its teacher."""

    @abstractmethod
    def loss(self, views: list[Tensor]) -> Tensor:
        """Return the loss of views (B, 3, S, S), global ones first, on the device."""

    def next(self) -> list[Tensor]:
        """Views as the loader gives them."""
        return next(self._batches)

    def step(self, batch: list[Tensor]) -> None:
        """Loss, gradients, optimizer, teacher."""
        views = [view.to(self.device) for view in batch]
        with self._autocast():
            loss = self.loss(views)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        for student, teacher in zip(*self.branches(), strict=True):
            self.update_momentum(student, teacher, m=self.momentum(self.number))
        self.number += 1

    def _endless(self, loader: DataLoader[list[Tensor]]) -> Iterator[list[Tensor]]:
        while True:
            yield from loader

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(
            self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None
        )


class LightlyDino(LightlyLoop):
    """examples/pytorch/dino.py: one forward pass a view."""

    def build(self) -> None:
        """DINOProjectionHead and DINOLoss."""
        sizes = head_sizes(self.config.model.width, self.config.dino.head)
        head = import_quietly("lightly.models.modules.heads").DINOProjectionHead
        self.student_head, self.teacher_head = head(*sizes, freeze_last_layer=0), head(*sizes)
        self.teacher = copy.deepcopy(self.student)
        self.dino_loss = import_lightly_loss("DINOLoss")(output_dim=sizes[-1]).to(self.device)

    def branches(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Backbones and heads."""
        return [self.student, self.student_head], [self.teacher, self.teacher_head]

    def loss(self, views: list[Tensor]) -> Tensor:
        """DINO's."""
        with torch.no_grad():
            teacher = [
                self.teacher_head(self.teacher.student_forward(view).class_token)
                for view in views[:NUM_GLOBAL]
            ]
        student = [
            self.student_head(self.student.student_forward(view).class_token) for view in views
        ]
        loss: Tensor = self.dino_loss(teacher, student, epoch=0)
        return loss


class LightlyDinoV2(LightlyLoop):
    """examples/pytorch/dinov2.py: a pass for the global views, one for the local ones; block masks
    drawn in the loop."""

    def build(self) -> None:
        """DINOv2ProjectionHead, one for both or two as the config has it, DINOLoss, IBOTPatchLoss
        and KoLeoLoss."""
        config = self.config
        head = import_quietly("lightly.models.modules.heads").DINOv2ProjectionHead
        patch_head = config.ibot.head or config.dino.head
        sizes, patch_sizes = (
            head_sizes(config.model.width, one) for one in (config.dino.head, patch_head)
        )
        self.student_heads, self.teacher_heads = ([head(*sizes)] for _ in range(2))
        if config.ibot.head is not None:
            self.student_heads.append(head(*patch_sizes))
            self.teacher_heads.append(head(*patch_sizes))
        self.teacher = copy.deepcopy(self.student)
        # The mask token is the student's alone; here it is a parameter next to the backbone, in
        # timm's wrapper one inside.
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.model.width))
        self.student_extra, self.teacher_extra = (
            nn.ParameterList([self.mask_token]) for _ in range(2)
        )
        self.dino_loss = import_lightly_loss("DINOLoss")(output_dim=sizes[-1]).to(self.device)
        self.ibot_loss = import_lightly_loss("IBOTPatchLoss")(output_dim=patch_sizes[-1]).to(
            self.device
        )
        self.koleo_loss = import_lightly_loss("KoLeoLoss")()
        self.random_block_mask = import_quietly("lightly.models.utils").random_block_mask

    def branches(self) -> tuple[list[nn.Module], list[nn.Module]]:
        """Backbones and heads."""
        return [self.student, *self.student_heads], [self.teacher, *self.teacher_heads]

    def loss(self, views: list[Tensor]) -> Tensor:
        """DINO's, iBOT's, and KoLeo of each global view."""
        config = self.config
        global_views = torch.cat(views[:NUM_GLOBAL])
        side = config.crops.global_size // config.model.patch
        masks = self.random_block_mask(
            size=(len(global_views), side, side),
            batch_mask_ratio=config.ibot.mask_probability,
            min_image_mask_ratio=config.ibot.mask_ratio[0],
            max_image_mask_ratio=config.ibot.mask_ratio[1],
            device=self.device,
        )
        with torch.no_grad():
            features = self.teacher.student_forward(global_views)
            teacher_out = self.teacher_heads[0](features.class_token)
            teacher_masked_out = self.teacher_heads[-1](features.patch_tokens[masks])
        features = self.student.student_forward(global_views, masked=Masked(masks, self.mask_token))
        student_out = [
            self.student_heads[0](features.class_token),
            *self._local_out(views[NUM_GLOBAL:]),
        ]
        student_masked_out = self.student_heads[-1](features.patch_tokens[masks])
        return self._sum(
            features,
            teacher_out,
            torch.cat(student_out),
            teacher_masked_out,
            student_masked_out,
            masks,
        )

    def _local_out(self, views: list[Tensor]) -> list[Tensor]:
        return (
            [self.student_heads[0](self.student.student_forward(torch.cat(views)).class_token)]
            if views
            else []
        )

    def _sum(
        self,
        features: Features,
        teacher_out: Tensor,
        student_out: Tensor,
        teacher_masked_out: Tensor,
        student_masked_out: Tensor,
        masks: Tensor,
    ) -> Tensor:
        num_views = NUM_GLOBAL + self.config.crops.num_local
        dino: Tensor = self.dino_loss(
            list(teacher_out.chunk(NUM_GLOBAL)),
            list(student_out.chunk(num_views)),
            teacher_temp=0.05,
        )
        ibot: Tensor = self.ibot_loss(
            teacher_masked_out, student_masked_out, mask=masks, teacher_temp=0.05
        )
        koleo: Tensor = sum(
            self.koleo_loss(view) for view in features.class_token.chunk(NUM_GLOBAL)
        )
        return dino + ibot + 0.1 * koleo


LOOPS: dict[str, type[LightlyLoop]] = {"dino": LightlyDino, "dinov2": LightlyDinoV2}


def head_sizes(width: int, head: HeadConfig) -> tuple[int, int, int, int]:
    """Input, hidden, bottleneck and output width as lightly's heads take them."""
    return width, head.hidden_width, head.bottleneck_width, head.num_prototypes
