"""Recognize the folders that featkit writes, without importing their readers."""

from __future__ import annotations

from pathlib import Path

CATALOGUE_FILE = "catalogue.sqlite"
VECTORS_FILE = "vectors.f32"


def is_index(path: Path) -> bool:
    """Return whether a path is an index folder, judged by the names of its files alone."""
    return (path / CATALOGUE_FILE).is_file()


def is_embeddings(path: Path) -> bool:
    """Return whether a path is an embeddings folder."""
    return (path / "plan.json").is_file()


def is_run(path: Path) -> bool:
    """Return whether a path is a run folder of `featkit train`."""
    return (path / "config.yaml").is_file()
