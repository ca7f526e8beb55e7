"""Speed and memory: rates of real calls, in turns; what a process grows by; what the machine
multiplies."""

from __future__ import annotations

import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from featkit.backends import Run
from featkit.embedder import Embedder
from featkit.errors import FeatkitError
from featkit.evaluate import speed as module
from featkit.evaluate.speed import images_per_second, matrix_flops, memory_bytes, multiply_adds
from featkit.models import default_model_path
from tests.featkit.backends.engines import ONNXRUNTIME_FP32, OPENVINO_FP32, RUNS, needs_openvino
from tests.model_files import make_model_file


class Slow:
    """An embedder that takes so long for a call, and says in which order it was called."""

    batch_size = 3

    def __init__(self, name: str, seconds: float, calls: list[str]) -> None:
        self.name, self.seconds, self.calls = name, seconds, calls
        self.threads: set[int] = set()

    def infer(self, images: np.ndarray) -> np.ndarray:
        assert len(images) == 3
        self.calls.append(self.name)
        self.threads.add(threading.get_ident())
        time.sleep(self.seconds)
        return np.zeros((len(images), 1), np.float32)


def test_rates_are_images_by_time_and_runs_take_turns() -> None:
    calls: list[str] = []
    slow, fast = Slow("slow", 0.04, calls), Slow("fast", 0.01, calls)
    runs = {ONNXRUNTIME_FP32: slow, OPENVINO_FP32: fast}
    images = np.zeros((5, 8, 8, 3), np.uint8)
    rates = images_per_second(runs, images, seconds=1.0, callers=2)  # type: ignore[arg-type]
    assert 0.4 * 2 * 3 / 0.04 < rates[ONNXRUNTIME_FP32] <= 2 * 3 / 0.04
    assert 0.4 * 2 * 3 / 0.01 < rates[OPENVINO_FP32] <= 2 * 3 / 0.01
    turns = [name for place, name in enumerate(calls) if place == 0 or calls[place - 1] != name]
    assert turns == ["slow", "fast"] * (1 + module.ROUNDS)
    assert Counter(calls)["fast"] > 2 * Counter(calls)["slow"]


def test_every_caller_makes_a_call_however_short_the_time() -> None:
    calls: list[str] = []
    rates = images_per_second(
        {ONNXRUNTIME_FP32: Slow("slow", 0.01, calls)},  # type: ignore[dict-item]
        np.zeros((3, 8, 8, 3), np.uint8),
        seconds=1e-9,
        callers=3,
    )
    assert len(calls) == 3 * (1 + module.ROUNDS)
    assert rates[ONNXRUNTIME_FP32] > 0


def test_a_call_that_fails_is_no_rate() -> None:
    class Failing(Slow):
        def infer(self, images: np.ndarray) -> np.ndarray:
            raise FeatkitError(f"It cannot take {len(images)}.")

    with pytest.raises(FeatkitError, match="It cannot take 3"):
        images_per_second(
            {ONNXRUNTIME_FP32: Failing("failing", 0, [])},  # type: ignore[dict-item]
            np.zeros((3, 8, 8, 3), np.uint8),
            seconds=0.1,
            callers=2,
        )


def test_a_real_model_has_a_rate(tmp_path: Path) -> None:
    embedder = Embedder(make_model_file(tmp_path / "m.onnx"), threads=1)
    rates = images_per_second(
        {embedder.run: embedder}, np.zeros((32, 32, 32, 3), np.uint8), seconds=0.2, callers=2
    )
    assert rates[embedder.run] > 100


@pytest.mark.parametrize("run", RUNS)
def test_a_session_takes_memory(run: Run) -> None:
    assert 5e6 < memory_bytes(default_model_path(), run) < 1e9


def test_failures_of_the_subprocess_are_reported(tmp_path: Path) -> None:
    with pytest.raises(
        FeatkitError,
        match=r"The process that measures memory exited with 1: .*none.onnx does not exist",
    ):
        memory_bytes(tmp_path / "none.onnx", ONNXRUNTIME_FP32)


def test_the_machine_multiplies_matrices() -> None:
    assert 1e8 < matrix_flops(1) < 1e14


@needs_openvino
def test_a_image_needs_what_its_graph_multiplies(tmp_path: Path) -> None:
    file = make_model_file(tmp_path / "m.onnx", width=16, size=32, patch=8)
    assert multiply_adds(file) == 16 * (3 * 8 * 8 * 64) + 128 * 16


def test_without_openvino_nothing_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_installed", lambda _backend: False)
    assert multiply_adds(default_model_path()) is None
