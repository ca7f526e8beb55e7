"""Promises of tests/unchanged: it finds a changed digit and recognizes a rename."""

from __future__ import annotations

import copy
import json
import struct
from pathlib import Path
from typing import Any

import pytest

from tests.unchanged.__main__ import main
from tests.unchanged.comparing import differences, report
from tests.unchanged.reading import leaves, read_metrics, read_safetensors

RECORDING: dict[str, Any] = {
    "about": {"commit": "a", "parts": ["train", "embed"], "environment": {"torch": "2.13"}},
    "results": {
        "train/dino/metrics.jsonl": {"loss": [[1, 0.51234], [2, 0.25]], "lr": [[1, 0.1], [2, 0.1]]},
        "train/dino/backbone.safetensors": {"norm.weight": "F32 24 0a", "norm.bias": "F32 24 0b"},
        "embed/photos/shards/00000.parquet": {"bytes": "0c"},
    },
    "metadata": {
        "train/dino/config.yaml": {
            "config/colour/hue": 0.1,  # quoted
            "config/run/steps": 6,
        }
    },
}


@pytest.fixture
def other() -> dict[str, Any]:
    """A copy of RECORDING to change."""
    return copy.deepcopy(RECORDING)


def words(other: dict[str, Any]) -> list[str]:
    return [f"{item.kind} {item.section} {item.words}" for item in differences(RECORDING, other)]


def test_equal_recordings_have_no_difference(other: dict[str, Any]) -> None:
    text, same = report(RECORDING, other)
    assert same
    assert "train/dino        4 values  same\n" in text
    assert text.endswith("\nAll results are the same.\n\nAll metadata are the same.\n")


def test_a_changed_digit_is_found(other: dict[str, Any]) -> None:
    other["results"]["train/dino/metrics.jsonl"]["loss"][0][1] = 0.51235
    line = "loss changed: [1, 0.51234] → [1, 0.51235]"
    assert words(other) == [f"results train/dino/metrics.jsonl {line}"]
    text, same = report(RECORDING, other)
    assert not same
    assert "train/dino        4 values  1 of results differ\n" in text
    assert f"\nDifferences in results:\n  train/dino/metrics.jsonl: {line}\n" in text


def test_renamed_keys_are_listed_as_such(other: dict[str, Any]) -> None:
    other["metadata"]["train/dino/config.yaml"] = {"config/color/hue": 0.1, "config/run/steps": 6}
    weights = other["results"]["train/dino/backbone.safetensors"]
    weights["final_norm.weight"] = weights.pop("norm.weight")
    assert words(other) == [
        "results train/dino/backbone.safetensors "
        "norm.weight is now final_norm.weight, with the same value",
        "metadata train/dino/config.yaml "
        "config/colour/hue is now config/color/hue, with the same value",  # quoted
    ]


def test_a_difference_of_many_files_is_one_line(other: dict[str, Any]) -> None:
    results = other["results"]
    results["train/dino/metrics.jsonl"]["x"] = results["train/dino/backbone.safetensors"]["x"] = 1
    line = "\n  train/dino/metrics.jsonl (and in 1 more): x is new: 1\n"
    assert line in report(RECORDING, other)[0]


def test_a_long_sentence_shows_where_it_changed(other: dict[str, Any]) -> None:
    start = "A sentence that is longer than a line of a terminal is wide, and that ends"
    before = copy.deepcopy(RECORDING)
    for recording, end in ((before, "so."), (other, "here.")):
        recording["metadata"]["train/dino/config.yaml"]["note"] = f"{start} {end}"
    (difference,) = differences(before, other)
    assert (
        difference.words
        == 'note changed: "…wide, and that ends so." → "…wide, and that ends here."'
    )


def test_renamed_and_changed_is_gone_and_new(other: dict[str, Any]) -> None:
    other["results"]["embed/photos/shards/00000.parquet"] = {"digest": "0d"}
    section = "results embed/photos/shards/00000.parquet"
    assert words(other) == [f'{section} bytes is gone: "0c"', f'{section} digest is new: "0d"']


def test_missing_files_are_differences(other: dict[str, Any]) -> None:
    del other["results"]["embed/photos/shards/00000.parquet"]
    assert words(other) == ['results embed/photos/shards/00000.parquet bytes is gone: "0c"']


def test_parts_of_one_recording_are_not_compared(other: dict[str, Any]) -> None:
    del other["results"]["embed/photos/shards/00000.parquet"]
    other["about"]["parts"] = ["train"]
    text, same = report(RECORDING, other)
    assert same
    assert "Not compared: embed, which only one of them has.\n" in text


def test_another_library_version_is_reported(other: dict[str, Any]) -> None:
    other["about"]["environment"]["torch"] = "2.14"
    assert "Not the same torch: 2.13 and 2.14.\n" in report(RECORDING, other)[0]


def test_exit_code_is_1_for_a_difference(tmp_path: Path, other: dict[str, Any]) -> None:
    other["results"]["train/dino/metrics.jsonl"]["lr"][1][1] = 0.2
    for name, recording in (("a.json", RECORDING), ("b.json", other)):
        (tmp_path / name).write_text(json.dumps(recording))
    before, after = str(tmp_path / "a.json"), str(tmp_path / "b.json")
    assert main(["compare", before, before]) == 0
    assert main(["compare", before, after]) == 1


def test_metrics_are_columns_without_rates() -> None:
    lines = [
        {"step": 1, "loss": 2.5, "images_per_s": 9.0, "waiting_share": 0.1},
        {"step": 2, "loss": 2.0},
    ]
    assert read_metrics("\n".join(map(json.dumps, lines))) == {"loss": [[1, 2.5], [2, 2.0]]}


def test_leaves_keep_lists_of_numbers_whole() -> None:
    tree = {"rows": [{"name": "x", "seconds": 3.0}], "scale": [0.4, 1.0]}
    assert leaves(tree) == {"rows/0/name": "x", "scale": [0.4, 1.0]}


def test_one_bit_of_a_tensor_shows(tmp_path: Path) -> None:
    entry = {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}
    header = json.dumps({"__metadata__": {"featkit": '{"format": 1}'}, "w": entry}).encode()
    values = []
    for data in (b"\0\0", b"\0\1"):
        path = tmp_path / "x.safetensors"
        path.write_bytes(struct.pack("<Q", len(header)) + header + data)
        values.append(read_safetensors(path))
    assert values[0].metadata == values[1].metadata == {"featkit/format": 1}
    assert values[0].results["w"].startswith("U8 2 ")
    assert values[0].results != values[1].results
