"""The cached index is built once and then kept up to date."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.embedder import Embedder
from featkit.embeddings import SHOWN_FAILURES
from featkit.errors import InputError, Interrupted
from featkit.index import Index
from featkit.sources.selection import Selection
from featkit_demo import gallery as drawing
from featkit_demo.prepare import Prepared, default_cache, prepare_gallery, prepare_index
from tests.demo.conftest import Gallery
from tests.featkit.backends.engines import OPENVINO_BF16, needs_bf16
from tests.images import draw_image
from tests.model_files import make_model_file
from tests.processes import run_python

PREPARE = """
import sys
from contextlib import nullcontext
from pathlib import Path

from featkit.errors import EnvironmentProblem
from featkit_demo.prepare import prepare_index

def progress(label, total):
    return nullcontext(lambda done, failed: None)

try:
    prepare_index(*map(Path, sys.argv[1:]), progress=progress)
except EnvironmentProblem as problem:
    print(problem)
"""


class Work:
    """A progress reporter that records labels and interrupts after `stop_at` images."""

    def __init__(self, *, stop_at: int | None = None) -> None:
        self.labels: list[tuple[str, int]] = []
        self.stop_at = stop_at

    @contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Callable[[int, int], None]]:
        self.labels.append((label, total))
        yield self._report

    def _report(self, done: int, _failed: int) -> None:
        if self.stop_at is not None and done >= self.stop_at:
            raise KeyboardInterrupt


@pytest.fixture
def images(gallery: Gallery, tmp_path: Path) -> Path:
    """A copy of the gallery: 13 images, two of which are equal, all of them drawn long ago."""
    copy = Path(shutil.copytree(gallery.images, tmp_path / "images"))
    for path in copy.rglob("*.jpg"):
        os.utime(path, (1_700_000_000, 1_700_000_000))
    return copy


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))


def embedded(prepared: Prepared) -> int:
    """Return how many images got a vector, of their own or that of an equal one."""
    return prepared.report.num_embedded + prepared.report.num_copied


def keys(index: Path) -> list[str]:
    with Index.open(index) as opened:
        return sorted(item.key for item in opened.items(0, 1000))


def test_a_second_run_does_nothing(images: Path, gallery: Gallery, tmp_path: Path) -> None:
    work = Work()
    first = prepare_index(images, gallery.model, tmp_path / "cache", progress=work)
    again = prepare_index(images, gallery.model, tmp_path / "cache", progress=work)
    assert (embedded(first), embedded(again), again.report.num_removed) == (
        13,
        0,
        0,
    )
    assert first.index == again.index
    assert work.labels == [("comparing", 2), ("embedding", 12)]


def test_only_new_changed_and_deleted_images_are_processed(
    images: Path, gallery: Gallery, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    index = prepare_index(images, gallery.model, cache, progress=Work()).index
    mug, fish = images / "objects/mug", images / "objects/fish"
    shutil.copyfile(mug / "mug-1-front.jpg", mug / "new.jpg")
    shutil.copyfile(fish / "fish-1-side.jpg", fish / "fish-1-front.jpg")
    shutil.rmtree(images / "scenes")
    work = Work()
    done = prepare_index(images, gallery.model, cache, progress=work)
    assert (done.report.num_copied, done.report.num_removed) == (2, 3)
    assert (done.report.num_embedded, work.labels) == (0, [("comparing", 2)])
    assert "objects/mug/new.jpg" in keys(index)
    assert not [key for key in keys(index) if key.startswith("scenes/")]
    with Index.open(index) as opened:
        hits = opened.search(fish / "fish-1-side.jpg", k=2)
    assert {hit.key for hit in hits} == {
        "objects/fish/fish-1-front.jpg",
        "objects/fish/fish-1-side.jpg",
    }


def test_an_image_that_became_unreadable_is_not_found(
    images: Path, gallery: Gallery, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    index = prepare_index(images, gallery.model, cache, progress=Work()).index
    (images / "objects/mug/mug-1-front.jpg").write_bytes(b"no longer")
    done = prepare_index(images, gallery.model, cache, progress=Work())
    assert [key for key, _ in done.report.failures] == ["objects/mug/mug-1-front.jpg"]
    assert "objects/mug/mug-1-front.jpg" not in keys(index)
    # not tried again until it changes
    assert prepare_index(images, gallery.model, cache, progress=Work()).report.failures == []


def test_another_model_gets_another_index(images: Path, gallery: Gallery, tmp_path: Path) -> None:
    other = make_model_file(tmp_path / "other.onnx", width=64, size=64, seed=1)
    first = prepare_index(images, gallery.model, tmp_path / "cache", progress=Work())
    second = prepare_index(images, other, tmp_path / "cache", progress=Work())
    assert first.index != second.index
    assert embedded(second) == 13


@pytest.mark.parametrize("stop_at", [0, 1, 2])
def test_an_interrupt_while_embedding_loses_no_correctness(
    images: Path, gallery: Gallery, tmp_path: Path, stop_at: int
) -> None:
    cache = tmp_path / "cache"
    index = prepare_index(images, gallery.model, cache, progress=Work()).index
    fish = images / "objects/fish"
    draw_image(1).save(images / "objects/mug/new.jpg")
    draw_image(2).save(fish / "fish-1-front.jpg")
    with pytest.raises(Interrupted):
        prepare_index(images, gallery.model, cache, progress=Work(stop_at=stop_at))
    assert "objects/mug/new.jpg" not in keys(index)
    assert prepare_index(images, gallery.model, cache, progress=Work()).index == index
    assert keys(index) == files_below(images)
    with Index.open(index) as opened:
        hits = opened.search(fish / "fish-1-front.jpg", k=2)
    assert hits[0].key == "objects/fish/fish-1-front.jpg"
    assert hits[0].score == pytest.approx(1, abs=1e-5)


def test_an_interrupted_first_run_leaves_nothing_outdated(
    images: Path, gallery: Gallery, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    with pytest.raises(Interrupted):
        prepare_index(images, gallery.model, cache, progress=Work(stop_at=12))
    shutil.rmtree(images / "scenes")
    index = prepare_index(images, gallery.model, cache, progress=Work()).index
    assert keys(index) == files_below(images)


def test_an_image_restored_after_an_interrupt_is_found(
    images: Path, gallery: Gallery, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    index = prepare_index(images, gallery.model, cache, progress=Work()).index
    mug = images / "objects/mug/mug-1-front.jpg"
    mug.rename(tmp_path / "kept.jpg")
    shutil.copyfile(images / "objects/fish/fish-1-front.jpg", mug)
    with pytest.raises(Interrupted):
        prepare_index(images, gallery.model, cache, progress=Work(stop_at=0))
    (tmp_path / "kept.jpg").replace(mug)  # with its old size and modification time
    prepare_index(images, gallery.model, cache, progress=Work())
    assert keys(index) == files_below(images)


@pytest.mark.parametrize(
    "kind", ["glob", "list", "list elsewhere", "one image", "tar", "glob of tars"]
)
def test_a_changed_image_of_any_source_is_embedded_again(
    kind: str, images: Path, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mugs = images / "objects/mug"
    changing = mugs / "mug-1-front.jpg"
    monkeypatch.chdir(images)

    def named() -> Path:
        """Write the source from the current images and return its path."""
        if kind == "list":
            (mugs / "list.txt").write_text("mug-1-front.jpg\nmug-1-side.jpg\n")
        if kind == "list elsewhere":
            (tmp_path / "list.txt").write_text(f"{changing}\n{mugs / 'mug-1-side.jpg'}\n")
        if "tar" in kind:
            with tarfile.open(mugs / "mugs.tar", "w") as archive:
                archive.add(changing, "front.jpg")
        names: dict[str, str | Path] = {
            "glob": "*/mug/mug-*.jpg",
            "list": "objects/mug/list.txt",
            "list elsewhere": tmp_path / "list.txt",
        }
        names |= {
            "one image": changing,
            "tar": "objects/mug/mugs.tar",
            "glob of tars": "objects/*/*.tar",
        }
        return Path(names[kind])

    source = named()
    first = prepare_index(source, gallery.model, tmp_path / "cache", progress=Work())
    assert embedded(first) > 0
    assert embedded(prepare_index(source, gallery.model, tmp_path / "cache", progress=Work())) == 0
    shutil.copyfile(images / "objects/fish/fish-1-front.jpg", changing)
    assert embedded(prepare_index(named(), gallery.model, tmp_path / "cache", progress=Work())) == 1
    with Index.open(first.index) as opened:
        assert opened.search(changing, k=1)[0].score == pytest.approx(1, abs=1e-3)


def test_a_missing_image_is_tried_again(gallery: Gallery, images: Path, tmp_path: Path) -> None:
    (images / "list.txt").write_text("objects/mug/mug-1-front.jpg\nmissing.jpg\n")
    for num_embedded in (1, 0):
        done = prepare_index(
            images / "list.txt", gallery.model, tmp_path / "cache", progress=Work()
        )
        assert (embedded(done), [key for key, _ in done.report.failures]) == (
            num_embedded,
            ["missing.jpg"],
        )


def test_retry_embeds_failed_images_again(
    images: Path, gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    decode = Embedder.decode

    def without_package(self: Embedder, image: Any, *, name: str) -> Any:
        return decode(self, b"" if name.endswith("mug-1-front.jpg") else image, name=name)

    with monkeypatch.context() as patch:
        patch.setattr(Embedder, "decode", without_package)
        index = prepare_index(images, gallery.model, cache, progress=Work()).index
    assert embedded(prepare_index(images, gallery.model, cache, progress=Work())) == 0
    assert embedded(prepare_index(images, gallery.model, cache, progress=Work(), retry=True)) == 1
    assert keys(index) == files_below(images)


def test_the_cache_may_be_inside_the_images_folder(images: Path, gallery: Gallery) -> None:
    cache = images / "cache"
    (cache / "gallery-0123456789abcdef").mkdir(parents=True)
    shutil.copy(images / "objects/mug/mug-1-front.jpg", cache / "gallery-0123456789abcdef")
    done = prepare_index(images, gallery.model, cache, progress=Work())
    assert (embedded(done), done.report.skipped) == (13, {"featkit folder": 1})
    assert embedded(prepare_index(images, gallery.model, cache, progress=Work())) == 0


def test_only_the_first_failures_are_listed(images: Path, gallery: Gallery, tmp_path: Path) -> None:
    for number in range(SHOWN_FAILURES + 5):
        (images / f"bad-{number}.jpg").write_text(f"text {number}")
    done = prepare_index(images, gallery.model, tmp_path / "cache", progress=Work())
    assert (embedded(done), len(done.report.failures)) == (13, SHOWN_FAILURES)


def test_folders_without_readable_images_are_refused(gallery: Gallery, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="none"):
        prepare_index(tmp_path / "none", gallery.model, tmp_path / "cache", progress=Work())
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/a.jpg").write_bytes(b"text")
    with pytest.raises(InputError, match=r"No image of .*bad could be embedded: a\.jpg"):
        prepare_index(tmp_path / "bad", gallery.model, tmp_path / "cache", progress=Work())


def test_an_unwritable_cache_is_reported(images: Path, gallery: Gallery, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir(mode=0o500)
    status, said, problems = run_python(PREPARE, images, gallery.model, cache, ordinary_user=True)
    assert (status, problems) == (0, "")
    assert said.startswith(str(cache))
    assert "cannot be written" in said


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


def test_the_cache_follows_xdg_cache_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FEATKIT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "featkit"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "featkit"


@needs_bf16
def test_each_precision_has_its_own_index(
    gallery: Gallery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model_file(tmp_path / "m.onnx")
    plain = prepare_index(gallery.images, model, tmp_path / "cache", progress=Work())
    monkeypatch.setenv("FEATKIT_BACKEND", "openvino")
    monkeypatch.setenv("FEATKIT_PRECISION", "bf16")
    coarse = prepare_index(gallery.images, model, tmp_path / "cache", progress=Work())
    assert coarse.index != plain.index
    assert embedded(coarse) == embedded(plain) > 0
    with Index.open(coarse.index) as index:
        assert index.run == index.embedder.run == OPENVINO_BF16
    again = prepare_index(gallery.images, model, tmp_path / "cache", progress=Work())
    assert (again.index, embedded(again)) == (coarse.index, 0)


def test_each_column_has_its_own_index(images: Path, gallery: Gallery, tmp_path: Path) -> None:
    files = [(images / name).read_bytes() for name in files_below(images)[:3]]
    columns = {"image": pa.array([b"no image", files[0], files[1]]), "photo": pa.array(files)}
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "table" / "t.parquet")
    prepared = {
        column: prepare_index(
            tmp_path / "table",
            gallery.model,
            tmp_path / "cache",
            progress=Work(),
            selection=Selection(column=column),
        )
        for column in (None, "photo")
    }
    assert [len(keys(each.index)) for each in prepared.values()] == [2, 3]
    assert prepared["photo"].report.notes == (
        "Images are read from the column photo; --column can choose image instead.",
    )
