"""Compare two recordings: what changed, what is only renamed, what is missing."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

SHOWN_CHARACTERS = 90
Recording = Mapping[str, Any]


class Difference(NamedTuple):
    """One value that two recordings do not share. kind: results or metadata."""

    kind: str
    section: str
    words: str


def differences(before: Recording, after: Recording) -> list[Difference]:
    """Return every difference between the parts that both recordings have."""
    found = []
    for kind in ("results", "metadata"):
        for section in _sections(before, after, kind):
            ours, theirs = (each[kind].get(section, {}) for each in (before, after))
            found += [Difference(kind, section, words) for words in _differences(ours, theirs)]
    return found


def report(before: Recording, after: Recording) -> tuple[str, bool]:
    """Return a line for each command, then every difference, and whether there is none."""
    found = differences(before, after)
    lines = list(_notes(before, after))
    groups: dict[str, list[str]] = {}
    for section in _sections(before, after, "results"):
        groups.setdefault(_group(section), []).append(section)
    width = max(map(len, groups), default=0)
    for group, sections in groups.items():
        count = sum(len(before["results"].get(section, {})) for section in sections)
        told = [
            f"{number} of {kind} differ"
            for kind in ("results", "metadata")
            if (number := sum(d.kind == kind and _group(d.section) == group for d in found))
        ]
        lines.append(f"{group:{width}}  {count:5,} values  {', '.join(told) or 'same'}")
    for kind in ("results", "metadata"):
        told = list(_lines([item for item in found if item.kind == kind]))
        lines += [f"\nDifferences in {kind}:" if told else f"\nAll {kind} are the same.", *told]
    return "\n".join(lines) + "\n", not found


def _lines(found: Iterable[Difference]) -> Iterator[str]:
    """Yield a line for each difference, one line if several files share it."""
    sections: dict[str, list[str]] = {}
    for item in found:
        sections.setdefault(item.words, []).append(item.section)
    for words, (first, *more) in sections.items():
        others = f" (and in {len(more)} more)" if more else ""
        yield f"  {first}{others}: {words}"


def _sections(before: Recording, after: Recording, kind: str) -> list[str]:
    parts = set(before["about"]["parts"]) & set(after["about"]["parts"])
    names = dict.fromkeys([*before[kind], *after[kind]])
    return [name for name in names if name.split("/")[0] in parts]


def _group(section: str) -> str:
    return "/".join(section.split("/")[:2])


def _notes(before: Recording, after: Recording) -> Iterator[str]:
    ours, theirs = before["about"], after["about"]
    yield f"{ours['commit']} and {theirs['commit']}"
    for part in sorted(set(ours["parts"]) ^ set(theirs["parts"])):
        yield f"Not compared: {part}, which only one of them has."
    for name, value in ours["environment"].items():
        if theirs["environment"].get(name) != value:
            yield f"Not the same {name}: {value} and {theirs['environment'].get(name)}."


def _differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name, value in before.items():
        if name in after and after[name] != value:
            yield f"{name} changed: {_change(value, after[name])}"
    gone = {name: value for name, value in before.items() if name not in after}
    new = {name: value for name, value in after.items() if name not in before}
    for old, name in _renamed(gone, new):
        yield f"{old} is now {name}, with the same value"
        del gone[old], new[name]
    for name, value in gone.items():
        yield f"{name} is gone: {_short(value)}"
    for name, value in new.items():
        yield f"{name} is new: {_short(value)}"


def _renamed(gone: Mapping[str, Any], new: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pair names of equal values, the most similar names first."""
    pairs = [
        (difflib.SequenceMatcher(None, old, name).ratio(), old, name)
        for old, value in gone.items()
        for name, other in new.items()
        if type(value) is type(other) and value == other
    ]
    chosen: dict[str, str] = {}
    for _, old, name in sorted(pairs, reverse=True):
        if old not in chosen and name not in chosen.values():
            chosen[old] = name
    return [(old, chosen[old]) for old in gone if old in chosen]


def _change(before: Any, after: Any) -> str:
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        places = [i for i in range(len(before)) if before[i] != after[i]]
        first = places[0]
        rest = f", and {len(places) - 1} more of {len(before)}" if places[1:] else ""
        return f"{_short(before[first])} → {_short(after[first])}{rest}"
    if isinstance(before, str) and isinstance(after, str):
        pairs = enumerate(zip(before, after, strict=False))
        shared = next((i for i, (a, b) in pairs if a != b), min(len(before), len(after)))
        if shared > SHOWN_CHARACTERS // 2:  # begin shortly before the first difference
            before, after = ("…" + text[shared - 20 :] for text in (before, after))
    return f"{_short(before)} → {_short(after)}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"
