"""Promises of the ground truth's reader: pickles as Python and numpy write them are read, and none
runs anything."""

from __future__ import annotations

import json
import pickle
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featkit.errors import InputError
from featkit.evaluate.ground_truth import GroundTruth, read_ground_truth
from tests.sentences import refused


def published(*, arrays: bool = False) -> dict[str, Any]:
    """In the published format: three images, one query."""
    places: dict[str, Any] = {"easy": [2], "hard": [0], "junk": []}
    if arrays:
        places = {kind: np.array(numbers, np.int64) for kind, numbers in places.items()}
    box: list[Any] = [136.5, 34.1, 648.5, 955.7]
    truth = {"bbx": [np.float32(box[0]), np.float64(box[1]), *box[2:]] if arrays else box, **places}
    return {"imlist": ["all_souls_000013", "b", "c"], "qimlist": ["q"], "gnd": [truth]}


def check(found: GroundTruth) -> None:
    """Check that the ground truth is `published`."""
    (query,) = found.queries
    assert found.names == ["all_souls_000013", "b", "c"]
    assert (query.name, query.easy.tolist(), query.hard.tolist(), query.junk.tolist()) == (
        "q",
        [2],
        [0],
        [],
    )
    assert query.easy.dtype == query.junk.dtype == np.int64
    assert query.box == (136.5, 34.1, 648.5, 955.7)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("arrays", [False, True])
def test_a_pickle_of_any_protocol_is_read(protocol: int, arrays: bool, tmp_path: Path) -> None:
    file = tmp_path / "gnd_roxford5k.pkl"
    file.write_bytes(pickle.dumps(published(arrays=arrays), protocol=protocol))
    check(read_ground_truth(file))


def test_a_pickle_of_python_2_and_of_numpy_1_is_read(tmp_path: Path) -> None:
    data = pickle.dumps(published(arrays=True), protocol=2)
    assert b"numpy._core" in data
    (tmp_path / "a.pkl").write_bytes(data.replace(b"cnumpy._core", b"cnumpy.core"))
    check(read_ground_truth(tmp_path / "a.pkl"))
    # Python 2 wrote its byte strings, which names were, with the opcode U.
    (tmp_path / "b.pkl").write_bytes(
        b"\x80\x02}(U\x06imlist](U\x01aU\x01beU\x07qimlist]U\x01qaU\x03gnd]}("
        b"U\x04easy]K\x01aU\x04hard]U\x04junk]U\x03bbx](K\x00K\x00K\x05K\x05euau."
    )
    found = read_ground_truth(tmp_path / "b.pkl")
    assert (found.names, found.queries[0].easy.tolist()) == (["a", "b"], [1])


def test_big_endian_and_column_major_arrays_are_read(tmp_path: Path) -> None:
    value = published()
    value["gnd"][0]["easy"] = np.array([2], ">i4")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(value))
    check(read_ground_truth(tmp_path / "a.pkl"))


def test_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "gnd.json").write_text(json.dumps(published()))
    check(read_ground_truth(tmp_path / "gnd.json"))


class Runs:
    """Return the call that unpickling makes."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "call",
    [(eval, "open('ran', 'w')"), (subprocess.run, ["touch", "ran"]), (getattr, "a", "upper")],
)
def test_pickles_naming_other_classes_are_refused_unrun(
    call: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"imlist": [Runs(*call)]}))
    with refused("a.pkl names", call[0].__name__, "convert the file to JSON"):
        read_ground_truth(tmp_path / "a.pkl")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([{}, None], object),
        np.zeros(2, "datetime64[s]"),
        np.zeros(2, [("a", "i4")]),
        np.array(["text"]),
        np.zeros(2, complex),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_arrays_of_anything_but_numbers_are_refused(
    value: np.ndarray, protocol: int, tmp_path: Path
) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"imlist": value}, protocol=protocol))
    with refused("a.pkl"):
        read_ground_truth(tmp_path / "a.pkl")


def test_what_a_pickle_sets_on_a_stand_in_does_not_last(tmp_path: Path) -> None:
    # GLOBAL numpy.dtype, and BUILD with a state that would become its attributes.
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02cnumpy\ndtype\nN}U\x0c__defaults__K\x01s\x86b.")
    with refused("a.pkl"):
        read_ground_truth(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(pickle.dumps(published(arrays=True)))
    check(read_ground_truth(tmp_path / "b.pkl"))


@pytest.mark.parametrize("size", [0, 1, 40, 200])
def test_a_pickle_that_is_cut_short_or_no_pickle_is_one_sentence(size: int, tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(published(arrays=True))[:size])
    with refused("a.pkl is not a readable ground truth"):
        read_ground_truth(tmp_path / "a.pkl")
    (tmp_path / "a.json").write_bytes(b"{" * size)
    with refused("a.json is not a readable ground truth"):
        read_ground_truth(tmp_path / "a.json")


def test_damaged_pickles_end_in_nothing_but_an_input_error(tmp_path: Path) -> None:
    whole = pickle.dumps(published(arrays=True), protocol=2)
    rng = np.random.default_rng(0)
    for _ in range(300):
        damaged = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            damaged[place] = rng.integers(0, 256)
        (tmp_path / "a.pkl").write_bytes(damaged)
        with suppress(InputError):  # some damage is to a number that may be another
            read_ground_truth(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"imlist": None}, "no list imlist"),
        ({"imlist": ["a", "a", "b"]}, "imlist has a name twice"),
        ({"imlist": [1, 2, 3]}, "imlist is not a list of names"),
        ({"qimlist": ["q", "r"]}, "qimlist has 2 queries and gnd 1"),
        ({"gnd": [7]}, "is a int, not a dict"),
        ({"easy": [3]}, "easy outside the 3 names"),
        ({"easy": [-1]}, "outside the 3 names"),
        ({"easy": [1.0]}, "outside the 3 names"),
        ({"easy": [True]}, "outside the 3 names"),
        ({"hard": [2]}, "lists a position twice"),
        ({"junk": {}}, "no list junk"),
        ({"bbx": [1, 2, 3]}, "bbx"),
        ({"bbx": [5, 2, 3, 4]}, "bbx"),
        ({"bbx": [0, 0, float("nan"), 4]}, "bbx"),
    ],
)
def test_values_that_do_not_fit_are_named(
    change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    value = published()
    (key,) = change
    (value if key in value else value["gnd"][0]).update(change)
    (tmp_path / "a.json").write_text(json.dumps(value))
    with refused("format of ROxford and RParis", words):
        read_ground_truth(tmp_path / "a.json")


def test_a_file_that_is_not_there_or_too_large_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with refused("none.pkl cannot be read: No such file or directory"):
        read_ground_truth(tmp_path / "none.pkl")
    monkeypatch.setattr("featkit.evaluate.ground_truth.MAX_BYTES", 3)
    (tmp_path / "a.pkl").write_bytes(b"four")
    with refused("has 4 bytes", "the limit of 3"):
        read_ground_truth(tmp_path / "a.pkl")
