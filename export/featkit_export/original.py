"""An ONNX file that was made elsewhere: what it takes and gives, and the vectors that it stands
for, pooled in numpy.

Letters: N images, (H, W) pixels, (h, w) patches, T tokens (class, R registers, then patches), D
width.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from google.protobuf.descriptor import FieldDescriptor  # type: ignore[import-untyped]
from google.protobuf.message import DecodeError, Message  # type: ignore[import-untyped]
from onnx import TensorProto

from featkit.errors import FeatkitError, InputError
from featkit.geometry import Geometry
from featkit.paths import text_path
from featkit_export import verify
from featkit_export.built_in import Feed
from featkit_export.surgery import GEM_FLOOR, GEM_POWER

HIDDEN, POOLED = "last_hidden_state", "pooler_output"
POOLER = "pooler"  # the feature that is the file's own pooled vector
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a file takes and gives: names, element types, and sizes where they are fixed (None where
    not)."""

    input: str
    input_kind: int  # TensorProto.FLOAT, FLOAT16 or UINT8
    channels_last: bool  # (N, H, W, 3) rather than (N, 3, H, W)
    batch: int | None
    height: int | None
    width: int | None
    output: str  # HIDDEN, or POOLED where that was asked for or is all there is
    output_is_half: bool
    depth: int | None  # D
    has_pooled: bool  # whether it gives POOLED, with HIDDEN or without


class DoesNotTake(FeatkitError):
    """The original file does not run on images of this size or number, or gives no token for each
    of their patches."""


def load_onnx(path: Path) -> onnx.ModelProto:
    """The graph of an ONNX file with all its weights, those in files beside it too.

    InputError when it is missing or no ONNX file, or when its weights are missing, elsewhere than
    beside it, or cut short.
    """
    try:
        with text_path(path) as text:
            model = onnx.load(text)
    except DecodeError as error:
        raise InputError(
            f"{path} is no ONNX file (it does not parse); name one that was exported as ONNX."
        ) from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        if not path.exists():
            raise InputError(f"{path} does not exist; name an ONNX file.") from error
        raise InputError(
            f"{path} cannot be read with its weights ({one_line(error)}); fetch it whole again."
        ) from error
    if not _is_text_whole(model):
        raise InputError(
            f"{path} is a damaged ONNX file: names in it are not UTF-8; fetch it again."
        )
    for weight in model.graph.initializer:
        # set even to what it is by default, it would change the fingerprint
        weight.ClearField("data_location")
    return model


def _is_text_whole(message: Message) -> bool:
    """Whether every text in a message is UTF-8: protobuf gives bytes for another, which nothing
    expects."""
    try:
        for field, value in message.ListFields():
            if field.type == FieldDescriptor.TYPE_MESSAGE:
                inner = [value] if isinstance(value, Message) else value
                if not all(map(_is_text_whole, inner)):
                    return False
            elif field.type == FieldDescriptor.TYPE_STRING:
                texts = [value] if isinstance(value, str | bytes) else value
                if not all(isinstance(text, str) for text in texts):
                    return False
    except UnicodeDecodeError:
        return False
    return True


def read_interface(model: onnx.ModelProto, *, name: str, feature: str | None = None) -> Interface:
    """What the file takes and gives. InputError, with both as found, when that is not what a vision
    transformer's does.

    feature: POOLER for POOLED as the output.
    """
    inputs = inputs_of(model.graph)
    found = ", ".join(map(_described, inputs)) or "nothing"
    wanted = "one input of pixels (batch, 3, height, width)"
    if len(inputs) != 1:
        raise InputError(
            f"{name} takes {found}; wanted is {wanted}: export it again with that alone."
        )
    sides, kind = _sizes(inputs[0]), inputs[0].type.tensor_type.elem_type
    channels_last = len(sides) == 4 and sides[3] == 3 and sides[1] != 3
    if (
        len(sides) != 4
        or (sides[1] not in (None, 3) and not channels_last)
        or kind not in (*FLOATS, TensorProto.UINT8)
    ):
        raise InputError(
            f"{name} takes {found}; wanted is {wanted} as float32, float16 or uint8: export it"
            " again so."
        )
    if sides[0] not in (None, 1):
        raise InputError(
            f"{name} takes {found}, so {sides[0]} images a call; wanted is 1 or any number:"
            " export it again so."
        )
    given = {value.name: value for value in model.graph.output}
    gives = ", ".join(map(_described, given.values())) or "nothing"
    if feature == POOLER and POOLED not in given:
        raise InputError(
            f"{name} gives {gives} and no {POOLED}, which the feature {POOLER} is; choose --feature"
            " cls or mean."
        )
    known = (POOLED,) if feature == POOLER else (HIDDEN, POOLED)
    output = next((given[each] for each in known if each in given), None)
    if output is None:
        raise InputError(
            f"{name} gives {gives}; wanted is {HIDDEN} or {POOLED}: export it without a head for a"
            " task."
        )
    shape, rank, gives_kind = (
        _sizes(output),
        3 if output.name == HIDDEN else 2,
        output.type.tensor_type.elem_type,
    )
    if (
        output.type.tensor_type.HasField("shape") and len(shape) != rank
    ) or gives_kind not in FLOATS:
        raise InputError(
            f"{name} gives {gives}; wanted is {HIDDEN} (batch, tokens, width) or {POOLED} (batch,"
            " width) in floats."
        )
    height, width = sides[1:3] if channels_last else sides[2:4]
    return Interface(
        input=inputs[0].name,
        input_kind=kind,
        channels_last=channels_last,
        batch=sides[0],
        height=height,
        width=width,
        output=output.name,
        output_is_half=gives_kind == TensorProto.FLOAT16,
        depth=shape[-1] if shape else None,
        has_pooled=POOLED in given,
    )


def inputs_of(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """What a caller has to give: weights may be listed among the inputs as well."""
    weights = {weight.name for weight in graph.initializer} | {
        weight.values.name for weight in graph.sparse_initializer
    }
    return [value for value in graph.input if value.name not in weights]


class Original:
    """The file as it is, run by ONNX Runtime on images that numpy normalizes, with its tokens
    pooled by numpy.

    has_class_token: whether token 0 is one; without it, all tokens are those of patches.
    """

    def __init__(
        self,
        path: Path,
        interface: Interface,
        *,
        geometry: Geometry,
        feed: Feed,
        feature: str,
        num_registers: int,
        has_class_token: bool = True,
        is_dynamic: bool = False,
    ) -> None:
        self.path, self.interface, self.geometry, self.feed, self.feature = (
            path,
            interface,
            geometry,
            feed,
            feature,
        )
        # is_dynamic: takes scales from the whole batch
        self.num_registers, self.is_dynamic = num_registers, is_dynamic
        self.has_class_token = has_class_token
        self._session = open_session(path)

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """(N, H, W, 3) uint8 to unit vectors (N, D), and patch tokens (N, h, w, D) where the file
        gives them; float64.

        DoesNotTake when the file fails on that size or number.
        """
        hidden = self._output(images, self.interface.output)
        if self.interface.output == POOLED:
            return _unit(hidden), None
        num, height, width = images.shape[:3]
        rows, columns = height // self.geometry.patch, width // self.geometry.patch
        skip = self.has_class_token + self.num_registers
        if hidden.shape[1] != skip + rows * columns:
            surplus = hidden.shape[1] - 1 - rows * columns
            means = f"{surplus} registers" if surplus >= 0 else "another patch or no class token"
            raise DoesNotTake(
                f"it gives {hidden.shape[1]} tokens for {height}×{width}, which at a patch of"
                f" {self.geometry.patch} means {means}, where {self.num_registers} were told"
            )
        tokens = hidden[:, skip:]
        vectors = _feature(self.feature, hidden[:, 0], tokens)
        return vectors, tokens.reshape(num, rows, columns, -1)

    @property
    def gives_tokens(self) -> bool:
        """Whether the file gives HIDDEN, whatever was asked for."""
        return HIDDEN in {value.name for value in self._session.get_outputs()}

    def num_tokens(self, images: np.ndarray) -> int:
        """How many tokens it gives for one image of these. DoesNotTake as for `run`."""
        return int(self._output(images, HIDDEN).shape[1])

    def _output(self, images: np.ndarray, name: str) -> np.ndarray:
        try:
            (found,) = self._session.run([name], {self.interface.input: self._normalized(images)})
        except Exception as error:  # onnxruntime's exception classes share no base but Exception
            raise DoesNotTake(one_line(error)) from error
        values: np.ndarray = found.astype(np.float64)
        return values

    def _normalized(self, images: np.ndarray) -> np.ndarray:
        # In float32 and units of 0 .. 255, as the nodes put into the graph have it: what a graph
        # rounds to whole numbers inside can be compared only where its inputs are the same to the
        # last bit.
        pixels = images
        if self.interface.input_kind != TensorProto.UINT8:
            mean, std = (numbers.astype(np.float32) for numbers in (self.feed.mean, self.feed.std))
            pixels = (images.astype(np.float32) - mean) / std
        if self.interface.input_kind == TensorProto.FLOAT16:
            pixels = pixels.astype(np.float16)
        return np.ascontiguousarray(
            pixels if self.interface.channels_last else pixels.transpose(0, 3, 1, 2)
        )


def open_session(path: Path) -> ort.InferenceSession:
    """ONNX Runtime on the processor. InputError, naming the file, when it does not load."""
    try:
        with text_path(path) as text:
            return verify.open_session(text)
    except Exception as error:  # as above
        raise InputError(
            f"{path} cannot be loaded by ONNX Runtime ({one_line(error)}); export it again."
        ) from error


def _feature(feature: str, class_token: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Unit vectors (N, D) of class tokens (N, D) and patch tokens (N, P, D)."""
    pools = {
        "cls": class_token,
        "mean": tokens.mean(axis=1),
        "gem": (np.maximum(tokens, GEM_FLOOR) ** GEM_POWER).mean(axis=1) ** (1 / GEM_POWER),
    }
    return _unit(np.concatenate([_unit(pools[part]) for part in feature.split("+")], axis=1))


def _unit(vectors: np.ndarray) -> np.ndarray:
    divided: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return divided


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [
        dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim
    ]


def _described(value: onnx.ValueInfoProto) -> str:
    """Such as `pixel_values float32 (batch, 3, 224, 224)`."""
    tensor = value.type.tensor_type
    kind = _type_name(tensor.elem_type)
    sides = [
        str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?"
        for dim in tensor.shape.dim
    ]
    return f"{value.name} {kind} ({', '.join(sides)})"


def _type_name(number: int) -> str:
    """The element type as numpy spells it, or as ONNX does where numpy has none."""
    name: str = TensorProto.DataType.Name(number)
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())


def one_line(error: Exception) -> str:
    """What an exception says, on one line of sensible length and without a full stop."""
    return " ".join(str(error).split())[:300].rstrip(". ")
