"""Any bytes are a model file or refused in one sentence, and so is any manifest, whatever its
fields hold."""

from __future__ import annotations

import copy
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featkit.cli.calling_example import calling_example
from featkit.errors import FeatkitError, InputError
from featkit.modelfile import METADATA_KEY, Manifest, check_weights, count_nodes, read_manifest
from tests.fuzzing import CASES, fuzz
from tests.model_files import make_model_file

BAD_WEIGHTS = [
    {"file": name, "num_bytes": 1, "sha256": ""}
    for name in ("../x", "a\0b", "C:\\x", "\ud800", "x" * 300, ".", "")
]
NUMBERS = [0, -1, 1, 2**63, 10**400, 1.5, 1e308, float("nan"), float("inf")]
TEXTS = ["", "a", "../../etc/passwd", "a\0b", "\ud800", "embedding", "224", "x" * 1000]
NESTED = [[], [[]], {}, {"a": 1}, [None], ["embedding"], [1, 2], [1, 2, 3], ["height"], [[1], [2]]]
HOSTILE: list[Any] = [None, True, False, *NUMBERS, *TEXTS, *NESTED, *BAD_WEIGHTS]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model_file(tmp_path_factory.mktemp("model") / "m.onnx", width=4, size=16, patch=8)


def small(model: Path) -> bytes:
    """The same file with small weights, so that mutations meet what is read."""
    proto = onnx.load(model)
    for weight in proto.graph.initializer:
        weight.raw_data = weight.raw_data[:16]
    data: bytes = proto.SerializeToString()
    return data


@pytest.mark.parametrize("cases", CASES)
def test_any_bytes_are_a_model_file_or_refused(cases: int, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        manifest = read_manifest(path)
        count_nodes(path)
        assert Manifest.from_json(manifest.to_json()) == manifest
        calling_example(path, manifest).encode()

    fuzz(parse, [model.read_bytes(), small(model)], cases=cases)


@pytest.mark.parametrize("cases", CASES)
def test_any_manifest_text_is_read_or_refused(cases: int, model: Path) -> None:
    def parse(data: bytes) -> None:
        manifest = Manifest.from_json(data.decode("utf-8", errors="replace"))
        assert Manifest.from_json(manifest.to_json()) == manifest

    fuzz(parse, [read_manifest(model).to_json().encode()], cases=cases)


def test_any_field_of_any_kind_is_read_or_refused(model: Path, tmp_path: Path) -> None:
    values = json.loads(read_manifest(model).to_json())
    inner = [("geometry", name) for name in (*values["geometry"], "rounding")] + [
        ("parity", "x"),
        ("origin", "x"),
    ]
    places = [(name,) for name in (*values, "surprise")] + inner

    @settings(
        max_examples=2000,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(
            st.tuples(st.sampled_from(places), st.sampled_from(HOSTILE)), min_size=1, max_size=3
        )
    )
    def check(changes: list[tuple[tuple[str, ...], Any]]) -> None:
        changed = json.loads(json.dumps(values))
        for place, value in changes:
            target = changed
            for name in place[:-1]:
                target = (
                    target[name]
                    if isinstance(target, dict) and isinstance(target.get(name), dict)
                    else {}
                )
            target[place[-1]] = copy.deepcopy(value)
        try:
            text = json.dumps(changed)
        except ValueError:  # Python does not write whole numbers of 4,300 digits
            return
        refusal, manifest = "", None
        try:
            manifest = Manifest.from_json(text)
        except InputError as error:
            refusal = str(error)
        refusal.encode()
        assert len(refusal) < 1000
        if manifest is None:
            return
        assert Manifest.from_json(manifest.to_json()) == manifest
        with suppress(FeatkitError):
            check_weights(tmp_path / "m.onnx", manifest)
        calling_example(tmp_path / "m.onnx", manifest).encode()

    check()


@pytest.mark.parametrize("place", [*Manifest.__dataclass_fields__])
def test_each_hostile_value_in_each_field_is_read_or_refused(place: str, model: Path) -> None:
    values = json.loads(read_manifest(model).to_json())
    for value in HOSTILE:
        try:
            manifest = Manifest.from_json(json.dumps({**values, place: value}))
        except InputError:
            continue
        assert Manifest.from_json(manifest.to_json()) == manifest
        hash(manifest.outputs), set(manifest.outputs), set(manifest.proven_equal_to)
        str(manifest.made_of)


def test_huge_metadata_is_skipped_huge_manifests_refused(model: Path, tmp_path: Path) -> None:
    proto = onnx.load(model)
    onnx.helper.set_model_props(
        proto, {"author": "x" * 20_000_000, METADATA_KEY: read_manifest(model).to_json()}
    )
    onnx.save(proto, tmp_path / "m.onnx")
    assert read_manifest(tmp_path / "m.onnx") == read_manifest(model)
    onnx.helper.set_model_props(proto, {METADATA_KEY: "x" * 20_000_000})
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(InputError, match="no `featkit` manifest"):
        read_manifest(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:"
            + b"a" * 64
            + b"\nsize 123\n",
            "git lfs pull",
        ),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "download it again"),
    ],
)
def test_what_a_download_left_instead_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(InputError, match=words):
        read_manifest(tmp_path / "m.onnx")
