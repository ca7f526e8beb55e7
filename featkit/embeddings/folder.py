"""One embeddings folder: its plan, and reading and writing its shards and stamps."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featkit.atomic import replace_file, write_text
from featkit.embeddings.plan import MODEL_FILE, PLAN_FILE, FolderPlan
from featkit.embeddings.shards import ShardRow, from_table, to_table, vectors_of, write_table
from featkit.errors import InputError
from featkit.paths import open_arrow
from featkit.stamps import Stamp
from featkit.wording import counted

SHARDS, STAMPS = "shards", "stamps"
SHOWN_FAILURES = 20


class Embeddings:
    """An existing embeddings folder, finished or not.

    Example:
        for table in Embeddings.open("emb").tables(["key", "embedding"]): ...
    """

    def __init__(self, path: Path, plan: FolderPlan) -> None:
        self.path, self.plan = path, plan

    @classmethod
    def open(cls, path: str | Path) -> Embeddings:
        """Open a folder. InputError if it is missing, is not an embeddings folder, or has a newer
        format."""
        folder = Path(path)
        try:
            text = (folder / PLAN_FILE).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise InputError(
                f"{path} is not an embeddings folder ({PLAN_FILE}: {reason}); make one with"
                " `featkit embed`."
            ) from error
        try:
            return cls(folder, FolderPlan.from_json(text))
        except InputError as error:
            raise InputError(f"{folder / PLAN_FILE} cannot be used: {error}") from error

    @classmethod
    def create(cls, path: Path, plan: FolderPlan) -> Embeddings:
        """Begin a folder by writing its plan."""
        write_text(path / PLAN_FILE, plan.to_json())
        return cls(path, plan)

    @property
    def model_path(self) -> Path:
        """The copy of the model that made the vectors."""
        return self.path / MODEL_FILE

    def __len__(self) -> int:
        return self.plan.num_items

    def shard_path(self, shard: int) -> Path:
        """Return the path of a shard, whether or not it exists yet."""
        return self.path / SHARDS / f"{shard:05d}.parquet"

    def stamps_path(self, shard: int) -> Path:
        """Return the path of a shard's stamps, whether or not they exist yet."""
        return self.path / STAMPS / f"{shard:05d}.parquet"

    def shard_range(self, shard: int) -> range:
        """Return the items of a shard."""
        return range(
            shard * self.plan.shard_size,
            min((shard + 1) * self.plan.shard_size, self.plan.num_items),
        )

    def missing_shards(self) -> list[int]:
        """Return the shards that are not written yet."""
        return [
            shard for shard in range(self.plan.num_shards) if not self.shard_path(shard).is_file()
        ]

    @property
    def num_rows(self) -> int:
        """The number of items in the shards that exist."""
        return len(self) - sum(len(self.shard_range(shard)) for shard in self.missing_shards())

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield one table per existing shard, in order, with all columns or those named. InputError
        for a damaged shard."""
        missing = set(self.missing_shards())
        for shard in range(self.plan.num_shards):
            if shard not in missing:
                yield self.shard_table(shard, columns)

    def read(self) -> tuple[list[str], np.ndarray]:
        """Return keys and vectors (n, D) float32 of all items that have a vector, in order."""
        keys: list[str] = []
        blocks = [np.zeros((0, self.plan.width), np.float32)]
        for table in self.tables(["key", "embedding"]):
            embedded = table.filter(table["embedding"].is_valid())
            keys += embedded["key"].to_pylist()
            blocks.append(vectors_of(embedded))
        return keys, np.concatenate(blocks)

    def failures(self) -> tuple[int, list[tuple[str, str]]]:
        """Return the number of rows without an embedding, and key and error of the first
        SHOWN_FAILURES."""
        count = 0
        shown: list[tuple[str, str]] = []
        for table in self.tables(["key", "error"]):
            failed = table.filter(table["error"].is_valid())
            count += failed.num_rows
            pairs = list(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))
            shown += pairs[: SHOWN_FAILURES - len(shown)]
        return count, shown

    def write_shard(self, shard: int, rows: Sequence[ShardRow]) -> None:
        """Write one shard, whole or not at all; equal rows give equal bytes. EnvironmentProblem if
        it cannot be written."""
        table = to_table(rows, width=self.plan.width, columns=self.plan.columns)
        with replace_file(self.shard_path(shard)) as temporary:
            write_table(temporary, table)

    def read_rows(self, shard: int) -> list[ShardRow]:
        """Return the rows of one shard without their stamps. InputError if it is damaged."""
        return from_table(self.shard_table(shard))

    def shard_table(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one shard with all columns or those named. InputError if it is damaged."""
        path, num_items = self.shard_path(shard), len(self.shard_range(shard))
        try:
            with open_arrow(path) as opened, pq.ParquetFile(opened) as file:
                table = file.read(columns=None if columns is None else list(columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{path} is damaged ({error}); remove it and run `featkit embed` again."
            ) from error
        if table.num_rows != num_items:
            raise InputError(
                f"{path} has {counted(table.num_rows, 'row')}, not {num_items:,}; remove it and"
                " run `featkit embed` again."
            )
        return table

    def write_stamps(self, shard: int, stamps: Sequence[Stamp]) -> None:
        """Write the stamps of a shard's items, in order; equal stamps give equal bytes."""
        columns = {
            "size": pa.array([stamp.size for stamp in stamps], pa.int64()),
            "mtime_ns": pa.array([stamp.mtime_ns for stamp in stamps], pa.int64()),
            "digest": pa.array([stamp.digest for stamp in stamps], pa.binary(16)),
        }
        with replace_file(self.stamps_path(shard)) as temporary, temporary.open("wb") as file:
            pq.write_table(
                pa.table(columns), file, compression="zstd", use_dictionary=["size", "mtime_ns"]
            )

    def read_stamps(self, shard: int) -> list[Stamp] | None:
        """Return the stamps of a shard's items, or None if they are missing or damaged, as in
        folders of earlier versions."""
        try:
            with open_arrow(self.stamps_path(shard)) as opened, pq.ParquetFile(opened) as file:
                table = file.read(columns=list(Stamp._fields))
            stamps = [
                Stamp(*values)
                for values in zip(*(table[name].to_pylist() for name in Stamp._fields), strict=True)
            ]
        except (pa.ArrowException, OSError, KeyError):
            return None
        return stamps if len(stamps) == len(self.shard_range(shard)) else None


def nothing_embedded(num_items: int, reason: str) -> str:
    """Return the sentences for a source without a single vector. reason: why the first item has
    none."""
    if num_items == 1:
        return f"The only image could not be embedded. {reason}"
    return f"None of the {counted(num_items, 'image')} could be embedded. The first: {reason}"
