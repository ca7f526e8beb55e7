"""Rename the tensors of a published file by a key map, and join those that it stores in parts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from featkit.errors import InputError
from featkit_train.published.key_maps import POSITIONS, KeyMap

SHOWN_NAMES = 4


def rename(tensors: Mapping[str, Tensor], keys: KeyMap, *, what: str) -> dict[str, Tensor]:
    """Return the tensors under featkit's names. what: the file, for messages.

    A query or value bias without a key bias (DINOv3 has none) is joined with zeros for the keys.
    InputError for names that no rule knows, for a tensor stored twice, and for a missing part.
    """
    renamed: dict[str, Tensor] = {}
    parts: dict[str, dict[int, Tensor]] = {}
    num_parts: dict[str, int] = {}
    sources: dict[str, str] = {}
    unknown = []
    for name, tensor in tensors.items():
        try:
            target = keys.ours(name)
        except KeyError:
            unknown.append(name)
            continue
        if target is None:
            continue
        if target in sources:
            raise InputError(f"{what} has {target} twice, as {sources[target]} and as {name}.")
        sources[target] = name
        part = re.fullmatch(r"(.*)\[(\d)/(\d)\]", target)
        if part:
            parts.setdefault(part[1], {})[int(part[2])] = tensor
            num_parts[part[1]] = int(part[3])
        elif target == POSITIONS:
            renamed.update(_split_positions(tensor, name, what))
        else:
            renamed[target] = tensor
    if unknown:
        raise InputError(f"{what} has weights that this model does not have: {listed(unknown)}.")
    for target, indexed in parts.items():
        renamed[target] = _join(target, indexed, num_parts[target], what)
    return renamed


def listed(names: list[str]) -> str:
    """Return the first few names, and how many more there are."""
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return ", ".join(names[:SHOWN_NAMES]) + more


def _join(target: str, parts: dict[int, Tensor], num_parts: int, what: str) -> Tensor:
    if set(parts) == {0, 2} and target.endswith("qkv.bias"):
        parts = {**parts, 1: torch.zeros_like(parts[0])}
    if set(parts) != set(range(num_parts)):
        raise InputError(f"{what} has only {len(parts)} of the {num_parts} parts of {target}.")
    ordered = [parts[index] for index in range(num_parts)]
    shapes = [tuple(part.shape) for part in ordered]
    if () in shapes or len({shape[1:] for shape in shapes}) > 1:
        raise InputError(
            f"{what} has parts of {target} that do not fit together: their shapes are"
            f" {', '.join(map(str, shapes))}."
        )
    return torch.cat(ordered)


def _split_positions(table: Tensor, name: str, what: str) -> dict[str, Tensor]:
    """Split a table (1, 1 + G * G, D) into the class token's row and the patches' (G, G, D).

    Some timm files have no row for the class token; its position is then zero.
    """
    length = table.shape[1] if table.ndim == 3 and table.shape[0] == 1 else 0
    for num_class_rows in (1, 0):
        side = math.isqrt(max(0, length - num_class_rows))
        if side and side * side == length - num_class_rows:
            first_row = table[:, :1]  # (1, 1, D)
            return {
                "class_position": first_row if num_class_rows else torch.zeros_like(first_row),
                "patch_positions": table[0, num_class_rows:].unflatten(
                    0, (side, side)
                ),  # (G, G, D)
            }
    raise InputError(
        f"{what} has {name} of shape {tuple(table.shape)}, which is not a table of a square grid"
        " of positions."
    )
