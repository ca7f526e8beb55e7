"""A command with missing packages prints one sentence with the line that installs them,
whatever it needs."""

from __future__ import annotations

import re
import sys

import pytest

from featkit.errors import EnvironmentProblem
from tests.commands import is_one_sentence, run_featkit

CPU = "'featkit[cpu]' (or 'featkit[gpu]')"
NEEDS = [
    (["embed", "images", "--out", "emb"], "onnxruntime", CPU),
    (["index", "emb", "--out", "photos.index"], "faiss", CPU),
    (["search", "photos.index", "query.jpg"], "faiss", CPU),
    (["search", "photos.index", "query.jpg"], "onnxruntime", CPU),
    (["evaluate", "copies", "images"], "onnxruntime", CPU),
    (["evaluate", "knn", "train.tar", "test.tar"], "onnxruntime", CPU),
    (["evaluate", "linear", "train.tar", "test.tar"], "sklearn", "'featkit[evaluate]'"),
    (["train", "dino", "images", "--out", "run"], "torch", "'featkit[train]'"),
    (["verify", "m.onnx", "images"], "onnxruntime", CPU),
    (["bench"], "onnxruntime", CPU),
    (["demo"], "faiss", "'featkit[cpu,demo]' (or 'featkit[gpu,demo]')"),
    (["demo"], "onnxruntime", "'featkit[cpu,demo]' (or 'featkit[gpu,demo]')"),
    (["demo"], "gradio", "'featkit[demo]'"),
    (["serve"], "faiss", "'featkit[cpu,serve]' (or 'featkit[gpu,serve]')"),
    (["serve"], "onnxruntime", "'featkit[cpu,serve]' (or 'featkit[gpu,serve]')"),
    (["serve"], "prometheus_client", "'featkit[serve]'"),
    (
        ["export", "run", "--out", "m.onnx"],
        "onnxruntime",
        "'featkit[cpu,export]' (or 'featkit[gpu,export]')",
    ),
    (["export", "run", "--out", "m.onnx"], "onnxscript", "'featkit[export]'"),
]


@pytest.mark.parametrize(("command", "package", "install"), NEEDS)
def test_missing_package_is_one_sentence_with_the_pip_command(
    command: list[str], package: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    said = run_featkit(*command)
    assert said.code == EnvironmentProblem.exit_code
    assert is_one_sentence(said)
    assert f"{package} is not installed" in said.error
    assert re.search(rf"pip install {re.escape(install)}\.$", said.error)


def test_all_that_is_missing_is_installed_by_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("gradio", "faiss", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    said = run_featkit("demo")
    assert "faiss, onnxruntime, gradio are not installed" in said.error
    assert "pip install 'featkit[cpu,demo]'" in said.error
