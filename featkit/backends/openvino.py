"""OpenVINO: the same ONNX file on the CPU, in float32 or, if the CPU supports it, in bfloat16.

Weights and graph stay float32 in the file. `INFERENCE_PRECISION_HINT` makes OpenVINO compute in
bfloat16 and return float32. So bf16 is a property of the run, not of the file, and needs no
calibration.

OpenVINO is imported without its telemetry (no_telemetry.py), which reports the import itself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from featkit.backends.base import BF16, FP32, INT8, OPENVINO, Cancel, Cancelled, Run
from featkit.backends.no_telemetry import no_telemetry
from featkit.errors import EnvironmentProblem, FeatkitError, InputError
from featkit.modelfile import EMBEDDING, INPUT
from featkit.resources import usable_cpus

with no_telemetry():
    import openvino as ov
    from openvino.frontend import FrontEndManager


def _complete_type_tables() -> None:
    """Make OpenVINO build its two tables of element types now; built by threads, they can deadlock.

    Each table is a C++ function-local static (`ov_type_to_dtype` and `dtype_num_to_ov_type` in
    pyopenvino's common.cpp, 2026.4), filled with numpy dtypes at the first use of `Tensor.data` or
    `Tensor(array)`. The first dtype makes pybind11 load numpy's C API, which runs Python code
    (`numpy.lib.NumpyVersion`). Python may then give the GIL to another thread. If that thread needs
    the same table, it waits in `__cxa_guard_acquire` for the first thread while it holds the GIL,
    and the first thread waits for the GIL. Nothing in the process runs after that, not even signal
    handlers. Native stacks of a hung process show exactly these two waits.

    This function prevents it. `Tensor(array)` loads numpy's C API before it reaches a table, by a
    `call_once` that waits without the GIL. Filling a table then runs no Python code, so no other
    thread can enter. A finished static is never waited for. The function runs when this module is
    imported, in one thread, while other importers wait without the GIL and no backend exists yet.
    """
    tensor = ov.Tensor(np.zeros(1, np.uint8), shared_memory=True)
    _ = tensor.data.dtype  # the second table; not an assertion, which `python -O` would skip


_complete_type_tables()

TOKENS_PER_CALL = 512  # as for ONNX Runtime on a CPU: small batches stay in its caches


class OpenVinoBackend:
    """A graph compiled for each set of outputs, with one infer request per concurrent call.

    The graph stays dynamic. Compiling it for one size gained 2 % in batches of two (ViT-S/14,
    int8), and OpenVINO 2026.4 then folds an Abs of constants incorrectly. The float parts of an
    int8 file are computed in bf16 if the CPU supports it.

    threads: 1 is for concurrent callers, such as the batch job's workers, and opens one
    single-threaded stream per CPU. More threads form one stream, which finishes a single call as
    fast as possible.

    Raises InputError if OpenVINO cannot load the file or its inputs and outputs are not those of a
    featkit model file, and EnvironmentProblem for bf16 on a CPU without it.
    """

    def __init__(self, model: Path, *, threads: int, precision: str = FP32) -> None:
        if precision == BF16 and not has_bf16():
            raise EnvironmentProblem(
                f"This processor does not compute in {BF16}; run {model} with --precision {FP32}."
            )
        self.model = model
        self.kind = Run(OPENVINO, precision)
        self.name = f"openvino CPU {precision}"
        self.tokens_per_call = TOKENS_PER_CALL
        brief = precision == BF16 or (precision == INT8 and has_bf16())
        self._config = {
            "INFERENCE_PRECISION_HINT": "bf16" if brief else "f32",
            "NUM_STREAMS": usable_cpus() if threads == 1 else 1,
            "INFERENCE_NUM_THREADS": usable_cpus() if threads == 1 else threads,
            # If threads were pinned, two processes would share the first cores and idle the rest.
            "ENABLE_CPU_PINNING": False,
        }
        self._lock = threading.Lock()
        self._compiled: dict[tuple[str, ...], _Requests] = {}
        try:
            self._graph = _read(model)
        except Exception as error:  # its classes differ between releases
            raise InputError(
                f"{model} cannot be loaded by OpenVINO: {_first_line(error)}"
            ) from error
        self._check_contract()
        self._requests((EMBEDDING,))

    def run(
        self,
        images: np.ndarray,
        *,
        outputs: Sequence[str] = (EMBEDDING,),
        cancel: Cancel | None = None,
    ) -> dict[str, np.ndarray]:
        """Return the named outputs, float32, for images (N, H, W, 3) uint8.

        Only these outputs are computed. Raises Cancelled if `cancel` is set, and FeatkitError if
        OpenVINO fails, for example on a size that the graph does not accept.
        """
        cancel = cancel or Cancel()
        with self._requests(tuple(outputs)).borrowed() as request, cancel.ends_by(request.cancel):
            try:
                _copy_in(images, request.get_tensor(INPUT))
                request.start_async()  # infer() cannot be cancelled
                if cancel.is_set:  # it was set before the request had started
                    request.cancel()
                request.wait()
                return {name: _copy_out(request.get_tensor(name)) for name in outputs}
            except RuntimeError as error:
                if cancel.is_set:
                    # OpenVINO reports a request as finished before its stream is: another request
                    # on that stream was seen to return the cancelled one's values. So the compiled
                    # graph is dropped, and compiled again if it is needed.
                    with self._lock:
                        self._compiled.pop(tuple(outputs), None)
                    raise Cancelled from error
                raise FeatkitError(
                    f"{self.model} failed in OpenVINO on images {images.shape}:"
                    f" {_first_line(error)}"
                ) from error

    def _requests(self, outputs: tuple[str, ...]) -> _Requests:
        """Return the graph that computes only these outputs; it is compiled at the first call."""
        with self._lock:
            if outputs not in self._compiled:
                results = [self._graph.output(name).get_node() for name in outputs]
                part = ov.Model(results, self._graph.get_parameters(), "featkit")
                try:
                    self._compiled[outputs] = _Requests(
                        _core().compile_model(part, "CPU", self._config)
                    )
                except RuntimeError as error:
                    raise InputError(
                        f"{self.model} cannot be loaded by OpenVINO: {_first_line(error)}"
                    ) from error
            return self._compiled[outputs]

    def _check_contract(self) -> None:
        takes = {
            name: port.get_element_type().to_string()
            for port in self._graph.inputs
            for name in port.get_names()
        }
        gives = {
            name: port.get_element_type().to_string()
            for port in self._graph.outputs
            for name in port.get_names()
        }
        if {takes.get(INPUT), *takes.values()} != {"u8"} or gives.get(EMBEDDING) != "f32":
            raise InputError(
                f"{self.model} is not a featkit model file: it takes {takes} and gives {gives}, "
                f"not {INPUT} as uint8 and {EMBEDDING} as float32."
            )


class _Requests:
    """A compiled graph and its infer requests, one for each running call."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._lock = threading.Lock()
        self._idle: list[Any] = []

    @contextmanager
    def borrowed(self) -> Iterator[Any]:
        """Lend an idle request. After an error it is dropped, since it might still be busy."""
        with self._lock:
            request = self._idle.pop() if self._idle else self._compiled.create_infer_request()
        yield request
        with self._lock:
            self._idle.append(request)


def _copy_in(images: np.ndarray, tensor: Any) -> None:
    """Copy an array into a request's own tensor and resize the tensor to fit.

    Copying between tensors runs native code only; `start_async(array)` would use OpenVINO's Python
    dispatcher and `Tensor.data`. The request never reads the caller's array, which may be freed
    before a cancelled request has really finished.
    """
    if images.size:
        ov.Tensor(np.require(images, requirements=("C", "W")), shared_memory=True).copy_to(tensor)
    else:
        tensor.shape = images.shape


def _copy_out(tensor: Any) -> np.ndarray:
    """Return a copy of the float32 values of a request's tensor."""
    values = np.empty(tuple(tensor.shape), np.float32)
    if values.size:  # copying an empty tensor crashes OpenVINO 2026.4
        tensor.copy_to(ov.Tensor(values, shared_memory=True))
    return values


def has_bf16() -> bool:
    """Return whether OpenVINO computes in bfloat16 on this CPU."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def num_multiply_adds(model: Path, *, height: int, width: int) -> int:
    """Count the multiply-adds per image (height, width) in matrix products and convolutions."""
    graph = _read(model)
    graph.reshape({INPUT: [1, height, width, 3]})
    total = 0
    for node in graph.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "MatMul":
            inner = node.input(0).get_shape()[-2 if node.get_attributes()["transpose_a"] else -1]
            total += int(np.prod(node.output(0).get_shape())) * int(inner)
        elif kind in ("Convolution", "GroupConvolution"):
            # A filter is (outputs, inputs, height, width), preceded by groups if there are any.
            taps = int(np.prod(node.input(1).get_shape()[-3:]))
            total += int(np.prod(node.output(0).get_shape())) * taps
        elif kind == "ScaledDotProductAttention":
            query, key, value = (node.input(number).get_shape() for number in range(3))
            rows = int(np.prod(query[:-1])) * int(key[-2])
            total += rows * (int(query[-1]) + int(value[-1]))
    return total


@cache
def _core() -> Any:
    return ov.Core()


def _read(model: Path) -> Any:
    """Read a model with the ONNX front end only; Core.read_model tries all, and the others log."""
    reader = FrontEndManager().load_by_framework("onnx")
    return reader.convert(reader.load(str(model)))


def _first_line(error: Exception) -> str:
    """Return an error's message without the lines about OpenVINO's source code."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return said[0].rstrip(".") + "." if said else f"{type(error).__name__}."
