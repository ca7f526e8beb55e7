"""torchvision, timm and lightly beside a torch without CUDA.

torchvision's compiled library from the package index is linked to CUDA; where it cannot be loaded,
its import fails on two operators that nothing here calls. They are declared first, so that all that
is written in Python works.
"""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from pathlib import Path
from typing import Any

import torch

# a Library takes its operators along when it is collected
_declared: list[torch.library.Library] = []


def allow_torchvision() -> None:
    """Make `import torchvision` work. Does nothing where it does already."""
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
    """Import a module that needs torchvision, without the warnings that its import gives."""
    allow_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def import_lightly_loss(name: str) -> Any:
    """A loss class of lightly's."""
    return getattr(import_quietly("lightly.loss"), name)
