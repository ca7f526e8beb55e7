"""Promises of ONNX files from the hub: the files fetched, the message if that fails, and their
license."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
import huggingface_hub.constants
import pytest
from huggingface_hub.utils._paths import filter_repo_objects

from featkit.errors import EnvironmentProblem
from featkit_export.fetch import FILES, fetch_onnx, license_of
from tests.sentences import refused

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.mark.usefixtures("offline")
def test_unreachable_hub_names_the_files_to_fetch() -> None:
    place = "https://huggingface.co/onnx-community/dinov2-small"
    with refused(
        place,
        f"{place}/tree/main",
        "featkit export FOLDER --out m.onnx",
        *FILES,
        error=EnvironmentProblem,
    ):
        fetch_onnx("onnx-community/dinov2-small", quiet=True)


def test_what_a_cache_holds_is_used_without_a_network(offline: Path) -> None:
    place = offline / "models--onnx-community--dinov2-small"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text(COMMIT)
    folder = place / "snapshots" / COMMIT
    (folder / "onnx").mkdir(parents=True)
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    assert fetch_onnx("onnx-community/dinov2-small", quiet=True).resolve() == folder.resolve()


def test_only_the_full_file_and_what_describes_it_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[tuple[str, list[str]]] = []

    def snapshot_download(repository: str, *, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert fetch_onnx("a/b", quiet=True) == tmp_path
    (given,) = asked
    assert given == ("a/b", list(FILES))
    published = [
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "onnx/model_int8.onnx",
        "onnx/model_fp16.onnx",
        "config.json",
    ]
    published += ["preprocessor_config.json", "README.md", "model.safetensors"]
    kept = list(filter_repo_objects(published, allow_patterns=given[1]))
    assert kept == [
        "onnx/model.onnx",
        "onnx/model.onnx_data",
        "config.json",
        "preprocessor_config.json",
        "README.md",
    ]


@pytest.mark.parametrize(
    ("card", "license"),
    [
        ("---\nlicense: apache-2.0\n---\n# A model\n", "apache-2.0"),
        ("---\nlibrary_name: transformers.js\nlicense: mit\ntags:\n- vision\n---\n", "mit"),
        ("---\nlicense: 'apache-2.0'\n---\n", "apache-2.0"),
        ('---\nlicense: "apache-2.0"  \n---\n', "apache-2.0"),
        ("---\r\nlicense: apache-2.0\r\n---\r\n", "apache-2.0"),
        (
            "---\nlicense: other\nlicense_name: dinov3-license\nlicense_link: LICENSE.md\n---\n",
            "dinov3-license",
        ),
        ("---\nlicense_name: dinov3-license\nlicense: other\n---\n", "dinov3-license"),
        ("---\nlicense:\n- mit\n---\n", "see its source"),
        ("---\ntags: []\n---\nlicense: mit is what other models have\n", "see its source"),
        ("# A model\n\nlicense: mit\n", "see its source"),
        ("", "see its source"),
        (None, "see its source"),
    ],
)
def test_the_license_is_what_the_cards_front_matter_says(
    tmp_path: Path, card: str | None, license: str
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_bytes(card.encode())
    assert license_of(tmp_path) == license


def test_a_card_that_is_no_utf8_still_has_its_license(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_bytes(b"---\nlicense: mit\nauthor: Ren\xe9\n---\n")
    assert license_of(tmp_path) == "mit"
