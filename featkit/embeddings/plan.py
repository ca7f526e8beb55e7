"""plan.json: everything that decides the bytes of an embeddings folder's shards."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from featkit.backends import Run
from featkit.errors import InputError
from featkit.geometry import Geometry

PLAN_FILE, MODEL_FILE = "plan.json", "model.onnx"
# Format 1 did not record the runtime, which was onnxruntime in fp32. Format 2 had neither stamps
# nor `skipped`. Both can still be read.
FORMAT = 3


@dataclass(frozen=True, kw_only=True)
class FolderPlan:
    """The source, model, runtime and layout of one embeddings folder.

    width: the dimensions of a vector. run: engine and precision, a `Run` as text. max_bytes,
    max_pixels: an image beyond these limits is a row with an error. columns: type of each metadata
    column, "int64", "double" or "string". column: the column of Parquet files or data sets that
    holds the images. skipped: what the source skipped when the folder was begun, by reason.
    """

    format: int = FORMAT
    source: str
    num_items: int
    keys_sha256: str  # over the source's keys in order
    model_name: str
    fingerprint: str
    geometry: Geometry
    width: int
    run: str = "onnxruntime fp32"
    shard_size: int
    max_bytes: int
    max_pixels: int
    columns: dict[str, str] = field(default_factory=dict)
    column: str = ""
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        """The number of shard files in a finished folder."""
        return -(-self.num_items // self.shard_size)

    def to_json(self) -> str:
        """Return the text of plan.json."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        return (
            json.dumps(
                {**values, "geometry": self.geometry.to_dict()}, indent=1, ensure_ascii=False
            )
            + "\n"
        )

    @classmethod
    def from_json(cls, text: str) -> FolderPlan:
        """Read the text of plan.json. InputError if its format is newer, or if it is not a plan."""
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
