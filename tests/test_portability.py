"""Portability to Windows and macOS, as far as Linux can check it.

Modules import and commands run without what only Unix has, and files have portable names and
encodings.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import REPOSITORY
from tests.images import draw_folder
from tests.model_files import make_model_file
from tests.processes import run_python
from tests.prose import passages, read_python

SOURCES = ("featkit", "train", "export", "demo", "docs")
# Takes away what Windows lacks. Libraries that have a branch of their own for Windows come first.
WITHOUT_UNIX = """
import logging, pathlib, random, subprocess, sys, threading
import filelock, numpy, PIL.Image, pyarrow.parquet
import os, shutil, signal
usage = shutil.disk_usage(os.getcwd())
shutil.disk_usage = lambda path: usage  # on Windows it asks the system in another way
for name in ("fcntl", "resource", "pwd", "grp", "termios", "pty"):
    sys.modules[name] = None
for module, names in {
    os: "fork forkpty register_at_fork pread preadv pwrite pwritev sched_getaffinity sysconf"
        " statvfs getuid geteuid getgid getegid fchmod fchown mkfifo uname getloadavg getpgid"
        " setsid killpg pidfd_open O_DIRECTORY O_NOFOLLOW O_NONBLOCK",
    signal: "SIGKILL SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGBUS SIGCHLD SIGPIPE SIGQUIT alarm setitimer"
        " pthread_sigmask siginterrupt",
}.items():
    for name in names.split():
        if hasattr(module, name):
            delattr(module, name)

def no_proc(event, arguments):
    if event == "open" and str(arguments[0]).startswith(("/proc/", "/sys/")):
        raise FileNotFoundError(2, "No such file or directory", arguments[0])

sys.addaudithook(no_proc)
"""
IMPORT_ALL = """
import importlib, pkgutil
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for module in pkgutil.walk_packages(package.__path__, name + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""
RUN_ALL = """
from featkit.cli.app import main
for command in sys.argv[1:]:
    assert main(command.split("|")) == 0, command
"""
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?$", re.IGNORECASE)
TEXT_MODE = re.compile(r"[rwax]\+?t?$")


def python_files() -> Iterator[tuple[str, str]]:
    for folder in SOURCES:
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            yield path.relative_to(REPOSITORY).as_posix(), read_python(path)


@pytest.mark.parametrize(
    ("package", "first"),
    [
        ("featkit", ""),
        ("featkit_demo", "import gradio"),
        ("featkit_train", "import torch, torch.distributed.checkpoint"),
        ("featkit_export", "import torch, onnx, onnxscript, huggingface_hub"),
    ],
)
def test_every_module_imports_without_unix(package: str, first: str) -> None:
    # These libraries look at sys.platform to know what they may use, and it stays "linux".
    assert run_python(f"{first}\n{WITHOUT_UNIX}{IMPORT_ALL}", package) == (0, "", "")


def test_commands_run_without_unix(tmp_path: Path) -> None:
    images = draw_folder(tmp_path / "images", 6)
    model = make_model_file(tmp_path / "m.onnx")
    out, index = tmp_path / "emb", tmp_path / "photos.index"
    commands = [
        ("embed", images, "--model", model, "--out", out, "--quiet"),
        ("embed", images, "--model", model, "--out", out, "--quiet"),  # resumes
        ("index", out, "--out", index, "--quiet"),
        ("index", out, "--out", index, "--quiet"),  # adds nothing
        ("search", index, images / "000.jpg", "--k", "1"),
    ]

    code, found, error = run_python(
        WITHOUT_UNIX + RUN_ALL, *("|".join(map(str, command)) for command in commands)
    )

    assert (code, error) == (0, "")
    assert "000.jpg" in found.splitlines()[-1]


def test_names_of_files_are_allowed_on_windows() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    names = listed.stdout.splitlines()
    if listed.returncode != 0:
        pytest.skip("not a checkout of git")
    parts = {part for name in names for part in name.split("/")}

    assert [part for part in parts if RESERVED.match(part)] == []
    assert [part for part in parts if re.search(r'[<>:"|?*\\]|[. ]$', part)] == []
    assert len({name.lower() for name in names}) == len(names)


def test_text_files_are_opened_with_an_encoding() -> None:
    assert [
        f"{name}:{line}"
        for name, source in python_files()
        for line in lines_without_encoding(ast.parse(source))
    ] == []


def test_no_string_names_the_folder_for_temporary_files() -> None:
    assert [
        f"{name}:{passage.line}"
        for name, source in python_files()
        for passage in passages(source)
        if passage.kind == "string" and passage.text.startswith("/tmp")
    ] == []


def test_only_filelock_locks_files() -> None:
    assert [
        name
        for name, source in python_files()
        if re.search(r"^\s*(import|from) (fcntl|msvcrt)\b", source, re.MULTILINE)
    ] == []


def lines_without_encoding(tree: ast.Module) -> Iterator[int]:
    """Yield the lines that open a text file in whatever encoding the machine prefers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _opens_text(node):
            keywords = {keyword.arg for keyword in node.keywords}
            if "encoding" not in keywords:
                yield node.lineno


def _opens_text(call: ast.Call) -> bool:
    is_method = isinstance(call.func, ast.Attribute)
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    if name != "open":  # the name of many methods that open no text file
        return name in ("read_text", "write_text") and is_method
    modes = [
        *call.args[0 if is_method else 1 :][:1],
        *(keyword.value for keyword in call.keywords if keyword.arg == "mode"),
    ]
    values = [mode.value for mode in modes if isinstance(mode, ast.Constant)]
    return any(TEXT_MODE.match(str(value)) for value in values) if modes else not call.args
