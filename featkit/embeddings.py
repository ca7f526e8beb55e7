"""The embeddings folder: plan.json, the model, and Parquet shards with one row an item, in source
order.

    emb/plan.json                 what is embedded by which model and run, in how many shards; written first
    emb/model.onnx                the model, so that an index made from the folder can embed queries
    emb/shards/00000.parquet      key, width, height, thumbnail, embedding, error, and a column for each piece of metadata
    emb/stamps/00000.parquet      size, mtime_ns, digest of each item's file as it was when it was embedded

A shard is there whole or not at all. As many rows as items: an image that could not be read is a
row with its `error`. All shards have the same columns, which the plan names. Stamps are apart from
the shards, whose bytes depend on the images alone. They never claim more than the shard holds: of
a new shard they are written before it, of one made again after it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featkit.atomic import replace_file, write_text
from featkit.backends import Run
from featkit.errors import InputError
from featkit.geometry import Geometry
from featkit.paths import open_arrow
from featkit.stamps import NO_STAMP, Stamp
from featkit.wording import counted

# 1 did not say what ran: it was onnxruntime in fp32; 2 had no stamps and not `skipped`; both are
# read as well
FORMAT = 3
PLAN_FILE, MODEL_FILE, SHARDS, STAMPS, LOCK_FILE = (
    "plan.json",
    "model.onnx",
    "shards",
    "stamps",
    ".lock",
)
COLUMNS = ("key", "width", "height", "thumbnail", "embedding", "error")
SHOWN_FAILURES = 20
# No two items share these, so a dictionary of their values only costs; and JPEG and floats do not
# shrink.
NEVER_REPEATED = ("key", "thumbnail", "embedding.list.element")
INCOMPRESSIBLE = ("thumbnail", "embedding.list.element")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an embeddings folder is to hold: all that decides the bytes of its shards. `width` is a
    vector's length."""

    format: int = FORMAT
    source: str
    num_items: int
    keys_sha256: str  # over the source's keys in order
    model_name: str
    fingerprint: str
    geometry: Geometry
    width: int
    run: str = "onnxruntime fp32"  # the engine and the precision: a Run as text
    shard_size: int
    max_bytes: int  # beyond these limits an image is a row with an error
    max_pixels: int
    # metadata: name to "int64", "double" or "string"
    columns: dict[str, str] = field(default_factory=dict)
    column: str = ""  # of Parquet files and data sets, from which the images are read
    # what the source passed over when this was begun, by reason
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        """How many shard files a finished folder has."""
        return -(-self.num_items // self.shard_size)

    def to_json(self) -> str:
        """The text of plan.json."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return (
            json.dumps(
                {**values, "geometry": self.geometry.to_dict()}, indent=1, ensure_ascii=False
            )
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read `to_json` back. InputError for a newer format and for anything that is no plan."""
        try:
            values = json.loads(text)
            if values["format"] > FORMAT:
                raise InputError(
                    f"it has format {values['format']}, newer than the {FORMAT} read here; update"
                    " featkit."
                )
            Run.parse(values.get("run", cls.run))
            return cls(**{**values, "geometry": Geometry.from_dict(values["geometry"])})
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"it is damaged or not featkit's ({error}).") from error


@dataclass(frozen=True, kw_only=True)
class Row:
    """One item: `embedding` is (D,) float32, or None with the `error` that says why."""

    key: str
    width: int | None = None
    height: int | None = None
    thumbnail: bytes | None = None
    embedding: np.ndarray | None = None
    error: str | None = None
    stamp: Stamp = NO_STAMP  # of its file; kept beside the shard, not in it
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)


class Embeddings:
    """An embeddings folder that is there, finished or not.

    Example:
        for table in Embeddings.open("emb").tables(["key", "embedding"]): ...
    """

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan

    @classmethod
    def open(cls, path: str | Path) -> Embeddings:
        """InputError when the folder is missing, is none of featkit's, or is of a newer format."""
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
            return cls(folder, Plan.from_json(text))
        except InputError as error:
            raise InputError(f"{folder / PLAN_FILE} cannot be used: {error}") from error

    @classmethod
    def create(cls, path: Path, plan: Plan) -> Embeddings:
        """Write the plan of a new folder."""
        write_text(path / PLAN_FILE, plan.to_json())
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

    def stamps_path(self, shard: int) -> Path:
        """Where the stamps of shard number `shard` lie, or will."""
        return self.path / STAMPS / f"{shard:05d}.parquet"

    def shard_range(self, shard: int) -> range:
        """The item numbers of a shard."""
        return range(
            shard * self.plan.shard_size,
            min((shard + 1) * self.plan.shard_size, self.plan.num_items),
        )

    def missing_shards(self) -> list[int]:
        """Numbers of the shards that are still to be made."""
        return [
            shard for shard in range(self.plan.num_shards) if not self.shard_path(shard).is_file()
        ]

    @property
    def num_rows(self) -> int:
        """Items that have their row, by the shards that are there."""
        return len(self) - sum(len(self.shard_range(shard)) for shard in self.missing_shards())

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return not self.missing_shards()

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """The shards that are there, in order, one table each; all columns or those named.
        InputError for a damaged one."""
        missing = set(self.missing_shards())
        for shard in range(self.plan.num_shards):
            if shard not in missing:
                yield self.shard_table(shard, columns)

    def read(self) -> tuple[list[str], np.ndarray]:
        """Keys and vectors (n, D) float32 of all items that have one, in order."""
        keys: list[str] = []
        blocks = [np.zeros((0, self.plan.width), np.float32)]
        for table in self.tables(["key", "embedding"]):
            embedded = table.filter(table["embedding"].is_valid())
            keys += embedded["key"].to_pylist()
            blocks.append(vectors_of(embedded))
        return keys, np.concatenate(blocks)

    def failures(self) -> tuple[int, list[tuple[str, str]]]:
        """How many rows have no embedding, and (key, why) of the first SHOWN_FAILURES."""
        count = 0
        shown: list[tuple[str, str]] = []
        for table in self.tables(["key", "error"]):
            failed = table.filter(table["error"].is_valid())
            count += failed.num_rows
            pairs = list(zip(failed["key"].to_pylist(), failed["error"].to_pylist(), strict=True))
            shown += pairs[: SHOWN_FAILURES - len(shown)]
        return count, shown

    def write_shard(self, shard: int, rows: Sequence[Row]) -> None:
        """Write one shard, whole or not at all; equal rows give equal bytes. EnvironmentProblem
        where it cannot be written."""
        table = to_table(rows, self.plan)
        leaves = [
            "embedding.list.element" if name == "embedding" else name for name in table.column_names
        ]
        with replace_file(self.shard_path(shard)) as temporary, open_arrow(temporary, "wb") as file:
            pq.write_table(
                table,
                file,
                compression={name: "none" if name in INCOMPRESSIBLE else "zstd" for name in leaves},
                use_dictionary=[name for name in leaves if name not in NEVER_REPEATED],
                row_group_size=len(rows),
            )

    def read_rows(self, shard: int) -> list[Row]:
        """The rows of one shard as they were written, without their stamps. InputError for a
        damaged one."""
        table = self.shard_table(shard)
        vectors = iter(vectors_of(table.filter(table["embedding"].is_valid())))
        plain = table.drop_columns(["embedding"]).to_pylist()
        return [
            Row(
                **{name: values[name] for name in COLUMNS if name != "embedding"},
                embedding=next(vectors) if valid else None,
                metadata={
                    name: values[name] for name in self.plan.columns if values[name] is not None
                },
            )
            for values, valid in zip(plain, table["embedding"].is_valid().to_pylist(), strict=True)
        ]

    def write_stamps(self, shard: int, stamps: Sequence[Stamp]) -> None:
        """Write the stamps of a shard's items, in their order; equal stamps give equal bytes."""
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
        """The stamps of a shard's items; None where there are none that can be used, as in folders
        of earlier versions."""
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

    def shard_table(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """One shard, all columns or those named. InputError for a damaged one."""
        path, expected = self.shard_path(shard), len(self.shard_range(shard))
        try:
            with open_arrow(path) as opened, pq.ParquetFile(opened) as file:
                table = file.read(columns=None if columns is None else list(columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(
                f"{path} is damaged ({error}); remove it and run `featkit embed` again."
            ) from error
        if table.num_rows != expected:
            raise InputError(
                f"{path} has {counted(table.num_rows, 'row')}, not {expected:,}; remove it and run"
                " `featkit embed` again."
            )
        return table


def nothing_embedded(num_items: int, reason: str) -> str:
    """Return the sentences for a source without a single vector. reason: why the first item has
    none."""
    if num_items == 1:
        return f"The only image could not be embedded. {reason}"
    return f"None of the {counted(num_items, 'image')} could be embedded. The first: {reason}"


def vectors_of(table: pa.Table) -> np.ndarray:
    """(rows, D) float32 of a table whose rows all have an embedding."""
    column = table["embedding"].combine_chunks()
    width = column.type.list_size
    flat: np.ndarray = column.flatten().to_numpy(zero_copy_only=False)
    vectors: np.ndarray = flat.astype(np.float32, copy=False).reshape(-1, width)
    return vectors


def to_table(rows: Sequence[Row], plan: Plan) -> pa.Table:
    """Rows as a table: the fixed columns, then the plan's. InputError for metadata that the plan
    does not know."""
    columns: dict[str, pa.Array] = {
        "key": pa.array([row.key for row in rows], pa.string()),
        "width": pa.array([row.width for row in rows], pa.int32()),
        "height": pa.array([row.height for row in rows], pa.int32()),
        "thumbnail": pa.array([row.thumbnail for row in rows], pa.binary()),
        "embedding": _vector_column([row.embedding for row in rows], plan.width),
        "error": pa.array([row.error for row in rows], pa.string()),
    }
    metadata = [{column_name(name): value for name, value in row.metadata.items()} for row in rows]
    for row, values in zip(rows, metadata, strict=True):
        if unknown := values.keys() - plan.columns.keys():
            raise InputError(
                f"{row.key} has metadata that its source had not when this was begun:"
                f" {', '.join(sorted(unknown))}."
            )
    for name, kind in plan.columns.items():
        columns[name] = _metadata_column(name, kind, [values.get(name) for values in metadata])
    return pa.table(columns)


def column_name(name: str) -> str:
    """What a piece of metadata is called in a shard: its own name, and `width_` where that is
    taken."""
    return f"{name}_" if name.rstrip("_") in COLUMNS else name


def common_kind(kind: str | None, value: str | int | float) -> str:
    """The narrowest of "int64", "double" and "string" that holds `value` and all that `kind` held
    (None: nothing yet)."""
    if (
        isinstance(value, str)
        or kind == "string"
        or (isinstance(value, int) and not -(2**63) <= value < 2**63)
    ):
        return "string"
    return "double" if isinstance(value, float) or kind == "double" else "int64"


def _metadata_column(name: str, kind: str, values: list[str | int | float | None]) -> pa.Array:
    convert = {"int64": int, "double": float, "string": str}[kind]
    for value in values:
        if value is not None and common_kind(kind, value) != kind:
            raise InputError(
                f"The metadata {name} was {kind} when this was begun and is {value!r} now; choose"
                " another --out."
            )
    return pa.array(
        [None if value is None else convert(value) for value in values], pa.type_for_alias(kind)
    )


def _vector_column(vectors: list[np.ndarray | None], width: int) -> pa.Array:
    """Fixed-size lists of float32, without a Python number for each."""
    missing = pa.array([vector is None for vector in vectors], pa.bool_())
    flat = np.concatenate(
        [np.zeros(width, np.float32) if vector is None else vector for vector in vectors]
    )
    return pa.FixedSizeListArray.from_arrays(
        pa.array(flat, pa.float32()), type=pa.list_(pa.float32(), width), mask=missing
    )
