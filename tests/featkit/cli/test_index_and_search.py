"""The commands `featkit index` and `featkit search`, from images to a table and a page."""

from __future__ import annotations

import json
import re
import shutil
import webbrowser
from pathlib import Path

import pytest

from featkit.cli.app import main
from featkit.embedder import Embedder
from featkit.index import Index
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file

COUNT = 6
SCRIPT = "<script>alert('x')</script>&\"[red].jpg"


@pytest.fixture(scope="session")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `images` and their embeddings `emb`."""
    folder = tmp_path_factory.mktemp("embedded")
    draw_folder(folder / "images", COUNT)
    model = make_model_file(folder / "m.onnx")
    arguments = ["embed", folder / "images", "--model", model, "--out", folder / "emb", "--quiet"]
    assert main([str(argument) for argument in arguments]) == 0
    return folder


@pytest.fixture
def index(embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """The embeddings as an index, made by the command."""
    assert (
        main(["index", str(embedded / "emb"), "--out", str(tmp_path / "photos.index"), "--quiet"])
        == 0
    )
    capsys.readouterr()
    return tmp_path / "photos.index"


def test_index_says_what_it_added_and_what_comes_next(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["index", str(embedded / "emb"), "--out", str(tmp_path / "i")]
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"6 images added; {tmp_path}/i holds 6 images.",
        f"Next: featkit search {tmp_path}/i query.jpg, or featkit demo {tmp_path}/i",
    ]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "out": f"{tmp_path}/i",
        "items": 6,
        "added": 0,
        "replaced": 0,
        "unchanged": 6,
        "without_embedding": 0,
        "kept": 0,
        "missing_shards": 0,
    }


def test_index_counts_one_image_and_quotes_what_is_typed_next(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (draw_folder(tmp_path / "p", 2) / "001.jpg").write_bytes(b"no image")
    model, out = make_model_file(tmp_path / "m.onnx"), tmp_path / "my photos"
    assert (
        main(["embed", str(tmp_path / "p"), "--model", str(model), "--out", str(out), "--quiet"])
        == 0
    )
    assert (
        capsys.readouterr().out.splitlines()[-1]
        == f"Next: featkit index '{out}' --out photos.index"
    )
    for words in (
        "1 image added, 1 without an embedding",
        "0 images added, 1 unchanged, 1 without an embedding",
    ):
        assert main(["index", str(out), "--out", str(tmp_path / "i x")]) == 0
        assert capsys.readouterr().out.splitlines() == [
            f"{words}; {tmp_path}/i x holds 1 image.",
            f"Next: featkit search '{tmp_path}/i x' query.jpg, or featkit demo '{tmp_path}/i x'",
        ]


def test_index_reports_kept_images_that_became_unreadable(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = Path(shutil.copytree(embedded / "images", tmp_path / "images"))
    emb, index = tmp_path / "emb", tmp_path / "i"
    embed = [
        "embed",
        str(images),
        "--model",
        str(embedded / "m.onnx"),
        "--out",
        str(emb),
        "--quiet",
    ]
    assert main(embed) == main(["index", str(emb), "--out", str(index)]) == 0
    (images / "003.jpg").write_text("no image any more")
    assert main(embed) == 0
    capsys.readouterr()
    assert main(["index", str(emb), "--out", str(index)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == [
        f"0 images added, 5 unchanged, 1 without an embedding; {index} holds 6 images.",
        "Kept 1 image whose file can no longer be read; `featkit remove` takes them out of the"
        " index.",
    ]


def test_index_says_when_the_embeddings_are_not_finished(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    emb = tmp_path / "emb"
    assert (
        main(
            [
                "embed",
                str(embedded / "images"),
                "--model",
                str(embedded / "m.onnx"),
                "--out",
                str(emb),
                "--shard-size",
                "4",
            ]
        )
        == 0
    )
    (emb / "shards" / "00000.parquet").unlink()
    assert main(["index", str(emb), "--out", str(tmp_path / "i")]) == 0
    said = capsys.readouterr()
    assert "1 of 2 shards are missing. Finish it with `featkit embed`" in said.err
    assert "2 images added" in said.out


def test_index_of_another_model_ends_with_2_and_one_sentence(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Index.create(tmp_path / "i", model=make_model_file(tmp_path / "other.onnx", seed=1)).close()
    assert main(["index", str(embedded / "emb"), "--out", str(tmp_path / "i"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "was embedded by test-0" in error
    assert "has vectors of test-1" in error


def test_search_of_an_empty_index_says_what_to_do(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Index.create(tmp_path / "i", model=embedded / "m.onnx").close()
    assert (
        main(["search", str(tmp_path / "i"), str(embedded / "images" / "004.jpg"), "--json"]) == 2
    )
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"featkit: {tmp_path}/i is empty; add images with `featkit embed")


def test_search_prints_the_nearest_first(
    index: Path, embedded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", str(index), str(embedded / "images" / "004.jpg"), "-k", "3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"Most similar to {embedded}/images/004.jpg"
    assert lines[1].split() == ["score", "image", "size"]
    assert lines[2].split() == ["1", "1.0000", "004.jpg", "80×60"]
    assert len(lines) == 2 + 3


def test_search_as_json_equals_the_library(
    index: Path, embedded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = embedded / "images" / "002.jpg"
    assert main(["search", str(index), str(query), "--k", "2", "--json"]) == 0
    with Index.open(index) as opened:
        expected = [vars(hit) for hit in opened.search(query, k=2)]
    assert json.loads(capsys.readouterr().out) == expected


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no.index", "q.jpg"], "no.index does not exist"),
        (["photos.index", "missing.jpg"], "missing.jpg does not exist"),
        (["photos.index", "text.jpg"], "text.jpg is not an image"),
        (["photos.index", "q.jpg", "-k", "0"], "k is 0; it must be at least 1"),
    ],
)
def test_impossible_search_ends_with_2_and_one_sentence(
    index: Path,
    tmp_path: Path,
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert index.parent == tmp_path
    (tmp_path / "text.jpg").write_text("text")
    draw_image(0).save(tmp_path / "q.jpg")
    monkeypatch.chdir(tmp_path)
    assert main(["search", *arguments]) == 2
    said = capsys.readouterr()
    assert words in said.err
    assert (said.out, said.err.count("\n")) == ("", 1)


def test_the_page_holds_its_images_and_nothing_from_elsewhere(
    index: Path,
    embedded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    opened: list[str] = []

    def note(address: str) -> bool:
        opened.append(address)
        return True

    monkeypatch.setattr(webbrowser, "open", note)
    page = tmp_path / "page.html"
    query = str(embedded / "images" / "001.jpg")
    assert main(["search", str(index), query, "-k", "4", "--page", str(page)]) == 0
    assert opened == []
    assert f"Page: {page}" in capsys.readouterr().out
    assert main(["search", str(index), query, "-k", "4", "--page", str(page), "--open"]) == 0
    assert opened == [page.as_uri()]
    text = page.read_text()
    assert text.count('src="data:image/jpeg;base64,') == 1 + 4
    assert not re.search(r"(?:src|href|url\()\W*(?:https?:|//|/)", text)
    assert "prefers-color-scheme: dark" in text
    assert text.index("001.jpg</div>") < text.index("</li>")


def test_open_without_page_writes_to_a_private_folder(
    index: Path,
    embedded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(webbrowser, "open", lambda _address: False)
    assert main(["search", str(index), str(embedded / "images" / "001.jpg"), "--open"]) == 0
    (page,) = tmp_path.glob("featkit-search-*/results.html")
    assert page.parent.stat().st_mode & 0o777 == 0o700
    assert f"no browser was found; open {page} yourself" in capsys.readouterr().err


def test_image_names_are_escaped_on_the_page_and_in_tables(
    embedded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = tmp_path / "q<b>.jpg"
    draw_image(7).save(query)
    model = embedded / "m.onnx"
    with Index.create(tmp_path / "i", model=model) as index:
        vectors = Embedder(model).embed([query, query])
        index.add([SCRIPT, "\x1b[31mred"], vectors, metadata=[{"label": "<i>cat</i>"}, {}])
    assert (
        main(["search", str(tmp_path / "i"), str(query), "--page", str(tmp_path / "page.html")])
        == 0
    )
    out = capsys.readouterr().out
    assert "[red].jpg" in out
    assert "label=<i>cat</i>" in out
    assert "\x1b" not in out
    text = (tmp_path / "page.html").read_text()
    assert "<script" not in text
    assert "<i>cat" not in text
    assert "q<b>" not in text
    assert "&lt;i&gt;cat&lt;/i&gt;" in text


def test_the_result_is_json_whatever_numbers_the_metadata_has(
    index: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(constant: str) -> None:
        raise AssertionError(constant)

    image = draw_image(3)
    with Index.open(index, writable=True) as opened:
        opened.add(
            ["odd"],
            opened.embedder.embed(image),
            metadata=[{"a": float("nan"), "b": float("-inf"), "c": True}],
        )
    image.save(index.parent / "query.png")
    assert main(["search", str(index), str(index.parent / "query.png"), "-k", "2", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out, parse_constant=fail)
    assert {"a": "NaN", "b": "-Infinity", "c": True} in [hit["metadata"] for hit in hits]
