"""The command `featkit report`: the page of a run folder, written again."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.commands import is_one_sentence, run_featkit
from tests.train.small import SMALL


def test_report_writes_the_page_and_prints_where_it_is(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"config": {**SMALL, "method": "dino"}}))
    said = run_featkit("report", tmp_path)
    assert (said.code, said.error) == (0, "")
    assert said.out.replace("\n", "") == str(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    (tmp_path / "metrics.jsonl").write_text('{"step": 3, "loss": 1.5}\n')
    assert run_featkit("report", tmp_path).code == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") != page


def test_report_of_something_else_is_one_sentence(tmp_path: Path) -> None:
    said = run_featkit("report", tmp_path)
    assert said.code == 2
    assert is_one_sentence(said)
    assert str(tmp_path) in said.error
