"""Keep an index's promise in a process of its own, while a long-lived writer writes on.

    python -m featkit.index.approximate.background INDEX

The process has half of the processors and a low priority, and leaves a GPU to others. It holds the
builders' lock, so a second one ends at once. If the writer ends first, the process finishes its
work. What goes wrong is kept in a file next to the codes until a build succeeds, and commands
report it.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from featkit.atomic import write_text
from featkit.errors import EnvironmentProblem, FeatkitError
from featkit.folders import is_index
from featkit.index.approximate.generation import FOLDER
from featkit.index.approximate.upkeep import is_due, keep_promise
from featkit.index.builders import FAILURE_FILE
from featkit.index.index import Index
from featkit.lock import AlreadyLocked
from featkit.resources import usable_cpus
from featkit.wording import first_line

CHECK_EVERY_S = 5.0
RETRY_AFTER_S = 3600.0  # since a failure
NICE = 10
log = logging.getLogger("featkit.index")

_running: set[Path] = set()  # indexes for which this process has started another
_running_lock = threading.Lock()


@dataclass(frozen=True)
class Failure:
    """Why the last build in the background failed, and when: in UTC as ISO 8601."""

    error: str
    when: str

    @classmethod
    def of(cls, index: Path) -> Failure | None:
        """Return the failure that is recorded of an index, if there is one."""
        try:
            values = json.loads((index / FOLDER / FAILURE_FILE).read_text(encoding="utf-8"))
            return cls(str(values["error"]), str(values["when"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    @property
    def age_s(self) -> float:
        """Return the seconds since then; infinity if the time cannot be read."""
        try:
            return time.time() - datetime.fromisoformat(self.when).timestamp()
        except ValueError:
            return float("inf")


class BackgroundUpkeep:
    """Starts the process for an index when its changes make that due. Thread-safe."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._path = index.path.absolute()  # stays right if the cwd changes
        self._process = os.getpid()
        self._guard = threading.Lock()
        self._is_changed, self._next_check = False, float("-inf")

    def after_commit(self) -> None:
        """Start the process if it is due; look at that every few seconds. Does not raise."""
        self._is_changed = True
        if time.monotonic() >= self._next_check:
            self._check()

    def close(self) -> None:
        """Start the process if the changes since the last look make it due. Does not raise."""
        if self._is_changed and self._process == os.getpid():
            self._check()

    def _check(self) -> None:
        if not self._guard.acquire(blocking=False):
            return  # another thread is at it
        try:
            self._is_changed = False
            self._next_check = time.monotonic() + CHECK_EVERY_S
            if is_due(self._index) and not self._has_just_failed():
                _start(self._path)
        except (FeatkitError, OSError) as error:
            _record_failure(self._path, first_line(error))
        finally:
            self._guard.release()

    def _has_just_failed(self) -> bool:
        failure = Failure.of(self._path)
        return failure is not None and failure.age_s < RETRY_AFTER_S


def _start(path: Path) -> None:
    """Start the process, and a thread that waits for it, unless this process has done so before."""
    with _running_lock:
        if path in _running:
            return
        (path / FOLDER / FAILURE_FILE).unlink(missing_ok=True)
        process = _process_for(path)
        _running.add(path)
    # A daemon, so that the writer's process can end before the other one.
    thread = threading.Thread(target=_wait, args=[path, process], daemon=True)
    thread.name = "featkit-upkeep"
    thread.start()


def _wait(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Wait for the process, and record if it was killed."""
    code = process.wait()
    with _running_lock:
        _running.discard(path)
    if code != 0 and Failure.of(path) is None:
        ended = f"by signal {-code}" if code < 0 else f"with the exit code {code}"
        _record_failure(path, f"its process ended {ended}")


def _process_for(path: Path) -> subprocess.Popen[bytes]:
    package = str(Path(__file__).parents[3])
    search_path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    threads = str(max(1, usable_cpus() // 2))
    return subprocess.Popen(
        # -P: no module of the working directory is taken for one of Python's own
        [sys.executable, "-P", "-m", __name__, str(path)],
        env={**os.environ, "PYTHONPATH": search_path, "OMP_NUM_THREADS": threads},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for the writer
        creationflags=getattr(subprocess, "BELOW_NORMAL_PRIORITY_CLASS", 0),  # Windows
    )


def _record_failure(path: Path, error: str) -> None:
    log.warning("%s could not be brought up to date in the background: %s", path, error)
    if not is_index(path):
        return
    failure = {"error": error, "when": datetime.now(UTC).isoformat(timespec="seconds")}
    # On a full disk, the log is all that is left.
    with suppress(OSError, EnvironmentProblem):
        write_text(path / FOLDER / FAILURE_FILE, json.dumps(failure))


def main(path: Path) -> int:
    """Keep the promise of an index, and return the exit code."""
    if hasattr(os, "nice"):
        os.nice(NICE)
    try:
        with Index.open(path) as index:
            keep_promise(index, build_on="cpu")
    except AlreadyLocked:
        return 0
    except FeatkitError as error:
        _record_failure(path, str(error))
        return error.exit_code
    except Exception as error:
        _record_failure(path, f"{type(error).__name__}: {first_line(error)}")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
