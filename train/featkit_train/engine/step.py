"""One optimization step: in one process or many, with whole or sharded weights, and optional
micro-batches.

Letters: B images, C crops of each, (S, S) pixels.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule

from featkit_train.config import TrainConfig
from featkit_train.engine.optimizer import clip_gradients, make_optimizer, set_schedules
from featkit_train.images.augment import as_seen
from featkit_train.images.crops import Crops, CropSpec
from featkit_train.log import Log
from featkit_train.methods import Generators, Labels, Method, Views, make_method
from featkit_train.networks.base import Backbone
from featkit_train.networks.inference import over_images, unit_class_token
from featkit_train.networks.vit import VisionTransformer
from featkit_train.processes.distributed import World, replicate, shard
from featkit_train.random_streams import COMMON_NOISE, NOISE, WEIGHTS, rng_for
from featkit_train.watching.diagnostics import Collapse, first_bad_tensor


class Engine:
    """A method and its optimizer on a device."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        device: torch.device,
        autocast_dtype: torch.dtype | None,
        world: World,
        labels: Labels | None = None,
    ) -> None:
        self.config, self.device, self.world, self.autocast_dtype = (
            config,
            device,
            world,
            autocast_dtype,
        )
        with seeded_weights(config.run.seed):
            self.method: Method = make_method(config, world=world, labels=labels)
        self._whole = (
            copy.deepcopy(self.method.result) if self.is_sharded and world.is_main else None
        )
        for module in self.method.modules():
            if isinstance(module, VisionTransformer):
                module.checkpoint_activations = config.engine.checkpoint_activations
                if config.engine.compile:
                    for block in module.blocks:
                        block.compile()
        if self.is_sharded:
            # Shard before .to(device), so that a device never holds a whole branch. On the CPU
            # weights stay in float32, since its layer norm rejects bfloat16 weights for float32
            # activations.
            shard(
                self.method.branches(),
                device,
                dtype=None if device.type == "cpu" else autocast_dtype,
            )
        self.method.to(device)
        if is_convolutional(self.method.result):
            # oneDNN and cuDNN convolve channels-last without copies.
            self.method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cuda" and autocast_dtype is not None:
            # Let the float32 heads use the tensor cores (TF32).
            torch.set_float32_matmul_precision("high")
        self.optimizer = make_optimizer(self.method, config.optim)
        self.class_tokens: Tensor | None = None  # (B, D) of the first global crops in the last step
        self._learner: nn.Module | None = None

    def crop_spec(self) -> CropSpec:
        """Return the crops that the method needs."""
        masks = self.config.ibot if self.method.patch_loss else None
        return CropSpec(
            num_global=self.method.num_global,
            local=self.method.local_crops,
            patch=self.method.result.patch,
            masks=masks,
            gram_size=self.method.gram_size,
        )

    def step(self, crops: Crops, step: int) -> Log:
        """Take one optimization step on this process's slice of the batch.

        Returns scalars for the log, averaged over all processes. Raises Collapse if the loss or a
        gradient is not finite; weights are then unchanged.
        """
        run, num_micro_batches = self.config.run, self.config.engine.accumulate
        if self.method.enter_phase(step) or self._learner is None:
            # DDP registers gradient hooks when it is built, so a new phase needs a new wrapper.
            self._learner = self._with_gradient_averaging(self.method)
        lr, weight_decay = set_schedules(
            self.optimizer.param_groups,
            self.config.optim,
            step=step,
            num_steps=run.steps,
            images_per_step=run.batch_size,
            phase_start=self.method.phase_start(step),
        )
        size = crops.num_images // num_micro_batches
        views = [
            self.views(crops.micro_batch(index, size=size)) for index in range(num_micro_batches)
        ]
        with self._autocast():
            # Targets need the whole batch, so the teacher sees all micro-batches first.
            targets, logged = self.method.make_targets(
                [self.method.teacher_forward(part) for part in views], step=step
            )
        self.optimizer.zero_grad(set_to_none=True)
        losses: list[dict[str, Tensor]] = []
        class_tokens: list[Tensor] = []
        for index in range(num_micro_batches):
            with self._synchronized(index == num_micro_batches - 1):
                with self._autocast():
                    result = self._learner(
                        views[index], targets[index], self._generators(step, index)
                    )
                (result.loss / num_micro_batches).backward()
            losses.append({"loss": result.loss.detach(), **result.logged})
            class_tokens.append(result.class_tokens)
        self.class_tokens = torch.cat(class_tokens)
        grad_norm = clip_gradients(self.method, self.config.optim)
        self.method.before_optimizer(step=step)
        averaged = {name: torch.stack([part[name] for part in losses]).mean() for name in losses[0]}
        # Average before the check, so that all processes decide alike.
        log = self.world.mean({**averaged, **logged, "grad_norm": grad_norm})
        if not math.isfinite(log["grad_norm"]) or not math.isfinite(log["loss"]):
            raise Collapse(self._describe_first_bad_tensor(views, step))
        self.optimizer.step()
        for branch in self.method.branches():
            if isinstance(branch, FSDPModule):
                branch.reshard()
        self.method.after_optimizer(step=step)
        return {**log, "lr": lr, "weight_decay": weight_decay, **self.method.schedule_values(step)}

    def views(self, crops: Crops) -> Views:
        """Move crops to the device, apply their colors, and normalize them."""
        return Views(
            global_crops=self._appear(*crops.global_crops),
            local_crops=self._appear(*crops.local_crops),
            masks=crops.masks.to(self.device, non_blocking=True),
            masked=crops.masks.flatten().nonzero().flatten().to(self.device, non_blocking=True),
            gram_crops=self._appear(crops.gram_images, None),
            indices=crops.indices.to(self.device, non_blocking=True),
        )

    def result(self) -> Backbone:
        """Return the run's backbone with whole weights; all processes must call this.

        With sharded weights it is whole in the main process only.
        """
        if not self.is_sharded:
            return self.method.result
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.method.result, options=options)
        if self._whole is None:
            return self.method.result
        self._whole.load_state_dict(state)
        return self._whole

    @property
    def is_sharded(self) -> bool:
        """True if weights are sharded over processes."""
        return self.config.engine.shard and self.world.size > 1

    def embed(self, backbone: Backbone, images: np.ndarray) -> np.ndarray:
        """Embed prepared images (N, H, W, 3) uint8 as unit vectors (N, D) float32."""
        return over_images(
            backbone, images, unit_class_token, mean=self.method.mean, std=self.method.std
        )

    def _appear(self, images: Tensor, appearance: Tensor | None) -> Tensor:
        return as_seen(
            images, appearance, device=self.device, mean=self.method.mean, std=self.method.std
        )

    def _generators(self, step: int, index: int) -> Generators:
        seed = self.config.run.seed
        return Generators(
            rng_for(seed, NOISE, step, index, self.world.rank),
            rng_for(seed, COMMON_NOISE, step, index),
        )

    def _with_gradient_averaging(self, method: Method) -> nn.Module:
        """Return the method, wrapped in DDP if several processes hold whole weights."""
        if self.world.size == 1 or self.is_sharded:
            return method
        return replicate(method, self.device)

    def _autocast(self) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(
            self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None
        )

    @contextlib.contextmanager
    def _synchronized(self, wanted: bool) -> Iterator[None]:
        """Exchange gradients between processes after the last micro-batch only."""
        if isinstance(self._learner, nn.parallel.DistributedDataParallel) and not wanted:
            with self._learner.no_sync():
                yield
        else:
            yield

    def _describe_first_bad_tensor(self, views: Sequence[Views], step: int) -> str:
        def repeat_step() -> None:
            with self._autocast():
                targets, _ = self.method.make_targets(
                    [self.method.teacher_forward(part) for part in views], step=step
                )
                for index, part in enumerate(views):
                    self.method(part, targets[index], self._generators(step, index))

        bad = first_bad_tensor(
            self.method, repeat_step, anywhere=lambda here: self.world.any(here, self.device)
        )
        return (
            f"The loss is not a number at step {step + 1}: the first bad tensor is {bad}. Lower"
            " optim.lr, lengthen optim.warmup_steps, or set run.precision to float32; the last"
            " checkpoint is unaffected."
        )


def is_convolutional(backbone: Backbone) -> bool:
    """Return whether a network has more convolutions than a patch embedding's one."""
    return sum(isinstance(module, nn.Conv2d) for module in backbone.modules()) > 1


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Seed torch for the weights drawn inside, and restore the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng_for(seed, WEIGHTS).integers(2**31)))
        yield
