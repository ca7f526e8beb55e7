"""--memory and --recall of `featkit index`, `sync` and `compact`."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from featkit.cli.promising import parse_bytes
from featkit.index import Index
from featkit.index.approximate import on_gpu, planning
from featkit.index.approximate.planning import Promise
from featkit.index.approximate.upkeep import promise_of
from tests.commands import run_featkit
from tests.featkit.index.approximate.conftest import StandIn, use
from tests.images import draw_folder
from tests.sentences import refused


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2GB", 2 * 10**9),
        ("2gb", 2 * 10**9),
        ("500 MB", 500 * 10**6),
        ("1.5GiB", 3 * 2**29),
        ("64K", 64_000),
        ("1TB", 10**12),
        ("1000", 1000),
        ("1000B", 1000),
    ],
)
def test_sizes_are_read_in_every_spelling(text: str, number: int) -> None:
    assert parse_bytes(text) == number


@pytest.mark.parametrize("text", ["", "GB", "2 G B", "-2GB", "2EB", "2iB", "1e9", "2,5GB"])
def test_other_texts_are_refused(text: str) -> None:
    with refused("is not a size of memory; write it like 2GB"):
        parse_bytes(text)


def test_sync_and_index_build_codes_and_keep_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "EXACT_BELOW", 20)
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / "photos", 120)
    said = run_featkit("sync", "photos", "i", "--recall", "0.5", "--memory", "1GB")
    assert said.code == 0, said.error
    assert "120 images: search by a graph over 4-bit codes" in said.out
    assert "is searched by a graph over 4-bit codes, of 118 images" in " ".join(said.out.split())
    with Index.open(tmp_path / "i") as index:
        assert promise_of(index) == Promise(memory=10**9, recall=0.5)
    said = run_featkit("sync", "photos", "i")
    assert "codes" not in said.out
    assert run_featkit("embed", "photos", "--out", "emb", "--quiet").code == 0
    said = run_featkit("index", "emb", "--out", "j", "--recall", "0.5", "--json")
    assert json.loads(said.out)["items"] == 120
    said = run_featkit("inspect", "j", "--json")
    assert json.loads(said.out)["search"].startswith("a graph over 4-bit codes, of 118 images")


def test_memory_that_cannot_suffice_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "EXACT_BELOW", 20)
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / "photos", 120)
    said = run_featkit("sync", "photos", "i", "--memory", "1KB")
    assert said.code == 2
    assert "need at least" in said.error
    assert "Traceback" not in said.error
    said = run_featkit("compact", "i", "--memory", "much")
    assert (said.code, "write it like 2GB" in said.error) == (2, True)


@pytest.mark.parametrize(
    "words", [("sync", "photos", "i"), ("index", "emb", "--out", "i"), ("compact", "i")]
)
def test_a_missing_gpu_is_refused_before_anything_else(
    words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpu, "faiss", SimpleNamespace())
    monkeypatch.chdir(tmp_path)
    said = run_featkit(*words, "--build-on", "gpu")
    assert said.code == 3
    assert "pip install faiss-gpu-cuvs" in said.error
    assert not list(tmp_path.iterdir())


def test_codes_built_on_a_gpu_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "EXACT_BELOW", 20)
    monkeypatch.setattr(on_gpu, "check_gpu", lambda **_: None)
    use(StandIn(), monkeypatch)
    monkeypatch.chdir(tmp_path)
    draw_folder(tmp_path / "photos", 120)
    assert run_featkit("embed", "photos", "--out", "emb", "--quiet").code == 0
    promise = ("--recall", "0.5", "--build-on", "gpu")
    for words in (
        ("sync", "photos", "i", *promise),
        ("index", "emb", "--out", "j", *promise),
        ("compact", "i", *promise),
    ):
        said = run_featkit(*words)
        assert "of 118 images" in " ".join(said.out.split()), said.error
        assert "built on a GPU in" in " ".join(said.out.split())
    for index in "ij":
        assert json.loads(run_featkit("inspect", index, "--json")[1])["search"].endswith("on a GPU")
    said = run_featkit("compact", "i", "--recall", "0.5", "--build-on", "cpu")
    assert "built in" in " ".join(said.out.split())
