"""A network with exits on the way, each of the deepest's width (Be Your Own Teacher, arXiv
1905.08094, section 3).

Letters: B images, (H, W) pixels, (h, w) places, C channels of a stage, D width of the deepest.
Stages and exits are counted from 1, and the deepest exit is the last. Bottlenecks are the paper's
(figure 2); that there is one for each stage left out, and their sizes, are ours, as are exits of
transformers, which the paper has not.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from featkit.errors import InputError
from featkit_train.networks.base import Activations, Backbone, Features
from featkit_train.networks.trunks import Stage, Trunk

# how much narrower the middle of a bottleneck is than what it gives; a ResNet's own number
NARROWING = 4


class ExitedBackbone(Backbone):
    """A trunk with an exit after each of the stages `exits`, and the deepest; depth: how many there
    are with it.

    The class token of an exit is its vector (B, D); its patch tokens are the map of its stage, (B,
    h, w, C), in a transformer behind the exit's norm. InputError for a stage that is not there.
    """

    def __init__(self, trunk: Trunk, exits: Sequence[int]) -> None:
        super().__init__(patch=trunk.patch, width=trunk.width, depth=len(exits) + 1)
        last = len(trunk.widths) - 1
        if not exits or list(exits) != sorted({stage for stage in exits if 1 <= stage <= last}):
            what = "blocks" if trunk.in_blocks else "stages"
            raise InputError(
                f"exits can be after the {what} 1 to {last}, since the deepest of {last + 1} has"
                f" one already, each named once and in ascending order, not {list(exits)}."
            )
        self.trunk, self.stages = trunk, tuple(exits)
        self.exits = nn.ModuleList(_exit_after(stage, trunk) for stage in exits)

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Features of the exits `layers`; those not asked for are not computed. ValueError for one
        that is not there."""
        wrong = [layer for layer in layers if not 1 <= layer <= self.depth]
        if wrong or attention:
            raise ValueError(
                f"this backbone has exits 1 to {self.depth}, not {wrong}, and no attention"
            )
        wanted = sorted(set(layers) - {self.depth})
        stages, deepest = self.trunk(images, [self.stages[layer - 1] for layer in wanted])
        found = {
            layer: self.exits[layer - 1](stage) for layer, stage in zip(wanted, stages, strict=True)
        }
        found[self.depth] = deepest
        return Activations(tuple(found[layer] for layer in layers), None)

    def all_exits(self, images: Tensor) -> tuple[Features, ...]:
        """Features of every exit from one pass, the deepest last."""
        return self.activations(images, layers=range(1, self.depth + 1)).features

    def cut(self, exit_: int) -> CutBackbone:
        """A copy of the network up to that exit, without what lies behind it and without the other
        exits.

        It takes images of the same sizes. ValueError for an exit that is not there.
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
    """What is left of a network with exits where one of them is its end; without a stage that is
    the deepest."""

    def __init__(
        self, trunk: Trunk, *, stage: int | None = None, exit_: nn.Module | None = None
    ) -> None:
        super().__init__(patch=trunk.patch, width=trunk.width, depth=1)
        self.trunk, self.stage, self.exit = trunk, stage, exit_

    def activations(
        self, images: Tensor, *, layers: Sequence[int], attention: bool = False
    ) -> Activations:
        """Features of its end; see Backbone."""
        if tuple(layers) != (1,) or attention:
            raise ValueError("this backbone gives its last layer alone, and no attention")
        if self.stage is None or self.exit is None:
            return Activations((self.trunk(images, ())[1],), None)
        return Activations((self.exit(self.trunk.up_to(images, self.stage)),), None)


class ShrinkingExit(nn.Module):
    """Bottlenecks that do to a map what the stages behind it would, one each, in their widths and
    strides; then the mean."""

    def __init__(self, widths: Sequence[int], strides: Sequence[int]) -> None:
        """widths: of the map that comes, and of what each bottleneck gives. strides: in pixels,
        likewise."""
        super().__init__()
        steps = zip(itertools.pairwise(widths), itertools.pairwise(strides), strict=True)
        self.shrink = nn.Sequential(
            *(_bottleneck(*width, stride=after // before) for width, (before, after) in steps)
        )

    def forward(self, stage: Stage) -> Features:
        """Features of the exit."""
        return Features(
            self.shrink(stage.places).mean(dim=(2, 3)), stage.places.permute(0, 2, 3, 1)
        )


class TokenExit(nn.Module):
    """A norm, and an MLP that adds to the class token, or to the mean of the patch tokens where
    there is none."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)

    def forward(self, stage: Stage) -> Features:
        """Features of the exit."""
        patch_tokens = self.norm(stage.places.permute(0, 2, 3, 1))
        token = patch_tokens.mean(dim=(1, 2)) if stage.token is None else self.norm(stage.token)
        return Features(token + self.mlp(token), patch_tokens)


def _exit_after(stage: int, trunk: Trunk) -> nn.Module:
    if trunk.in_blocks:
        return TokenExit(trunk.width)
    # The last map of some is narrower than the vector that is made of it.
    return ShrinkingExit((*trunk.widths[stage - 1 : -1], trunk.width), trunk.strides[stage - 1 :])


def _bottleneck(inputs: int, outputs: int, *, stride: int) -> nn.Sequential:
    """(B, inputs, h, w) to (B, outputs, h / stride, w / stride), rounded up, so that one place
    stays one."""
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
