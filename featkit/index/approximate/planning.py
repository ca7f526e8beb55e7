"""Choose how an index is searched, from its size and the memory that searches may keep.

Pure arithmetic; what it promises is measured when the codes are built. Bytes are those that a
process keeps: the vectors themselves are read from the disk through memory that the system takes
back when it is short.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rich.filesize import decimal

from featkit.errors import InputError
from featkit.index.approximate.codes import (
    COARSE_GRAPH,
    FINE_GRAPH,
    KINDS,
    LISTS,
    ROWS_PER_ADD,
    Kind,
    num_lists,
    num_trained_on,
)
from featkit.index.records import Value
from featkit.resources import usable_cpus
from featkit.wording import counted, duration

PROMISE = "search_promise"  # the setting
EXACT_BELOW = 50_000  # images
# The ids of the rows, and the marks of those that a graph's walk has visited.
BYTES_PER_ROW = 8 + 1
# Codes find candidates; the best of any number of them is not the best of all.
EXACT_RECALL = 1.0
# If so much of an index changes every day, building costs more than scanning saves.
MOST_CHANGE_A_DAY = 0.5
# Codes are built again when so much of the images is new or gone.
REBUILD_SHARE = 0.2
# Measured with one thread of an EPYC at width 384 (results/large_index_1000000.json): seconds to
# scan a vector, to add one to a graph of n vectors (times log2 n), and to add one to lists.
SCAN_S, GRAPH_ADD_S, LIST_ADD_S = 76e-9, 17e-6, 134e-6
SEARCH_S = {FINE_GRAPH: 0.55e-3, COARSE_GRAPH: 0.64e-3, LISTS: 4.4e-3}  # among a million
WIDTH, MANY = 384, 1_000_000


@dataclass(frozen=True, kw_only=True)
class SearchPlan:
    """How an index is searched, and what that costs.

    kind: the codes to build; None scans all vectors. num_bytes: kept in memory by each process that
    searches. disk_bytes: of the vectors and codes. build_seconds, build_bytes: of `compact`.
    search_ms: of one query. reasons: sentences.
    """

    kind: Kind | None
    num_items: int
    num_bytes: int
    disk_bytes: int
    build_seconds: float
    build_bytes: int
    search_ms: float
    reasons: tuple[str, ...]

    def in_words(self) -> str:
        """Return the plan as a few lines."""
        how = "exact search" if self.kind is None else f"search by {self.kind.about}"
        build = (
            ""
            if self.kind is None
            else f", built in about {duration(self.build_seconds)} within"
            f" {decimal(self.build_bytes)}"
        )
        lines = [
            f"{counted(self.num_items, 'image')}: {how}, about {self.search_ms:.1f} ms a query,"
            f" {decimal(self.num_bytes)} of memory, {decimal(self.disk_bytes)} of disk{build}.",
            *self.reasons,
        ]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Promise:
    """The memory in bytes that searches may keep, None for any, and the recall@10 they reach."""

    memory: int | None = None
    recall: float = 0.95

    @classmethod
    def of(cls, settings: Mapping[str, Value]) -> Promise | None:
        """Return the promise among the settings of an index, if it was given one."""
        text = settings.get(PROMISE)
        if text is None:
            return None
        values = json.loads(str(text))  # a later version may have added others
        return cls(memory=values["memory"], recall=values["recall"])

    def to_json(self) -> str:
        """Return it as the text of a setting."""
        return json.dumps(asdict(self))

    def plan(self, num_items: int, width: int) -> SearchPlan:
        """Return how an index of this size keeps the promise. InputError if it cannot."""
        return plan_search(
            num_items, width, memory=self.memory, recall=self.recall, processors=usable_cpus()
        )

    def spare_bytes(self, num_items: int, width: int) -> int | None:
        """Return how many bytes of vectors a process may keep besides codes; None for any."""
        if self.memory is None:
            return None
        if num_items < EXACT_BELOW:
            return self.memory
        sizes = [codes_bytes(kind, num_items, width) for kind in KINDS.values()]
        return self.memory - max((size for size in sizes if size <= self.memory), default=0)


def codes_bytes(kind: Kind, num_items: int, width: int) -> int:
    """Return about how many bytes a process keeps to search by these codes."""
    fixed = 4 * width * width if kind is COARSE_GRAPH else 0
    if kind is LISTS:
        fixed = 4 * width * (num_lists(num_items) + 16)
    return num_items * (kind.bytes_per_row(width) + BYTES_PER_ROW) + fixed


def plan_search(
    num_items: int,
    width: int,
    *,
    memory: int | None = None,
    recall: float = 0.95,
    change_a_day: float = 0.0,
    processors: int = 1,
) -> SearchPlan:
    """Choose how to search `num_items` vectors of a width.

    memory: bytes that a process which searches may keep; None means as many as are useful. recall:
    the share of the ten nearest that searches must find. change_a_day: share of the images that is
    added or removed every day. processors: that build.

    InputError if nothing fits in this memory, naming what would.
    """
    if not 0 < recall <= 1:
        raise InputError(f"The recall is {recall:g}; it must be above 0 and at most 1.")
    raw = 4 * num_items * width
    scan_ms = 1000 * SCAN_S * num_items * width / WIDTH
    reasons: list[str] = []
    if num_items < EXACT_BELOW:
        reasons.append(f"Below {EXACT_BELOW:,} images a scan of all vectors is fast enough.")
    elif recall >= EXACT_RECALL:
        reasons.append("Only exact search always finds all of the nearest.")
        if memory is not None and memory < raw:
            raise InputError(
                f"A recall of 1 needs exact search, whose {decimal(raw)} of vectors do not fit in"
                f" --memory {decimal(memory)}; ask for less, such as --recall 0.99."
            )
    elif change_a_day > MOST_CHANGE_A_DAY and (memory is None or raw <= memory):
        reasons.append(
            f"{change_a_day:.0%} of the images change every day, so codes would be built for"
            " nothing."
        )
    else:
        return _approximate(num_items, width, memory, change_a_day, processors, scan_ms)
    return SearchPlan(
        kind=None,
        num_items=num_items,
        num_bytes=num_items,
        disk_bytes=raw,
        build_seconds=0.0,
        build_bytes=0,
        search_ms=scan_ms,
        reasons=tuple(reasons),
    )


def _approximate(
    num_items: int,
    width: int,
    memory: int | None,
    change_a_day: float,
    processors: int,
    scan_ms: float,
) -> SearchPlan:
    """Choose the finest codes that fit. Finer ones need fewer of the vectors themselves."""
    raw = 4 * num_items * width
    sizes = {kind: codes_bytes(kind, num_items, width) for kind in KINDS.values()}
    fitting = [kind for kind in sizes if memory is None or sizes[kind] <= memory]
    if not fitting:
        least = min(sizes, key=lambda kind: sizes[kind])
        assert memory is not None
        raise InputError(
            f"{counted(num_items, 'vector')} of width {width} need at least"
            f" {decimal(sizes[least])} of memory ({least.about}), and --memory is"
            f" {decimal(memory)}. Allow more, or use a model with shorter vectors (`featkit"
            " export --whiten-on`)."
        )
    kind = fitting[0]
    reasons = [
        f"A scan of all vectors would take about {scan_ms:.0f} ms a query.",
        f"The memory of {kind.about} is {sizes[kind] / raw:.0%} of the vectors' {decimal(raw)}.",
    ]
    for finer in list(sizes)[: list(sizes).index(kind)]:
        reasons.append(
            f"{finer.about.capitalize()} would take {decimal(sizes[finer])}, more than --memory"
            " allows."
        )
    if change_a_day:
        reasons.append(
            "Images that are added later are scanned until codes are built again, which is due"
            f" about every {max(1, round(REBUILD_SHARE / change_a_day)):,} days."
        )
    # A graph's walk grows with the logarithm of the vectors, the lists and their lengths with the
    # square root.
    steps, longer = math.log2(max(2, num_items)), math.sqrt(num_items / MANY)
    seconds = LIST_ADD_S * longer if kind is LISTS else GRAPH_ADD_S * steps
    growth = longer if kind is LISTS else steps / math.log2(MANY)
    codes = num_items * kind.bytes_per_row(width)
    built_on = codes if kind is LISTS else num_items * FINE_GRAPH.bytes_per_row(width)
    trained_on = max(num_trained_on(kind, num_items), min(ROWS_PER_ADD, num_items))
    return SearchPlan(
        kind=kind,
        num_items=num_items,
        num_bytes=sizes[kind],
        disk_bytes=raw + codes,
        build_seconds=num_items * seconds * width / WIDTH / processors,
        build_bytes=built_on + 3 * 4 * width * trained_on,
        search_ms=1000 * SEARCH_S[kind] * growth * max(1.0, width / WIDTH),
        reasons=tuple(reasons),
    )
