"""Names that are not UTF-8, of images, folders, models and pages: each command takes them and
prints them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featkit.paths import map_arrow, open_arrow, text_path
from tests.commands import Said, run_featkit
from tests.featkit.sources.files import image_bytes, write_tar
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file

ODD = os.fsdecode(b"d\xe9\n")
SHOWN = "d\\xe9\\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of an odd name: `p\\xe9` with three images, `m\\xe9.onnx`, `x.tar`, `x.parquet`,
    `saved`, `l.txt`."""
    root = tmp_path_factory.mktemp("odd") / ODD
    images = draw_folder(root / os.fsdecode(b"p\xe9"), 1)
    for seed, name in enumerate((b"caf\xe9.jpg", b"line\nfeed \x1b[1m.jpg")):
        draw_image(seed, height=60, width=80).save(images / os.fsdecode(name))
    made = make_model_file(root / "made.onnx")
    made.rename(root / os.fsdecode(b"m\xe9.onnx"))
    write_tar(root / "x.tar", [(os.fsdecode(b"caf\xe9.png"), image_bytes())])
    table = pa.table({"image": pa.array([image_bytes(1), image_bytes(2)], pa.binary())})
    with open_arrow(root / "x.parquet", "wb") as file:
        pq.write_table(table, file)
    (root / "saved").mkdir()
    (root / "saved" / "state.json").write_text(
        json.dumps({"_data_files": [{"filename": "data.arrow"}]})
    )
    with (
        open_arrow(root / "saved" / "data.arrow", "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    (root / "l.txt").write_bytes(b"p\xe9/caf\xe9.jpg\np\xe9/gone\xe9.jpg\n")
    return root


def run(*arguments: object, code: int = 0) -> Said:
    said = run_featkit(*arguments)
    assert said.code == code, said
    assert "Traceback" not in said.error
    return said


def model(place: Path) -> Path:
    return place / os.fsdecode(b"m\xe9.onnx")


@pytest.mark.parametrize(
    ("source", "items", "failed"),
    [
        (os.fsdecode(b"p\xe9"), 3, 0),
        ("x.tar", 1, 0),
        ("x.parquet", 2, 0),
        ("saved", 2, 0),
        ("l.txt", 2, 1),
    ],
)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_source_of_any_name_is_embedded(
    place: Path, tmp_path: Path, source: str, items: int, failed: int, backend: str
) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    out = tmp_path / ODD / "emb"
    said = run(
        "embed",
        place / source,
        "--model",
        model(place),
        "--out",
        out,
        "--backend",
        backend,
        "--threads",
        1,
        "--json",
    )
    result = json.loads(said.out)
    assert (result["items"], result["failed"], result["out"]) == (items, failed, str(out))
    run("embed", place / source, "--model", model(place), "--out", out, "--quiet")
    assert run("inspect", out, "--json").out


def test_an_index_of_any_name_is_made_searched_and_shown(place: Path, tmp_path: Path) -> None:
    images, folder = place / os.fsdecode(b"p\xe9"), tmp_path / ODD
    run(
        "embed",
        images,
        "--model",
        model(place),
        "--out",
        folder / "emb",
        "--backend",
        "onnxruntime",
        "--quiet",
    )
    run("index", folder / "emb", "--out", folder / "ix")
    query = images / os.fsdecode(b"caf\xe9.jpg")
    said = run("search", folder / "ix", query, "--page", folder / "r.html")
    assert "caf\\xe9.jpg" in said.out
    assert "\x1b" not in said.out.replace(str(query), "")
    page = (folder / "r.html").read_text(encoding="utf-8")
    assert "Most similar to caf\\xe9.jpg" in page
    assert "line\\nfeed \\x1b[1m.jpg" in page
    hits = json.loads(
        run("search", folder / "ix", query, "--json", "--page", folder / "r.html").out
    )
    assert hits[0]["key"] == "caf\\xe9.jpg"
    assert sorted(hit["key"] for hit in hits) == [
        "000.jpg",
        "caf\\xe9.jpg",
        "line\nfeed \x1b[1m.jpg",
    ]


@pytest.mark.parametrize(
    "command",
    ["embed {} --out new", "index {} --out new", "search {} x.jpg", "inspect {}", "bench {}"],
)
def test_what_is_missing_is_named_on_one_line(tmp_path: Path, command: str) -> None:
    missing = tmp_path / ODD / "none"
    said = run(*(str(missing) if word == "{}" else word for word in command.split()), code=2)
    assert f"{SHOWN}/none" in said.error
    assert said.error.count("\n") == 1
    said.error.encode("utf-8")


def test_a_path_that_is_no_text_is_linked_to_one_that_is(tmp_path: Path) -> None:
    for name in ("plain", os.fsdecode(b"\xe9")):
        folder = tmp_path / ODD / name
        folder.mkdir(parents=True)
        (folder / "beside.bin").write_text("weights")
        for file in ("m.onnx", os.fsdecode(b"m\xe9.onnx")):
            (folder / file).write_text(name.encode("utf-8", "replace").decode())
            with text_path(folder / file, companions=lambda: ["beside.bin"]) as path:
                path.encode("utf-8")
                assert Path(path).samefile(folder / file)
                assert Path(path).with_name("beside.bin").read_text() == "weights"
            assert not Path(path).exists()
    with text_path(tmp_path / "plain") as path:
        assert path == str(tmp_path / "plain")


def test_arrow_files_of_any_name_are_written_mapped_and_missed(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xe9.bin")
    with open_arrow(path, "wb") as file:
        file.write(b"data")
    with open_arrow(path) as file, map_arrow(path) as mapped:
        assert file.read() == mapped.read() == path.read_bytes() == b"data"
    with pytest.raises(FileNotFoundError):
        open_arrow(tmp_path / "none")
