"""The training loop: data in, steps, what is printed and written, checkpoints, and the exact way back after a stop."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

import featkit
from featkit.atomic import explain_os_errors, write_text
from featkit.errors import InputError, Interrupted
from featkit.evaluate.copies import CopyProbe
from featkit.geometry import Geometry
from featkit.images import decode
from featkit.lock import WriterLock
from featkit.resources import usable_cpus
from featkit.sources import Source, concatenate, keys_sha256
from featkit_train.augment import appear, normalise
from featkit_train.checkpoints import list_checkpoints, load_checkpoint, save_checkpoint
from featkit_train.config import OptimConfig, TrainConfig, from_mapping, to_mapping
from featkit_train.data import WEIGHTS, CropDataset, Crops, EpochOrder, crop_loader, rng_for, split_held_out
from featkit_train.device import pick_autocast, pick_device
from featkit_train.diagnostics import Collapse, CollapseWatch
from featkit_train.meter import Log, Meter
from featkit_train.methods import METHODS, Dino, Views
from featkit_train.schedules import cosine_schedule
from featkit_train.stopping import StopRequest
from featkit_train.weights import BACKBONE_FILE, BackboneInfo, save_backbone

CONFIG_FILE, METRICS_FILE, CHECKPOINTS, LOCK_FILE = "config.yaml", "metrics.jsonl", "checkpoints", "writer.lock"
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LR_BATCH = 256  # the batch that a linear rule's rate is for
PROBE_DECODE_SIDE = 256  # what the copies yardstick works on


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a run came to."""

    steps: int
    seconds: float  # of this process, without what an earlier one did
    images_per_s: float
    waiting_share: float  # of the time of steps, spent waiting for data
    copy_recall: float | None  # recall@1 on the held-out pictures, last measured
    backbone: Path


def train(
    config: TrainConfig,
    sources: Sequence[Source],
    out: Path,
    *,
    held_out: Source | None = None,
    resume: bool = False,
    on_log: Callable[[Log], None] = lambda _log: None,
    on_note: Callable[[str], None] = lambda _note: None,
) -> TrainReport:
    """Train by `config` and leave a run folder (config.yaml, metrics.jsonl, events, checkpoints, backbone.safetensors).

    sources: pictures to learn from; held_out: pictures to measure copy recall on, by default a part of them that is
    then not trained on. resume goes on from the newest checkpoint of `out`, on the CPU bit for bit as if never stopped.

    InputError: `out` holds a run already, or one of another config or other pictures. EnvironmentProblem: `out` cannot be
    written, or another process is at it. Collapse: outputs no longer tell pictures apart. Interrupted: Ctrl-C, after a
    checkpoint was written.
    """
    run = Run(config, sources, out, held_out=held_out, on_log=on_log, on_note=on_note)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the run with --out.")
    if resume and not (out / CONFIG_FILE).is_file():
        raise InputError(f"{out} holds no run to resume; leave --resume away to begin one.")
    with explain_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(out / LOCK_FILE)
    try:
        return run.go(run.resume() if resume else run.begin())
    finally:
        lock.release()


class Run:
    """One run in progress: its model, optimizer, data and files."""

    def __init__(
        self,
        config: TrainConfig,
        sources: Sequence[Source],
        out: Path,
        *,
        held_out: Source | None,
        on_log: Callable[[Log], None],
        on_note: Callable[[str], None],
    ) -> None:
        if config.method not in METHODS:
            raise InputError(f"There is no method {config.method}; it is one of: {', '.join(METHODS)}.")
        self.config, self.out, self.on_log, self.on_note = config, out, on_log, on_note
        self.device = pick_device(config.run.device)
        self.autocast_dtype = pick_autocast(config.run.precision, self.device)
        torch.set_num_threads(usable_cpus())
        self.geometry = geometry_of(config)
        source = concatenate(sources)
        wanted = config.run.held_out if held_out is None else 0
        self.numbers, held_numbers = split_held_out(len(source), wanted=wanted, seed=config.run.seed)
        self.order = EpochOrder(
            self.numbers, batch_size=config.run.batch_size, seed=config.run.seed, first_step=0, last_step=config.run.steps
        )
        self.dataset = CropDataset(
            source,
            crops=config.crops,
            colour=config.colour,
            seed=config.run.seed,
            cache_bytes=config.run.cache_bytes,
            numbers=self.numbers,
        )
        self.data = {
            "names": source.name,
            "keys_sha256": keys_sha256(source),
            "held_out_keys_sha256": None if held_out is None else keys_sha256(held_out),
        }
        probe_numbers = held_numbers if held_out is None else np.arange(len(held_out))
        self.probe = copy_probe(source if held_out is None else held_out, probe_numbers, self.geometry)
        with seeded_weights(config.run.seed):
            self.method: Dino = METHODS[config.method](config).to(self.device)
        self.optimizer = make_optimizer(self.method.student, config.optim)
        self.copy_recall: float | None = None

    # -- files ----------------------------------------------------------------------------------------------------

    def begin(self) -> int:
        """Begin the run folder. InputError when it holds a run."""
        if (self.out / CONFIG_FILE).exists():
            raise InputError(f"{self.out} holds a run already; add --resume to go on with it, or choose another --out.")
        write_text(self.out / CONFIG_FILE, self._config_text())
        return 0

    def resume(self) -> int:
        """Restore the newest checkpoint; 0 where a run was stopped ahead of its first."""
        record = yaml.safe_load((self.out / CONFIG_FILE).read_text())
        earlier = from_mapping(TrainConfig, record["config"])
        if earlier != self.config:
            raise InputError(f"{self.out} was begun with other settings: {_first_difference(earlier, self.config)}.")
        for digest, what in (("keys_sha256", "pictures to learn from"), ("held_out_keys_sha256", "pictures held out")):
            if record["data"][digest] != self.data[digest]:
                raise InputError(f"{self.out} was begun with other {what}, in {record['data']['names']}; name the same again.")
        checkpoints = list_checkpoints(self.out / CHECKPOINTS)
        step = load_checkpoint(checkpoints[-1], method=self.method, optimizer=self.optimizer) if checkpoints else 0
        metrics = self.out / METRICS_FILE
        if metrics.exists():  # lines past the checkpoint will be written again
            lines = [line for line in metrics.read_text().splitlines() if line.endswith("}")]  # a power cut tears the last one
            kept = [line for line in lines if checkpoints and json.loads(line)["step"] <= step]
            write_text(metrics, "".join(line + "\n" for line in kept))
        self.on_note(f"resuming at step {step:,}")
        return step

    def _config_text(self) -> str:
        versions = {"featkit": featkit.__version__, "torch": str(torch.__version__)}
        record = {"config": to_mapping(self.config), "data": self.data, "versions": versions}
        return yaml.safe_dump(record, sort_keys=False)

    def checkpoint(self, step: int) -> None:
        """Write the checkpoint and the backbone after `step` finished steps."""
        save_checkpoint(
            self.out / CHECKPOINTS,
            step=step,
            method=self.method,
            optimizer=self.optimizer,
            keep=self.config.run.keep_checkpoints,
        )
        info = BackboneInfo(
            name=self.config.name,
            family=self.config.method,
            geometry=self.geometry,
            licence=self.config.licence,
            origin={
                "data": self.config.data_name or self.dataset.source.name,
                "steps": str(step),
                "by": "featkit train",
            },
        )
        save_backbone(self.out / BACKBONE_FILE, self.method.teacher_backbone, info)

    # -- steps ----------------------------------------------------------------------------------------------------

    def go(self, first_step: int) -> TrainReport:
        """Steps from `first_step` to the last; checkpoints, metrics and diagnoses on the way."""
        config = self.config.run
        self.order.first_step = first_step
        batches = iter(crop_loader(self.dataset, self.order, workers=config.workers))
        settle_steps = min(self.config.optim.warmup_steps, config.steps // 2)
        watch = CollapseWatch(self.config.dino.head.num_prototypes, settle_steps=settle_steps)
        meter = Meter(config.batch_size)
        step = first_step
        with self._metrics_writer(first_step) as write, StopRequest() as stop:
            if step == 0:  # what the untrained network finds, to compare with
                self._measure_copies(step, write)
            while step < config.steps and not stop.asked:
                with meter.waiting():
                    crops = next_batch(batches)
                log = self.step(crops, step)
                step += 1
                meter.finished_step(crops.num_unreadable)
                self._diagnose(watch, step, log)
                last = step == config.steps
                if step % config.log_every == 0 or last:
                    write(step, {**log, **meter.read()})
                if step % config.evaluate_every == 0 or last:
                    self._measure_copies(step, write)
                if step % config.checkpoint_every == 0 or last:
                    self.checkpoint(step)
            if step < config.steps:
                self.checkpoint(step)
                raise Interrupted(f"stopped after step {step:,}; add --resume to go on from there.")
        return TrainReport(
            steps=step - first_step,
            seconds=meter.total_s,
            images_per_s=meter.images_per_s,
            waiting_share=meter.waiting_share,
            copy_recall=self.copy_recall,
            backbone=self.out / BACKBONE_FILE,
        )

    def step(self, crops: Crops, step: int) -> Log:
        """One optimisation step; returns what is worth watching, as numbers."""
        lr, weight_decay = self._set_schedules(step)
        views = Views(
            self._appear(crops.global_images, crops.global_appearance),
            self._appear(crops.local_images, crops.local_appearance),
        )
        with torch.autocast(self.device.type, self.autocast_dtype, enabled=self.autocast_dtype is not None):
            result = self.method(views, step=step)
        self.optimizer.zero_grad(set_to_none=True)
        result.loss.backward()
        self.method.before_optimizer(step=step)
        limit = self.config.optim.clip_grad if self.config.optim.clip_grad > 0 else math.inf
        grad_norm = nn.utils.clip_grad_norm_(self.method.student.parameters(), limit)
        self.optimizer.step()
        self.method.update_teacher(step=step)
        watched = {name: float(value) for name, value in result.watched.items()}
        return {
            "loss": float(result.loss.detach()),
            **watched,
            "grad_norm": float(grad_norm),
            "lr": lr,
            "weight_decay": weight_decay,
            "momentum": self.method.momentum(step),
            "teacher_temp": self.method.teacher_temp(step),
        }

    def _set_schedules(self, step: int) -> tuple[float, float]:
        optim, num_steps = self.config.optim, self.config.run.steps
        lr = cosine_schedule(
            step,
            start=peak_lr(optim, self.config.run.batch_size),
            end=optim.min_lr,
            num_steps=num_steps,
            warmup_steps=min(optim.warmup_steps, num_steps // 2),
        )
        weight_decay = cosine_schedule(step, start=optim.weight_decay, end=optim.weight_decay_end, num_steps=num_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        return lr, weight_decay

    def _appear(self, images: Tensor, appearance: Tensor) -> Tensor:
        """uint8 crops (C, B, 3, S, S) with their rows to normalised floats on the training device."""
        if images.shape[0] == 0:
            return images.to(self.device, torch.float32)
        pixels = appear(images.flatten(0, 1).to(self.device, non_blocking=True), appearance.flatten(0, 1))
        return torch.unflatten(normalise(pixels, mean=IMAGENET_MEAN, std=IMAGENET_STD), 0, images.shape[:2])

    # -- what is watched -------------------------------------------------------------------------------------------

    def _diagnose(self, watch: CollapseWatch, step: int, log: Log) -> None:
        named = watch(step, loss=log["dino_loss"], teacher_entropy=log["teacher_entropy"], batch_entropy=log["batch_entropy"])
        if named is None:
            return
        if self.config.run.on_collapse == "stop":
            raise Collapse(named)
        self.on_note(named)

    def _measure_copies(self, step: int, write: Callable[[int, Log], None]) -> None:
        if self.probe is None:
            return
        self.copy_recall = self.probe.recall_at_1(self.embed)
        write(step, {"copy_recall": self.copy_recall})

    @torch.no_grad()
    def embed(self, images: np.ndarray) -> np.ndarray:
        """The teacher's class tokens, unit length (N, D) float32, of prepared pictures (N, H, W, 3) uint8."""
        backbone = self.method.teacher_backbone
        blocks = []
        for block in torch.split(torch.from_numpy(images), 256):
            pixels = block.to(self.device).permute(0, 3, 1, 2).float() / 255
            features = backbone(normalise(pixels, mean=IMAGENET_MEAN, std=IMAGENET_STD))
            blocks.append(nn.functional.normalize(features.class_token.float(), dim=-1).cpu().numpy())
        return np.concatenate(blocks)

    @contextlib.contextmanager
    def _metrics_writer(self, first_step: int) -> Iterator[Callable[[int, Log], None]]:
        """A function that writes one line of metrics.jsonl and the same to TensorBoard, and shows it."""
        board = SummaryWriter(self.out, purge_step=first_step if first_step else None)
        with (self.out / METRICS_FILE).open("a", encoding="utf-8") as file:

            def write(step: int, log: Log) -> None:
                file.write(json.dumps({"step": step, **log}) + "\n")
                file.flush()
                for name, value in log.items():
                    board.add_scalar(name, value, step)
                self.on_log({"step": step, **log})

            try:
                yield write
            finally:
                board.close()


def peak_lr(config: OptimConfig, images_per_step: int) -> float:
    """The learning rate after warm-up: `lr` itself, or `lr * images_per_step / 256` by the linear rule."""
    return config.lr * images_per_step / LR_BATCH if config.lr_rule == "linear" else config.lr


def make_optimizer(student: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW; norms, biases and other vectors do not decay (DINO's released code, get_params_groups)."""
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "decays": True},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "decays": False},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=config.betas, fused=True)


def geometry_of(config: TrainConfig) -> Geometry:
    """How pictures reach the trained backbone: at the size of its global crops."""
    size = config.crops.global_size
    return Geometry(
        height=size,
        width=size,
        resize=config.resize,
        resize_to=size,
        interpolation="bicubic",
        patch=config.model.patch,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )


def copy_probe(source: Source, numbers: np.ndarray, geometry: Geometry) -> CopyProbe | None:
    """The copies yardstick over the held-out pictures that can be read; None where these are fewer than two."""
    pictures = []
    for number in numbers:
        place = int(number)
        with contextlib.suppress(InputError):
            pictures.append(decode(source.read(place), name=source.key(place), shorter_side=PROBE_DECODE_SIDE).pixels)
    return CopyProbe(pictures, geometry, seed=0, num_edits=4) if len(pictures) > 1 else None


def next_batch(batches: Iterator[Crops]) -> Crops:
    """The next of a loader's batches. An InputError of a worker's carries its traceback as text: the last line is enough."""
    try:
        return next(batches)
    except InputError as error:
        raise InputError(str(error).strip().splitlines()[-1].removeprefix("featkit.errors.InputError: ")) from None


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Weights drawn inside depend on the seed alone, and the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng_for(seed, WEIGHTS).integers(2**31)))
        yield


def _first_difference(earlier: TrainConfig, now: TrainConfig) -> str:
    before, after = _leaves(to_mapping(earlier)), _leaves(to_mapping(now))
    name = next(name for name in after if before.get(name) != after[name])
    return f"{name} was {before.get(name)}, now it is {after[name]}"


def _leaves(mapping: dict[str, Any], at: str = "") -> dict[str, Any]:
    leaves: dict[str, Any] = {}
    for key, value in mapping.items():
        leaves.update(_leaves(value, f"{at}{key}.") if isinstance(value, dict) else {at + key: value})
    return leaves
