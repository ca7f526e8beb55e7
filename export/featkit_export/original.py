"""An ONNX file made elsewhere: its inputs and outputs, and reference vectors from running it.

The reference normalizes pixels and pools tokens in numpy, independently of the graph that
adopted_graph.py writes.

Letters: N images, (H, W) pixels, (h, w) patches, T tokens (class, R registers, then patches), D
width.
"""

from __future__ import annotations

import copy
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
from featkit.wording import one_line
from featkit_export import verify
from featkit_export.built_in import Feed
from featkit_export.surgery import GEM_FLOOR, GEM_POWER

HIDDEN, POOLED = "last_hidden_state", "pooler_output"
POOLER = "pooler"  # the feature that takes POOLED as it is
# Maximum length of ONNX Runtime's message when an error quotes it. It names the failing node after
# its first line, so that line alone is not enough.
LONGEST_CAUSE = 300
FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True, kw_only=True)
class Interface:
    """Names, element types and sizes of a file's input and output; None for a dynamic size."""

    input: str
    input_kind: int  # TensorProto.FLOAT, FLOAT16 or UINT8
    channels_last: bool  # (N, H, W, 3) rather than (N, 3, H, W)
    batch: int | None
    height: int | None
    width: int | None
    output: str  # HIDDEN, or POOLED if it was asked for or is the only one
    output_is_half: bool
    depth: int | None  # D
    has_pooled: bool  # whether POOLED is among the outputs


class DoesNotTake(FeatkitError):
    """The original file does not run on this size or batch, or its tokens do not match the
    patches."""


def load_onnx(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with all its weights, including those in files next to it.

    Raises InputError if it is missing or not ONNX, or if its weights are missing, cut short, or
    outside its folder.
    """
    try:
        with text_path(path) as text:
            model = onnx.load(text)
    except DecodeError as error:
        raise InputError(
            f"{path} is not an ONNX file (it does not parse); name one that was exported as ONNX."
        ) from error
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        if not path.exists():
            raise InputError(f"{path} does not exist; name an ONNX file.") from error
        raise InputError(
            f"{path} cannot be read with its weights ({one_line(error, most=LONGEST_CAUSE)});"
            " download all its files again."
        ) from error
    if not _is_text_whole(model):
        raise InputError(
            f"{path} is damaged: it contains names that are not UTF-8; download it again."
        )
    for weight in model.graph.initializer:
        # onnx.load sets the field even to its default, which would change the fingerprint.
        weight.ClearField("data_location")
    return model


def _is_text_whole(message: Message) -> bool:
    """Return whether every string in a message is UTF-8. protobuf returns invalid strings as bytes,
    which later code does not expect."""
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
    """Return the inputs and outputs of a vision transformer's file.

    feature: POOLER selects POOLED as the output. Raises InputError, naming the actual and the
    required interface, for any other kind of file.
    """
    inputs = inputs_of(model.graph)
    takes = ", ".join(map(_described, inputs)) or "nothing"
    wanted = "one input of pixels (batch, 3, height, width)"
    if len(inputs) != 1:
        raise InputError(
            f"{name} takes {takes}; featkit needs {wanted}: export it again with only that input."
        )
    sides, kind = _sizes(inputs[0]), inputs[0].type.tensor_type.elem_type
    channels_last = len(sides) == 4 and sides[3] == 3 and sides[1] != 3
    if (
        len(sides) != 4
        or (sides[1] not in (None, 3) and not channels_last)
        or kind not in (*FLOATS, TensorProto.UINT8)
    ):
        raise InputError(
            f"{name} takes {takes}; featkit needs {wanted} as float32, float16 or uint8: export it"
            " again that way."
        )
    if sides[0] not in (None, 1):
        raise InputError(
            f"{name} takes {takes}, which is {sides[0]} images per call; featkit needs a batch of 1"
            " or a dynamic one: export it again that way."
        )
    given = {value.name: value for value in model.graph.output}
    gives = ", ".join(map(_described, given.values())) or "nothing"
    if feature == POOLER and POOLED not in given:
        raise InputError(
            f"{name} gives {gives} but no {POOLED}, which the feature {POOLER} needs; use --feature"
            " cls or mean."
        )
    known = (POOLED,) if feature == POOLER else (HIDDEN, POOLED)
    output = next((given[each] for each in known if each in given), None)
    if output is None:
        raise InputError(
            f"{name} gives {gives}; featkit needs {HIDDEN} or {POOLED}: export it without a"
            " task's head."
        )
    shape, output_kind = _sizes(output), output.type.tensor_type.elem_type
    rank = 3 if output.name == HIDDEN else 2
    has_shape = output.type.tensor_type.HasField("shape")
    if (has_shape and len(shape) != rank) or output_kind not in FLOATS:
        raise InputError(
            f"{name} gives {gives}; featkit needs {HIDDEN} (batch, tokens, width) or {POOLED}"
            " (batch, width) in floats."
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
        output_is_half=output_kind == TensorProto.FLOAT16,
        depth=shape[-1] if shape else None,
        has_pooled=POOLED in given,
    )


def inputs_of(graph: onnx.GraphProto) -> list[onnx.ValueInfoProto]:
    """Return the inputs that a caller must supply. Old files list their weights as inputs too."""
    weights = {weight.name for weight in graph.initializer} | {
        weight.values.name for weight in graph.sparse_initializer
    }
    return [value for value in graph.input if value.name not in weights]


class Original:
    """The unchanged file in ONNX Runtime, with pixels normalized and tokens pooled by numpy.

    has_class_token: whether token 0 is the class token; otherwise all tokens are patches.
    is_dynamic: whether operators take quantization scales from the whole batch.
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
        self.path, self.interface, self.geometry = path, interface, geometry
        self.feed, self.feature = feed, feature
        self.num_registers, self.is_dynamic = num_registers, is_dynamic
        self.has_class_token = has_class_token
        self._session = load_session(path)

    def with_feature(
        self, feature: str, interface: Interface, *, has_class_token: bool
    ) -> Original:
        """Return the same file with another feature, in the same session."""
        other = copy.copy(self)
        other.feature, other.interface = feature, interface
        other.has_class_token = has_class_token
        return other

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return unit vectors (N, D), and patch tokens (N, h, w, D) if the file gives them.

        images: (N, H, W, 3) uint8. Both results are float64. Raises DoesNotTake if the file fails
        on that size or batch.
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
                f" {self.geometry.patch} means {means}, not the"
                f" {self.num_registers} registers given"
            )
        tokens = hidden[:, skip:]
        vectors = _feature(self.feature, hidden[:, 0], tokens)
        return vectors, tokens.reshape(num, rows, columns, -1)

    @property
    def gives_tokens(self) -> bool:
        """True if HIDDEN is among the file's outputs, even if another one is used."""
        return HIDDEN in {value.name for value in self._session.get_outputs()}

    def num_tokens(self, images: np.ndarray) -> int:
        """Return the number of tokens per image. Raises DoesNotTake as `run` does."""
        return int(self._output(images, HIDDEN).shape[1])

    def _output(self, images: np.ndarray, name: str) -> np.ndarray:
        try:
            (output,) = self._session.run([name], {self.interface.input: self._normalized(images)})
        except Exception as error:  # onnxruntime's exceptions share no base class but Exception
            raise DoesNotTake(one_line(error, most=LONGEST_CAUSE)) from error
        values: np.ndarray = output.astype(np.float64)
        return values

    def _normalized(self, images: np.ndarray) -> np.ndarray:
        # In float32 and units of 0 .. 255, exactly like the nodes added to the graph: a quantized
        # graph rounds to integers, so it can only be compared on bit-identical inputs.
        pixels = images
        if self.interface.input_kind != TensorProto.UINT8:
            mean, std = (numbers.astype(np.float32) for numbers in (self.feed.mean, self.feed.std))
            pixels = (images.astype(np.float32) - mean) / std
        if self.interface.input_kind == TensorProto.FLOAT16:
            pixels = pixels.astype(np.float16)
        return np.ascontiguousarray(
            pixels if self.interface.channels_last else pixels.transpose(0, 3, 1, 2)
        )


def load_session(path: Path) -> ort.InferenceSession:
    """Open a file with ONNX Runtime on the CPU. Raises InputError, naming the file, if that
    fails."""
    try:
        with text_path(path) as text:
            return verify.open_session(text)
    except Exception as error:  # onnxruntime's exceptions share no base class but Exception
        raise InputError(
            f"{path} cannot be loaded by ONNX Runtime ({one_line(error, most=LONGEST_CAUSE)});"
            " export it again."
        ) from error


def _feature(feature: str, class_token: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """Pool class tokens (N, D) and patch tokens (N, P, D) into unit vectors (N, D)."""
    pools = {
        "cls": class_token,
        "mean": tokens.mean(axis=1),
        "gem": (np.maximum(tokens, GEM_FLOOR) ** GEM_POWER).mean(axis=1) ** (1 / GEM_POWER),
    }
    return _unit(np.concatenate([_unit(pools[name]) for name in feature.split("+")], axis=1))


def _unit(vectors: np.ndarray) -> np.ndarray:
    divided: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return divided


def _sizes(value: onnx.ValueInfoProto) -> list[int | None]:
    return [
        dim.dim_value if dim.dim_value > 0 else None for dim in value.type.tensor_type.shape.dim
    ]


def _described(value: onnx.ValueInfoProto) -> str:
    """Return text such as `pixel_values float32 (batch, 3, 224, 224)`."""
    tensor = value.type.tensor_type
    kind = _type_name(tensor.elem_type)
    sides = [
        str(dim.dim_value) if dim.dim_value > 0 else dim.dim_param or "?"
        for dim in tensor.shape.dim
    ]
    return f"{value.name} {kind} ({', '.join(sides)})"


def _type_name(number: int) -> str:
    """Return the element type's name in numpy, or in ONNX if numpy has none."""
    name: str = TensorProto.DataType.Name(number)
    return {"FLOAT": "float32", "DOUBLE": "float64"}.get(name, name.lower())
