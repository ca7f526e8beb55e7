"""Check that an index holds what it promises.

the catalogue       SQLite's own check of its pages
the vectors         every one against its checksum, and its length
the thumbnails      of a sample: each can be decoded, and its vector is nearer to the item's own
                    than to those of the others
codes               their files belong to the catalogue, and sampled items find themselves
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from featkit.errors import EnvironmentProblem, FeatkitError, InputError
from featkit.images import decode
from featkit.index.approximate.generation import (
    FOLDER,
    SETTING,
    Generation,
    OpenGeneration,
    checksum,
    codes_path,
)
from featkit.index.arguments import UNIT_TOLERANCE
from featkit.index.index import Index
from featkit.index.records import Item
from featkit.index.state import IndexState
from featkit.index.vectors import checksums

ROWS_AT_ONCE = 8192
NUM_SAMPLED = 100
SHOWN_KEYS = 20
# A thumbnail is smaller than the image and compressed, so its vector is not exactly the item's.
# A thumbnail is strange if another item's vector is nearer by this share of the usual distance.
CLEARLY_NEARER = 0.5
FEWEST_FOUND = 0.9  # share of sampled items that find themselves by codes

RESTORE = "restore the index from a copy, or make it again"
VECTORS, THUMBNAILS, CODES, CATALOGUE = "vectors", "thumbnails", "codes", "catalogue"


@dataclass(frozen=True)
class Problem:
    """A part of an index that is not as it should be: what is wrong, what to do, and the keys of
    the first images concerned with their number.
    """

    part: str
    wrong: str
    remedy: str
    keys: tuple[str, ...] = ()
    num_keys: int = 0

    @property
    def sentence(self) -> str:
        """The problem for people."""
        return f"{self.wrong}; {self.remedy}."


@dataclass
class CheckReport:
    """The result of a check. damaged: the keys of all items with a damaged vector."""

    num_items: int = 0
    num_sampled: int = 0
    problems: list[Problem] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


def check(
    index: Index,
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _failed: None,
) -> CheckReport:
    """Check one committed state of an index. Nothing is changed.

    on_progress: called with the number of vectors checked and of damaged ones.
    """
    report = CheckReport()
    index.read(lambda state: _check_tables(state, report, on_progress))
    try:
        _check_thumbnails(index, report)
    except InputError as error:
        report.problems.append(Problem(CATALOGUE, _first_part(error), RESTORE))
    _check_codes(index, report)
    return report


def _check_tables(
    state: IndexState, report: CheckReport, on_progress: Callable[[int, int], None]
) -> None:
    if (found := state.catalogue.quick_check()) is not None:
        report.problems.append(
            Problem(
                CATALOGUE,
                f"catalogue.sqlite is damaged ({' '.join(found.split())})",
                RESTORE,
            )
        )
    ids = state.ids()
    report.num_items = len(ids)
    if (num_live := state.catalogue.num_live()) != len(ids):
        wrong = f"the catalogue has {num_live:,} images, but {len(ids):,} of them have a vector"
        report.problems.append(Problem(CATALOGUE, wrong, RESTORE))
    for done, damaged in _damaged(state, ids):
        report.damaged += [item.key for item in state.catalogue.items_by_id(damaged).values()]
        on_progress(done, len(report.damaged))
    if report.damaged:
        report.problems.append(
            Problem(
                VECTORS,
                f"{len(report.damaged):,} vectors differ from what was written",
                "run `featkit repair`, with --from and their embeddings or images if you have them",
                tuple(report.damaged[:SHOWN_KEYS]),
                len(report.damaged),
            )
        )


def _damaged(state: IndexState, ids: np.ndarray) -> Iterator[tuple[int, list[int]]]:
    """Yield how many vectors have been checked, and the ids of damaged ones among the last."""
    has_checksums = state.catalogue.has_checksums()
    for start in range(0, len(ids), ROWS_AT_ONCE):
        part = ids[start : start + ROWS_AT_ONCE]
        vectors = state.vectors.rows.take(part)
        with np.errstate(invalid="ignore", over="ignore"):
            lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))
        is_bad = ~(np.abs(lengths - 1) <= UNIT_TOLERANCE)
        if has_checksums:
            committed = state.catalogue.checksums(part.tolist())
            computed = checksums(vectors)
            is_bad |= [
                committed.get(item_id, checksum) != checksum
                for item_id, checksum in zip(part.tolist(), computed, strict=True)
            ]
        yield start + len(part), part[is_bad].tolist()


def _check_thumbnails(index: Index, report: CheckReport) -> None:
    """Check that sampled thumbnails can be decoded and belong to their vectors."""
    damaged = {*report.damaged}

    def read(state: IndexState) -> list[tuple[Item, bytes | None, np.ndarray]]:
        return [
            (item, state.thumbnail(item.id), state.vector(item.id))
            for item in state.sample(NUM_SAMPLED)
            if item.key not in damaged
        ]

    sample = index.read(read)
    shown: list[Item] = []
    vectors: list[np.ndarray] = []
    pixels: list[np.ndarray] = []
    undecoded: list[str] = []
    for item, jpeg, vector in sample:
        if jpeg is None:
            continue
        try:
            pixels.append(decode(jpeg, name=item.key).pixels)
            shown.append(item)
            vectors.append(vector)
        except InputError:
            undecoded.append(item.key)
    report.num_sampled = len(shown)
    if undecoded:
        report.problems.append(
            Problem(
                THUMBNAILS,
                f"{len(undecoded)} of {len(sample)} sampled thumbnails cannot be decoded",
                RESTORE,
                tuple(undecoded[:SHOWN_KEYS]),
                len(undecoded),
            )
        )
    if len(shown) < 2:
        return
    try:
        views = index.embedder.embed(pixels)
    except EnvironmentProblem:  # the index's engine is not installed here
        report.num_sampled = 0
        return
    scores = views @ np.stack(vectors).T
    others = scores.copy()
    np.fill_diagonal(others, -np.inf)
    usual = float(np.median(others[np.isfinite(others)]))
    margin = CLEARLY_NEARER * (1 - usual)
    strange = np.flatnonzero(others.max(axis=1) > np.diag(scores) + margin)
    if len(strange):
        keys = tuple(shown[i].key for i in strange)
        report.problems.append(
            Problem(
                THUMBNAILS,
                f"{len(keys)} of {len(shown)} sampled thumbnails do not belong to their vectors",
                "make the index again",
                keys[:SHOWN_KEYS],
                len(keys),
            )
        )


def _check_codes(index: Index, report: CheckReport) -> None:
    text = index.read(lambda state: state.catalogue.settings().get(SETTING))
    if text is None:
        return
    remedy = "run `featkit repair`, or `featkit compact`"
    try:
        record = Generation.from_json(str(text))
        OpenGeneration(index.path, record)
        if checksum(codes_path(index.path, record.name)) != record.crc32:
            raise InputError(f"{index.path / FOLDER} is damaged.")
    except InputError as error:
        report.problems.append(Problem(CODES, _first_part(error), remedy))
        return
    damaged = {*report.damaged}

    def find(state: IndexState) -> list[bool]:
        sample = [item for item in state.sample(NUM_SAMPLED) if item.key not in damaged]
        return [state.search(item=item.id, k=1)[0].score > 1 - 1e-3 for item in sample]

    try:
        found = index.read(find)
    except FeatkitError as error:
        report.problems.append(Problem(CODES, _first_part(error), remedy))
        return
    if found and np.mean(found) < FEWEST_FOUND:
        wrong = f"only {sum(found)} of {len(found)} sampled images find themselves by codes"
        report.problems.append(Problem(CODES, wrong, remedy))


def _first_part(error: FeatkitError) -> str:
    """Return what an error says is wrong, without what to do."""
    return str(error).partition(";")[0].rstrip(".")
