"""The state of a run: progress, checkpoints, notes, and the best model so far."""

from __future__ import annotations

from pathlib import Path

from featkit.errors import InputError
from featkit_train.engine.checkpoints import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    load_method,
    save_checkpoint,
)
from featkit_train.networks.base import Backbone
from featkit_train.run_folder import RunFolder
from featkit_train.run_parts import RunParts
from featkit_train.watching.listener import Listener
from featkit_train.watching.probe import Scores
from featkit_train.weights import BackboneInfo


class RunState:
    """The progress of a run, in memory and in its folder."""

    def __init__(self, parts: RunParts, listener: Listener) -> None:
        self.parts, self.listener = parts, listener
        self.progress = Progress()
        # unreadable images of this process that progress does not count yet
        self._unreadable_here = 0

    def begin(self) -> int:
        """Begin the run folder and return step 0.

        InputError if the folder holds a run, or if `init` names a run that does not fit.
        """
        parts, method = self.parts, self.parts.engine.method
        if parts.config.init is not None:
            earlier = Path(parts.config.init)
            checkpoints = list_checkpoints(RunFolder(earlier, parts.config, {}).checkpoints)
            if not checkpoints:
                raise InputError(
                    f"init is {earlier}, which holds no checkpoint of a run; name the folder of an"
                    " earlier run."
                )
            load_method(checkpoints[-1], method=method)
        method.start_run()
        if parts.world.is_main:
            parts.folder.begin()
        for remark in method.remarks:
            self.listener.on_note(remark)
        return 0

    def resume(self) -> int:
        """Restore the newest checkpoint and return its step; 0 if the run stopped before its
        first."""
        parts = self.parts
        parts.folder.check_same()
        checkpoints = parts.world.from_main(list_checkpoints(parts.folder.checkpoints))
        if checkpoints:
            self.progress = load_checkpoint(
                checkpoints[-1], method=parts.engine.method, optimizer=parts.engine.optimizer
            )
        else:
            parts.engine.method.start_run()
        if parts.world.is_main:
            parts.folder.forget_after(self.progress.step)
        self.listener.on_note(f"resuming at step {self.progress.step:,}")
        return self.progress.step

    def checkpoint(self) -> None:
        """Write the backbone and a checkpoint."""
        parts = self.parts
        self.count_unreadable()
        # The backbone first: if the process dies in between, resuming writes it again.
        self.save_backbone(parts.engine.result())
        save_checkpoint(
            parts.folder.checkpoints,
            progress=self.progress,
            method=parts.engine.method,
            optimizer=parts.engine.optimizer,
            keep=parts.config.run.keep_checkpoints,
            world=parts.world,
        )

    def save_backbone(self, backbone: Backbone) -> None:
        """Write `backbone` as the run's result, in the main process."""
        parts, config = self.parts, self.parts.config
        if not parts.world.is_main:
            return
        info = BackboneInfo(
            name=config.name,
            family=config.method,
            geometry=parts.geometry,
            license=config.license,
            origin={
                "data": config.data_name or parts.dataset.source.name,
                "steps": str(self.progress.step),
                "by": "featkit train",
            },
        )
        parts.engine.method.save(parts.folder.path, backbone, info)

    def note(self, sentence: str) -> None:
        """Keep a note for the report, and pass it to the listener."""
        if self.parts.world.is_main:
            self.parts.folder.note(self.progress.step, sentence)
        self.listener.on_note(sentence)

    def add_unreadable(self, count: int) -> None:
        """Count images that this process could not read."""
        self._unreadable_here += count

    def count_unreadable(self) -> None:
        """Add the unreadable images of all processes to the progress.

        All processes call it and wait for each other, so it is called only before a write.
        """
        world, device = self.parts.world, self.parts.device
        self.progress.unreadable += world.sum(self._unreadable_here, device)
        self._unreadable_here = 0

    def keep_or_give_up(self, scores: Scores, backbone: Backbone) -> None:
        """Keep the model if its watched score is the best so far; give up after too many falls."""
        watch, progress = self.parts.config.watch, self.progress
        if watch.tolerance >= 1:
            return
        score, best = scores.watched_value, progress.best_scores.get(scores.watched, -1.0)
        if score > best:
            progress.best_step, progress.falls = progress.step, 0
            progress.best_scores = dict(scores.values)
            self.save_backbone(backbone)
            if self.parts.world.is_main:
                self.parts.folder.keep_best()
            return
        progress.falls = progress.falls + 1 if score < best - watch.tolerance else 0
        is_last = progress.step == self.parts.config.run.steps
        if progress.falls >= watch.patience or (progress.falls and is_last):
            progress.given_up = True
            self.note(
                f"The held-out score fell from {best:.3f} at step {progress.best_step:,} to"
                f" {score:.3f}. The run ends, and the model of step {progress.best_step:,} is"
                " restored. Lower optim.lr, or raise pretrained.head_steps."
            )
