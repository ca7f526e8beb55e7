"""The command `featkit inspect`: the facts that it prints for each kind of file and folder."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from featkit.index import Index
from featkit.modelfile import read_manifest
from featkit_export.seal import seal
from tests.commands import is_one_sentence, run_featkit


@pytest.fixture
def made(tmp_path: Path, model: Path, images: Path) -> Path:
    """A folder with `m.onnx`, `emb` (three shards), `photos.index` and `run`."""
    shutil.copyfile(model, tmp_path / "m.onnx")
    assert (
        run_featkit(
            "embed", images, "--model", model, "--out", tmp_path / "emb", "--shard-size", 2
        ).code
        == 0
    )
    assert run_featkit("index", tmp_path / "emb", "--out", tmp_path / "photos.index").code == 0
    for name in ("checkpoints/step-00000001", "checkpoints/step-00000002"):
        (tmp_path / "run" / name).mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "run" / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 5.0, "lr": 0.1}\n{"step": 2, "copy_recall": 0.5}\n{"step": 2, "loss":'
        " 4.5}\n"
    )
    return tmp_path


def facts(path: Path) -> dict[str, Any]:
    """Return the JSON that inspect prints for a path."""
    said = run_featkit("inspect", path, "--json")
    assert (said.code, said.error) == (0, "")
    found: dict[str, Any] = json.loads(said.out)
    assert found["path"] == str(path)
    return found


def test_a_model_file_shows_its_manifest(made: Path) -> None:
    found, manifest = facts(made / "m.onnx"), read_manifest(made / "m.onnx")
    assert found["kind"] == "model file"
    assert found["bytes"] == (made / "m.onnx").stat().st_size
    assert (found["name"], found["width"], found["fingerprint"]) == (
        "test-0",
        16,
        manifest.fingerprint,
    )
    assert found["geometry"] == manifest.geometry.to_dict() | {
        name: list(getattr(manifest.geometry, name)) for name in ("mean", "std")
    }


def test_a_model_file_shows_how_its_weights_are_stored(made: Path) -> None:
    found = facts(made / "m.onnx")
    assert (found["precision"], found["weight_precision"]) == ("fp32", "fp32")
    manifest = dataclasses.replace(read_manifest(made / "m.onnx"), weight_precision="fp16")
    seal(onnx.load(made / "m.onnx"), manifest, made / "h.onnx")
    found = facts(made / "h.onnx")
    assert (found["precision"], found["weight_precision"]) == ("fp32", "fp16")


def test_a_model_file_shows_what_it_takes_and_how_large_it_is(made: Path) -> None:
    found = facts(made / "m.onnx")
    assert found["sizes"] == "any multiple of 8, 32×32 natively"
    assert found["nodes"] == len(onnx.load(made / "m.onnx").graph.node)
    assert (found["layers"], found["quantization"], found["external"], found["license"]) == (
        [],
        {},
        None,
        "CC0-1.0",
    )


def test_inspect_shows_fixed_size_layers_and_external_weights(made: Path) -> None:
    model, path = onnx.load(made / "m.onnx"), made / "fixed.onnx"
    onnx.save(
        model,
        made / "graph.onnx",
        save_as_external_data=True,
        location="weights",
        size_threshold=1024,
    )
    manifest = dataclasses.replace(
        read_manifest(made / "m.onnx"),
        fixed_size=(32, 32),
        layers=(3, 4),
        join="concat",
        quantization={"cosine": 0.99, "left": ["Conv"]},
        parity={"max_abs": 1e-6},
    )
    sealed = seal(
        onnx.load(made / "graph.onnx", load_external_data=False), manifest, path, folder=made
    )
    found, said = facts(path), run_featkit("inspect", path)
    assert sealed.external is not None
    assert found["sizes"] == "32×32 only"
    assert found["external"]["file"] == sealed.external.file
    assert found["external"]["num_bytes"] > found["bytes"] == path.stat().st_size
    text = "".join(said.out.split())
    for words in (
        "layers3,4",
        "sizes32×32only",
        "cosine:0.99",
        "max_abs:1e-06",
        "licenseCC0-1.0",
        sealed.external.file,
    ):
        assert words in text
    assert f"# needs {sealed.external.file!r} next to it" in said.out


def test_an_embeddings_folder_shows_its_plan_and_what_is_missing(made: Path, images: Path) -> None:
    found = facts(made / "emb")
    assert (found["kind"], found["source"], found["num_items"]) == (
        "embeddings folder",
        str(images),
        6,
    )
    assert (found["shard_size"], found["shards"], found["missing_shards"]) == (2, 3, 0)
    (made / "emb" / "shards" / "00001.parquet").unlink()
    assert facts(made / "emb")["missing_shards"] == 1


def test_an_index_shows_its_items_and_its_model(made: Path) -> None:
    with Index.open(made / "photos.index", writable=True) as index:
        index.remove(["000.jpg"])
    found = facts(made / "photos.index")
    assert (found["kind"], found["items"], found["vector_width"], found["model"]) == (
        "index",
        5,
        16,
        "test-0",
    )
    assert found["fingerprint"] == read_manifest(made / "m.onnx").fingerprint


def test_a_run_folder_shows_how_far_it_came(made: Path) -> None:
    found = facts(made / "run")
    assert found == {
        "kind": "run folder",
        "path": str(made / "run"),
        "checkpoints": 2,
        "last_step": 2,
        "last_loss": 4.5,
        "last_copy_recall": 0.5,
        "backbone": False,
    }
    (made / "run" / "backbone.safetensors").touch()
    assert facts(made / "run")["backbone"] is True


def test_run_with_a_partial_last_line_shows_the_one_before(made: Path) -> None:
    with (made / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert facts(made / "run")["last_step"] == 2


@pytest.mark.parametrize("name", ["m.onnx", "emb", "photos.index", "run"])
def test_the_table_shows_every_fact_whole(
    made: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = run_featkit("inspect", made / name)
    expected = facts(made / name)
    lines = said.out.splitlines()
    assert lines[0] == f"{made / name}: {expected['kind']}"
    text = "".join(said.out.split())  # a long value is folded, never cut
    for fact, value in expected.items():
        if fact not in ("kind", "path", "example"):
            assert "".join(f"{fact}{shown(value)}".split()) in text
    assert "�" not in said.out


def shown(value: object) -> str:
    """A fact as people read it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{name}: {part}" for name, part in value.items()) or "–"
    if value is None or value == "":
        return "–"
    return ", ".join(map(str, value)) or "–" if isinstance(value, list) else str(value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing", "missing does not exist"),
        ("empty", "empty is not a run folder, embeddings folder or index of featkit"),
        ("nothing.onnx", "nothing.onnx is not a featkit model file"),
        ("text.txt", "text.txt is not a featkit model file"),
        (
            "newer",
            (
                "newer/plan.json cannot be used: it has format 9, newer than the 3 read here;"
                " update featkit"
            ),
        ),
        ("torn", "torn/plan.json cannot be used: it is damaged"),
        ("hollow", "hollow/catalogue.sqlite"),
    ],
)
def test_what_featkit_did_not_write_ends_with_2_and_one_sentence(
    tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "nothing.onnx").touch()
    (tmp_path / "text.txt").write_text("To whom it may concern")
    for folder in ("empty", "newer", "torn", "hollow"):
        (tmp_path / folder).mkdir()
    (tmp_path / "newer" / "plan.json").write_text('{"format": 9}')
    (tmp_path / "torn" / "plan.json").write_text('{"format": 1, "sou')
    (tmp_path / "hollow" / "catalogue.sqlite").write_text("no database " * 1000)
    said = run_featkit("inspect", tmp_path / name)
    assert said.code == 2
    assert is_one_sentence(said)
    assert words in said.error


def test_a_file_of_api_keys_shows_their_names_only(tmp_path: Path) -> None:
    file = tmp_path / "featkit-keys.json"
    secret = run_featkit("keys", "create", "web", "--keys", file).out.strip().rsplit("_", 1)[1]
    found = facts(file)
    assert (found["kind"], found["format"]) == ("file of API keys", 1)
    assert (found["keys"], found["expired"]) == (["web"], [])
    stored = json.loads(file.read_text("utf-8"))["keys"][0]
    assert not any(text in json.dumps(found) for text in (secret, stored["hash"], stored["salt"]))
    file.write_text("{}", encoding="utf-8")
    assert is_one_sentence(run_featkit("inspect", file))
