"""What a command says when the extra it needs is not installed."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Literal, TypeAlias

from featkit.errors import EnvironmentProblem

# What --backend and --precision take.
BackendName: TypeAlias = Literal["auto", "onnxruntime", "openvino", "tensorrt"]
PrecisionName: TypeAlias = Literal["auto", "fp32", "bf16"]


def need_extra(extra: str, *modules: str, engines: Sequence[str] = ()) -> None:
    """EnvironmentProblem with the line that helps, when one of the modules is not installed.
    Imports none of them.

    modules: those of `extra`. engines: those of the extra `cpu`, or of `gpu` in its place, where
    the command needs it too.
    """
    missing = [module for module in (*engines, *modules) if find_spec(module) is None]
    if missing:
        without_engine = not set(engines).isdisjoint(missing)
        needed = f"cpu,{extra}" if without_engine else extra
        instead = (
            f" (or 'featkit[{needed.replace('cpu', 'gpu')}]')" if needed.startswith("cpu") else ""
        )
        raise EnvironmentProblem(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed; "
            f"this command needs the extra: pip install 'featkit[{needed}]'{instead}."
        )
