"""Tests that OpenVINO is imported and run without its telemetry."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import REPOSITORY
from tests.featkit.backends.graphs import WIDTH, make_layered_file

# Ends at once, before anything is sent, at whatever could lead out of the process; OpenVINO reports
# from a forked one.
WATCHED = """
import os, sys
def watch(event, arguments):
    if event in (
        "socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.fork", "os.system",
        "os.posix_spawn",
    ):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(9)
sys.addaudithook(watch)
import numpy as np
from featkit.embedder import Embedder
embedder = Embedder(sys.argv[1], backend="openvino", precision="fp32")
print(embedder.infer(np.zeros((1, 32, 32, 3), np.uint8)).shape)
"""


def test_running_a_model_sends_and_stores_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make_layered_file(tmp_path / "m.onnx")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    # a robot's runs are not reported in any case
    for name in [name for name in os.environ if "CI" in name]:
        monkeypatch.delenv(name)
    command = [sys.executable, "-c", WATCHED, str(file)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"(1, {WIDTH})\n", "")
    assert list(home.iterdir()) == []


def test_the_import_neither_loads_nor_blocks_telemetry() -> None:
    program = (
        "import sys, featkit.backends.openvino; from openvino.tools import ovc; "
        "print('openvino_telemetry' in sys.modules, type(ovc.telemetry).__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False openvino.tools.ovc.telemetry_stub\n"
