"""The command `featkit compact`, and what `featkit inspect` says of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from featkit.index import Index
from tests.commands import run_featkit
from tests.featkit.index.approximate.conftest import WIDTH, clumped
from tests.model_files import make_model_file


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """An index of 400 vectors, searched exactly."""
    model = make_model_file(tmp_path / "m.onnx", width=WIDTH)
    with Index.create(tmp_path / "i", model=model) as made:
        made.add([f"{i}.jpg" for i in range(400)], clumped(400))
    return tmp_path / "i"


def test_compact_reports_size_recall_and_time(index: Path) -> None:
    code, out, _ = run_featkit("compact", index, "--quiet")
    assert code == 0
    assert re.fullmatch(
        rf"{index} is searched by a graph over 4-bit codes, of 392 images \(0\.\d MB\), built"
        r" in \d+ s\. recall@10 \d\.\d+ \(at least \d\.\d+\), recall@1 \d\.\d+; one search takes"
        r" \d+\.\d+ ms \(p99 \d+\.\d+ ms\)\.",
        " ".join(out.split()),
    )
    code, out, _ = run_featkit("inspect", index, "--json")
    facts = json.loads(out)
    assert facts["search"].startswith("a graph over 4-bit codes, of 392 images, built 20")
    assert 0.95 <= facts["recall_at_10_low"] <= facts["recall_at_10"] <= 1


def test_compact_prints_the_record_as_json(index: Path) -> None:
    code, out, _ = run_featkit("compact", index, "--json", "--recall", "0.9")
    assert code == 0
    record = json.loads(out)
    assert (record["num_items"], record["target"]) == (392, 0.9)


def test_reclaim_drops_removed_images_and_builds_nothing(index: Path) -> None:
    with Index.open(index, writable=True) as opened:
        opened.remove(["7.jpg"])
    facts = json.loads(run_featkit("inspect", index, "--json")[1])
    assert (facts["removed_vectors"], facts["reclaimable_bytes"]) == (1, 4 * WIDTH)
    code, out, _ = run_featkit("compact", index, "--reclaim", "--json")
    assert (code, json.loads(out)) == (0, {"reclaimed_vectors": 1, "reclaimed_bytes": 4 * WIDTH})
    facts = json.loads(run_featkit("inspect", index, "--json")[1])
    assert (facts["items"], facts["removed_vectors"], facts["search"]) == (399, 0, "exact")
    assert run_featkit("compact", index, "--reclaim")[1] == f"{index} has no removed images.\n"
    code, _, error = run_featkit("compact", index, "--reclaim", "--recall", "0.9")
    assert (code, "builds nothing" in error) == (2, True)


def test_compact_reclaims_only_many_removed_images(index: Path) -> None:
    for number_removed, expected in ((60, 0), (90, 90)):
        with Index.open(index, writable=True) as opened:
            opened.remove([f"{i}.jpg" for i in range(number_removed)])
        code, out, _ = run_featkit("compact", index, "--allow-low-recall", "--json")
        assert (code, json.loads(out)["reclaimed_vectors"]) == (0, expected)


def test_a_recall_that_is_not_reached_is_one_sentence(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("featkit.index.approximate.tuning.lower_end", lambda _shares: 0.5)
    code, out, error = run_featkit("compact", index, "--quiet")
    assert (code, out) == (1, "")
    assert "but 0.95 was asked for. Searches stay as they were" in error
    code, out, _ = run_featkit("inspect", index, "--json")
    assert json.loads(out)["search"] == "exact"
    assert run_featkit("compact", index, "--quiet", "--allow-low-recall")[0] == 0
