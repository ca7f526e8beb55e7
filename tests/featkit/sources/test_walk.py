"""Walking a folder: links, system folders, and folders written by featkit."""

from __future__ import annotations

from pathlib import Path

import pytest

from featkit.sources import open_source
from featkit.sources.selection import EVERYTHING, Selection
from featkit.sources.walk import list_folder
from tests.featkit.sources.files import keys, write_files

SYSTEM = (
    "@eaDir/p.jpg/THUMB.jpg #recycle/x.jpg $RECYCLE.BIN/S-1/x.jpg .Trash-1000/files/x.jpg"
    " lost+found/x.jpg @Recycle/x.jpg @Recently-Snapshot/x.jpg #snapshot/x.jpg @tmp/x.jpg"
    " RECYCLER/x.jpg .Trashes/501/x.jpg .thumbnails/x.jpg __MACOSX/x.jpg"
).split()
SYSTEM += [
    "System Volume Information/x.jpg",
    "My Photos.photoslibrary/a/x.jpg",
    "catalog.lrdata/x.jpg",
]


def test_system_folders_are_passed_over_and_named(tmp_path: Path) -> None:
    source = open_source(write_files(tmp_path, "p.jpg", *SYSTEM, "2023/@eaDir/x.jpg", "2023/q.jpg"))
    assert keys(source) == ["2023/q.jpg", "p.jpg"]
    assert source.skipped["system folder (@eaDir)"] == 2
    assert source.skipped["system folder (.Trash*)"] == 2
    assert sum(source.skipped.values()) == len(SYSTEM) + 1


def test_file_and_its_links_are_one_item(tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", "p.jpg")
    write_files(tmp_path, "outside.jpg")
    (root / "a-link.jpg").symlink_to("p.jpg")
    (root / "z-link.jpg").symlink_to("a-link.jpg")
    (root / "far.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "far-again.jpg").symlink_to("far.jpg")
    source = open_source(root)
    assert keys(source) == ["far-again.jpg", "p.jpg"]
    assert source.skipped == {"link to a file already taken": 3}


def test_links_to_folders_are_counted_or_followed(tmp_path: Path) -> None:
    root = write_files(tmp_path / "root", "a/1.jpg", "z/2.jpg")
    write_files(tmp_path, "outside/3.jpg", "outside/sub/4.jpg")
    (root / "0-same").symlink_to(root / "z")
    (root / "loop").symlink_to(root)
    (root / "above").symlink_to(tmp_path)
    (root / "far").symlink_to(tmp_path / "outside")
    (root / "far-again").symlink_to(tmp_path / "outside")
    (tmp_path / "outside" / "back").symlink_to(root)
    (tmp_path / "outside" / "self").symlink_to(".")
    source = open_source(root)
    assert keys(source) == ["a/1.jpg", "z/2.jpg"]
    assert source.skipped == {"link to a folder": 5}
    source = open_source(root, selection=Selection(follow_links=True))
    assert keys(source) == ["a/1.jpg", "far/3.jpg", "far/sub/4.jpg", "z/2.jpg"]
    assert source.skipped == {"link to a folder above": 1, "link to a folder already read": 5}


@pytest.mark.parametrize(
    "made",
    [
        ("plan.json", "model.onnx", "shards/00000.parquet"),
        ("plan.json", ".lock"),
        ("catalogue.sqlite", "vectors.f32", "writer.lock", "cached.jpg"),
        ("catalogue.sqlite", "vectors-0a.f32", "model.onnx", "cached.jpg"),
        ("config.yaml", "writer.lock", "snapshots/step-4/a.png"),
        ("config.yaml", "metrics.jsonl", "snapshots/step-4/a.png"),
        ("config.yaml", "writer.lock", "generations.json", "generation-0/snapshots/a.png"),
        ("photos.index/catalogue.sqlite", "listing.json", "a.png"),
    ],
)
def test_folders_written_by_featkit_are_passed_over(tmp_path: Path, made: tuple[str, ...]) -> None:
    write_files(tmp_path, "1.jpg", "sub/2.jpg", *(f"sub/own/{name}" for name in made))
    source = open_source(tmp_path)
    assert keys(source) == ["1.jpg", "sub/2.jpg"]
    assert source.skipped == {"featkit folder": 1}


def test_folder_with_the_config_of_another_program_is_read(tmp_path: Path) -> None:
    source = open_source(
        write_files(tmp_path, "a/config.yaml", "a/1.jpg", "b/plan.json", "b/2.jpg")
    )
    assert keys(source) == ["a/1.jpg", "b/2.jpg"]


def test_output_of_the_command_itself_is_passed_over(
    tmp_path: Path,
) -> None:
    root = write_files(tmp_path / "root", "1.jpg", "out/half-written.jpg")
    for own in (root / "out", root / "new", tmp_path / "elsewhere"):
        source = open_source(root, selection=Selection(own=(own,)))
        assert keys(source) == (
            ["1.jpg"] if own.name == "out" else ["1.jpg", "out/half-written.jpg"]
        )


def test_raw_file_is_an_item_unless_its_jpeg_is_next_to_it(tmp_path: Path) -> None:
    root = write_files(
        tmp_path,
        "a/1.CR2",
        "a/1.jpg",
        "a/2.cr2",
        "b/1.dng",
        "b/1.png",
        "b/3.nef",
        "b/3.HIF",
        "raw/1.cr2",
    )
    source = open_source(root)
    assert keys(source) == ["a/1.jpg", "a/2.cr2", "b/1.dng", "b/1.png", "b/3.HIF", "raw/1.cr2"]
    assert source.skipped == {"raw file next to its JPEG": 2}


def test_other_files_are_counted_by_suffix(tmp_path: Path) -> None:
    names = ["a.jpg", "a.XMP", "b.xmp", "c.mp4", "Makefile", "d.12345", "e.what a suffix", "f.jpg~"]
    listing = list_folder(write_files(tmp_path, *names), EVERYTHING)
    assert listing.skipped == {
        ".xmp": 2,
        ".mp4": 1,
        ".jpg~": 1,
        "file without a suffix": 1,
        "file with an unknown suffix": 2,
    }
