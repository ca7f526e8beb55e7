"""The manifest inside a model file: read without onnx as onnx reads it, and one sentence for every
file that has none."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from featkit.modelfile import (
    FORMAT,
    METADATA_KEY,
    ExternalWeights,
    Manifest,
    check_weights,
    copy_model_file,
    count_nodes,
    read_manifest,
)
from tests.model_files import make_model_file
from tests.processes import run_python
from tests.sentences import refused


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model file; not to be changed."""
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx")


def with_manifest(model: Path, path: Path, text: str | None, **more: str) -> Path:
    """The same graph with other metadata, written by onnx."""
    proto = onnx.load(model)
    del proto.metadata_props[:]
    onnx.helper.set_model_props(proto, more if text is None else {**more, METADATA_KEY: text})
    onnx.save(proto, path)
    return path


def manifest_text(model: Path) -> str:
    """Return the metadata of the file according to onnx."""
    return str({entry.key: entry.value for entry in onnx.load(model).metadata_props}[METADATA_KEY])


def test_the_manifest_is_what_onnx_reads(model: Path) -> None:
    values = json.loads(manifest_text(model))
    manifest = read_manifest(model)
    assert json.loads(manifest.to_json()) == values
    assert (manifest.patch, manifest.width, manifest.family, manifest.format) == (
        8,
        16,
        "test",
        FORMAT,
    )
    assert manifest.geometry.to_dict() == values["geometry"]
    assert (manifest.outputs, manifest.proven_equal_to) == (("embedding",), ())


def test_every_field_survives_the_file(model: Path, tmp_path: Path) -> None:
    manifest = dataclasses.replace(
        read_manifest(model),
        family="dünn",
        outputs=("embedding", "patches"),
        layers=(12, 9),
        join="concat",
        whitened="1000 vectors, 90.0% of the variance kept",
        fixed_size=(336, 504),
        quantization={"method": "static", "left_out": ["head"], "min_cosine": 0.99},
        external=ExternalWeights(file="m.weights", num_bytes=3, sha256="c" * 64),
        precision="int8",
        weight_precision="fp16",
        parity={"cosine": 0.9999995, "largest": 1e-7},
        origin={"url": "https://example.org/ü", "sha256": "0" * 64},
        batch_invariant=False,
        proven_equal_to=("a" * 64, "b" * 64),
        notes="one\ntwo\u2028three 猫",
    )
    assert read_manifest(with_manifest(model, tmp_path / "m.onnx", manifest.to_json())) == manifest


def test_the_manifest_is_found_among_other_metadata(model: Path, tmp_path: Path) -> None:
    others = {"featkit2": "no", "author": "x" * 300, "": METADATA_KEY, "a": ""}
    assert read_manifest(
        with_manifest(model, tmp_path / "m.onnx", manifest_text(model), **others)
    ) == read_manifest(model)


def test_fields_that_have_defaults_may_be_left_out(model: Path, tmp_path: Path) -> None:
    values = json.loads(manifest_text(model))
    later = ("layers", "join", "whitened", "fixed_size", "quantization", "external")
    for name in (
        "format",
        *later,
        "outputs",
        "precision",
        "weight_precision",
        "parity",
        "origin",
        "batch_invariant",
        "proven_equal_to",
        "notes",
    ):
        del values[name]
    assert read_manifest(
        with_manifest(model, tmp_path / "m.onnx", json.dumps(values))
    ) == read_manifest(model)


def test_nodes_are_counted_as_onnx_counts_them(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    assert count_nodes(model) == len(proto.graph.node) == 10
    proto.graph.node.append(onnx.helper.make_node("Identity", ["embedding"], ["again"]))
    proto.graph.doc_string = "x" * 1000
    onnx.save(proto, tmp_path / "m.onnx")
    assert count_nodes(tmp_path / "m.onnx") == 11
    onnx.save(onnx.ModelProto(producer_name="nobody"), tmp_path / "none.onnx")
    assert count_nodes(tmp_path / "none.onnx") == 0


@pytest.mark.parametrize(
    "data", [b"", b"\x3a\x05\x0a\x09ab", b"\x3a\x02\x0b\x00", b"To whom it may concern"]
)
def test_nodes_of_what_is_no_graph_are_not_counted(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(data)
    with refused("m.onnx is not an ONNX file with a readable graph"):
        count_nodes(tmp_path / "m.onnx")


def test_reading_needs_neither_onnx_nor_a_session(model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from featkit.modelfile import read_manifest;"
        " read_manifest(Path(sys.argv[1])); print({'onnx', 'onnxruntime', 'torch', 'faiss'} &"
        " set(sys.modules))"
    )
    assert run_python(code, model) == (0, "set()\n", "")


def test_a_foreign_onnx_file_is_refused(model: Path, tmp_path: Path) -> None:
    path = with_manifest(model, tmp_path / "foreign.onnx", None, author="someone")
    with refused(
        f"{path} is not a featkit model file: it has no `featkit` manifest; convert it with"
        " `featkit"
        " export`."
    ):
        read_manifest(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with refused(f"{tmp_path}/m.onnx does not exist; name a model file"):
        read_manifest(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    "content", [b"", b"a note\n" * 50, b"\x00", b"\xff" * 64, b"\x80\x02}q\x00."]
)
def test_what_is_no_onnx_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with refused(f"{tmp_path}/m.onnx is not a featkit model file: it is not an ONNX file ("):
        read_manifest(tmp_path / "m.onnx")


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with refused(f"{tmp_path} is not a featkit model file"):
        read_manifest(tmp_path)


def test_a_model_file_that_was_cut_is_refused(model: Path, tmp_path: Path) -> None:
    whole, cut = model.read_bytes(), tmp_path / "cut.onnx"
    for length in [*range(1, 40), *range(40, len(whole), 1999), len(whole) - 1]:
        cut.write_bytes(whole[:length])
        with refused(cut, "is not a featkit model file"):
            read_manifest(cut)


@settings(max_examples=150, deadline=None, derandomize=True)
@example(content=b"\x72\x09\x0a\x07featkit")
@example(content=b"\x72\x0d\x0a\x07featkit\x12\x02[]")
@given(
    content=st.binary(max_size=60)
    | st.binary(max_size=40).map(lambda rest: b"\x72" + bytes([len(rest)]) + rest)
)
def test_random_bytes_are_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.onnx"
    path.write_bytes(content)
    with refused(path):
        read_manifest(path)


COUNTS = list(itertools.product(("patch", "width", "opset"), ("8", 0, -8, 8.0, True, None, [8])))
TEXTS = list(
    itertools.product(("family", "name", "feature", "license", "fingerprint"), (8, None, ["a"]))
)


def change(**values: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A manifest with other values."""
    return lambda manifest: {**manifest, **values}


def without(name: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """A manifest that lacks a field."""
    return lambda manifest: {key: value for key, value in manifest.items() if key != name}


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            change(format=FORMAT + 1),
            f"has format {FORMAT + 1}, newer than the {FORMAT} read here; update featkit.",
        ),
        (change(format=FORMAT + 1, color="new"), "newer than"),
        (change(format="1"), "is not one of featkit's"),
        (change(color="blue"), "color"),
        (without("patch"), "patch"),
        (without("geometry"), "geometry"),
        (change(geometry=None), "The manifest's geometry is None; it has to be an object."),
        (change(geometry={}), "The geometry lacks ["),
        (change(outputs=3), "is not one of featkit's"),
        *(
            (
                change(**{name: bad}),
                f"The manifest's {name} is {bad!r}; it has to be a whole number above 0.",
            )
            for name, bad in COUNTS
        ),
        *(
            (change(**{name: bad}), f"The manifest's {name} is {bad!r}; it has to be text.")
            for name, bad in TEXTS
        ),
        (
            change(batch_invariant="no"),
            "The manifest's batch_invariant is 'no'; it has to be true or false.",
        ),
        (
            change(batch_invariant=1),
            "The manifest's batch_invariant is 1; it has to be true or false.",
        ),
        (lambda _manifest: [], "is not one of featkit's"),
        (lambda _manifest: "text", "is not one of featkit's"),
        (lambda _manifest: None, "is not one of featkit's"),
    ],
)
def test_a_manifest_of_another_kind_is_refused(
    model: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    path = with_manifest(
        model, tmp_path / "m.onnx", json.dumps(edit(json.loads(manifest_text(model))))
    )
    with refused(f"{path} is not a model file that can be used: ", words):
        read_manifest(path)


@pytest.mark.parametrize("text", ["", "{", "no json", "[" * 100_000])
def test_a_manifest_that_is_no_json_is_refused(model: Path, tmp_path: Path, text: str) -> None:
    with refused(tmp_path / "m.onnx", "the manifest is not JSON ("):
        read_manifest(with_manifest(model, tmp_path / "m.onnx", text))


def test_a_file_of_the_first_format_is_read(model: Path, tmp_path: Path) -> None:
    values = json.loads(manifest_text(model))
    for name in ("layers", "join", "whitened", "fixed_size", "quantization", "external"):
        del values[name]
    values["format"] = 1
    found = read_manifest(with_manifest(model, tmp_path / "m.onnx", json.dumps(values)))
    assert found == dataclasses.replace(read_manifest(model), format=1)
    assert (found.layers, found.fixed_size, found.external) == ((), None, None)


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        *(
            (change(fixed_size=bad), "The manifest's fixed_size is ")
            for bad in ([224], [224, 0], [224, -1], [224, "x"], [1, 2, 3])
        ),
        (change(fixed_size=224), "is not one of featkit's"),
        (change(outputs=["patches"]), "it has to be a list with embedding in it."),
        (change(join=3), "The manifest's join is 3; it has to be text."),
        (change(whitened=None), "The manifest's whitened is None; it has to be text."),
        (change(external={"file": "w"}), "is not one of featkit's"),
        (change(external=3), "is not one of featkit's"),
        *(
            (
                change(external={"file": bad, "num_bytes": 3, "sha256": ""}),
                "it has to be a bare file name.",
            )
            for bad in ("", "../w", "/etc/passwd", "a/b", "..", ".", None, 3)
        ),
        *(
            (
                change(external={"file": "w", "num_bytes": bad, "sha256": ""}),
                "it has to be a whole number above 0.",
            )
            for bad in (0, -3, 3.0, True, "3")
        ),
        (change(external={"file": "w", "num_bytes": 3, "sha256": 3}), "it has to be text."),
    ],
)
def test_what_later_formats_added_is_checked_as_well(
    model: Path, tmp_path: Path, edit: Callable[[dict[str, Any]], object], words: str
) -> None:
    path = with_manifest(
        model, tmp_path / "m.onnx", json.dumps(edit(json.loads(manifest_text(model))))
    )
    with refused(f"{path} is not a model file that can be used: ", words):
        read_manifest(path)


def test_made_of_covers_what_changes_vectors_only(
    model: Path,
) -> None:
    manifest = dataclasses.replace(read_manifest(model), origin={"sha256": "abc"}, fingerprint="f")
    assert manifest.made_of == "test abc mean"
    assert dataclasses.replace(manifest, origin={}).made_of == "test f mean"
    joined = dataclasses.replace(manifest, layers=(9, 12), join="mean")
    assert joined.made_of == "test abc mean of blocks 9, 12 (mean)"
    others = [
        {"layers": (9,)},
        {"feature": "cls"},
        {"family": "dino"},
        {"join": "concat"},
        {"origin": {"sha256": "abd"}},  # quoted
    ]
    others.append({"origin": {"sha256": "abc", "exit": "1 of 3"}})
    assert (
        len({joined.made_of, *(dataclasses.replace(joined, **other).made_of for other in others)})  # type: ignore[arg-type]
        == 7
    )
    branches = [
        dataclasses.replace(manifest, origin={**manifest.origin, "branch": name})
        for name in ("teacher", "student")
    ]
    assert len({manifest.made_of, *(branch.made_of for branch in branches)}) == 3
    alike = dataclasses.replace(
        manifest, whitened="by some", precision="int8", name="other", fixed_size=(8, 8)
    )
    assert alike.made_of == manifest.made_of


def with_weights(model: Path, folder: Path) -> tuple[Path, ExternalWeights]:
    """A model file with external weights, and these weights."""
    folder.mkdir()
    weights = folder / "0123.weights"
    weights.write_bytes(b"numbers")
    external = ExternalWeights(
        file=weights.name, num_bytes=7, sha256=hashlib.sha256(b"numbers").hexdigest()
    )
    manifest = dataclasses.replace(read_manifest(model), external=external)
    return with_manifest(model, folder / "m.onnx", manifest.to_json()), external


def test_a_copy_takes_weights_along_under_their_own_name(model: Path, tmp_path: Path) -> None:
    path, external = with_weights(model, tmp_path / "a")
    copy_model_file(path, tmp_path / "b" / "c" / "other.onnx")
    assert sorted(file.name for file in (tmp_path / "b" / "c").iterdir()) == [
        external.file,
        "other.onnx",
    ]
    assert (tmp_path / "b" / "c" / external.file).read_bytes() == b"numbers"
    assert (tmp_path / "b" / "c" / "other.onnx").read_bytes() == path.read_bytes()
    copy_model_file(model, tmp_path / "d" / "m.onnx")
    assert [file.name for file in (tmp_path / "d").iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            None,
            "0123.weights, which holds the weights of m.onnx, is missing; copy both files",
        ),
        (b"number", "0123.weights has 6 bytes, but the weights of m.onnx have 7"),
        (b"numberz", "0123.weights is damaged: it is not what m.onnx was written with"),
    ],
)
def test_wrong_weights_are_refused_and_not_copied(
    model: Path, tmp_path: Path, content: bytes | None, words: str
) -> None:
    path, external = with_weights(model, tmp_path / "a")
    weights = path.parent / external.file
    weights.unlink()
    if content is not None:
        weights.write_bytes(content)
    with refused(words):
        check_weights(path, read_manifest(path), digest=True)
    with refused(words):
        copy_model_file(path, tmp_path / "b" / "m.onnx")
    assert not (tmp_path / "b").exists()
    if content == b"numberz":  # its sum is not taken where that would take long
        check_weights(path, read_manifest(path))


def test_a_manifest_comes_back_from_its_own_text(model: Path) -> None:
    manifest = read_manifest(model)
    assert Manifest.from_json(manifest.to_json()) == manifest
