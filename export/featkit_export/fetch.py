"""ONNX files that others published on the hub, in the layout of onnx-community's repositories."""

from __future__ import annotations

import re
from pathlib import Path

from featkit_train.published.downloads import fetch_repository

HUB = "hub:"
FILES = (
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "onnx/model.onnx*",
)


def fetch_onnx(repository: str, *, quiet: bool = False) -> Path:
    """The folder of a repository with its onnx/model.onnx, fetched unless a cache holds it. Errors
    as in downloads."""
    by_hand = "featkit export FOLDER --out m.onnx"
    return fetch_repository(repository, FILES, by_hand=by_hand, quiet=quiet)


def license_of(folder: Path) -> str:
    """What the model card beside the files says of the license; where there is none, to look it up."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\s*\n(.*?)^---", text, re.MULTILINE | re.DOTALL)
    lines = re.findall(
        r"^(license(?:_name)?):[ \t]*(\S.*?)\s*$", front[1] if front else "", re.MULTILINE
    )
    said = {key: value.strip("'\"") for key, value in lines}
    # `license` is `other` where it has a name
    return said.get("license_name") or said.get("license") or "see its source"
