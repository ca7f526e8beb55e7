"""An embeddings folder is continued only with the work that it was begun with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from featkit.embedder import Embedder
from featkit.embeddings import Embeddings
from featkit.errors import EnvironmentProblem, InputError
from featkit.lock import WriterLock
from featkit.pipeline import EmbedOptions, embed_source
from featkit.sources import open_source
from tests.commands import digests
from tests.featkit.backends.engines import needs_openvino
from tests.featkit.embeddings.runs import COUNT, draw_source, embed
from tests.images import draw_folder, draw_image
from tests.model_files import make_model_file
from tests.sentences import refused


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model file."""
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    """An embedder of that model; its batches hold 32 images."""
    return Embedder(model, threads=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of `draw_source`. Tests must not change it."""
    return draw_source(tmp_path_factory.mktemp("source") / "images")


def test_source_can_be_spelled_differently(
    images: Path, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed(images, embedder, tmp_path)
    monkeypatch.chdir(images.parent)
    for spelling in ("images", "./images/", "images/cats/.."):
        assert embed(Path(spelling), embedder, tmp_path).num_embedded_now == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("copy", "was begun with the source {source}, not {copy}; choose another --out."),
        (
            "added",
            (
                "it had 3 images and has 4, some of them added, removed or renamed. Embed it as"
                " it is now into another"
            ),
        ),
        (
            "renamed",
            (
                "it had 3 images and has 3, some of them added, removed or renamed. Embed it as"
                " it is now into another"
            ),
        ),
    ],
)
def test_other_source_is_refused_with_advice(
    embedder: Embedder, tmp_path: Path, change: str, words: str
) -> None:
    source, copy, out = (
        draw_folder(tmp_path / "a", 3),
        draw_folder(tmp_path / "b", 3),
        tmp_path / "emb",
    )
    embed(source, embedder, out)
    before = digests(out)
    if change == "added":
        draw_image(9).save(source / "new.jpg")
    elif change == "renamed":
        (source / "001.jpg").rename(source / "new.jpg")
    with pytest.raises(InputError) as caught:
        embed(copy if change == "copy" else source, embedder, out)
    assert words.format(source=source, copy=copy) in str(caught.value)
    assert digests(out) == before


def test_folder_is_locked_while_it_is_written(
    images: Path, embedder: Embedder, tmp_path: Path
) -> None:
    holder = WriterLock(tmp_path / ".lock")
    with pytest.raises(EnvironmentProblem, match=r"is being written by process \d+ on "):
        embed(images, embedder, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    holder.release()
    for _ in range(2):
        embed(images, embedder, tmp_path)


@needs_openvino
def test_folder_is_continued_with_the_runtime_of_its_plan(
    images: Path, model: Path, tmp_path: Path
) -> None:
    source = open_source(images)
    begun = Embedder(model, backend="openvino", precision="fp32", threads=1)
    report = embed_source(source, begun, tmp_path / "whole", EmbedOptions(shard_size=8))
    assert report.backend == "openvino CPU fp32"
    whole = digests(tmp_path / "whole")
    embed_source(source, begun, tmp_path / "emb", EmbedOptions(shard_size=8))
    for shard in ("00001", "00002"):
        (tmp_path / "emb" / "shards" / f"{shard}.parquet").unlink()
    left_open = Embedder(model, threads=1)
    assert left_open.backend_name == "onnxruntime CPU"
    report = embed_source(source, left_open, tmp_path / "emb", EmbedOptions(shard_size=8))
    assert (report.backend, report.num_embedded_now) == ("openvino CPU fp32", COUNT - 8)
    assert Embeddings.open(tmp_path / "emb").plan.run == "openvino fp32"
    changed = {name for name, digest in digests(tmp_path / "emb").items() if digest != whole[name]}
    assert changed == set()


@needs_openvino
@pytest.mark.parametrize(
    "asked", [{"backend": "onnxruntime"}, {"backend": "onnxruntime", "precision": "fp32"}]
)
def test_other_runtime_is_refused(
    images: Path, model: Path, tmp_path: Path, asked: dict[str, str]
) -> None:
    source = open_source(images)
    embed_source(
        source, Embedder(model, backend="openvino", precision="fp32", threads=1), tmp_path / "emb"
    )
    before = digests(tmp_path / "emb")
    other = Embedder(model, threads=1, **asked)  # type: ignore[arg-type]
    with refused(
        tmp_path / "emb",
        "was begun with openvino fp32, not onnxruntime fp32; continue with --backend openvino",
    ):
        embed_source(source, other, tmp_path / "emb")
    assert digests(tmp_path / "emb") == before


def test_missing_engine_of_the_plan_names_what_to_install(
    images: Path, model: Path, embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(images)
    embed_source(source, embedder, tmp_path / "emb")
    plan = tmp_path / "emb" / "plan.json"
    plan.write_text(plan.read_text().replace("onnxruntime fp32", "openvino bf16"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with refused(
        "openvino is not installed; run: pip install 'featkit[openvino]'.", error=EnvironmentProblem
    ):
        embed_source(source, Embedder(model, threads=1), tmp_path / "emb")
