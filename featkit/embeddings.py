"""The embeddings folder: plan.json, the model, and Parquet shards with one row an item, in source order.

    emb/plan.json                 what is embedded by which model, in how many shards
    emb/model.onnx                the model, so that an index made from the folder can embed queries
    emb/shards/00000.parquet      key, width, height, thumbnail, embedding, error, and a column for each piece of metadata

A shard is there whole or not at all. As many rows as items: a picture that could not be read is a row with its `error`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featkit.atomic import replace_file, write_text
from featkit.errors import InputError

FORMAT = 1
PLAN_FILE, MODEL_FILE, SHARDS = "plan.json", "model.onnx", "shards"
COLUMNS = ("key", "width", "height", "thumbnail", "embedding", "error")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an embeddings folder is to hold. `keys_sha256` is over the source's keys in order; `width` is a vector's length."""

    format: int = FORMAT
    source: str
    num_items: int
    keys_sha256: str
    model_name: str
    fingerprint: str
    geometry: dict[str, Any]
    width: int
    shard_size: int

    @property
    def num_shards(self) -> int:
        """How many shard files a finished folder has."""
        return -(-self.num_items // self.shard_size)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One item: `embedding` is (D,) float32, or None with the `error` that says why."""

    key: str
    width: int | None = None
    height: int | None = None
    thumbnail: bytes | None = None
    embedding: np.ndarray | None = None
    error: str | None = None
    metadata: dict[str, str | int | float]


class Embeddings:
    """An embeddings folder that is there."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan

    @classmethod
    def open(cls, path: str | Path) -> Embeddings:
        """InputError when the folder is missing, is none of featkit's, or is of a newer format."""
        folder = Path(path)
        try:
            values = json.loads((folder / PLAN_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(
                f"{path} is not an embeddings folder ({PLAN_FILE}: {error}); make one with `featkit embed`."
            ) from error
        if values.get("format", 0) > FORMAT:
            raise InputError(f"{path} has format {values['format']}, newer than the {FORMAT} read here; update featkit.")
        try:
            return cls(folder, Plan(**values))
        except TypeError as error:
            raise InputError(f"{path} has a {PLAN_FILE} that is not featkit's: {error}") from error

    @classmethod
    def create(cls, path: Path, plan: Plan) -> Embeddings:
        """Write the plan of a new folder."""
        write_text(path / PLAN_FILE, json.dumps(asdict(plan), indent=1, ensure_ascii=False) + "\n")
        return cls(path, plan)

    @property
    def model_path(self) -> Path:
        """The copy of the model that made the vectors."""
        return self.path / MODEL_FILE

    def __len__(self) -> int:
        return self.plan.num_items

    def shard_path(self, shard: int) -> Path:
        """Where shard number `shard` lies, or will."""
        return self.path / SHARDS / f"{shard:05d}.parquet"

    def shard_range(self, shard: int) -> range:
        """The item numbers of a shard."""
        return range(shard * self.plan.shard_size, min((shard + 1) * self.plan.shard_size, self.plan.num_items))

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that are still to be made."""
        return [shard for shard in range(self.plan.num_shards) if not self.shard_path(shard).is_file()]

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return not self.missing_shards()

    def write_shard(self, shard: int, rows: Sequence[Row]) -> None:
        """Write one shard, whole or not at all; equal rows give equal bytes."""
        table = to_table(rows, width=self.plan.width)
        with replace_file(self.shard_path(shard)) as temporary:
            # JPEG and floats gain nothing from compression, keys and metadata do.
            compression = {
                name: "none" if name in ("thumbnail", "embedding.list.element") else "zstd" for name in _leaves(table)
            }
            pq.write_table(table, temporary, compression=compression, row_group_size=len(rows))

    def tables(self) -> Iterator[pa.Table]:
        """The shards that are there, in order, one table each. InputError for one that is damaged."""
        for shard in range(self.plan.num_shards):
            path = self.shard_path(shard)
            if path.is_file():
                try:
                    yield pq.read_table(path)
                except (pa.ArrowInvalid, OSError) as error:
                    raise InputError(f"{path} is damaged ({error}); remove it and run `featkit embed` again.") from error

    def read(self) -> tuple[list[str], np.ndarray]:
        """Keys and vectors (n, D) float32 of all items that have one, in order."""
        keys: list[str] = []
        blocks = [np.zeros((0, self.plan.width), np.float32)]
        for table in self.tables():
            embedded = table.filter(table["embedding"].is_valid())
            keys += embedded["key"].to_pylist()
            blocks.append(vectors_of(embedded))
        return keys, np.concatenate(blocks)


def vectors_of(table: pa.Table) -> np.ndarray:
    """(rows, D) float32 of a table whose rows all have an embedding."""
    column = table["embedding"].combine_chunks()
    width = column.type.list_size
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    vectors: np.ndarray = flat.astype(np.float32, copy=False).reshape(-1, width)
    return vectors


def to_table(rows: Sequence[Row], *, width: int) -> pa.Table:
    """Rows as a table: the fixed columns, then metadata by name."""
    columns: dict[str, pa.Array] = {
        "key": pa.array([row.key for row in rows], pa.string()),
        "width": pa.array([row.width for row in rows], pa.int32()),
        "height": pa.array([row.height for row in rows], pa.int32()),
        "thumbnail": pa.array([row.thumbnail for row in rows], pa.binary()),
        "embedding": pa.array([row.embedding for row in rows], pa.list_(pa.float32(), width)),
        "error": pa.array([row.error for row in rows], pa.string()),
    }
    for name in sorted({name for row in rows for name in row.metadata}):
        column = f"{name}_" if name in COLUMNS else name
        columns[column] = _metadata_column([row.metadata.get(name) for row in rows])
    return pa.table(columns)


def _metadata_column(values: list[str | int | float | None]) -> pa.Array:
    """Whole numbers, numbers or text: the narrowest that holds all values of a shard."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int}:
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([None if value is None else str(value) for value in values], pa.string())


def _leaves(table: pa.Table) -> list[str]:
    return ["embedding.list.element" if name == "embedding" else name for name in table.column_names]
