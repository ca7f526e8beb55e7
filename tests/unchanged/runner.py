"""Run featkit's command line from any checkout, one process per command.

`Featkit` starts this file as a program with the checkout on PYTHONPATH. The program imports the
heavy third-party packages once and forks for each command, which saves about three seconds per
command. It imports nothing of featkit before the fork, and nothing of the `tests` package at all,
since the checkout may be older or newer than this file.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
import traceback
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

PRELOADED = ("numpy", "pyarrow", "PIL.Image", "torch", "timm", "onnx", "onnxscript", "onnxruntime")
SINGLE_THREADED = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
USAGE_ERROR = 2
# Flags that may be spelled in American English in one of the two commits.
SPELLINGS = {"--labelled": "--labeled", "--unlabelled": "--unlabeled"}


class Finished(NamedTuple):
    """The outcome of one command."""

    code: int
    out: str
    error: str


class CommandFailed(Exception):
    """A command of featkit ended with another exit code than 0."""


class Featkit:
    """Run commands of the checkout `tree` in the folder `work`, on one processor.

    Example:
        with Featkit(Path("."), Path("/tmp/work")) as featkit:
            hits = featkit("search", "photos.index", "query.jpg", "--json")
    """

    def __init__(self, tree: Path, work: Path) -> None:
        folders = [tree, *(tree / name for name in ("train", "export", "demo"))]
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FEATKIT_")}
        environment |= dict.fromkeys(SINGLE_THREADED, "1")
        environment |= {
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            "FEATKIT_CACHE": str(work / "cache"),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
            "COLUMNS": "100",
        }
        # -P: the folder of this file must not come first on sys.path.
        command = [sys.executable, "-P", __file__, str(tree)]
        self._process = subprocess.Popen(
            command,
            cwd=work,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Featkit:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()

    def __call__(self, *arguments: object) -> str:
        """Run `featkit ARGUMENTS` and return its output. Raise CommandFailed on failure."""
        words = [str(argument) for argument in arguments]
        finished = self._ask({"featkit": words})
        american = [SPELLINGS.get(word, word) for word in words]
        if finished.code == USAGE_ERROR and american != words:
            finished = self._ask({"featkit": american})
        return self._output(finished, "featkit " + " ".join(words))

    def python(self, source: str) -> str:
        """Run Python code and return its output. Raise CommandFailed on failure."""
        return self._output(self._ask({"python": source}), "a piece of Python")

    def _ask(self, request: dict[str, Any]) -> Finished:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise CommandFailed("the process that runs featkit has ended")
        return Finished(*json.loads(answer))

    @staticmethod
    def _output(finished: Finished, what: str) -> str:
        if finished.code:
            last = finished.error.strip().splitlines()[-12:]
            raise CommandFailed(f"{what} ended with exit code {finished.code}:\n" + "\n".join(last))
        return finished.out


# -- the program that Featkit starts --------------------------------------------------------------


def serve(tree: Path) -> None:
    """Answer each line of stdin, a request in JSON, by a line of stdout."""
    _use_one_processor()
    _preload()
    spec = importlib.util.find_spec("featkit")
    if spec is None or spec.origin is None or tree not in Path(spec.origin).parents:
        raise SystemExit(f"featkit is not imported from {tree}")
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _use_one_processor() -> None:
    """Pin this process, so that every library starts one thread and sums in one order."""
    if hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[os.getpid() % len(usable)]})


def _preload() -> None:
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore")
        _allow_torchvision()
        for name in PRELOADED:
            importlib.import_module(name)


_declared: list[Any] = []  # a torch Library removes its operators when it is collected


def _allow_torchvision() -> None:
    """Declare two operators if torchvision's library, linked to CUDA, cannot be loaded."""
    # As in tests.torchvision_without_cuda, which the tree that is recorded may not have.
    torch = importlib.import_module("torch")
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


def _run(request: dict[str, Any]) -> Finished:
    out, error = Path("stdout.txt"), Path("stderr.txt")
    child = os.fork()
    if child == 0:
        code = 70
        try:
            for stream, path in ((1, out), (2, error)):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            code = _in_child(request)
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    texts = (path.read_text(encoding="utf-8", errors="replace") for path in (out, error))
    return Finished(os.waitstatus_to_exitcode(status), *texts)


def _in_child(request: dict[str, Any]) -> int:
    try:
        if "python" in request:
            exec(compile(request["python"], "<request>", "exec"), {"__name__": "request"})
        else:
            sys.argv = ["featkit", *request["featkit"]]
            runpy.run_module("featkit", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    return 0


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
