"""A network with early exits, all of the deepest exit's width (Be Your Own Teacher, arXiv
1905.08094).

Letters: B images, (H, W) pixels, (h, w) positions, C channels of a stage, D width of the deepest.
Stages and exits are counted from 1, and the deepest exit is the last.

Exits of a CNN are bottlenecks as in the paper's figure 2. Their sizes, and one bottleneck for each
stage that an exit skips, are our choice. Exits of transformers are our addition, too.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from featkit.errors import InputError
from featkit_train.networks.base import Activations, Backbone, Features
from featkit_train.networks.trunks import Stage, Trunk

# The middle of a bottleneck is this many times narrower than its output, as in ResNets.
NARROWING = 4


class ExitedBackbone(Backbone):
    """A trunk with an exit after each of the stages `exits`, and the deepest exit at its end.

    depth: number of exits, with the deepest. The class token of an exit is its vector (B, D). Its
    patch tokens are its stage's map (B, h, w, C); in a transformer, the exit's norm is applied
    first. InputError for a stage that the trunk does not have.
    """

    def __init__(self, trunk: Trunk, exits: Sequence[int]) -> None:
        super().__init__(patch=trunk.patch, width=trunk.width, depth=len(exits) + 1)
        last = len(trunk.widths) - 1
        if not exits or list(exits) != sorted({stage for stage in exits if 1 <= stage <= last}):
            what = "blocks" if trunk.in_blocks else "stages"
            raise InputError(
                f"exits can be after the {what} 1 to {last}, each named once and in ascending"
                f" order, not {list(exits)}; the deepest of {last + 1} always has one."
            )
        self.trunk, self.stages = trunk, tuple(exits)
        self.exits = nn.ModuleList(_exit_after(stage, trunk) for stage in exits)

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the exits `layers`, and compute no others.

        ValueError for an exit that the network does not have.
        """
        wrong = [layer for layer in layers if not 1 <= layer <= self.depth]
        if wrong or attention:
            raise ValueError(
                f"this backbone has exits 1 to {self.depth}, not {wrong}, and no attention"
            )
        wanted = sorted(set(layers) - {self.depth})
        stages, deepest = self.trunk(images, [self.stages[layer - 1] for layer in wanted])
        features = {
            layer: self.exits[layer - 1](stage) for layer, stage in zip(wanted, stages, strict=True)
        }
        features[self.depth] = deepest
        return Activations(tuple(features[layer] for layer in layers), None)

    def all_exits(self, images: Tensor) -> tuple[Features, ...]:
        """Return Features of every exit from one pass, the deepest last."""
        return self.activations(images, layers=range(1, self.depth + 1)).features

    def cut(self, exit_: int) -> CutBackbone:
        """Return a copy of the network that ends at that exit, without the other exits.

        It takes images of the same sizes. ValueError for an exit that the network does not have.
        """
        if not 1 <= exit_ <= self.depth:
            raise ValueError(f"this backbone has exits 1 to {self.depth}, not {exit_}")
        if exit_ == self.depth:
            return CutBackbone(copy.deepcopy(self.trunk))
        stage = self.stages[exit_ - 1]
        return CutBackbone(
            self.trunk.cut(stage), stage=stage, exit_=copy.deepcopy(self.exits[exit_ - 1])
        )


class CutBackbone(Backbone):
    """A network that ends at one of its exits.

    stage, exit_: the stage and the exit after it; None for the deepest.
    """

    def __init__(
        self, trunk: Trunk, *, stage: int | None = None, exit_: nn.Module | None = None
    ) -> None:
        super().__init__(patch=trunk.patch, width=trunk.width, depth=1)
        self.trunk, self.stage, self.exit = trunk, stage, exit_

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Return Features of the exit; see Backbone."""
        if tuple(layers) != (1,) or attention:
            raise ValueError("this backbone has only its last layer, and no attention weights")
        if self.stage is None or self.exit is None:
            return Activations((self.trunk(images, ())[1],), None)
        return Activations((self.exit(self.trunk.up_to(images, self.stage)),), None)


class ShrinkingExit(nn.Module):
    """A bottleneck for each later stage, with that stage's width and stride, then the mean."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int]) -> None:
        """Build the bottlenecks.

        widths, strides (in pixels): of the input map, and of each bottleneck's output.
        """
        super().__init__()
        steps = zip(itertools.pairwise(widths), itertools.pairwise(strides), strict=True)
        self.shrink = nn.Sequential(
            *(_bottleneck(*width, stride=after // before) for width, (before, after) in steps)
        )

    def forward(self, stage: Stage) -> Features:
        """Return Features of the exit."""
        vector = self.shrink(stage.places).mean(dim=(2, 3))  # (B, D)
        return Features(vector, stage.places.permute(0, 2, 3, 1))  # (B, h, w, C)


class TokenExit(nn.Module):
    """A norm, then an MLP added to the class token (without one, to the mean patch token)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, stage: Stage) -> Features:
        """Return Features of the exit."""
        patch_tokens = self.norm(stage.places.permute(0, 2, 3, 1))  # (B, h, w, D)
        token = patch_tokens.mean(dim=(1, 2)) if stage.token is None else self.norm(stage.token)
        return Features(token + self.mlp(token), patch_tokens)


def _exit_after(stage: int, trunk: Trunk) -> nn.Module:
    if trunk.in_blocks:
        return TokenExit(trunk.width)
    # Some networks' last map is narrower than the vector before their classifier.
    return ShrinkingExit((*trunk.widths[stage - 1 : -1], trunk.width), trunk.strides[stage - 1 :])


def _bottleneck(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    """Map (B, inputs, h, w) to (B, outputs, h / stride, w / stride).

    Sizes are rounded up, so that a map of one position keeps it.
    """
    middle = max(1, outputs // NARROWING)
    block = nn.Sequential(
        *(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU(inplace=True)),
        *(
            nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(middle),
            nn.ReLU(inplace=True),
        ),
        *(
            nn.Conv2d(middle, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        ),
    )
    for layer in block:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return block
