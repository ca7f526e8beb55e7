"""The training loop: data in, steps, what is measured on the way, checkpoints, and the exact way
back after a stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from featkit.atomic import explain_os_errors
from featkit.errors import InputError, Interrupted
from featkit.geometry import Geometry
from featkit.lock import WriterLock
from featkit.resources import usable_cpus, usable_memory
from featkit.sources import Source, concatenate, has_keys, keys_sha256
from featkit.sources.locality import locality_of
from featkit.wording import counted
from featkit_train.config import TrainConfig
from featkit_train.engine.checkpoints import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    load_method,
    save_checkpoint,
)
from featkit_train.engine.failures import explained, way_on
from featkit_train.engine.step import Engine
from featkit_train.images.batches import crop_loader, workers_within_memory
from featkit_train.images.crops import CropDataset, Crops
from featkit_train.images.loading import WorkerLost, batches_of
from featkit_train.images.order import LEAST_TO_HOLD_OUT, EpochOrder, split_held_out
from featkit_train.log import Log
from featkit_train.methods import Labels
from featkit_train.methods.base import IMAGENET_MEAN, IMAGENET_STD
from featkit_train.networks.base import Backbone
from featkit_train.processes.device import pick_autocast, pick_device
from featkit_train.processes.distributed import ALONE, World, join_world, local_device
from featkit_train.processes.stopping import StopRequest
from featkit_train.report.page import write_run_report
from featkit_train.run_folder import CONFIG_FILE, LOCK_FILE, SNAPSHOTS, RunFolder, Write
from featkit_train.watching.diagnostics import Collapse, Watch, rank_me
from featkit_train.watching.meter import Meter
from featkit_train.watching.plan import Plan, Planner
from featkit_train.watching.probe import COPIES, HeldOut
from featkit_train.watching.snapshots import Snapshots
from featkit_train.weights import BackboneInfo

RANK_EVERY = 10  # steps between two looks at the rank of the embeddings


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """What a run came to."""

    steps: int
    seconds: float  # of this process, without what an earlier one did
    images_per_s: float
    # of the time of steps, spent waiting for data; of the process that waited longest
    waiting_share: float
    scores: Log  # on the held-out images, of the model that is left
    # images that could not be read, each time that one was asked for; also before a resume
    unreadable: int
    backbone: Path
    page: Path
    rolled_back_to: int | None = None  # the step whose model is left, where the watch took it back

    @property
    def copy_recall(self) -> float | None:
        """recall@1 of copies on the held-out images."""
        return self.scores.get(COPIES)


@dataclass(frozen=True, kw_only=True)
class Ears:
    """Who hears of a run while it goes: numbers, sentences, and the plan."""

    on_log: Callable[[Log], None] = lambda _log: None
    on_note: Callable[[str], None] = lambda _note: None
    on_plan: Callable[[Plan], None] = lambda _plan: None


def train(
    config: TrainConfig,
    sources: Sequence[Source],
    out: Path,
    *,
    held_out: Source | None = None,
    labels: Labels | None = None,
    resume: bool = False,
    on_log: Callable[[Log], None] = lambda _log: None,
    on_note: Callable[[str], None] = lambda _note: None,
    on_plan: Callable[[Plan], None] = lambda _plan: None,
) -> TrainReport:
    """Train by `config` and leave a run folder (config.yaml, metrics.jsonl, checkpoints,
    backbone.safetensors, report.html).

    sources: images to learn from; held_out: images to measure on, by default a part of them
    that is then not trained on; labels: of the images, for a method that learns from labels. resume
    goes on from the newest checkpoint of `out`, on the CPU bit for bit as if never stopped. Started
    by torchrun, the processes share each batch, and the first of them writes.

    InputError: `out` holds a run already, or one of another config or other images.
    EnvironmentProblem: `out` cannot be written, or another process is at it, or the machine lacks
    memory, space or a worker that it had (WorkerLost). Collapse: outputs no longer tell images
    apart. Interrupted: Ctrl-C, after a checkpoint was written.
    """
    device = local_device(pick_device(config.run.device))
    with join_world(device) as world, explained(out, device):
        ears = Ears(on_log=on_log, on_note=on_note, on_plan=on_plan) if world.is_main else Ears()
        run = Run(
            config,
            sources,
            out,
            held_out=held_out,
            labels=labels,
            device=device,
            world=world,
            ears=ears,
        )
        if out.exists() and not out.is_dir():
            raise InputError(f"{out} is a file; name a folder for the run with --out.")
        if resume and not (out / CONFIG_FILE).is_file():
            raise InputError(f"{out} holds no run to resume; leave --resume away to begin one.")
        with only_writer(out, world):
            return run.go(run.resume() if resume else run.begin())


@contextlib.contextmanager
def only_writer(out: Path, world: World) -> Iterator[None]:
    """The folder `out`, made where it is not there, is the main process's alone. EnvironmentProblem
    where another writes it."""
    if not world.is_main:
        yield
        return
    with explain_os_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    lock = WriterLock(out / LOCK_FILE)
    try:
        yield
    finally:
        lock.release()


class Run:
    """One run in progress: its engine, data and files."""

    def __init__(
        self,
        config: TrainConfig,
        sources: Sequence[Source],
        out: Path,
        *,
        held_out: Source | None = None,
        labels: Labels | None = None,
        device: torch.device | None = None,
        world: World = ALONE,
        ears: Ears | None = None,
    ) -> None:
        self.config, self.world, self.ears = config, world, ears or Ears()
        self.device = device or local_device(pick_device(config.run.device))
        torch.set_num_threads(max(1, usable_cpus() // world.local_size))
        source = concatenate(sources)
        run = config.run
        self.numbers, held_numbers = split_held_out(
            len(source), wanted=run.held_out if held_out is None else 0, seed=run.seed
        )
        if labels is not None and labels.indices is not None:
            self.numbers = labels.indices
        self.order = EpochOrder(
            self.numbers,
            batch_size=run.batch_size,
            seed=run.seed,
            first_step=0,
            last_step=run.steps,
            rank=world.rank,
            size=world.size,
            micro_batches=config.engine.accumulate,
            shares=[resolution.share for resolution in config.crops.resolutions] or (1.0,),
            num_views=config.crops.fixed_views,
            locality=locality_of(source),
        )
        autocast_dtype = pick_autocast(run.precision, self.device)
        self.engine = Engine(
            config, device=self.device, autocast_dtype=autocast_dtype, world=world, labels=labels
        )
        self.geometry = geometry_of(
            config,
            patch=self.engine.method.result.patch,
            mean=self.engine.method.mean,
            std=self.engine.method.std,
        )
        self.dataset = CropDataset(
            source,
            crops=config.crops,
            color=config.color,
            seed=run.seed,
            cache_bytes=run.cache_bytes,
            indices=np.unique(self.numbers),
            spec=self.engine.crop_spec(),
        )
        data = {
            "names": source.name,
            "keys_sha256": keys_sha256(source),
            "held_out_keys_sha256": None if held_out is None else keys_sha256(held_out),
        }
        digested = {"keys_sha256": source, "held_out_keys_sha256": held_out}
        self.folder = RunFolder(
            out,
            config,
            data,
            is_same=lambda name, digest: (
                (images := digested[name]) is not None and has_keys(images, digest)
            ),
        )
        probe_numbers = held_numbers if held_out is None else np.arange(len(held_out))
        self.held_out = HeldOut(
            source if held_out is None else held_out,
            probe_numbers,
            self.geometry,
            label=config.labels.column,
        )
        self.snapshots = Snapshots(
            out / SNAPSHOTS,
            self.held_out.images,
            self.held_out.names,
            self.geometry,
            every=run.evaluate_every,
            enlarge=labels is None,  # borrowed networks may know one size alone
        )
        self.progress = Progress()
        self._unreadable_here = 0  # in this process, and not in the progress yet

    # -- beginning and going on --------------------------------------------------------------------

    def begin(self) -> int:
        """Begin the run folder. InputError when it holds a run, or `init` names none that fits."""
        if self.config.init is not None:
            earlier = Path(self.config.init)
            found = list_checkpoints(RunFolder(earlier, self.config, {}).checkpoints)
            if not found:
                raise InputError(
                    f"init is {earlier}, which holds no checkpoint of a run; name the folder of an"
                    " earlier run."
                )
            load_method(found[-1], method=self.engine.method)
        self.engine.method.start_run()
        if self.world.is_main:
            self.folder.begin()
        for remark in self.engine.method.remarks:
            self.ears.on_note(remark)
        return 0

    def resume(self) -> int:
        """Restore the newest checkpoint; 0 where a run was stopped ahead of its first."""
        self.folder.check_same()
        checkpoints = self.world.from_main(list_checkpoints(self.folder.checkpoints))
        if checkpoints:
            self.progress = load_checkpoint(
                checkpoints[-1], method=self.engine.method, optimizer=self.engine.optimizer
            )
        else:
            self.engine.method.start_run()
        if self.world.is_main:
            self.folder.forget_after(self.progress.step)
        self.ears.on_note(f"resuming at step {self.progress.step:,}")
        return self.progress.step

    def checkpoint(self) -> None:
        """Write the backbone and the checkpoint as they are now; the backbone first, since a
        resumed run makes it anew."""
        self._count_unreadable()
        self._save_result(self.engine.result())
        save_checkpoint(
            self.folder.checkpoints,
            progress=self.progress,
            method=self.engine.method,
            optimizer=self.engine.optimizer,
            keep=self.config.run.keep_checkpoints,
            world=self.world,
        )

    def _save_result(self, backbone: Backbone) -> None:
        if not self.world.is_main:
            return
        config = self.config
        info = BackboneInfo(
            name=config.name,
            family=config.method,
            geometry=self.geometry,
            license=config.license,
            origin={
                "data": config.data_name or self.dataset.source.name,
                "steps": str(self.progress.step),
                "by": "featkit train",
            },
        )
        self.engine.method.save(self.folder.path, backbone, info)

    # -- steps -------------------------------------------------------------------------------------

    def go(self, first_step: int) -> TrainReport:
        """Steps from `first_step` to the last; checkpoints, metrics and diagnoses on the way."""
        config = self.config.run
        self.order.first_step = first_step
        self.progress.step = first_step
        settle_steps = min(self.config.optim.warmup_steps, config.steps // 2)
        watch = Watch(self.engine.method.num_prototypes, settle_steps=settle_steps)
        meter = Meter(config.batch_size)
        planner = Planner(batch_size=config.batch_size, device=self.device)
        metrics = self.folder.metrics if self.world.is_main else _nowhere
        loader = crop_loader(self.dataset, self.order, workers=self._num_workers())
        with (
            self._told_when_lost(),
            contextlib.closing(batches_of(loader)) as batches,
            metrics(first_step, self.ears.on_log) as write,
            StopRequest() as stop,
        ):
            if first_step == 0:  # what the untrained network finds, to compare with
                self._say_doubt()
                self._measure(write)
            while self.progress.step < config.steps and not self.progress.given_up:
                if self.world.any(stop.asked, self.device):
                    break
                with meter.waiting():
                    crops = self._next(batches)
                step = self.progress.step
                log = self.engine.step(crops, step)
                self.progress.step = step = step + 1
                meter.finished_step()
                self._unreadable_here += int(crops.num_unreadable.sum())
                if step % RANK_EVERY == 0 or step % config.log_every == 0:
                    log |= self._rank()
                self._judge(watch, step, log)
                plan = planner.finished_step(steps_left=config.steps - step)
                if plan is not None:
                    self.ears.on_plan(plan)
                last = step == config.steps
                if step % config.log_every == 0 or last:
                    write(step, {**log, **self._read(meter)})
                if step % config.evaluate_every == 0 or last:
                    self._measure(write)
                if step % config.checkpoint_every == 0 or last:
                    self.checkpoint()
        return self._finish(meter, first_step)

    def _next(self, batches: Iterator[Crops]) -> Crops:
        """The next batch. Where a worker is lost and this process is alone, a checkpoint comes
        first."""
        try:
            return next(batches)
        except WorkerLost as lost:
            if self.world.size == 1 and self.progress.step > 0:
                self.checkpoint()
            raise WorkerLost(f"{lost} {way_on(self.folder.path)}") from lost

    def _finish(self, meter: Meter, first_step: int) -> TrainReport:
        step = self.progress.step
        interrupted = step < self.config.run.steps and not self.progress.given_up
        waiting_share = self.world.max(meter.waiting_share, self.device)
        if step < self.config.run.steps:
            self.checkpoint()
        if self.progress.given_up and self.world.is_main:
            self.folder.roll_back()
        if self.world.is_main:
            write_run_report(self.folder.path)
        self.world.wait()  # torchrun ends all as soon as one is gone
        if interrupted:
            raise Interrupted(f"stopped after step {step:,}; add --resume to go on from there.")
        return TrainReport(
            steps=step - first_step,
            seconds=meter.total_s,
            images_per_s=meter.images_per_s,
            waiting_share=waiting_share,
            scores=self.progress.best_scores if self.progress.given_up else self.progress.scores,
            unreadable=self.progress.unreadable,
            backbone=self.folder.backbone,
            page=self.folder.path / "report.html",
            rolled_back_to=self.progress.best_step if self.progress.given_up else None,
        )

    # -- what is watched ---------------------------------------------------------------------------

    def _read(self, meter: Meter) -> Log:
        """Rates since the last reading, and what could not be read so far. All processes have to
        call it.

        waiting_share is that of the process that waited longest, since the others wait for it.
        """
        self._count_unreadable()
        rates = meter.read()
        waiting_share = self.world.max(rates["waiting_share"], self.device)
        return {**rates, "waiting_share": waiting_share, "unreadable": self.progress.unreadable}

    def _count_unreadable(self) -> None:
        """Into the progress, of all processes; only where a number is written, since each time all
        wait for each other."""
        self.progress.unreadable += self.world.sum(self._unreadable_here, self.device)
        self._unreadable_here = 0

    def _num_workers(self) -> int:
        """The config's workers, or as many as fit in memory, which is then said."""
        wanted = self.config.run.workers
        fitting = workers_within_memory(wanted, processes=self.world.local_size)
        if fitting < wanted:
            self.ears.on_note(
                f"Memory is limited to {usable_memory() / 1e6:,.0f} MB:"
                f" {counted(fitting, 'data worker')} instead of {wanted}."
            )
        return fitting

    def _say_doubt(self) -> None:
        unwatched = None
        if self.config.watch.tolerance < 1 and self.held_out.prepared is None:
            possible = len(self.numbers) >= 2 * LEAST_TO_HOLD_OUT
            unwatched = "Nothing watches over this run: fewer than two images are held out. " + (
                "Set run.held_out, or name --held-out." if possible else "Name --held-out."
            )
        for sentence in (self.engine.method.preflight_warning(), unwatched):
            if sentence is not None:
                self._note(sentence)

    def _rank(self) -> Log:
        tokens = self.engine.class_tokens
        return (
            {}
            if tokens is None or len(tokens) < 2
            else {"rankme": rank_me(self.world.gather(tokens))}
        )

    def _judge(self, watch: Watch, step: int, log: Log) -> None:
        for finding in watch(step, log):
            if finding.is_collapse and self.config.run.on_collapse == "stop":
                raise Collapse(finding.sentence)
            self._note(finding.sentence)

    @contextlib.contextmanager
    def _told_when_lost(self) -> Iterator[None]:
        """A run that ends by a collapse leaves what it was, and its page, as one that ends well
        does."""
        try:
            yield
        except Collapse as collapse:
            if self.world.is_main:
                self.folder.note(self.progress.step, str(collapse))
                write_run_report(self.folder.path)
            raise

    def _note(self, sentence: str) -> None:
        if self.world.is_main:
            self.folder.note(self.progress.step, sentence)
        self.ears.on_note(sentence)

    def _measure(self, write: Write) -> None:
        """Scores on the held-out images, snapshots of some of them, and the watch that gives up."""
        backbone = self.engine.result()
        scores: Log = {}
        if self.world.is_main:
            scores = self.engine.method.scores(self.held_out) | self.held_out.measure(
                lambda images: self.engine.embed(backbone, images)
            )
            self.snapshots.draw(backbone, self.progress.step)
        scores = self.world.from_main(scores)
        if scores:
            self.progress.scores = scores
            write(self.progress.step, scores)
            self._keep_or_give_up(next(iter(scores.values())), backbone)

    def _keep_or_give_up(self, score: float, backbone: Backbone) -> None:
        config, progress = self.config.watch, self.progress
        if config.tolerance >= 1:
            return
        best = next(iter(progress.best_scores.values()), -1.0)
        if score > best:
            progress.best_step, progress.best_scores, progress.falls = (
                progress.step,
                dict(progress.scores),
                0,
            )
            self._save_result(backbone)
            if self.world.is_main:
                self.folder.keep_best()
            return
        progress.falls = progress.falls + 1 if score < best - config.tolerance else 0
        if progress.falls >= config.patience or (
            progress.falls and progress.step == self.config.run.steps
        ):
            progress.given_up = True
            self._note(
                f"The held-out score fell from {best:.3f} at step {progress.best_step:,} to"
                f" {score:.3f}; the run ends, and the model is that of step {progress.best_step:,}"
                " again. Lower optim.lr, or raise pretrained.head_steps."
            )


@contextlib.contextmanager
def _nowhere(_first_step: int, _on_log: Callable[[Log], None]) -> Iterator[Write]:
    """The metrics of a process that writes none."""
    yield lambda _step, _log: None


def geometry_of(
    config: TrainConfig,
    *,
    patch: int,
    mean: tuple[float, float, float] = IMAGENET_MEAN,
    std: tuple[float, float, float] = IMAGENET_STD,
) -> Geometry:
    """How images reach the trained backbone: at the size of its global crops."""
    size = config.crops.global_size
    return Geometry(
        height=size,
        width=size,
        resize=config.resize,
        resize_to=size,
        interpolation="bicubic",
        patch=patch,
        mean=mean,
        std=std,
    )
