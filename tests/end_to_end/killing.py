"""Run featkit's commands in processes that are killed at a random moment, again and again, until
the work is done.

Processes are forked from a server that has imported what the commands need (`multiprocessing`'s
forkserver), so that a kill costs a fraction of a second and falls into the work rather than into
imports.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

PRELOADED = (
    "featkit.cli.app",
    "featkit.pipeline",
    "featkit.index",
    "featkit_train.loop",
    "tests.end_to_end.killing",
)
TIMEOUT_S = 120.0


class Kills(NamedTuple):
    """The result: how many processes were killed during their work, and how often the work was
    finished."""

    killed: int
    finished: int


def run_command(arguments: Sequence[str]) -> None:
    """Run one command line and end this process with its exit code; nothing is printed."""
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    from featkit.cli.app import main

    sys.exit(main(list(arguments)))


def kill_at_random(
    command: Callable[[], Sequence[str]],
    *,
    kills: int,
    rng: random.Random,
    after_kill: Callable[[], None],
    after_finish: Callable[[], None],
) -> Kills:
    """Run `command()` and kill it at a moment drawn from a whole run's time, until `kills`
    processes were killed.

    command: the command line that starts or continues the work. after_kill asserts what holds at
    any moment. after_finish asserts that the work is what an unbroken run makes of it, and removes
    it, so that it starts again. AssertionError when a process that was not killed fails.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    whole = _seconds_of_a_run(context, command())
    after_finish()
    killed = finished = 0
    while killed < kills:
        process = context.Process(target=run_command, args=(list(command()),))
        process.start()
        process.join(rng.uniform(0, whole))
        assert process.pid is not None
        # it has ended by itself, and its server has collected it
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
        process.join(TIMEOUT_S)
        if process.exitcode == -signal.SIGKILL:
            killed += 1
            after_kill()
        else:
            assert process.exitcode == 0, f"{command()} ended with {process.exitcode}"
            finished += 1
            after_finish()
    return Kills(killed, finished)


def _seconds_of_a_run(
    context: multiprocessing.context.ForkServerContext, arguments: Sequence[str]
) -> float:
    """The time of an unbroken run, the second of two: the first starts the server."""
    warm = context.Process(target=time.sleep, args=(0,))
    warm.start()
    warm.join(TIMEOUT_S)
    started = time.monotonic()
    process = context.Process(target=run_command, args=(list(arguments),))
    process.start()
    process.join(TIMEOUT_S)
    assert process.exitcode == 0, f"{arguments} ended with {process.exitcode}"
    return time.monotonic() - started
