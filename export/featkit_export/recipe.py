"""The recipe of an exported file: its feature, layers and outputs. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from featkit.modelfile import EMBEDDING, OUTPUTS

# A feature of a backbone's own tokens; `pooler` is the pooled output of an adopted ONNX file.
Feature: TypeAlias = Literal["cls", "mean", "gem", "cls+mean", "cls+gem"]
FileFeature: TypeAlias = Literal["cls", "mean", "gem", "cls+mean", "cls+gem", "pooler"]
Join: TypeAlias = Literal["concat", "mean"]
FEATURES: tuple[str, ...] = get_args(Feature)
FILE_FEATURES: tuple[str, ...] = get_args(FileFeature)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The feature, the layers it is taken from, and the outputs of the graph.

    layers: blocks of a transformer or stages of a CNN, counted from 1; an empty tuple means the
    last.
    """

    feature: Feature = "cls"
    layers: tuple[int, ...] = ()
    join: Join = "concat"
    outputs: tuple[str, ...] = (EMBEDDING,)

    def __post_init__(self) -> None:
        if self.feature not in FEATURES:
            raise ValueError(f"unknown feature {self.feature!r}; choose from {', '.join(FEATURES)}")
        if EMBEDDING not in self.outputs or not set(self.outputs) <= set(OUTPUTS):
            raise ValueError(
                f"outputs {self.outputs} must include {EMBEDDING} and be among {', '.join(OUTPUTS)}"
            )

    @property
    def class_only(self) -> bool:
        """True if class tokens are all that the outputs are made of."""
        return self.feature == "cls" and self.outputs == (EMBEDDING,)

    def widths(self, of_layers: Sequence[int]) -> tuple[int, ...]:
        """Return the width of each layer's part of a vector, from those of all layers of a backbone
        whose patch tokens are as wide as its class tokens."""
        layers = self.layers or (len(of_layers),)
        return tuple(of_layers[layer - 1] * (1 + ("+" in self.feature)) for layer in layers)
