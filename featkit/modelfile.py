"""The model file: an ONNX graph that carries its own manifest.

Input `images`, uint8 (N, H, W, 3), already brought to size by the manifest's geometry; output
`embedding`, float32 (N, D), unit length; on request `patches`, float32 (N, h, w, D), and
`attention`, float32 (N, heads, h, w). Weights past protobuf's 2 GB lie in one file beside it, which
the manifest names with its sha256. The manifest is JSON under the metadata key `featkit`. Read here
without the onnx package and without a session, by walking the protobuf's top level.
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

# 1 knew neither layers, fixed sizes, quantization nor weights beside the file; it is read as well
FORMAT = 2
METADATA_KEY = "featkit"
MAX_WIDTH = 1_000_000  # numbers in a vector
MAX_NAME_BYTES, MAX_SHOWN = 255, 200
MAX_MANIFEST_BYTES = 16 * 2**20
# of a message's top level: a model has a few, and its graph one for each node and weight
MAX_FIELDS = 100_000
# of weights in the file itself; protobuf holds 2 GB in one message
MAX_INLINE_BYTES = 1_900_000_000
INPUT = "images"
EMBEDDING, PATCHES, ATTENTION = OUTPUTS = ("embedding", "patches", "attention")

# Field numbers of onnx.ModelProto and onnx.StringStringEntryProto, and protobuf's wire types.
METADATA_PROPS, ENTRY_KEY, ENTRY_VALUE = 14, 1, 2
GRAPH, NODE = 7, 1  # of onnx.ModelProto and onnx.GraphProto
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


# Fields as earlier versions spelled them in the file.
OLD_NAMES = {"licence": "license", "quantisation": "quantization"}  # quoted


@dataclass(frozen=True, kw_only=True)
class ExternalWeights:
    """The one file of weights beside a model file: its name in the same folder, its size and its
    sha256 (hex)."""

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
    """What a model file says of itself.

    `width` is the embedding's; `layers` the blocks whose features were joined, counted from 1, none
    for the last alone, and `join` how: concat or mean; `whitened` says by what statistics, if any;
    `fixed_size` the one (height, width) in pixels that the graph takes, None for every multiple of
    the patch; `parity` holds the figures that export measured, `quantization` those of a lower
    precision and what it left in float.
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
        """The manifest as the text that stands in the file."""
        values = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        values["geometry"] = self.geometry.to_dict()
        values["external"] = dataclasses.asdict(self.external) if self.external else None
        return json.dumps(_as_text(values), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read `to_json` back. InputError for a newer format, fields missing, unknown or of a wrong
        kind, or no JSON object."""
        try:
            values: Any = json.loads(text)
            # half a surrogate pair can be neither written nor printed
            json.dumps(values, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise InputError(f"the manifest is not JSON ({error}).") from error
        if not isinstance(values, dict) or type(values.get("format", 0)) is not int:
            raise InputError(
                "the manifest is not one of featkit's: it is no object with a whole number as its"
                " format."
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
    """The manifest of a model file. InputError, naming the file, when it is missing, no ONNX file,
    or none of featkit's."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            text = _find_manifest(data)
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist; name a model file, such as one that `featkit export` wrote."
        ) from error
    # an empty file cannot be mapped; a foreign one does not parse
    except (OSError, ValueError, IndexError) as error:
        _refuse_other_kinds(path)
        raise InputError(
            f"{path} is not a featkit model file: it is no ONNX file ({error})."
        ) from error
    if text is None:
        raise InputError(
            f"{path} is not a featkit model file: it has no `{METADATA_KEY}` manifest; make one"
            " with `featkit export`."
        )
    try:
        return Manifest.from_json(text)
    except InputError as error:
        raise InputError(f"{path} is not a model file that can be used: {error}") from error


def _refuse_other_kinds(path: Path) -> None:
    """InputError that says what a file is that is none of ONNX, where its first bytes tell and say
    what to do."""
    try:
        with path.open("rb") as file:
            kind = what_is(file.read(NUM_BYTES))
    except OSError:
        return
    if kind is not None and kind != ONNX and kind.advice:
        raise InputError(f"{path} is not a featkit model file: it is {kind.name}; {kind.advice}.")


def count_nodes(path: Path) -> int:
    """How many nodes a model file's graph has, without those inside its nodes. InputError, naming
    the file, when it is none."""
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
            f"{path} is no ONNX file whose graph can be read ({error}); write or fetch it again."
        ) from error


def copy_model_file(source: Path, destination: Path) -> None:
    """Copy a model file, and the weights beside it if it has any, which keep their own name. Each
    is there whole or not at all.

    OSError as copying raises it; InputError when the weights are missing or are not those of the
    manifest.
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
    """InputError unless the file of weights that the manifest names, if any, lies beside the model
    file in full.

    By its size; and with `digest` by its sha256, which takes longer than opening it.
    """
    external = manifest.external
    if external is None:
        return
    file = model.with_name(external.file)
    try:
        length = file.stat().st_size
    except FileNotFoundError:
        raise InputError(
            f"{file} is missing, which holds the weights of {model.name}; copy both files together"
            " into one folder."
        ) from None
    if length != external.num_bytes:
        raise InputError(
            f"{file} has {counted(length, 'byte')}, not the {external.num_bytes:,} of the weights"
            f" of {model.name}; copy both files together again."
        )
    if digest and sha256_of(file) != external.sha256:
        raise InputError(
            f"{file} is damaged: it is not what {model.name} was written with; copy both files"
            " again."
        )


def _as_text(value: Any) -> Any:
    """The value with bytes of file names that are no text spelled out, as in `caf\\xe9.jpg`."""
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
    # which NaN is not
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _find_manifest(data: mmap.mmap) -> str | None:
    for number, start, end in _fields(data, 0, len(data)):
        if number == METADATA_PROPS:
            if end - start > MAX_MANIFEST_BYTES:
                continue  # of somebody else
            entry = {
                inner: bytes(data[begin:stop]) for inner, begin, stop in _fields(data, start, end)
            }
            if entry.get(ENTRY_KEY) == METADATA_KEY.encode():
                return entry.get(ENTRY_VALUE, b"").decode("utf-8")
    return None


def _fields(data: mmap.mmap, place: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of every field of a message, without reading what is inside.
    ValueError if it is none."""
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
            raise ValueError(f"an endless number at byte {place}")
