"""Promises of the list of methods: it says what the classes say, without torch, and a new file in
methods/ is a method in every respect."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import featkit_train
from featkit_train.method_list import list_methods, read_cards
from featkit_train.methods import METHODS
from tests.images import draw_folder
from tests.train.small import SMALL

TENTH = '''
from typing import ClassVar

from featkit_train.methods.base import Views
from featkit_train.methods.momentum import BranchOutputs, MomentumTeacher, Targets, Term


class Tenth(MomentumTeacher):
    """Twice DINO's loss."""

    name: ClassVar[str] = "tenth"
    title: ClassVar[str] = "the tenth method"
    paper: ClassVar[str] = "no paper"
    needs: ClassVar[str] = "images alone"
    when: ClassVar[str] = "a test needs one"
    reads: ClassVar[frozenset[str]] = frozenset({"model", "noise", "teacher", "dino"})

    def terms(self, outputs: BranchOutputs, views: Views, targets: Targets) -> dict[str, Term]:
        return {"twice": self.class_term(outputs, targets)._replace(weight=2.0)}
'''


def test_cards_say_what_the_classes_say() -> None:
    assert list(list_methods()) == list(METHODS)
    for name, card in list_methods().items():
        method = METHODS[name]
        words = (method.name, method.title, method.paper, method.needs, method.when)
        assert (card.name, card.title, card.paper, card.needs, card.when) == words


def test_methods_are_listed_without_torch() -> None:
    code = (
        "import sys; from featkit.cli.app import main; main(['train', '--list']);"
        " print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "False", result.stderr


def test_a_method_without_its_words_is_a_mistake(tmp_path: Path) -> None:
    path = tmp_path / "tenth.py"
    path.write_text(TENTH.replace('    when: ClassVar[str] = "a test needs one"\n', ""))
    with pytest.raises(ValueError, match=r"tenth.py: Tenth needs name, title, .* when"):
        read_cards(path)


def test_a_tenth_method_takes_one_file(tmp_path: Path) -> None:
    package = tmp_path / "featkit_train"
    shutil.copytree(
        Path(featkit_train.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "methods" / "tenth.py").write_text(TENTH)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(SMALL))
    images = draw_folder(tmp_path / "images", 24)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def featkit(*arguments: object) -> str:
        command = [sys.executable, "-m", "featkit", *map(str, arguments)]
        result = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths}
        )
        assert result.returncode == 0, result.stderr
        return result.stdout

    listed = json.loads(featkit("train", "--list", "--json"))
    assert next(row["when"] for row in listed if row["method"] == "tenth") == "a test needs one"
    assert "Train by the tenth method (no paper)" in featkit("train", "tenth", "--help")
    rows = json.loads(featkit("train", "--settings", "tenth", "--json"))
    assert {"dino", "run"} <= {row["name"].partition(".")[0] for row in rows}
    assert "ibot" not in {row["name"].partition(".")[0] for row in rows}

    run = tmp_path / "run"
    featkit("train", "tenth", images, "--recipe", recipe, "--steps", 2, "--out", run)
    log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line for line in log if "loss" in line]
    assert [line["step"] for line in losses] == [1, 2]
    assert losses[0]["loss"] == pytest.approx(2 * losses[0]["twice"], rel=1e-5)
    assert "by the tenth method" in (run / "report.html").read_text(encoding="utf-8")
