"""The training loop: steps, measurements on the way, and a result that resuming reproduces."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from featkit.atomic import explain_os_errors
from featkit.errors import InputError, Interrupted
from featkit.lock import WriterLock
from featkit.resources import usable_memory
from featkit.sources import Source
from featkit.wording import counted
from featkit_train.config import TrainConfig
from featkit_train.engine.failures import explained, way_on
from featkit_train.images.batches import crop_loader, workers_within_memory
from featkit_train.images.crops import Crops
from featkit_train.images.loading import WorkerLost, batches_of
from featkit_train.images.order import LEAST_TO_HOLD_OUT
from featkit_train.log import Log
from featkit_train.methods import Labels
from featkit_train.processes.device import pick_device
from featkit_train.processes.distributed import World, join_world, local_device
from featkit_train.processes.stopping import StopRequest
from featkit_train.report.page import write_run_report
from featkit_train.run_folder import CONFIG_FILE, LOCK_FILE, Write
from featkit_train.run_parts import RunParts
from featkit_train.run_state import RunState
from featkit_train.watching.diagnostics import Collapse, Finding, Watch, rank_me
from featkit_train.watching.listener import Listener
from featkit_train.watching.meter import Meter
from featkit_train.watching.plan import Planner
from featkit_train.watching.probe import COPIES, Scores

RANK_EVERY = 10  # steps between two measurements of the embeddings' rank


@dataclass(frozen=True, kw_only=True)
class TrainReport:
    """The result of a run."""

    steps: int
    seconds: float  # of this process alone, without those of interrupted processes
    images_per_s: float
    waiting_share: float  # of step time spent without data, in the process that waited longest
    scores: Log  # on the held-out images, of the model that is kept
    unreadable: int  # failed reads of images, also those before a resume
    backbone: Path
    page: Path
    rolled_back_to: int | None = None  # step of the model, if later ones were worse

    @property
    def copy_recall(self) -> float | None:
        """recall@1 of copies on the held-out images."""
        return self.scores.get(COPIES)


def train(
    config: TrainConfig,
    sources: Sequence[Source],
    out: Path,
    *,
    held_out: Source | None = None,
    labels: Labels | None = None,
    resume: bool = False,
    listener: Listener | None = None,
) -> TrainReport:
    """Train by `config` and leave a run folder: config.yaml, metrics.jsonl, checkpoints,
    backbone.safetensors and report.html.

    sources: images to learn from. held_out: images to measure on; by default a share of the
    sources, which is then not trained on. labels: class labels and a teacher, for methods with
    labels. resume: continue from the newest checkpoint of `out`; on the CPU the result is the same,
    bit for bit, as without a stop. Under torchrun the processes share each batch and the first one
    writes.

    InputError: `out` holds a run already, or one with another config or other images.
    EnvironmentProblem: `out` cannot be written or is in use, or memory, disk space or a data worker
    is lost (WorkerLost). Collapse: outputs no longer distinguish images. Interrupted: Ctrl-C, after
    writing a checkpoint.
    """
    device = local_device(pick_device(config.run.device))
    with join_world(device) as world, explained(out, device):
        parts = RunParts(
            config,
            sources,
            out,
            held_out=held_out,
            labels=labels,
            device=device,
            world=world,
        )
        run = TrainingRun(parts, listener if world.is_main else None)
        check_out(out, resume=resume)
        with only_writer(out, world):
            return run.go(run.state.resume() if resume else run.state.begin())


def check_out(out: Path, *, resume: bool) -> None:
    """Raise InputError if `out` is a file, or holds no run to resume."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder for the run with --out.")
    if resume and not (out / CONFIG_FILE).is_file():
        raise InputError(f"{out} holds no run to resume; start one without --resume.")


@contextlib.contextmanager
def only_writer(out: Path, world: World) -> Iterator[None]:
    """Create the folder `out` and lock it for the main process. EnvironmentProblem if another
    process writes it."""
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


class TrainingRun:
    """A run in progress: its steps, and what is measured between them."""

    def __init__(self, parts: RunParts, listener: Listener | None = None) -> None:
        self.parts, self.config, self.world = parts, parts.config, parts.world
        self.listener = listener or Listener()
        self.state = RunState(parts, self.listener)
        self.meter = Meter(self.config.run.batch_size)

    def go(self, first_step: int) -> TrainReport:
        """Take the steps from `first_step` to the last, with metrics, scores and checkpoints."""
        config, parts, progress = self.config.run, self.parts, self.state.progress
        parts.order.first_step = progress.step = first_step
        watch = Watch(
            parts.engine.method.num_prototypes,
            settle_steps=min(self.config.optim.warmup_steps, config.steps // 2),
            prototype_loss=parts.engine.method.prototype_loss,
        )
        planner = Planner(batch_size=config.batch_size, device=parts.device)
        metrics = parts.folder.metrics if self.world.is_main else _nowhere
        loader = crop_loader(parts.dataset, parts.order, workers=self._num_workers())
        with (
            self._reported_on_collapse(),
            contextlib.closing(batches_of(loader)) as batches,
            metrics(first_step, self.listener.on_log) as write,
            StopRequest() as stop,
        ):
            if first_step == 0:  # the untrained network's scores, to compare with
                self._note_doubts()
                self._measure(write)
            while progress.step < config.steps and not progress.given_up:
                if self.world.any(stop.asked, parts.device):
                    break
                with self.meter.waiting():
                    crops = self._next(batches)
                log = parts.engine.step(crops, progress.step)
                progress.step = step = progress.step + 1
                self.meter.finished_step()
                self.state.add_unreadable(int(crops.num_unreadable.sum()))
                if step % RANK_EVERY == 0 or step % config.log_every == 0:
                    log |= self._rank()
                self.heed(watch(step, log))
                plan = planner.finished_step(steps_left=config.steps - step)
                if plan is not None:
                    self.listener.on_plan(plan)
                is_last = step == config.steps
                if step % config.log_every == 0 or is_last:
                    write(step, {**log, **self._rates()})
                if step % config.evaluate_every == 0 or is_last:
                    self._measure(write)
                if step % config.checkpoint_every == 0 or is_last:
                    self.state.checkpoint()
        return self._finish(first_step)

    def heed(self, findings: Sequence[Finding]) -> None:
        """Record each finding; raise Collapse if one ends the run."""
        for finding in findings:
            if finding.is_collapse and self.config.run.on_collapse == "stop":
                raise Collapse(finding.sentence)
            self.state.note(finding.sentence)

    def _next(self, batches: Iterator[Crops]) -> Crops:
        try:
            return next(batches)
        except WorkerLost as lost:
            # Other processes would wait forever for this one to checkpoint with them.
            if self.world.size == 1 and self.state.progress.step > 0:
                self.state.checkpoint()
            raise WorkerLost(f"{lost} {way_on(self.parts.folder.path)}") from lost

    def _finish(self, first_step: int) -> TrainReport:
        progress, folder = self.state.progress, self.parts.folder
        step, is_complete = progress.step, progress.step == self.config.run.steps
        waiting_share = self.world.max(self.meter.waiting_share, self.parts.device)
        if not is_complete:
            self.state.checkpoint()
        if self.world.is_main:
            if progress.given_up:
                folder.roll_back()
            write_run_report(folder.path)
        self.world.wait()  # torchrun ends all processes as soon as one has ended
        if not is_complete and not progress.given_up:
            raise Interrupted(f"stopped after step {step:,}; add --resume to continue from there.")
        return TrainReport(
            steps=step - first_step,
            seconds=self.meter.total_s,
            images_per_s=self.meter.images_per_s,
            waiting_share=waiting_share,
            scores=progress.best_scores if progress.given_up else progress.scores,
            unreadable=progress.unreadable,
            backbone=folder.backbone,
            page=folder.path / "report.html",
            rolled_back_to=progress.best_step if progress.given_up else None,
        )

    def _rates(self) -> Log:
        """Return rates since the last call, and the total of failed reads. All processes call
        it."""
        self.state.count_unreadable()
        rates = self.meter.read()
        # The other processes wait for the one that waits longest.
        waiting_share = self.world.max(rates["waiting_share"], self.parts.device)
        unreadable = self.state.progress.unreadable
        return {**rates, "waiting_share": waiting_share, "unreadable": unreadable}

    def _num_workers(self) -> int:
        """Return the config's data workers, or fewer, with a note, if memory is short."""
        wanted = self.config.run.workers
        fitting = workers_within_memory(wanted, processes=self.world.local_size)
        if fitting < wanted:
            self.listener.on_note(
                f"Memory is limited to {usable_memory() / 1e6:,.0f} MB:"
                f" {counted(fitting, 'data worker')} instead of {wanted}."
            )
        return fitting

    def _note_doubts(self) -> None:
        doubt = self.parts.engine.method.preflight_warning()
        if doubt is not None:
            self.state.note(doubt)
        if self.config.watch.tolerance < 1 and self.parts.held_out.prepared is None:
            has_enough = len(self.parts.train_ids) >= 2 * LEAST_TO_HOLD_OUT
            advice = "Set run.held_out, or name --held-out." if has_enough else "Name --held-out."
            self.state.note(
                "This run is not measured: fewer than two images are held out. " + advice
            )

    def _rank(self) -> Log:
        tokens = self.parts.engine.class_tokens
        if tokens is None or len(tokens) < 2:
            return {}
        return {"rankme": rank_me(self.world.gather(tokens))}

    @contextlib.contextmanager
    def _reported_on_collapse(self) -> Iterator[None]:
        """Leave the reason and the report in the folder if the run collapses."""
        try:
            yield
        except Collapse as collapse:
            if self.world.is_main:
                self.parts.folder.note(self.state.progress.step, str(collapse))
                write_run_report(self.parts.folder.path)
            raise

    def _measure(self, write: Write) -> None:
        """Score the model on the held-out images, draw a snapshot, and keep it or give up."""
        engine, progress = self.parts.engine, self.state.progress
        backbone = engine.result()
        scores: Scores | None = None
        if self.world.is_main:
            scores = Scores.joined(
                engine.method.scores(self.parts.held_out),
                self.parts.held_out.measure(lambda images: engine.embed(backbone, images)),
            )
            self.parts.snapshots.draw(backbone, progress.step)
        scores = self.world.from_main(scores)
        if scores is not None:
            progress.scores = scores.values
            write(progress.step, scores.values)
            self.state.keep_or_give_up(scores, backbone)


@contextlib.contextmanager
def _nowhere(_first_step: int, _on_log: Callable[[Log], None]) -> Iterator[Write]:
    """Discard metrics, in processes that do not write them."""
    yield lambda _step, _log: None
