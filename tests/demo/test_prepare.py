"""From pictures to an index in the cache: made once, then kept up to date."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from featkit.errors import EnvironmentProblem, InputError
from featkit.index import Index
from featkit_demo import gallery as drawing
from featkit_demo.prepare import default_cache, prepare_gallery, prepare_index
from tests.demo.conftest import Gallery
from tests.model_files import make_model_file


class Work:
    """Notes what was reported."""

    def __init__(self) -> None:
        self.labels: list[tuple[str, int]] = []

    @contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Callable[[int, int], None]]:
        self.labels.append((label, total))
        yield lambda _done, _failed: None


@pytest.fixture
def pictures(gallery: Gallery, tmp_path: Path) -> Path:
    return Path(shutil.copytree(gallery.pictures, tmp_path / "pictures"))


def keys(index: Path) -> list[str]:
    with Index.open(index) as opened:
        return sorted(item.key for item in opened.items(0, 1000))


def test_a_second_run_does_nothing(pictures: Path, gallery: Gallery, tmp_path: Path) -> None:
    work = Work()
    first = prepare_index(pictures, gallery.model, tmp_path / "cache", progress=work)
    again = prepare_index(pictures, gallery.model, tmp_path / "cache", progress=work)
    assert (first.num_embedded, again.num_embedded, again.num_removed) == (13, 0, 0)
    assert first.index == again.index
    assert work.labels == [("embedding", 13)]


def test_what_is_new_changed_or_gone_is_all_that_is_done(pictures: Path, gallery: Gallery, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    index = prepare_index(pictures, gallery.model, cache, progress=Work()).index
    mug, fish = pictures / "objects/mug", pictures / "objects/fish"
    shutil.copyfile(mug / "mug-1-front.jpg", mug / "new.jpg")
    shutil.copyfile(fish / "fish-1-side.jpg", fish / "fish-1-front.jpg")
    shutil.rmtree(pictures / "scenes")
    work = Work()
    done = prepare_index(pictures, gallery.model, cache, progress=work)
    assert (done.num_embedded, done.num_removed, work.labels) == (2, 3, [("embedding", 2)])
    assert "objects/mug/new.jpg" in keys(index)
    assert not [key for key in keys(index) if key.startswith("scenes/")]
    with Index.open(index) as opened:
        hits = opened.search(fish / "fish-1-side.jpg", k=2)
    assert {hit.key for hit in hits} == {"objects/fish/fish-1-front.jpg", "objects/fish/fish-1-side.jpg"}


def test_a_picture_that_breaks_is_no_longer_found(pictures: Path, gallery: Gallery, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    index = prepare_index(pictures, gallery.model, cache, progress=Work()).index
    (pictures / "objects/mug/mug-1-front.jpg").write_bytes(b"no longer")
    done = prepare_index(pictures, gallery.model, cache, progress=Work())
    assert [key for key, _ in done.failures] == ["objects/mug/mug-1-front.jpg"]
    assert "objects/mug/mug-1-front.jpg" not in keys(index)
    assert prepare_index(pictures, gallery.model, cache, progress=Work()).failures == ()  # not tried again until it changes


def test_another_model_gets_another_index(pictures: Path, gallery: Gallery, tmp_path: Path) -> None:
    other = make_model_file(tmp_path / "other.onnx", width=64, size=64, seed=1)
    first = prepare_index(pictures, gallery.model, tmp_path / "cache", progress=Work())
    second = prepare_index(pictures, other, tmp_path / "cache", progress=Work())
    assert first.index != second.index
    assert second.num_embedded == 13


def test_a_stop_while_indexing_costs_work_and_no_correctness(pictures: Path, gallery: Gallery, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    index = prepare_index(pictures, gallery.model, cache, progress=Work()).index
    (index.parent / "listing.json").unlink()  # as if it had been stopped before the end
    (index.parent / "embeddings-0123").mkdir()
    assert prepare_index(pictures, gallery.model, cache, progress=Work()).index == index
    assert len(keys(index)) == 13
    assert [path.name for path in index.parent.glob("embeddings-*")] == []


def test_folders_without_pictures_and_without_good_ones_are_refused(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none"):
        prepare_index(tmp_path / "none", gallery.model, tmp_path / "cache", progress=Work())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"text")
    with pytest.raises(InputError, match=r"No picture of .*bad could be embedded: a\.jpg"):
        prepare_index(tmp_path / "bad", gallery.model, tmp_path / "cache", progress=Work())


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_cache_that_cannot_be_written_is_said(pictures: Path, gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o500)
    with pytest.raises(EnvironmentProblem, match="cannot be written"):
        prepare_index(pictures, gallery.model, tmp_path / "cache", progress=Work())


def test_the_gallery_is_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Path] = []

    def few(out: Path, **_arguments: object) -> list[Path]:
        drawn.append(out)
        return drawing.draw_gallery(out, kinds=["mug"], num_instances=1)

    monkeypatch.setattr("featkit_demo.prepare.draw_gallery", few)
    first = prepare_gallery(tmp_path, progress=Work())
    assert prepare_gallery(tmp_path, progress=Work()) == first
    assert len(drawn) == 1
    assert len(list(first.rglob("*.jpg"))) == 3


def test_the_cache_is_where_the_desktop_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "featkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "featkit"
