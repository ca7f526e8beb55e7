"""Groups of duplicates, and which image of each to keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from featkit.duplicates.judging import Level, Pair
from featkit.index import Item

CLEARLY_LESS = 0.8  # of the sharpness of the sharpest


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
    sharpness: Callable[[Item], float] | None = None,
) -> list[Group]:
    """Return groups in which every pair is among `pairs`, those of the same bytes first.

    Of images with the same bytes, one that is paired with each other stands for all. An image is
    in one group at most. 200 frames that are each like the next are not one group: a group grows by
    an image only if that is a duplicate of all that are in it.

    distinct: pairs of keys that a user said are not duplicates; images with the same bytes as one
    of the two are not duplicates of the other either. protected: folders whose images are kept
    before all others. sharpness: returns that of an item, which is compared if sizes are equal.
    """
    pairs = [pair for pair in pairs if pair.first in items and pair.second in items]
    standing = _standing([pair for pair in pairs if pair.level == Level.SAME])
    ids = {item.key: item_id for item_id, item in items.items()}
    apart: set[frozenset[int]] = set()
    left_out: set[int] = set()
    for keys in distinct:
        named = sorted(ids[key] for key in keys if key in ids)
        apart.add(frozenset(standing.get(each, each) for each in named))
        if len(named) == 2 and len({standing.get(each, each) for each in named}) == 1:
            left_out.add(named[1])  # the same bytes, but to be kept as well
    near: dict[int, dict[int, Pair]] = defaultdict(dict)
    for pair in pairs:
        first = standing.get(pair.first, pair.first)
        second = standing.get(pair.second, pair.second)
        if first != second and frozenset((first, second)) not in apart:
            near[first][second] = near[second][first] = pair
    copies: dict[int, list[int]] = defaultdict(list)
    for item_id, first in standing.items():
        if item_id not in left_out:
            copies[first].append(item_id)
            near[first]  # even if nothing else is near
    # The nearest first, so that copies of one image come together before looser ones.
    strength = {
        item: (
            Level.SAME if copies[item] else min(pair.level for pair in others.values()),
            -len(others),
            item,
        )
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
        if len(members) > 1 or copies[seed]:
            free -= {*members}
            groups.append(_group(members, near, copies, items, protected, sharpness))
    return sorted(groups, key=lambda group: (group.level, -len(group.items), group.items[0].key))


def _group(
    members: Sequence[int],
    near: Mapping[int, Mapping[int, Pair]],
    copies: Mapping[int, Sequence[int]],
    items: Mapping[int, Item],
    protected: Sequence[str],
    sharpness: Callable[[Item], float] | None,
) -> Group:
    pairs = [near[first][second] for i, first in enumerate(members) for second in members[i + 1 :]]
    everyone = [items[each] for member in members for each in (member, *copies[member])]
    blurred = _blurred(everyone, protected, sharpness) if pairs and sharpness else frozenset()
    ordered = sorted(everyone, key=lambda item: _rank(item, protected, blurred))
    return Group(
        level=max((pair.level for pair in pairs), default=Level.SAME),
        score=min((pair.score for pair in pairs), default=1.0),
        items=tuple(ordered),
        reason=_reason(ordered, protected, blurred),
    )


def _standing(same: Iterable[Pair]) -> dict[int, int]:
    """Return, for items with the same bytes as others, the first of these, which stands for all."""
    standing: dict[int, int] = {}

    def first_of(item: int) -> int:
        while item in standing:
            item = standing[item]
        return item

    for pair in same:
        first, second = sorted((first_of(pair.first), first_of(pair.second)))
        if first != second:
            standing[second] = first
    return {item: first_of(item) for item in standing}


def _is_protected(item: Item, protected: Sequence[str]) -> bool:
    return any(
        item.key == folder or item.key.startswith(folder.rstrip("/") + "/") for folder in protected
    )


def _pixels(item: Item) -> int:
    return (item.width or 0) * (item.height or 0)


def _time(item: Item) -> str:
    """Return when an image was taken, or came into the index; later than all times if unknown."""
    return str(item.metadata.get("taken") or item.added or "~")


def _blurred(
    items: Sequence[Item], protected: Sequence[str], sharpness: Callable[[Item], float]
) -> frozenset[int]:
    """Return the ids of those that are clearly less sharp than the sharpest, of the items that
    would be kept by their folder and size."""
    best = min(_rank(item, protected, frozenset())[:2] for item in items)
    first = [item for item in items if _rank(item, protected, frozenset())[:2] == best]
    if len(first) == 1:
        return frozenset()
    values = {item.id: sharpness(item) for item in first}
    least = CLEARLY_LESS * max(values.values())
    return frozenset(item_id for item_id, value in values.items() if value < least)


def _rank(
    item: Item, protected: Sequence[str], blurred: frozenset[int]
) -> tuple[bool, int, bool, str, int, str]:
    """Return what is kept first: a protected folder, more pixels, the sharpest, the oldest, the
    shortest key."""
    return (
        not _is_protected(item, protected),
        -_pixels(item),
        item.id in blurred,
        _time(item),
        len(item.key),
        item.key,
    )


def _reason(ordered: Sequence[Item], protected: Sequence[str], blurred: frozenset[int]) -> str:
    """Return in what the first item differs from the second."""
    first, second = ordered[0], ordered[1]
    if _is_protected(first, protected) and not _is_protected(second, protected):
        return "in a protected folder"
    if _pixels(first) != _pixels(second):
        return f"largest, {first.width}×{first.height}"
    if second.id in blurred:
        return "sharpest"
    if _time(first) != _time(second):
        return f"oldest, {_time(first)[:10]}"
    return "shortest name"
