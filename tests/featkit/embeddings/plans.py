"""The plan of a small embeddings folder, for tests."""

from __future__ import annotations

from featkit.embeddings import FolderPlan
from featkit.geometry import Geometry

WIDTH = 5
GEOMETRY = Geometry(
    height=32,
    width=48,
    resize="shorter_side",
    resize_to=48,
    interpolation="bicubic",
    patch=8,
    mean=(0.5, 0.25, 0.125),
    std=(0.5, 0.5, 0.5),
)
PLAN = FolderPlan(
    source="photos – été",
    num_items=7,
    keys_sha256="0" * 64,
    model_name="test",
    fingerprint="f" * 64,
    geometry=GEOMETRY,
    width=WIDTH,
    shard_size=3,
    max_bytes=10,
    max_pixels=20,
    columns={"class": "int64", "score": "double", "text": "string"},
)
