"""Download ONNX files that others published on the hub, as onnx-community's repositories lay them
out."""

from __future__ import annotations

import re
from pathlib import Path

from featkit_train.published.downloads import fetch_repository

FILES = (
    "README.md",
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "onnx/model.onnx*",
)


def fetch_onnx(repository: str, *, quiet: bool = False) -> Path:
    """Return the folder of a repository with its onnx/model.onnx, downloaded unless it is cached.

    Raises the errors of `featkit_train.published.downloads.fetch_repository`.
    """
    by_hand = "featkit export FOLDER --out m.onnx"
    return fetch_repository(repository, FILES, by_hand=by_hand, quiet=quiet)


def license_of(folder: Path) -> str:
    """Return the license in a folder's model card, or "see its source" if it names none."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    front = re.match(r"---\s*\n(.*?)^---", text, re.MULTILINE | re.DOTALL)
    lines = re.findall(
        r"^(license(?:_name)?):[ \t]*(\S.*?)\s*$", front[1] if front else "", re.MULTILINE
    )
    fields = {key: value.strip("'\"") for key, value in lines}
    # A license with a name of its own has `license: other`.
    return fields.get("license_name") or fields.get("license") or "see its source"
