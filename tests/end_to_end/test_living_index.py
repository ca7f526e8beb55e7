"""The life of an index, by its commands alone: synced, killed, resumed, extended, moved, pruned,
compacted, filtered, de-duplicated, damaged and repaired.

Of a few drawn images, and slowly of all photographs, and of all images that there are for tests: in
folders, tar archives and Parquet files.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from featkit.index import Index
from featkit.index.approximate.generation import FOLDER
from featkit_demo.gallery import draw_gallery
from tests.commands import Said, run_featkit, start_featkit
from tests.data import needs_shared_data, shared_data
from tests.images import draw_folder

FLOAT_BYTES = 4
SLOW = (pytest.mark.slow, pytest.mark.timeout(3600), needs_shared_data)


def succeed(*words: object) -> Said:
    said = run_featkit(*words)
    assert said.code == 0, said.error
    return said


def facts(*words: object) -> Any:
    return json.loads(succeed(*words, "--json").out)


def vectors_by_key(index: Path) -> dict[str, np.ndarray]:
    out = index.parent / "vectors.parquet"
    succeed("export-vectors", index, out, "--quiet")
    table = pq.read_table(out, columns=["key", "embedding"])
    vectors = table["embedding"].combine_chunks().flatten().to_numpy()
    return dict(zip(table["key"].to_pylist(), vectors.reshape(table.num_rows, -1), strict=True))


def start_and_kill(photos: Path, index: Path) -> None:
    """Start a sync, and kill it when the index has its first images."""
    process = start_featkit("sync", photos, index, "--quiet")
    started = time.monotonic()
    vectors = index / "vectors.f32"
    while not (vectors.exists() and vectors.stat().st_size) and process.poll() is None:
        assert time.monotonic() < started + 100
        time.sleep(0.01)
    process.kill()
    process.communicate()


def damage_vector(index: Path, key: str, *, num_reclaimed: int) -> None:
    """Overwrite a part of a vector, of an item that was added after rows were reclaimed."""
    with Index.open(index) as opened:
        row_id, width = opened.item_by_key(key).id, opened.width
    (vectors,) = index.glob("vectors-*.f32")
    with vectors.open("r+b") as file:
        file.seek((row_id - num_reclaimed) * width * FLOAT_BYTES)
        file.write(b"\0" * 16)


def live(photos: Path, room: Path) -> None:
    """Lead an index over a folder of photographs through its life.

    photos: has subfolders; it is changed. room: an empty folder.
    """
    index = room / "photos.index"
    num_images = facts("plan", photos, "--sample", "16", "--out", index)["num_images"]

    start_and_kill(photos, index)
    report = facts("sync", photos, index)
    assert (report["indexed"], report["failed"]) == (num_images, 0)
    assert facts("sync", photos, index)["new"] == 0

    draw_folder(photos / "new", 5)
    report = facts("sync", photos, index)
    assert (report["new"], report["indexed"]) == (5, num_images + 5)

    before = vectors_by_key(index)
    (photos / "new").rename(photos / "moved")
    report = facts("sync", photos, index)
    assert (report["moved"], report["new"], report["removed"]) == (5, 0, 0)
    after = vectors_by_key(index)
    for key in after.keys() - before.keys():
        np.testing.assert_array_equal(after[key], before[key.replace("moved/", "new/")])

    gone = sorted((photos / "moved").iterdir())[:2]
    for path in gone:
        path.unlink()
    report = facts("sync", photos, index)
    assert (report["removed"], report["indexed"]) == (2, num_images + 3)

    query = sorted((photos / "moved").iterdir())[0]
    exact = facts("search", index, query)
    facts("compact", index, "--allow-low-recall")
    assert facts("inspect", index)["search"].startswith("a graph over 4-bit codes")
    by_codes = facts("search", index, query)
    assert by_codes[0]["key"] == exact[0]["key"]
    num_again = len({hit["key"] for hit in by_codes} & {hit["key"] for hit in exact})
    assert num_again >= 0.8 * len(exact)

    found = facts("search", index, query, "--where", "folder = 'moved'", "-k", "50")
    assert sorted(hit["key"] for hit in found) == sorted(
        f"moved/{path.name}" for path in (photos / "moved").iterdir()
    )

    original = next(path for path in sorted(photos.rglob("*.jp*g")) if path.parent.name != "moved")
    (photos / "copies").mkdir()
    shutil.copyfile(original, photos / "copies" / "same.jpg")
    with Image.open(original) as image:
        half = image.convert("RGB").resize((image.width // 2, image.height // 2))
    half.save(photos / "copies" / "half.jpg", quality=70)
    report = facts("sync", photos, index)
    assert (report["copies"], report["new"]) == (1, 1)
    assert facts("duplicates", index, "--level", "same")["groups"]
    groups = facts("duplicates", index, "--where", "width > 32")["groups"]  # without the smallest
    key = original.relative_to(photos).as_posix()
    (group,) = [each for each in groups if key in json.dumps(each)]
    assert "copies/same.jpg" in json.dumps(group)
    assert "copies/half.jpg" in json.dumps(group)

    before = vectors_by_key(index)
    assert facts("compact", index, "--reclaim")["reclaimed_vectors"] == len(gone)
    after = vectors_by_key(index)
    assert after.keys() == before.keys()
    for key, vector in after.items():
        np.testing.assert_array_equal(vector, before[key])

    damage_vector(index, "copies/half.jpg", num_reclaimed=len(gone))
    assert run_featkit("check", index).code == 1
    assert len(facts("repair", index, "--from", photos)["done"]) == 1
    restored = vectors_by_key(index)["copies/half.jpg"]
    np.testing.assert_allclose(restored, before["copies/half.jpg"], atol=1e-5)

    damage_vector(index, "copies/half.jpg", num_reclaimed=len(gone))
    (codes,) = (index / FOLDER).glob("*.faiss")
    codes.write_bytes(codes.read_bytes()[:-1])
    assert run_featkit("check", index).code == 1
    succeed("repair", index)
    assert facts("sync", photos, index)["new"] == 1
    succeed("check", index)

    fresh = room / "fresh.index"
    succeed("sync", photos, fresh, "--quiet")
    expected, kept = vectors_by_key(fresh), vectors_by_key(index)
    assert kept.keys() == expected.keys()
    for key, vector in kept.items():
        assert float(vector @ expected[key]) > 1 - 1e-5


def draw(photos: Path) -> None:
    """Draw a few images."""
    draw_gallery(photos, kinds=("mug", "fish", "tiles", "lake"), num_instances=2)


def copy_photographs(photos: Path) -> None:
    """Copy the photographs, in folders of 100."""
    data = shared_data()
    assert data is not None
    for number, path in enumerate(sorted((data / "photos").iterdir())):
        folder = photos / f"{number // 100}"
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.name)


def copy_everything(photos: Path) -> None:
    """Copy all images, in whatever they are."""
    data = shared_data()
    assert data is not None
    shutil.copytree(data, photos)


@pytest.mark.parametrize(
    "fill",
    [
        draw,
        pytest.param(copy_photographs, marks=SLOW),
        pytest.param(copy_everything, marks=SLOW),
    ],
)
def test_an_index_lives_with_its_folder(fill: Callable[[Path], None], tmp_path: Path) -> None:
    fill(tmp_path / "photos")
    live(tmp_path / "photos", tmp_path)
