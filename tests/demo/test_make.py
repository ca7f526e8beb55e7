"""`make demo`, with the environment that runs the tests in place of the one that make would install."""

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
    """A folder that make takes for an installed environment."""
    featkit = tmp_path / "bin/featkit"
    featkit.parent.mkdir()
    featkit.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m featkit "$@"\n')
    featkit.chmod(0o755)
    (tmp_path / ".runtime").touch()
    return tmp_path


def make_demo(environment: Path, photos: Path, port: int) -> tuple[int, str]:
    """Run it; exit status and all that was said."""
    runtime = environment / ".runtime"
    command = ["make", f"--assume-old={runtime}", "demo", f"VENV={environment}", f"PHOTOS={photos}", f"PORT={port}"]
    done = subprocess.run(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60, check=False
    )
    return done.returncode, done.stdout


def test_a_port_that_is_taken_is_answered_with_what_to_tell_make(environment: Path, gallery: Gallery) -> None:
    with bind("127.0.0.1", 0) as listener:
        status, said = make_demo(environment, gallery.index, listener.getsockname()[1])
    assert status != 0
    assert "is taken by another program" in said
    assert HELP in said


def test_other_problems_are_not_answered_with_a_port(environment: Path, tmp_path: Path) -> None:
    status, said = make_demo(environment, tmp_path / "missing", 0)
    assert status != 0
    assert "does not exist" in said
    assert HELP not in said
