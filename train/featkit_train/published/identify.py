"""Find out which published backbone a file fits, and explain why it does not fit another."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from torch import Tensor

from featkit.errors import EnvironmentProblem, InputError
from featkit_train.published.anatomy import (
    Anatomy,
    anatomy_of,
    anatomy_of_row,
    nearest_row,
    rows_like,
)
from featkit_train.published.building import state_of
from featkit_train.published.fitting import MIN_SHARE, Fit, beginnings, fits
from featkit_train.published.renaming import listed
from featkit_train.published.weight_files import Weights, read_weights
from featkit_train.published.zoo import PUBLISHED, Published, key_maps_of


def misfit(file: Weights, tried: Sequence[Fit], row: Published | str) -> str:
    """Explain why a file does not fit a model: both shapes, and which model it does fit.

    tried: all candidates. row: the model, or a name for one that is not in the zoo.
    """
    name = row if isinstance(row, str) else row.name
    if file.sharded:
        return (
            f"{file.file} holds one process's share of weights that FSDP sharded"
            f" ({listed(list(file.sharded))}). Save a full state dict where it was trained, or use"
            " the teacher_checkpoint.pth of the training's evaluation."
        )
    best = max(tried, key=lambda fit: fit.num_matching, default=None)
    suggestion = _suggestion(file, name)
    if best is None or (
        best.num_matching < MIN_SHARE * best.num_wanted and "class_token" not in best.outlines
    ):
        return (
            f"{file.file} does not hold weights of {name}: its names begin with"
            f" {beginnings(file)}.{suggestion}"
        )
    under = f" under {best.place.rstrip('.')}" if best.place else ""
    sizes = _differing_sizes(best, row)
    return f"{file.file} does not fit {name}{under}: {sizes}{best.mismatches()}.{suggestion}"


def _differing_sizes(fit: Fit, row: Published | str) -> str:
    """Return a clause on the sizes in which a file differs from a published ViT; "" if in none."""
    theirs = anatomy_of(fit.outlines)
    if theirs is None or isinstance(row, str) or row.kind != "vit":
        return ""
    ours = anatomy_of_row(row)
    differs = theirs.differs(ours)
    if not differs:
        return ""
    return f"it has {theirs.words(only=differs)}, and {row.name} has {ours.words(only=differs)}; "


def _suggestion(file: Weights, asked: str) -> str:
    """Return a sentence that names the models a file fits, or the nearest one; "" if unknown."""
    anatomy, rows = identify(file)
    names = [row.name for row in rows if row.name != asked]
    if names:
        return f" It fits {' or '.join(names)}: use that name."
    if anatomy is None:
        return ""
    nearest = nearest_row(anatomy)
    ours = anatomy_of_row(nearest)
    differs = anatomy.differs(ours)
    if nearest.name == asked or not differs:
        return ""
    return f" The nearest published model is {nearest.name}, with {ours.words(only=differs)}."


def nameless_advice(path: Path) -> str:
    """Return a sentence with the command for a file of weights that names no model.

    "" if the file fits no published model.
    """
    rows: list[Published] = []
    with suppress(InputError):  # reading it as a named model's weights reports what is wrong
        _, rows = identify(read_weights(path))
    if not rows:
        return ""
    names = " or ".join(row.name for row in rows)
    return f" Its shapes fit {names}: featkit export {rows[0].name} --weights {path} --out m.onnx."


def identify(file: Weights) -> tuple[Anatomy | None, list[Published]]:
    """Return the sizes of the ViT in a file, if it has one, and the published models it fits."""
    fit = _most_of_a_vit(file)
    if fit is not None:
        anatomy = anatomy_of(fit.outlines)
        if anatomy is not None or "class_token" in fit.outlines:
            return anatomy, rows_like(anatomy) if anatomy else []
    others = [row for row in PUBLISHED.values() if row.kind != "vit"]
    return None, [row for row in others if _fits_exactly(file, row)]


def _most_of_a_vit(file: Weights) -> Fit | None:
    tried = fits(file, key_maps_of("vit"), dict, names=_EveryName())
    readable = [fit for fit in tried if not fit.problem]
    best = max(readable, key=lambda fit: len(fit.outlines), default=None)
    # Many networks have a lone `norm.weight`.
    return best if best is not None and len(best.outlines) >= 2 else None


def _fits_exactly(file: Weights, row: Published) -> bool:
    # Without torchvision or timm, their networks cannot be compared.
    with suppress(EnvironmentProblem):
        state = state_of(row.name)
        tried = fits(file, row.key_maps, partial(_unchanged, state), names=state)
        return any(fit.whole for fit in tried)
    return False


class _EveryName(Container[str]):
    def __contains__(self, _name: object) -> bool:
        return True


def _unchanged(state: Mapping[str, Tensor], _outlines: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a backbone's tensors as they are: none of their sizes follow from the file."""
    return dict(state)
