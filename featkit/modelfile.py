"""The model file: an ONNX graph with a manifest in its metadata.

The input is `images`, uint8 (N, H, W, 3), already resized by the manifest's geometry. The output is
`embedding`, float32 (N, D), unit length; optional outputs are `patches`, float32 (N, h, w, D), and
`attention`, float32 (N, heads, h, w). Weights beyond protobuf's 2 GB are in one file next to it,
which the manifest names with its sha256. The manifest is JSON under the metadata key `featkit`. It
is read here without the onnx package or a session, by walking the top level of the protobuf.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from featkit.atomic import replace_file
from featkit.digests import sha256_of
from featkit.errors import InputError
from featkit.filetypes import NUM_BYTES, ONNX, what_is
from featkit.geometry import MAX_SIDE, Geometry
from featkit.paths import is_text
from featkit.wording import counted, on_one_line

# Older formats can be read as well: 1, without layers, fixed sizes, quantization and external
# weights, and 2, without weight_precision.
FORMAT = 3
METADATA_KEY = "featkit"
MAX_WIDTH = 1_000_000  # dimensions of a vector
MAX_NAME_BYTES, MAX_SHOWN = 255, 200
MAX_MANIFEST_BYTES = 16 * 2**20
# Fields at the top level of a message: a few in a model, one per node and weight in its graph.
MAX_FIELDS = 100_000
# Size of the weights inside the file; a protobuf message holds at most 2 GB.
MAX_INLINE_BYTES = 1_900_000_000
INPUT = "images"
EMBEDDING, PATCHES, ATTENTION = OUTPUTS = ("embedding", "patches", "attention")

# Field numbers in onnx.ModelProto and onnx.StringStringEntryProto, and protobuf's wire types.
METADATA_PROPS, ENTRY_KEY, ENTRY_VALUE = 14, 1, 2
GRAPH, NODE = 7, 1  # field numbers in onnx.ModelProto and onnx.GraphProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


# How earlier versions spelled fields in the file.
OLD_NAMES = {"licence": "license", "quantisation": "quantization"}  # quoted


@dataclass(frozen=True, kw_only=True)
class ExternalWeights:
    """The file of weights next to a model file: its name, its size and its sha256 (hex)."""

    file: str
    num_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        name: object = self.file
        is_bare = isinstance(name, str) and PureWindowsPath(name).name == PurePosixPath(
            name
        ).name == name not in ("", "..")
        fits = is_bare and self.file.isprintable() and len(self.file.encode()) <= MAX_NAME_BYTES
        _check(fits, "external file", name, "a bare file name")
        count: object = self.num_bytes
        _check(type(count) is int and count > 0, "external size", count, "a whole number above 0")
        _check(isinstance(self.sha256, str), "external sha256", self.sha256, "text")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description that a model file carries.

    width: dimensions of the embedding.
    layers: the blocks whose features were joined, counted from 1; () for the last block only.
    join: how they were joined, concat or mean.
    whitened: the statistics of the whitening, or "".
    fixed_size: the only (height, width) that the graph accepts, or None for any multiple of patch.
    precision: what the graph computes in: fp32, fp16, int8, or quantized for a file made elsewhere.
    weight_precision: fp16 if the large weights are stored in it and converted to fp32 when the file
    is loaded, or "" if all are stored in `precision`.
    parity: figures measured by the export.
    quantization: figures of a lower precision, and what was left in float.
    """

    format: int = FORMAT
    family: str
    name: str
    patch: int
    width: int
    feature: str
    layers: tuple[int, ...] = ()
    join: str = ""
    whitened: str = ""
    geometry: Geometry
    fixed_size: tuple[int, int] | None = None
    outputs: tuple[str, ...] = (EMBEDDING,)
    precision: str = "fp32"
    weight_precision: str = ""
    parity: dict[str, float] = field(default_factory=dict)
    quantization: dict[str, Any] = field(default_factory=dict)
    external: ExternalWeights | None = None
    license: str
    origin: dict[str, str] = field(default_factory=dict)
    opset: int
    batch_invariant: bool = True
    proven_equal_to: tuple[str, ...] = ()
    fingerprint: str = ""
    notes: str = ""

    def __post_init__(self) -> None:  # a file may hold anything, whatever the annotations say
        for name, most in (("patch", MAX_SIDE), ("width", MAX_WIDTH), ("opset", MAX_WIDTH)):
            value: object = getattr(self, name)
            _check(type(value) is int and value > 0, name, value, "a whole number above 0")
            _check(getattr(self, name) <= most, name, value, f"a whole number up to {most:,}")
        for name in (
            "family",
            "name",
            "feature",
            "join",
            "whitened",
            "precision",
            "weight_precision",
            "license",
            "fingerprint",
            "notes",
        ):
            _check(isinstance(getattr(self, name), str), name, getattr(self, name), "text")
        _check(
            isinstance(self.batch_invariant, bool),
            "batch_invariant",
            self.batch_invariant,
            "true or false",
        )
        _check(
            _are_texts(self.outputs) and EMBEDDING in self.outputs,
            "outputs",
            self.outputs,
            f"a list with {EMBEDDING} in it",
        )
        _check(
            _are_texts(self.proven_equal_to),
            "proven_equal_to",
            self.proven_equal_to,
            "a list of fingerprints",
        )
        layers: object = self.layers
        _check(
            isinstance(layers, tuple) and all(type(each) is int for each in layers),
            "layers",
            layers,
            "a list of numbers",
        )
        size: object = self.fixed_size
        fits = size is None or (
            isinstance(size, tuple)
            and len(size) == 2
            and all(type(side) is int and 0 < side <= MAX_SIDE for side in size)
        )
        _check(fits, "fixed_size", size, f"two whole numbers from 1 to {MAX_SIDE:,}, or nothing")
        _check(isinstance(self.geometry, Geometry), "geometry", self.geometry, "a geometry")
        _check(
            self.geometry.patch == self.patch,
            "geometry's patch",
            self.geometry.patch,
            f"the manifest's, {self.patch}",
        )
        parity, origin, figures = (self.parity, self.origin, self.quantization)
        numbers = isinstance(parity, dict) and all(_is_number(value) for value in parity.values())
        _check(numbers, "parity", parity, "figures by name")
        texts = isinstance(origin, dict) and _are_texts(tuple(origin.values()))
        _check(texts, "origin", origin, "texts by name")
        _check(isinstance(figures, dict), "quantization", figures, "figures by name")

    @property
    def made_of(self) -> str:
        """Weights and feature in one line: vectors of files that share it differ by a whitening or
        by rounding alone."""
        layers = (
            f" of blocks {', '.join(map(str, self.layers))} ({self.join})" if self.layers else ""
        )
        exit_ = f" at exit {self.origin['exit']}" if "exit" in self.origin else ""
        # one file may hold teacher and student
        branch = f" ({self.origin['branch']})" if "branch" in self.origin else ""
        return (
            f"{self.family} {self.origin.get('sha256', self.fingerprint)}{branch}"
            f" {self.feature}{layers}{exit_}"
        )

    def to_json(self) -> str:
        """Return the manifest as the JSON text that is stored in the file."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values["geometry"] = self.geometry.to_dict()
        values["external"] = dataclasses.asdict(self.external) if self.external else None
        return json.dumps(_as_text(values), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Parse the result of `to_json`.

        Raises InputError for a newer format, for missing, unknown or invalid fields, and for
        anything that is not a JSON object.
        """
        try:
            values: Any = json.loads(text)
            # half of a surrogate pair can be neither written nor printed
            json.dumps(values, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise InputError(f"the manifest is not JSON ({error}).") from error
        if not isinstance(values, dict) or type(values.get("format", 0)) is not int:
            raise InputError(
                "the manifest is not one of featkit's: it is not an object with a whole number as"
                " its format."
            )
        if values.get("format", 0) > FORMAT:
            raise InputError(
                f"the manifest has format {values['format']}, newer than the {FORMAT} read here;"
                " update featkit."
            )
        try:
            _check(
                isinstance(values["geometry"], dict), "geometry", values["geometry"], "an object"
            )
            values["geometry"] = Geometry.from_dict(values["geometry"])
            for old, new in OLD_NAMES.items():
                if old in values:
                    values[new] = values.pop(old)
            for name in {"outputs", "proven_equal_to", "layers", "fixed_size"} & set(values):
                values[name] = None if values[name] is None else tuple(values[name])
            if values.get("external") is not None:
                values["external"] = ExternalWeights(**values["external"])
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise InputError(f"the manifest is not one of featkit's: {error}.") from error


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of a model file.

    Raises InputError, naming the file, if it is missing or not a featkit model file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            text = _find_manifest(data)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist; name a model file, such as one that `featkit export` wrote."
        ) from error
    # an empty file cannot be mapped, and another kind of file cannot be parsed
    except (OSError, ValueError, IndexError) as error:
        _refuse_other_kinds(path)
        raise InputError(
            f"{path} is not a featkit model file: it is not an ONNX file ({error})."
        ) from error
    if text is None:
        raise InputError(
            f"{path} is not a featkit model file: it has no `{METADATA_KEY}` manifest; convert it"
            " with `featkit export`."
        )
    try:
        return Manifest.from_json(text)
    except InputError as error:
        raise InputError(f"{path} is not a model file that can be used: {error}") from error


def _refuse_other_kinds(path: Path) -> None:
    """Raise InputError if a file's first bytes show that it is of another kind."""
    try:
        with path.open("rb") as file:
            kind = what_is(file.read(NUM_BYTES))
    except OSError:
        return
    if kind is not None and kind != ONNX and kind.advice:
        raise InputError(f"{path} is not a featkit model file: it is {kind.name}; {kind.advice}.")


def count_nodes(path: Path) -> int:
    """Return the number of nodes in a model file's graph, without those of subgraphs.

    Raises InputError, naming the file, if it is not an ONNX file.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            graphs = [
                (start, end)
                for number, start, end in _fields(data, 0, len(data))
                if number == GRAPH
            ]
            return sum(
                number == NODE
                for start, end in graphs
                for number, _, _ in _fields(data, start, end)
            )
    except (OSError, ValueError, IndexError) as error:  # as in read_manifest
        raise InputError(
            f"{path} is not an ONNX file with a readable graph ({error}); write or fetch it again."
        ) from error


def copy_model_file(source: Path, destination: Path) -> None:
    """Copy a model file and its external weights, if any, each of them atomically.

    The weights keep their file name. Raises OSError if copying fails, and InputError if the weights
    are missing or are not those of the manifest.
    """
    manifest = read_manifest(source)
    check_weights(source, manifest, digest=True)
    if manifest.external is not None:
        name = manifest.external.file
        with replace_file(destination.with_name(name)) as temporary:
            shutil.copyfile(source.with_name(name), temporary)
    with replace_file(destination) as temporary:
        shutil.copyfile(source, temporary)


def check_weights(model: Path, manifest: Manifest, *, digest: bool = False) -> None:
    """Raise InputError unless the external weights, if any, exist and are complete.

    The size is checked and, with `digest`, the sha256, which takes longer than loading the file.
    """
    external = manifest.external
    if external is None:
        return
    file = model.with_name(external.file)
    try:
        length = file.stat().st_size
    except FileNotFoundError:
        raise InputError(
            f"{file}, which holds the weights of {model.name}, is missing; copy both files into one"
            " folder."
        ) from None
    if length != external.num_bytes:
        raise InputError(
            f"{file} has {counted(length, 'byte')}, but the weights of {model.name} have"
            f" {external.num_bytes:,}; copy both files again."
        )
    if digest and sha256_of(file) != external.sha256:
        raise InputError(
            f"{file} is damaged: it is not what {model.name} was written with; copy both files"
            " again."
        )


def _as_text(value: Any) -> Any:
    """Return the value with bytes of file names that are not text escaped, as in `caf\\xe9.jpg`."""
    if isinstance(value, dict):
        return {name: _as_text(part) for name, part in value.items()}
    if isinstance(value, str) and not is_text(value):
        return on_one_line(value)
    return value


def _check(holds: bool, name: str, found: object, wanted: str) -> None:
    if not holds:
        shown = repr(found)
        shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
        raise InputError(f"The manifest's {name} is {shown}; it has to be {wanted}.")


def _are_texts(values: object) -> bool:
    return isinstance(values, tuple) and all(isinstance(value, str) for value in values)


def _is_number(value: object) -> bool:
    # the comparison also excludes NaN
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _find_manifest(data: mmap.mmap) -> str | None:
    for number, start, end in _fields(data, 0, len(data)):
        if number == METADATA_PROPS:
            if end - start > MAX_MANIFEST_BYTES:
                continue  # another program's metadata
            entry = {
                inner: bytes(data[begin:stop]) for inner, begin, stop in _fields(data, start, end)
            }
            if entry.get(ENTRY_KEY) == METADATA_KEY.encode():
                return entry.get(ENTRY_VALUE, b"").decode("utf-8")
    return None


def _fields(data: mmap.mmap, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, end) of every field of a message, without reading its content.

    Raises ValueError if the bytes are not a protobuf message.
    """
    count = 0
    while place < end:
        count += 1
        if count > MAX_FIELDS:
            raise ValueError(f"more than {MAX_FIELDS:,} fields")
        tag, place = _varint(data, place)
        kind = tag & 7
        if kind == VARINT:
            _, stop = _varint(data, place)
        elif kind == BYTES:
            length, place = _varint(data, place)
            stop = place + length
        elif kind in (FIXED64, FIXED32):
            stop = place + (8 if kind == FIXED64 else 4)
        else:
            raise ValueError(f"wire type {kind} at byte {place}")
        if stop > end or tag >> 3 == 0:
            raise ValueError(f"a field runs past the end at byte {place}")
        yield tag >> 3, place, stop
        place = stop


def _varint(data: mmap.mmap, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[place]
        value |= (byte & 0x7F) << shift
        place += 1
        if byte < 0x80:
            return value, place
        shift += 7
        if shift > 63:
            raise ValueError(f"an unterminated number at byte {place}")
