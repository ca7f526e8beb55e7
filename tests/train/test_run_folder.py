"""Promises of the files of a run."""

from __future__ import annotations

from pathlib import Path

from featkit_train.report import write_report
from featkit_train.run_folder import CONFIG_FILE, RunFolder
from tests.train.small import small_config

DATA = {"names": "images", "keys_sha256": "0", "held_out_keys_sha256": None}


def test_a_run_with_old_keys_resumes_and_reports_silently(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, small_config(), DATA)
    folder.begin()
    path = tmp_path / CONFIG_FILE
    text = path.read_text()
    for new, old in (("license:", "licence:"), ("\n  color:", "\n  colour:")):  # quoted
        assert new in text
        text = text.replace(new, old)
    path.write_text(text)
    folder.check_same()  # warnings are errors here
    page = write_report(tmp_path).read_text()
    assert "color.<wbr>hue" in page
