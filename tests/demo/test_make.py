"""`make demo`, with the environment of the tests instead of the one that make would install."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from featkit.serve.running import bind
from tests.demo.conftest import Gallery
from tests.processes import REPOSITORY

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make on PATH")
HELP = "make demo PORT="


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """Create a folder that make takes for an installed environment."""
    featkit = tmp_path / "bin/featkit"
    featkit.parent.mkdir()
    featkit.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m featkit "$@"\n')
    featkit.chmod(0o755)
    (tmp_path / ".runtime").touch()
    return tmp_path


def make_demo(environment: Path, photos: Path, port: int) -> tuple[int, str]:
    """Run `make demo` and return its exit status and output."""
    runtime = environment / ".runtime"
    command = [
        "make",
        f"--assume-old={runtime}",
        "demo",
        f"VENV={environment}",
        f"PHOTOS={photos}",
        f"PORT={port}",
    ]
    done = subprocess.run(
        command,
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_taken_port_is_answered_with_the_make_command(
    environment: Path, gallery: Gallery
) -> None:
    with bind("127.0.0.1", 0) as listener:
        status, said = make_demo(environment, gallery.index, listener.getsockname()[1])
    assert status != 0
    assert "is taken by another program" in said
    assert HELP in said


def test_other_problems_suggest_no_port(environment: Path, tmp_path: Path) -> None:
    status, said = make_demo(environment, tmp_path / "missing", 0)
    assert status != 0
    assert "does not exist" in said
    assert HELP not in said


def planned(environment: Path, *settings: str) -> str:
    """Return the commands that `make demo` would run."""
    command = [
        "make",
        "-n",
        f"--assume-old={environment / '.runtime'}",
        "demo",
        f"VENV={environment}",
        *settings,
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_a_published_model_installs_onnx_before_it_starts(
    environment: Path,
) -> None:
    lines = planned(environment, "MODEL=dinov2-small").splitlines()
    (install,) = [
        number
        for number, line in enumerate(lines)
        if "onnx huggingface-hub" in line and "install" in line
    ]
    (start,) = [
        number for number, line in enumerate(lines) if f"{environment}/bin/featkit demo" in line
    ]
    assert install < start
    assert '--model "dinov2-small" --port 7860' in lines[start]
    assert "torch" not in "\n".join(lines)


def test_a_second_run_installs_nothing(environment: Path) -> None:
    (environment / ".adopt").touch()
    said = planned(environment, "MODEL=dinov2-small", "PHOTOS=my images")
    assert "huggingface-hub" not in said
    assert f'{environment}/bin/featkit demo "my images" --model "dinov2-small" --port 7860' in said


def test_without_a_model_nothing_more_is_installed(environment: Path) -> None:
    said = planned(environment)
    assert "huggingface-hub" not in said
    assert "--model" not in said
    assert f"{environment}/bin/featkit demo" in said
