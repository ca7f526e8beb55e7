"""Promises of loading: a dead worker is reported with its signal, and its run resumes bit for
bit."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from featkit.errors import InputError
from featkit.sources import open_source
from featkit.sources.folder import FileSource
from featkit_train.engine.checkpoints import list_checkpoints
from featkit_train.images.loading import WorkerLost, batches_of
from featkit_train.loop import train
from featkit_train.processes.stopping import leave_signals_to_the_loop
from tests.images import draw_folder
from tests.sentences import refused
from tests.train.small import small_config

DEADLY = 5


class Numbers(Dataset[int]):
    """A dataset of 16 numbers; reading DEADLY raises an error, or ends the process by a signal or
    (0) by exiting."""

    def __init__(self, end: int | Exception) -> None:
        self.end = end

    def __len__(self) -> int:
        return 16

    def __getitem__(self, i: int) -> int:
        if i == DEADLY:
            if isinstance(self.end, Exception):
                raise self.end
            if self.end:
                os.kill(os.getpid(), self.end)
            os._exit(0)
        return i


def read_all(end: int | Exception, *, workers: int = 2) -> None:
    for _ in batches_of(
        DataLoader(Numbers(end), num_workers=workers, worker_init_fn=leave_signals_to_the_loop)
    ):
        pass


@pytest.mark.usefixtures("all_cores")
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, ("memory ran out", "run.cache_bytes")),
        (signal.SIGBUS, ("shared memory", "/dev/shm", "--shm-size")),
        (signal.SIGSEGV, ("a crash in a library", "Pillow")),
    ],
)
def test_killed_worker_is_reported_with_its_signal(
    number: signal.Signals, words: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    others = set(multiprocessing.active_children())
    with refused(f"was killed by {number.name}", "--workers", *words, error=WorkerLost):
        read_all(number)
    assert set(multiprocessing.active_children()) <= others
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("all_cores")
def test_worker_that_exits_by_itself_is_reported() -> None:
    with refused("ended with exit code 0", error=WorkerLost):
        read_all(0)


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_error_is_raised_without_its_traceback(workers: int) -> None:
    with pytest.raises(InputError) as caught:
        read_all(InputError("a\nb.jpg is damaged."), workers=workers)
    assert str(caught.value) == r"a\nb.jpg is damaged."
    with pytest.raises(ZeroDivisionError):
        read_all(ZeroDivisionError("a mistake"), workers=workers)


def test_signal_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    assert list(batches_of([1, 2])) == [1, 2]
    assert signal.getsignal(signal.SIGCHLD) is before


class Deadly(FileSource):
    """A folder with an image that kills its reader once, while a file named `armed` exists."""

    def read(self, number: int) -> bytes:
        armed = self.root.parent / "armed"
        if self.key(number).startswith("007") and armed.exists():
            time.sleep(0.3)  # the steps before are taken meanwhile
            armed.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(number)


def test_run_that_lost_a_worker_resumes_bit_for_bit(tmp_path: Path) -> None:
    images = draw_folder(tmp_path / "images", 24)
    opened = open_source(images)
    assert isinstance(opened, FileSource)
    names = [opened.key(i) for i in range(24)]
    config = small_config(
        "run.workers=1", "run.steps=6", "run.checkpoint_every=99", "run.held_out=0"
    )
    train(
        config,
        [FileSource(str(images), images, names, limits=opened.limits)],
        tmp_path / "whole",
    )
    (tmp_path / "armed").touch()
    source = Deadly(str(images), images, names, limits=opened.limits)
    with pytest.raises(WorkerLost, match=r"SIGKILL.*Add --resume to continue from step"):
        train(config, [source], tmp_path / "run")
    assert not (tmp_path / "armed").exists()
    train(config, [source], tmp_path / "run", resume=True)
    assert list_checkpoints(tmp_path / "run" / "checkpoints")
    whole, resumed = (
        (tmp_path / name / "backbone.safetensors").read_bytes() for name in ("whole", "run")
    )
    assert whole == resumed
