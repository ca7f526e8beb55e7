"""An index searches exactly over its committed items, after any changes and reopenings."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from featkit.errors import InputError
from featkit.index import Hit, Index
from tests.featkit.index.conftest import WIDTH, unit_vectors
from tests.model_files import make_model_file
from tests.sentences import refused


def test_search_returns_the_nearest_by_cosine(photos: Path) -> None:
    vectors, query = unit_vectors(100), unit_vectors(1, seed=7)
    with Index.open(photos) as index:
        (hits,) = index.search(vectors=query, k=10)
    cosines = vectors @ query[0]
    assert [hit.id for hit in hits] == np.argsort(-cosines, kind="stable")[:10].tolist()
    assert [hit.key for hit in hits] == [f"{hit.id}.jpg" for hit in hits]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(cosines)[::-1][:10], atol=1e-6)


def test_items_keep_their_metadata(tmp_path: Path, model: Path) -> None:
    metadata: list[dict[str, str | int | float | None]] = [
        {"label": "cat", "Label": "Cat", "year": 1999, "key": "k", 'a "b"; --': 0.5},
        {"label": None, "year": "?"},
        {},
    ]
    with Index.create(tmp_path / "i", model=model) as index:
        ids = index.add(
            ["a", "b", "c"],
            unit_vectors(3),
            source="somewhere",
            widths=[3, 4, 5],
            heights=[6, 7, 8],
            thumbnails=[b"jpeg", None, b""],
            metadata=metadata,
        )
        first, second, third = (index.item(number) for number in ids)
        assert (first.key, first.source, first.width, first.height) == ("a", "somewhere", 3, 6)
        assert first.metadata == metadata[0]
        assert {name: type(value) for name, value in first.metadata.items()} == {
            name: type(value) for name, value in metadata[0].items()
        }
        assert second.metadata == {"year": "?"}
        assert third.metadata == {}
        assert [index.thumbnail(number) for number in ids] == [b"jpeg", None, b""]


class History(RuleBasedStateMachine):
    """Any sequence of changes and reopenings, compared with a dict of the expected items."""

    def __init__(self) -> None:
        super().__init__()
        self.folder: Path | None = None
        self.expected: dict[str, tuple[int, np.ndarray]] = {}
        self.next_id = 0
        self.seed = 0

    @initialize()
    def create(self) -> None:
        import tempfile

        self.folder = Path(tempfile.mkdtemp(prefix="featkit-history-"))
        self.index = Index.create(
            self.folder / "i", model=make_model_file(self.folder / "m.onnx", width=4)
        )
        self.reader = Index.open(self.folder / "i")

    @rule(keys=st.lists(st.sampled_from("abcdefgh"), max_size=6))
    def add(self, keys: list[str]) -> None:
        self.seed += 1
        vectors = unit_vectors(len(keys), seed=self.seed, width=4)
        ids = self.index.add(keys, vectors)
        assert ids == list(range(self.next_id, self.next_id + len(keys)))
        self.next_id += len(keys)
        self.expected |= {
            key: (number, vector) for key, number, vector in zip(keys, ids, vectors, strict=True)
        }

    @rule(keys=st.lists(st.sampled_from("abcdefgh"), max_size=3))
    def remove(self, keys: list[str]) -> None:
        assert self.index.remove(keys) == len(set(keys) & set(self.expected))
        for key in keys:
            self.expected.pop(key, None)

    @rule()
    def reopen(self) -> None:
        assert self.folder is not None
        self.index.close()
        self.index = Index.open(self.folder / "i", writable=True)

    @invariant()
    def search_equals_brute_force(self) -> None:
        if self.folder is None:
            return
        query = unit_vectors(1, seed=10_000 + self.seed, width=4)
        wanted = sorted(
            (-float(vector @ query[0]), number, key)
            for key, (number, vector) in self.expected.items()
        )
        for index in (self.index, self.reader):
            assert len(index) == len(wanted)
            (hits,) = index.search(vectors=query, k=5)
            assert [(hit.id, hit.key) for hit in hits] == [
                (number, key) for _, number, key in wanted[:5]
            ]
            assert [item.id for item in index.items(0, 100)] == sorted(
                number for _, number, _ in wanted
            )

    def teardown(self) -> None:
        if self.folder is not None:
            self.index.close()
            self.reader.close()
            shutil.rmtree(self.folder)


History.TestCase.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
TestHistory = History.TestCase


def test_k_above_the_number_of_items_returns_all(photos: Path) -> None:
    with Index.open(photos) as index:
        (hits,) = index.search(vectors=unit_vectors(1), k=1000)
    assert sorted(hit.id for hit in hits) == list(range(100))


def test_an_empty_index_returns_no_hits(tmp_path: Path, model: Path) -> None:
    with Index.create(tmp_path / "i", model=model) as index:
        assert index.search(vectors=unit_vectors(2)) == [[], []]
        assert len(index) == 0


def test_a_key_added_again_gets_a_new_id(photos: Path) -> None:
    with Index.open(photos, writable=True) as index:
        assert index.add(["5.jpg"], unit_vectors(1, seed=1), thumbnails=[b"new"]) == [100]
        assert len(index) == 100
        assert index.item_by_key("5.jpg").id == 100
        with pytest.raises(InputError, match="no item 5"):
            index.item(5)
        (hits,) = index.search(vectors=unit_vectors(100)[5:6], k=100)
        assert 5 not in [hit.id for hit in hits]


def test_ids_of_removed_items_are_never_reused(photos: Path) -> None:
    with Index.open(photos, writable=True) as index:
        assert index.remove(["99.jpg", "98.jpg", "unknown"]) == 2
    with Index.open(photos, writable=True) as index:
        assert index.add(["99.jpg"], unit_vectors(1)) == [100]


def test_an_item_finds_itself_first(photos: Path) -> None:
    with Index.open(photos) as index:
        (hit,) = index.search(item=42, k=1)
        assert (hit.id, round(hit.score, 6)) == (42, 1.0)
        np.testing.assert_array_equal(index.vector(42), unit_vectors(100)[42])


def test_an_image_is_embedded_by_the_indexs_model(tmp_path: Path, model: Path) -> None:
    from featkit.embedder import Embedder

    images = [
        np.random.default_rng(seed).integers(0, 256, (40, 50, 3), np.uint8) for seed in range(3)
    ]
    with Index.create(tmp_path / "i", model=model) as index:
        index.add(["0", "1", "2"], Embedder(model).embed(images))
        hits: list[Hit] = index.search(images[1], k=2)
    assert (hits[0].key, round(hits[0].score, 5)) == ("1", 1.0)


def test_search_takes_exactly_one_query(photos: Path) -> None:
    with Index.open(photos) as index:
        (by_item,) = index.search(item=42, k=1)
        ((by_vector,),) = index.search(vectors=unit_vectors(100)[42:43], k=1)
        assert by_item == by_vector
        with refused("exactly one of image, item or vectors; none was given"):
            index.search()  # type: ignore[call-overload]
        with refused("exactly one of image, item or vectors; image and item were given"):
            index.search("cat.jpg", item=3)  # type: ignore[call-overload]
        with refused("exactly one of item or vectors; none was given"):
            index.read(lambda state: state.search())  # type: ignore[call-overload]


def test_old_names_of_search_warn_and_still_answer(photos: Path) -> None:
    with Index.open(photos) as index:
        query = unit_vectors(1)
        with pytest.warns(
            DeprecationWarning, match=r"query\(vectors\) is now Index\.search\(vectors="
        ):
            assert index.query(query, k=3) == index.search(vectors=query, k=3)
        with pytest.warns(DeprecationWarning, match=r"is now Index\.search\(item=id\)"):
            assert index.search_item(7, k=3) == index.search(item=7, k=3)
        with pytest.warns(DeprecationWarning, match=r"is now Index\.read\(work\)"):
            assert index.in_one_state(lambda: index.item(7)) == index.item(7)


def test_an_index_contains_the_keys_of_its_items(photos: Path) -> None:
    with Index.open(photos, writable=True) as index:
        assert "5.jpg" in index
        index.remove(["5.jpg"])
        for key in ("5.jpg", "unknown", 5, None):
            assert key not in index


def test_repr_names_path_items_and_model(photos: Path) -> None:
    index = Index.open(photos)
    assert repr(index) == f"<Index {photos}: 100 items of test-0>"
    index.close()
    assert repr(index) == f"<Index {photos}: closed>"


def test_vectors_that_do_not_fit_add_nothing(photos: Path) -> None:
    bad = unit_vectors(3)
    bad[1] *= 2
    with Index.open(photos, writable=True) as index:
        with pytest.raises(InputError, match="vector of b has length 2"):
            index.add(["a", "b", "c"], bad)
        with pytest.raises(InputError, match=rf"takes \(n, {WIDTH}\)"):
            index.add(["a"], unit_vectors(1, width=8))
        bad[1] = np.nan
        with pytest.raises(InputError, match="length nan"):
            index.search(vectors=bad)
        assert len(index) == 100
