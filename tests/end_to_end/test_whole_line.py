"""The whole line on drawn images: train, export, embed, index, search, evaluate, serve, one
command after the other."""

from __future__ import annotations

import json
import re
import shutil
import signal
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from featkit.cli.app import main
from tests.commands import end, start_featkit
from tests.images import draw_folder

IMAGES = 24
SETTINGS = (
    "model.width=32 model.depth=1 model.num_heads=2 model.mlp_width=64 crops.global_size=32"
    " crops.local_size=16 model.position_grid=4 dino.head.num_prototypes=32"
    " dino.head.hidden_width=32 dino.head.bottleneck_width=16"
).split()


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the five commands have been run: images/, run/, m.onnx, emb/,
    photos.index."""
    root = tmp_path_factory.mktemp("line")
    draw_folder(root / "images", IMAGES)
    small = [word for setting in SETTINGS for word in ("--set", setting)]
    train = [
        "train",
        "dino",
        f"{root}/images",
        "--out",
        f"{root}/run",
        "--steps",
        "4",
        "--batch-size",
        "8",
        "--workers",
        "0",
    ]
    assert main([*train, *small]) == 0
    assert main(["export", f"{root}/run", "--out", f"{root}/m.onnx", "--feature", "cls+mean"]) == 0
    assert (
        main(["embed", f"{root}/images", "--model", f"{root}/m.onnx", "--out", f"{root}/emb"]) == 0
    )
    assert main(["index", f"{root}/emb", "--out", f"{root}/photos.index"]) == 0
    return root


def test_each_command_says_what_comes_next(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["embed", f"{line}/images", "--model", f"{line}/m.onnx", "--out", f"{line}/again"])
        == 0
    )
    assert f"Next: featkit index {line}/again" in capsys.readouterr().out


def test_a_image_finds_itself_first(line: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    for number in (0, 7, 23):
        assert (
            main(
                [
                    "search",
                    f"{line}/photos.index",
                    f"{line}/images/{number:03d}.jpg",
                    "-k",
                    "3",
                    "--json",
                ]
            )
            == 0
        )
        hits = json.loads(capsys.readouterr().out)
        assert hits[0]["key"] == f"{number:03d}.jpg"
        assert hits[0]["score"] == pytest.approx(1, abs=1e-5)
        assert len(hits) == 3


def test_the_ten_lines_of_python_do_the_same(line: Path) -> None:
    import featkit

    vectors = featkit.Embedder(line / "m.onnx").embed(sorted((line / "images").iterdir()))
    assert vectors.shape == (IMAGES, 64)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    with featkit.Index.open(line / "photos.index") as index:
        assert len(index) == IMAGES
        best = [hits[0].key for hits in index.search(vectors=vectors, k=1)]
    assert best == [f"{number:03d}.jpg" for number in range(IMAGES)]


def test_the_model_is_measured_beside_the_baselines(
    line: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert (
        main(["evaluate", "copies", f"{line}/images", "--model", f"{line}/m.onnx", "--json"]) == 0
    )
    report = json.loads(capsys.readouterr().out)
    assert [method["name"] for method in report["methods"]][1:] == [
        "centered pixels",
        "plain pixels",
        "perceptual hash",
    ]
    assert all(
        0 <= method["recall_at_1"] <= method["recall_at_10"] <= 1 for method in report["methods"]
    )


def test_everything_made_on_the_way_can_be_inspected(
    line: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for made in ("run", "m.onnx", "emb", "photos.index"):
        assert main(["inspect", str(line / made)]) == 0
    said = capsys.readouterr().out
    assert "cls+mean" in said
    assert "24" in said


def test_the_index_is_all_that_a_server_needs(line: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere.index"
    shutil.copytree(line / "photos.index", moved)
    with start_featkit("serve", moved, "--port", 0) as server:
        try:
            assert server.stdout is not None
            address = re.search(r"http://127\.0\.0\.1:\d+", server.stdout.readline())
            assert address is not None
            image = (line / "images/005.jpg").read_bytes()
            boundary = "featkit-test"
            head = (
                f'--{boundary}\r\nContent-Disposition: form-data; name="files";'
                ' filename="q.jpg"\r\n\r\n'
            )
            body = head.encode() + image + f"\r\n--{boundary}--\r\n".encode()
            kind = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
            request = urllib.request.Request(f"{address[0]}/v1/search", data=body, headers=kind)
            with urllib.request.urlopen(request) as answer:
                hits = json.load(answer)["images"][0]["hits"]
        finally:
            server.send_signal(signal.SIGINT)
        assert end(server).code == 0
    assert hits[0]["key"] == "005.jpg"
