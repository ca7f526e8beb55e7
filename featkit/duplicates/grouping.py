"""Groups of duplicates, and which image of each to keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from featkit.duplicates.finding import Level, Pair
from featkit.index import Item


@dataclass(frozen=True)
class Group:
    """Items that are duplicates of each other; keeping the first one is proposed.

    level: that of the least alike pair. score: its least cosine similarity. reason: why the first
    one is kept, in words.
    """

    level: Level
    score: float
    items: tuple[Item, ...]
    reason: str


def group_pairs(
    pairs: Iterable[Pair],
    items: Mapping[int, Item],
    *,
    distinct: frozenset[frozenset[str]] = frozenset(),
    protected: Sequence[str] = (),
) -> list[Group]:
    """Return groups in which every pair is among `pairs`, the largest first.

    An image is in one group at most. 200 frames that are each like the next are not one group: a
    group grows by an image only if that is a duplicate of all that are in it.

    distinct: pairs of keys that a user said are not duplicates. protected: folders whose images
    are kept before all others.
    """
    near: dict[int, dict[int, Pair]] = defaultdict(dict)
    for pair in pairs:
        known = pair.first in items and pair.second in items
        if known and frozenset((items[pair.first].key, items[pair.second].key)) not in distinct:
            near[pair.first][pair.second] = near[pair.second][pair.first] = pair
    # The nearest first, so that copies of one image come together before looser ones.
    strength = {
        item: (min(pair.level for pair in others.values()), -len(others), item)
        for item, others in near.items()
    }
    groups: list[Group] = []
    free = set(near)
    for seed in sorted(near, key=lambda item: strength[item]):
        if seed not in free:
            continue
        members = [seed]
        candidates = sorted(
            (pair.level, -pair.score, other) for other, pair in near[seed].items() if other in free
        )
        for _, _, other in candidates:
            if all(other in near[member] for member in members):
                members.append(other)
        if len(members) > 1:
            free -= {*members}
            groups.append(_group(members, near, items, protected))
    return sorted(groups, key=lambda group: (group.level, -len(group.items), group.items[0].key))


def _group(
    members: Sequence[int],
    near: Mapping[int, Mapping[int, Pair]],
    items: Mapping[int, Item],
    protected: Sequence[str],
) -> Group:
    pairs = [near[first][second] for i, first in enumerate(members) for second in members[i + 1 :]]
    ordered = sorted((items[member] for member in members), key=lambda item: _rank(item, protected))
    return Group(
        level=max(pair.level for pair in pairs),
        score=min(pair.score for pair in pairs),
        items=tuple(ordered),
        reason=_reason(ordered, protected),
    )


def _is_protected(item: Item, protected: Sequence[str]) -> bool:
    return any(
        item.key == folder or item.key.startswith(folder.rstrip("/") + "/") for folder in protected
    )


def _pixels(item: Item) -> int:
    return (item.width or 0) * (item.height or 0)


def _time(item: Item) -> str:
    """Return when an image was taken, or came into the index; later than all times if unknown."""
    return str(item.metadata.get("taken") or item.added or "~")


def _rank(item: Item, protected: Sequence[str]) -> tuple[bool, int, str, int, str]:
    """Return what is kept first: a protected folder, more pixels, the oldest, the shortest key."""
    return (
        not _is_protected(item, protected),
        -_pixels(item),
        _time(item),
        len(item.key),
        item.key,
    )


def _reason(ordered: Sequence[Item], protected: Sequence[str]) -> str:
    """Return in what the first item differs from the second."""
    first, second = ordered[0], ordered[1]
    if _is_protected(first, protected) and not _is_protected(second, protected):
        return "in a protected folder"
    if _pixels(first) != _pixels(second):
        return f"largest, {first.width}×{first.height}"
    if _time(first) != _time(second):
        return f"oldest, {_time(first)[:10]}"
    return "shortest name"
