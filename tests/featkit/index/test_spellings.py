"""Two spellings of a name are one item unless they are two files."""

from __future__ import annotations

import unicodedata
from contextlib import nullcontext
from pathlib import Path

import pytest

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.index import AddReport, Index
from featkit.pipeline import EmbedOptions, embed_source
from featkit.sources import open_source
from featkit_demo.prepare import prepare_index
from tests.featkit.index.conftest import unit_vectors
from tests.images import draw_image

NFC, NFD = (unicodedata.normalize("NFC", "é/ü.jpg"), unicodedata.normalize("NFD", "é/ü.jpg"))
MIXED = NFD.partition("/")[0] + "/" + NFC.partition("/")[2]


def embed(source: Path, out: Path, model: Path) -> Embeddings:
    embed_source(open_source(source), Embedder(model, threads=1), out, EmbedOptions(shard_size=1))
    return Embeddings.open(out)


def draw(root: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        draw_image(seed, height=40, width=40).save(root / name)
    return root


@pytest.mark.parametrize("old", [NFC, NFD, MIXED])
@pytest.mark.parametrize("new", [NFC, NFD, MIXED])
def test_another_unicode_form_is_the_same_item(
    tmp_path: Path, model: Path, old: str, new: str
) -> None:
    first = embed(draw(tmp_path / "old", old, "b.jpg"), tmp_path / "e1", model)
    second = embed(draw(tmp_path / "new", new, "b.jpg"), tmp_path / "e2", model)
    with Index.create(tmp_path / "i", model=model) as index:
        index.add_embeddings(first)
        report = index.add_embeddings(second)
        assert (len(index), report.num_added + report.num_unchanged) == (2, 2)
        assert index.add_embeddings(second) == AddReport(num_unchanged=2)
        assert sorted(item.key for item in index.items()) == sorted([new, "b.jpg"])


def test_two_files_in_two_forms_stay_two_items(tmp_path: Path, model: Path) -> None:
    folder = embed(draw(tmp_path / "both", NFC, NFD, MIXED, "b.jpg"), tmp_path / "e", model)
    with Index.create(tmp_path / "i", model=model) as index:
        assert index.add_embeddings(folder) == AddReport(num_added=4)
        assert index.add_embeddings(folder) == AddReport(num_unchanged=4)
        assert {item.key for item in index.items()} == {NFC, NFD, MIXED, "b.jpg"}


def test_keys_of_earlier_versions_are_the_same_items(tmp_path: Path, model: Path) -> None:
    draw(tmp_path, "a.jpg", NFC)
    (tmp_path / "list.txt").write_text(f"./a.jpg\n./{NFD}\n")
    folder = embed(tmp_path / "list.txt", tmp_path / "e", model)
    with Index.create(tmp_path / "i", model=model) as index:
        index.add(["./a.jpg", f"./{NFC}"], unit_vectors(2))
        assert index.add_embeddings(folder) == AddReport(num_added=2, num_replaced=2)
        assert [item.key for item in index.items()] == ["a.jpg", NFD]


def test_new_keys_are_not_compared_with_each_other(tmp_path: Path, model: Path) -> None:
    with Index.create(tmp_path / "i", model=model) as index:
        index.add([NFC, NFD], unit_vectors(2))
        assert len(index) == 2
        index.remove([NFC])
        assert [item.key for item in index.items()] == [NFD]
        index.add([MIXED], unit_vectors(1, seed=2))
        index.add([MIXED, MIXED], unit_vectors(2, seed=3))
        assert [item.key for item in index.items()] == [MIXED]


def test_a_file_added_later_is_an_item_of_its_own(tmp_path: Path, model: Path) -> None:
    root = draw(tmp_path / "photos", NFC)
    for names in ([NFC], [NFC, NFD]):
        draw(root, *names)
        prepared = prepare_index(
            root,
            model,
            tmp_path / "cache",
            progress=lambda _label, _total: nullcontext(lambda _done, _failed: None),
        )
        with Index.open(prepared.index) as index:
            assert sorted(item.key for item in index.items()) == sorted(names)
