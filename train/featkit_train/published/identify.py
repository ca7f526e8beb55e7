"""Which published backbone a file fits, and what keeps it from fitting another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

from torch import Tensor

from featkit.errors import EnvironmentProblem
from featkit_train.published.anatomy import (
    Anatomy,
    anatomy_of,
    anatomy_of_row,
    nearest_row,
    rows_like,
)
from featkit_train.published.building import MAPS, state_of
from featkit_train.published.fitting import MIN_SHARE, Fit, fits, found_names
from featkit_train.published.key_maps import listed
from featkit_train.published.weight_files import Weights
from featkit_train.published.zoo import PUBLISHED, Published


def misfit(found: Weights, tried: Sequence[Fit], row: Published | str) -> str:
    """Why a file is not the model's weights: both shapes, the prefix that was found, and which
    model it fits."""
    name = row if isinstance(row, str) else row.name
    if found.sharded:
        return (
            f"{found.file} holds one process's share of weights that FSDP spread over several"
            f" ({listed(list(found.sharded))}); save a full state dict where it was trained, or"
            " take the teacher_checkpoint.pth of the training's evaluation."
        )
    best = max(tried, key=lambda fit: fit.num_matching, default=None)
    suggestion = _suggestion(found, besides=name)
    if best is None or (
        best.num_matching < MIN_SHARE * best.num_wanted and "class_token" not in best.outlines
    ):
        return (
            f"{found.file} does not hold weights of {name}; its names begin with"
            f" {found_names(found)}.{suggestion}"
        )
    theirs = anatomy_of(best.outlines)
    said = best.mismatches()
    if theirs is not None and isinstance(row, Published) and row.kind == "vit":
        ours = anatomy_of_row(row)
        differs = theirs.differs(ours)
        if differs:
            said = (
                f"it has {theirs.words(only=differs)}, and {name} has {ours.words(only=differs)};"
                f" {said}"
            )
    under = f" under {best.place.rstrip('.')}" if best.place else ""
    return f"{found.file} does not fit {name}{under}: {said}.{suggestion}"


def _suggestion(found: Weights, *, besides: str = "") -> str:
    """A sentence that names the published models that a file fits, or the nearest one; "" where
    there is no telling."""
    anatomy, rows = identify(found)
    rows = [row for row in rows if row.name != besides]
    if rows:
        return f" It fits {' or '.join(row.name for row in rows)}: name that."
    if anatomy is not None and (nearest := nearest_row(anatomy)).name != besides:
        ours = anatomy_of_row(nearest)
        differs = anatomy.differs(ours)
        if differs:
            return (
                f" The nearest published model is {nearest.name}, which has"
                f" {ours.words(only=differs)}."
            )
    return ""


def identify(found: Weights) -> tuple[Anatomy | None, list[Published]]:
    """The sizes of the Vision Transformer in a file, if there is one, and the published backbones
    that the file fits."""
    vits = [fit for fit in fits(found, MAPS["vit"], dict, names=_Every()) if not fit.problem]
    best = max(vits, key=lambda fit: len(fit.outlines), default=None)
    if best is not None and len(best.outlines) >= 2:  # a lone `norm.weight` is anybody's
        anatomy = anatomy_of(best.outlines)
        if anatomy is not None or "class_token" in best.outlines:
            return anatomy, rows_like(anatomy) if anatomy else []
    rows = []
    for row in PUBLISHED.values():
        if row.kind == "vit":
            continue
        # torchvision or timm cannot be imported: then there is no telling
        with suppress(EnvironmentProblem):
            state = state_of(row.name)
            if any(
                fit.whole
                for fit in fits(found, MAPS[row.kind], partial(_as_they_are, state), names=state)
            ):
                rows.append(row)
    return None, rows


class _Every:
    """Contains every name."""

    def __contains__(self, _name: object) -> bool:
        return True


def _as_they_are(state: Mapping[str, Tensor], _outlines: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A backbone's tensors, of which no size follows from the file."""
    return dict(state)
