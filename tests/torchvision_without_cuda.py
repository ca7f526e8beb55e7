"""Import torchvision, timm and lightly with a torch that has no CUDA.

The torchvision wheel of the package index is linked to CUDA. If its library cannot be loaded, the
import fails on two operators that no test calls. They are declared here first, so that the Python
part of torchvision works.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch

# the operators are gone when their Library is collected
_declared: list[torch.library.Library] = []


def allow_torchvision() -> None:
    """Make `import torchvision` work; do nothing if it already does."""
    if _declared or hasattr(torch.ops.torchvision, "nms"):
        return
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    try:
        torch.ops.load_library(str(Path(spec.origin).with_name("_C.so")))
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


def import_quietly(name: str) -> Any:
    """Import a module that needs torchvision, without the warnings of its import."""
    allow_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def import_lightly_loss(name: str) -> Any:
    """Return a loss class of lightly."""
    return getattr(import_quietly("lightly.loss"), name)
